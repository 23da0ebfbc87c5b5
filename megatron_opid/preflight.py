"""What is checked before any rank starts: every fault of values, games, model, checkpoint, demonstrations, endpoint.

Each function returns all faults, each with the value and what to set; an empty list means that the run can start.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from megatron_opid.config import Config, ConfigError, resolve_model, value_faults
from megatron_opid.engines import engine_faults
from megatron_opid.servers import local_world_size
from megatron_opid.wandb_login import login_faults

# fp32 in host memory of a parameter whose optimizer state is offloaded: the weight, its gradient, Adam's two moments.
OFFLOADED_BYTES_PER_PARAMETER = 16


def training_faults(config: Config, world_size: int) -> list[str]:
    """Why training cannot start."""
    return [
        *files_and_layout_faults(config, world_size),
        *device_faults(config, world_size),
        *host_memory_faults(config, world_size),
        *engine_faults(config, world_size),
        *analyzer_faults(config, ask=True),
    ]


def files_and_layout_faults(config: Config, world_size: int) -> list[str]:
    """Why training could not start on any machine with these files; what a Slurm log-in node can check."""
    splits = (config.env.train_split, config.env.validation_split)
    return [
        *value_faults(config),
        *_environment_faults(config, splits),
        *_model_faults(config),
        *_layout_faults(config, world_size),
        *_run_faults(config, "train"),
    ]


def sft_faults(config: Config, world_size: int) -> list[str]:
    """Why the cold start cannot start."""
    return [
        *sft_files_and_layout_faults(config, world_size),
        *device_faults(config, world_size),
        *host_memory_faults(config, world_size),
    ]


def sft_files_and_layout_faults(config: Config, world_size: int) -> list[str]:
    """Why the cold start could not start on any machine with these files; what a Slurm log-in node can check."""
    return [
        *value_faults(config),
        *_model_faults(config),
        *_layout_faults(config, world_size),
        *_run_faults(config, "sft"),
        *_demonstration_faults(config),
    ]


def evaluation_faults(config: Config, split: str, game: int | None, num_games: int | None) -> list[str]:
    """Why a model cannot be evaluated on `num_games` games of `split`, or play its game number `game`."""
    faults = [*_environment_faults(config, (split,)), *_model_faults(config)]
    if config.engine.urls:
        faults.append(f"engine.urls={list(config.engine.urls)}: evaluation starts its own servers; leave it out")
    if config.actor.weights:
        faults.append(
            f"actor.weights={config.actor.weights}: what is evaluated is actor.model; python -m tools.convert makes a "
            "model of a checkpoint"
        )
    if not faults and (game, num_games) != (None, None):  # counting may read every game
        from envs.base import load

        num_there = load(config.env.name).num_tasks(split, config.env.package_options)
        if game is not None and not 0 <= game < num_there:
            faults.append(f"--watch {game}: {split} has the games 0 to {num_there - 1}")
        if num_games is not None and num_games > num_there:
            faults.append(f"--games {num_games}: {split} has {num_there}; leave it out for all")
    return faults


def _environment_faults(config: Config, splits: tuple[str, ...]) -> list[str]:
    from envs.base import load

    faults = []
    try:
        package = load(config.env.name)
    except ValueError as error:
        return [str(error)]
    faults += package.option_faults(config.env.package_options)
    if not faults and config.env.num_processes:
        timeout_faults = getattr(package, "timeout_faults", lambda options, timeout_s: [])
        faults += timeout_faults(config.env.package_options, config.env.timeout_s)
    for split in splits if not faults else ():
        try:
            package.num_tasks(split, config.env.package_options)
        except (ValueError, OSError) as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def _model_faults(config: Config) -> list[str]:
    """The model directory: weights, tokenizer, and whether they fit each other and the prompts."""
    from transformers import AutoTokenizer

    from megatron_opid.actor.layout import vocabulary_faults
    from megatron_opid.actor.stored_weights import open_stored_weights
    from megatron_opid.weights.hf import HfWeights
    from megatron_opid.weights.hf_config import hf_config_faults, parse_hf_config, read_hf_config

    if not config.actor.model:
        return ["actor.model is empty; set it to a Hugging Face model directory"]
    directory = resolve_model(config.actor.model)
    if not directory.is_dir():
        return [f"actor.model={config.actor.model!r}: {directory} is no directory; set actor.model or MODELS_ROOT"]
    faults, tokenizer = [], None
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        faults.append(f"{directory} has no usable tokenizer ({reason}); set actor.model to a complete directory")
    try:
        hf_config = read_hf_config(directory)
        faults += hf_config_faults(hf_config)
        if not faults:
            shape = parse_hf_config(hf_config)
            HfWeights(directory, shape)
            if config.actor.weights:
                open_stored_weights(resolve_model(config.actor.weights), shape)
    except ValueError as error:
        return [*faults, str(error)]
    if tokenizer is not None:
        faults += vocabulary_faults(hf_config, len(tokenizer))
        if tokenizer.chat_template is None:
            faults.append(f"the tokenizer of {directory} has no chat template; use an instruction-tuned model")
    return faults + _length_faults(config, hf_config.get("max_position_embeddings"))


def _length_faults(config: Config, max_positions: int | None) -> list[str]:
    longest, names = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens, "rollout.max_prompt_tokens"
    if config.algorithm.name == "opid":
        longest, names = longest + config.skills.max_skill_tokens, f"{names} + skills.max_skill_tokens"
    faults = []
    if max_positions is not None and longest > max_positions:
        faults.append(
            f"{names} + rollout.max_response_tokens = {longest} is above the model's "
            f"max_position_embeddings={max_positions}; set them lower"
        )
    if longest > config.actor.tokens_per_micro_batch:
        faults.append(
            f"{names} + rollout.max_response_tokens = {longest} is above "
            f"actor.tokens_per_micro_batch={config.actor.tokens_per_micro_batch}; a sequence must fit a micro-batch"
        )
    skills = config.skills
    analysis = skills.max_prompt_tokens + skills.max_completion_tokens
    is_used = config.algorithm.name == "opid" and skills.analyzer == "policy"
    if is_used and max_positions is not None and analysis > max_positions:
        faults.append(
            f"skills.analyzer=policy: skills.max_prompt_tokens + max_completion_tokens = {analysis} is above the "
            f"model's max_position_embeddings={max_positions}; set them lower or another analyzer"
        )
    return faults


def _sound_hf_config(config: Config) -> dict[str, Any] | None:
    """The model's config.json; None where _model_faults says what is wrong with it."""
    from megatron_opid.weights.hf_config import HfConfigError, hf_config_faults, read_hf_config

    try:
        hf_config = read_hf_config(resolve_model(config.actor.model))
    except HfConfigError:
        return None
    return None if hf_config_faults(hf_config) else hf_config


def _layout_faults(config: Config, world_size: int) -> list[str]:
    from megatron_opid.actor.layout import layout_faults

    hf_config = _sound_hf_config(config)
    return [] if hf_config is None else layout_faults(config.actor, hf_config, world_size)


def _run_faults(config: Config, entry_point: str) -> list[str]:
    """Where the run writes, and what its directory already holds."""
    from megatron_opid.actor.checkpoint_directory import checkpoint_faults
    from megatron_opid.resume import resume_faults

    faults = login_faults(config.run.wandb, os.environ)
    if unwritable := _directory_faults(config.run.dir):
        return [*faults, *unwritable]
    if (hf_config := _sound_hf_config(config)) is not None:
        faults += checkpoint_faults(Path(config.run.dir) / "checkpoints", config.actor, hf_config)
        faults += resume_faults(entry_point, config)
    return faults


def _directory_faults(name: str) -> list[str]:
    """Whether a run can write to `name`, or make it; tried, as permissions do not tell for root or of a file system."""
    try:
        path = Path(name).absolute()
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".writable_", dir=there):
            return []
    except OSError as error:
        return [f"run.dir={name!r} cannot be made or written to ({error.strerror}); set it to a folder of yours"]


def device_faults(config: Config, world_size: int) -> list[str]:
    """Whether this machine has the GPUs of its ranks, and what computes on them."""
    import torch

    has_gpu, num_gpus, num_ranks = torch.cuda.is_available(), torch.cuda.device_count(), local_world_size(world_size)
    if config.actor.device == "cpu" or (config.actor.device == "auto" and not has_gpu):
        return []
    if not has_gpu:
        return [f"actor.device={config.actor.device}: no GPU can be used here; set it to cpu or auto"]
    faults = []
    if num_ranks > num_gpus:
        faults.append(
            f"run.num_processes: {num_ranks} ranks need a GPU each, this machine has {num_gpus}; set it to {num_gpus}"
        )
    # Layers of fp32 are torch's own (actor/layer_spec.py, whose import takes seconds).
    if config.actor.precision != "fp32" and find_spec("transformer_engine") is None:
        faults.append(
            f"actor.precision={config.actor.precision} on a GPU needs the package transformer_engine; install it with "
            "pip install --no-build-isolation -e '.[gpu]'"
        )
    return faults


def host_memory_faults(config: Config, world_size: int) -> list[str]:
    """Whether this machine's memory holds its ranks' share of an offloaded optimizer; the kernel would kill them."""
    from megatron_opid.weights.families import parameters
    from megatron_opid.weights.hf_config import parse_hf_config

    if not config.optimizer.offload_fraction:
        return []
    if (hf_config := _sound_hf_config(config)) is None:
        return []
    count = sum(math.prod(sizes) for weight in parameters(parse_hf_config(hf_config)) for sizes in weight.hf_shapes)
    fraction = config.optimizer.offload_fraction
    here = OFFLOADED_BYTES_PER_PARAMETER * count * local_world_size(world_size) / world_size
    free = psutil.virtual_memory().available
    if fraction * here <= free:
        return []
    return [
        f"optimizer.offload_fraction={fraction} keeps {fraction * here / 1e9:.0f} GB in this machine's memory, "
        f"{free / 1e9:.0f} GB are free; set it to {math.floor(90 * free / here) / 100:.2f} or lower, or take more "
        "machines"
    ]


def analyzer_faults(config: Config, *, ask: bool) -> list[str]:
    """What is wrong with the analyzer's endpoint: with the variables that name it and, if `ask`, with its answer."""
    if config.algorithm.name != "opid" or config.skills.analyzer != "openai":
        return []
    from megatron_opid.skills.endpoint import Endpoint, check_endpoint

    try:
        endpoint = Endpoint.from_environment(os.environ)
        if ask:
            check_endpoint(endpoint)
    except ConfigError as error:
        return list(error.faults)
    return []


def _demonstration_faults(config: Config) -> list[str]:
    path = Path(config.sft.demonstrations)
    if not path.is_file():
        return [f"sft.demonstrations={config.sft.demonstrations!r} does not exist; set it to a JSONL of conversations"]
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                roles = [message["role"] for message in json.loads(line)["messages"]]
            except (json.JSONDecodeError, KeyError, TypeError):
                return [f"{path}:{number} is not a conversation; each line is {{'messages': [{{'role', 'content'}}]}}"]
            if not roles or roles[-1] != "assistant":
                return [f"{path}:{number} does not end with the assistant's turn"]
    return []
