"""What is checked before any rank starts: every fault of values, games, model, checkpoint, demonstrations, endpoint.

Each function returns all faults, each with the value and what to set; an empty list means that the run can start.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from megatron_opid.config import Config, ConfigError, resolve_model, value_faults


def training_faults(config: Config, world_size: int) -> list[str]:
    """Why training cannot start."""
    splits = (config.env.train_split, config.env.validation_split)
    return [
        *value_faults(config),
        *_environment_faults(config, splits),
        *_model_faults(config, world_size),
        *_analyzer_faults(config),
    ]


def sft_faults(config: Config, world_size: int) -> list[str]:
    """Why the cold start cannot start."""
    return [*_model_faults(config, world_size), *_demonstration_faults(config)]


def evaluation_faults(config: Config, split: str) -> list[str]:
    """Why a model cannot be evaluated."""
    return [*_environment_faults(config, (split,)), *_model_faults(config, world_size=1)]


def _environment_faults(config: Config, splits: tuple[str, ...]) -> list[str]:
    from envs.base import load

    faults = []
    try:
        package = load(config.env.name)
    except ValueError as error:
        return [str(error)]
    for split in splits:
        try:
            package.num_tasks(split, asdict(config.env))
        except (ValueError, OSError) as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def _model_faults(config: Config, world_size: int) -> list[str]:
    from transformers import AutoTokenizer

    from megatron_opid.actor.checkpoint_directory import checkpoint_faults
    from megatron_opid.actor.layout import layout_faults
    from megatron_opid.weights.hf import HfWeights
    from megatron_opid.weights.hf_config import parse_hf_config, read_hf_config

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
        size = None if tokenizer is None else len(tokenizer)
        faults += layout_faults(config.actor, hf_config, world_size, tokenizer_size=size)
        faults += checkpoint_faults(Path(config.run.dir) / "checkpoints", config.actor, hf_config)
        HfWeights(directory, parse_hf_config(hf_config))
    except ValueError as error:
        return [*faults, *(fault for fault in [str(error)] if fault not in faults)]
    if tokenizer is not None and tokenizer.chat_template is None:
        faults.append(f"the tokenizer of {directory} has no chat template; use an instruction-tuned model")
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    if longest > hf_config.get("max_position_embeddings", longest):
        faults.append(
            f"rollout.max_prompt_tokens + max_response_tokens = {longest} is above the model's "
            f"max_position_embeddings={hf_config['max_position_embeddings']}; set them lower"
        )
    return faults


def _analyzer_faults(config: Config) -> list[str]:
    if config.algorithm.name != "opid" or config.skills.analyzer != "openai":
        return []
    from megatron_opid.skills.endpoint import Endpoint, check_endpoint

    try:
        check_endpoint(Endpoint.from_environment(os.environ))
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
