"""What is checked before any rank starts, beyond single values: model files, tokenizer, checkpoint, endpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

from megatron_opid.config import Config, ConfigError, resolve_model


def check_training(config: Config) -> None:
    """Raises ConfigError, with every fault: model or checkpoint unusable, analyzer unreachable."""
    _raise(_model_faults(config) + _analyzer_faults(config))


def check_sft(config: Config) -> None:
    """Raises ConfigError, with every fault: model or checkpoint unusable, demonstrations missing or torn."""
    _raise(_model_faults(config) + _demonstration_faults(config))


def check_model(config: Config) -> None:
    """Raises ConfigError, with every fault: model files or tokenizer unusable."""
    _raise(_model_faults(config))


def _raise(faults: list[str]) -> None:
    if faults:
        raise ConfigError(faults)


def _model_faults(config: Config) -> list[str]:
    from transformers import AutoTokenizer

    from megatron_opid.actor.layout import layout_faults
    from megatron_opid.weights.hf import HfWeights
    from megatron_opid.weights.hf_config import parse_hf_config, read_hf_config

    directory = resolve_model(config.actor.model)
    faults = []
    try:
        hf_config = read_hf_config(directory)
        HfWeights(directory, parse_hf_config(hf_config))
    except ValueError as error:
        return [str(error)]
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        return [*faults, f"{directory} has no usable tokenizer ({error}); set actor.model to a complete directory"]
    world_size = int(os.environ.get("WORLD_SIZE", config.run.num_processes))
    faults += layout_faults(config.actor, hf_config, world_size, tokenizer_size=len(tokenizer))
    if tokenizer.chat_template is None:
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
