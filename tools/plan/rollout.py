"""Seconds of the rollout: decoding bound by memory bandwidth, prompts by products, episodes by their turns."""

from __future__ import annotations

from dataclasses import dataclass

from tools.plan.constants import Gpu, constant
from tools.plan.shape import Sizes
from tools.plan.workload import Workload


@dataclass(frozen=True)
class Engines:
    """The engines that share a step's episodes. `is_local`: transformers in the trainer's own processes."""

    num_engines: int
    tensor: int
    is_local: bool
    is_colocated: bool  # on the trainer's GPUs
    max_sequences: int  # that one engine decodes at once
    memory_share: float  # of its GPU that an engine takes


@dataclass(frozen=True)
class RolloutTime:
    """Seconds of the episodes, and what they are made of."""

    seconds: float
    prefill_s: float
    decode_s: float
    environment_s: float
    decode_step_s: float  # at full width
    tokens_per_s: float  # sampled, of all engines
    analysis_s: float  # of all analyses, as far as their number, not the episodes, decides
    analyzed_s: float  # from the first episode's beginning to the last skill


def decode_step_s(sizes: Sizes, gpu: Gpu, engines: Engines, sequences: float, workload: Workload) -> float:
    """One token for each of `sequences`: weights and caches are read once, logits made and sampled from."""
    tokens = workload.prompt_tokens + workload.response_tokens / 2
    read = 2 * _read_parameters(sizes, sequences) + sequences * tokens * sizes.cache_bytes_per_token
    logits = sequences * sizes.shape.vocab_size * constant("sampling_bytes_per_logit")
    operations = 2 * sequences * (sizes.active_matrix + sizes.padded_embedding)
    floor = constant("decode_floor_s")
    if engines.is_local:
        floor = constant("local_decode_layer_s") * sizes.shape.num_layers
    work = max((read + logits) / gpu.copy_bytes_per_s, operations / gpu.gemm_flops_per_s)
    return floor + work / engines.tensor


def rollout_time(
    sizes: Sizes, gpu: Gpu, engines: Engines, workload: Workload, *, concurrency: int, cache_sequences: float
) -> RolloutTime:
    """All episodes play their turns side by side; turn k has those that are still alive.

    A turn = prompts of the engine's sequences (2 operations per weight and token) + `response_tokens` decode steps +
    the environment. What an engine cannot hold at once (its batch limit, its cache) goes in waves.
    """
    per_engine = workload.num_episodes / engines.num_engines
    width = max(1.0, min(per_engine, engines.max_sequences, cache_sequences))
    prefill = decode = 0.0
    for turn in range(workload.max_steps):
        sequences = per_engine * workload.alive_share(turn + 0.5)
        if sequences <= 0:
            break
        # Fewer than one episode per engine still takes its turn somewhere.
        waves = max(1.0, sequences / width)
        step = decode_step_s(sizes, gpu, engines, min(max(sequences, 1.0), width), workload)
        decode += waves * workload.response_tokens * step
        operations = max(sequences, 1.0) * workload.prompt_tokens * 2 * sizes.active_matrix
        prefill += operations / (gpu.gemm_flops_per_s * engines.tensor)
    environment = workload.max_steps * constant("environment_step_s")
    analysis = workload.num_analyses * constant("analysis_s") / concurrency
    seconds = prefill + decode + environment
    return RolloutTime(
        seconds=seconds,
        prefill_s=prefill,
        decode_s=decode,
        environment_s=environment,
        decode_step_s=decode_step_s(sizes, gpu, engines, width, workload),
        tokens_per_s=workload.num_samples * workload.response_tokens / seconds,
        analysis_s=analysis,
        analyzed_s=max(seconds, analysis) + (constant("analysis_s") if workload.num_analyses else 0.0),
    )


def _read_parameters(sizes: Sizes, sequences: float) -> float:
    """Weights that one decode step reads: of the experts those that some sequence has chosen."""
    experts = sizes.shape.experts
    if experts is None:
        return sizes.parameters
    all_experts = sizes.shape.num_layers * sizes.layer.experts
    untouched = (1 - experts.num_chosen / experts.num_experts) ** sequences
    return sizes.parameters - all_experts * untouched
