"""Which process layouts a model allows. Pure: needs neither torch nor Megatron, so it runs before any process group."""

from __future__ import annotations

from typing import Any

from megatron_opid.config import ActorConfig
from megatron_opid.weights.hf_config import hf_config_faults, parse_hf_config


def layout_faults(actor: ActorConfig, hf_config: dict[str, Any], world_size: int) -> list[str]:
    """Every reason why `actor` cannot run this model on `world_size` ranks, each with its value and what to set.

    `hf_config` is the parsed config.json.
    """
    model_faults = hf_config_faults(hf_config)
    faults = model_faults + _parallel_size_faults(actor, world_size)
    if model_faults:
        return faults
    return faults + _model_size_faults(actor, hf_config)


def _parallel_size_faults(actor: ActorConfig, world_size: int) -> list[str]:
    faults = []
    if actor.context_parallel > 1:
        faults.append(f"actor.context_parallel={actor.context_parallel} is not built; set 1")
    if actor.expert_parallel > 1:
        faults.append(f"actor.expert_parallel={actor.expert_parallel}, but the model has no experts; set 1")
    if actor.virtual_pipeline_parallel > 1 and actor.pipeline_parallel == 1:
        faults.append(
            f"actor.virtual_pipeline_parallel={actor.virtual_pipeline_parallel} needs actor.pipeline_parallel > 1"
        )
    if actor.sequence_parallel and actor.tensor_parallel == 1:
        faults.append("actor.sequence_parallel=true needs actor.tensor_parallel > 1; set it to false")
    model_ranks = actor.tensor_parallel * actor.pipeline_parallel * actor.context_parallel
    if world_size % model_ranks:
        faults.append(
            f"{world_size} ranks cannot be divided by actor.tensor_parallel * actor.pipeline_parallel * "
            f"actor.context_parallel = {model_ranks}; start a multiple of {model_ranks} ranks"
        )
    return faults


def _model_size_faults(actor: ActorConfig, hf_config: dict[str, Any]) -> list[str]:
    shape = parse_hf_config(hf_config)
    tensor, stages = actor.tensor_parallel, actor.pipeline_parallel * actor.virtual_pipeline_parallel
    divisible = {
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_groups,
        "intermediate_size": shape.ffn_size,
        "padded vocab_size": shape.padded_vocab_size,
    }
    faults = [
        f"actor.tensor_parallel={tensor} does not divide the model's {name}={size}; set a divisor of {size}"
        for name, size in divisible.items()
        if size % tensor
    ]
    if shape.num_layers % stages:
        faults.append(
            f"actor.pipeline_parallel * actor.virtual_pipeline_parallel = {stages} does not divide the model's "
            f"num_hidden_layers={shape.num_layers}; set a divisor of {shape.num_layers}"
        )
    return faults


def vocabulary_faults(hf_config: dict[str, Any], tokenizer_size: int) -> list[str]:
    """Whether a tokenizer of `tokenizer_size` token ids fits the model's vocabulary."""
    if tokenizer_size <= hf_config["vocab_size"]:
        return []
    return [
        f"the tokenizer has {tokenizer_size} token ids, the model's vocab_size is {hf_config['vocab_size']}; "
        "set actor.model to a directory whose tokenizer belongs to its weights"
    ]
