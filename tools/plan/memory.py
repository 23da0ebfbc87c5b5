"""Bytes per GPU of the trainer and of the engine, for the stage of the pipeline that needs most."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_opid.config import ActorConfig, OptimizerConfig
from tools.plan.constants import Gpu, constant
from tools.plan.layout import Layout
from tools.plan.shape import Sizes

HEAD_CHUNK_ROWS = 8192  # of kernels/linear_logprob on Hopper
GRADIENT_BYTES = 4  # reduced in fp32
OPTIMIZER_BYTES = {"bf16": 12, "fp32": 8}  # two moments, and fp32 copies of bf16 weights
WEIGHT_BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class StageParameters:
    """Elements of one rank of a pipeline stage, by the group that shares their optimizer state."""

    dense: float
    experts: float

    @property
    def total(self) -> float:
        return self.dense + self.experts


@dataclass(frozen=True)
class TrainerMemory:
    """Bytes of one rank of `stage` (the only, first or last) by what they hold; `host` is pinned host memory."""

    stage: str
    parts: dict[str, float]
    host: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def while_sampling(self) -> float:
        """What stays on the GPU while a colocated engine samples."""
        return self.total - self.parts["activations"] - self.parts["head"]


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one GPU while the engine samples. `cache` may be negative: the weights alone do not fit then."""

    weights: float
    resident_trainer: float
    cache: float
    cache_bytes_per_token: float
    cache_tokens: float
    wanted_tokens: float  # what the concurrent episodes of an engine can fill


def stage_parameters(sizes: Sizes, layout: Layout, stage: str) -> StageParameters:
    """Elements on one rank of the only, first or last stage; a tied head on a pipeline has a copy of its own."""
    layers = sizes.shape.num_layers / layout.pipeline
    dense = layers * (sizes.layer.split / layout.tensor + sizes.layer.replicated)
    experts = layers * sizes.layer.experts / (layout.expert * layout.expert_tensor)
    matrices = 2 if stage == "only" and not sizes.shape.tied_embeddings else 1
    dense += matrices * sizes.padded_embedding / layout.tensor + (stage != "first") * sizes.shape.hidden_size
    return StageParameters(dense, experts)


def activation_elements(sizes: Sizes, layout: Layout) -> tuple[float, float, float]:
    """Elements that one layer saves per token for its backward (flash attention): in all, of the MLP, its input.

    Inputs and outputs of both norms (4 H, split by sequence parallelism); q, k, v, the attention's output and, with
    q/k norms, q and k before them; the feed-forward block's first product and its gated half (3 F; for experts, for
    each chosen one, with its dispatched input).
    """
    shape = sizes.shape
    sequence_split = layout.tensor if layout.sequence_parallel else 1
    attention = 2 * sizes.query + 2 * sizes.key + shape.qk_norm * (sizes.query + sizes.key)
    if shape.experts:
        chosen = shape.experts.num_chosen
        mlp = chosen * (shape.hidden_size + 3 * shape.experts.ffn_size) / (sequence_split * layout.expert_tensor)
    else:
        mlp = 3 * shape.ffn_size / layout.tensor
    everything = 4 * shape.hidden_size / sequence_split + attention / layout.tensor + mlp
    return everything, mlp, shape.hidden_size / sequence_split


def trainer_memory(
    sizes: Sizes, layout: Layout, actor: ActorConfig, optimizer: OptimizerConfig, *, row_share: float, reference: bool
) -> TrainerMemory:
    """The stage that needs most while it trains. `row_share`: rows of the head per token; `reference`: is one kept."""
    stages = ("only",) if layout.pipeline == 1 else ("first", "last")
    memories = [_stage_memory(sizes, layout, actor, optimizer, stage, row_share, reference) for stage in stages]
    return max(memories, key=lambda memory: memory.total)


def _stage_memory(
    sizes: Sizes,
    layout: Layout,
    actor: ActorConfig,
    optimizer: OptimizerConfig,
    stage: str,
    row_share: float,
    reference: bool,
) -> TrainerMemory:
    held = stage_parameters(sizes, layout, stage)
    weights = WEIGHT_BYTES[actor.precision] * held.total
    shards = (layout.gradient_ranks, layout.expert_gradient_ranks) if actor.distributed_optimizer else (1, 1)
    state = OPTIMIZER_BYTES[actor.precision] * (held.dense / shards[0] + held.experts / shards[1])
    tokens = actor.tokens_per_micro_batch / layout.context
    parts = {
        "parameters": weights,
        "gradients": GRADIENT_BYTES * held.total,
        "optimizer": state * (1 - optimizer.offload_fraction),
        "activations": tokens * _saved_bytes_per_token(sizes, layout, actor, stage),
        "head": head_bytes(sizes, layout, tokens, tokens * row_share) if stage != "first" else 0.0,
        "reserved": constant("reserved_bytes"),
    }
    host = {"reference": weights * reference, "optimizer": state * optimizer.offload_fraction}
    return TrainerMemory(stage, parts, host)


def _saved_bytes_per_token(sizes: Sizes, layout: Layout, actor: ActorConfig, stage: str) -> float:
    """Of all layers of the stage and all micro-batches in flight, bf16, per token of a micro-batch."""
    everything, mlp, layer_input = activation_elements(sizes, layout)
    layers = sizes.shape.num_layers / layout.pipeline
    in_flight = layout.pipeline if stage == "first" else 1.0
    if layout.virtual_pipeline > 1 and stage == "first":
        in_flight *= 1 + (layout.pipeline - 1) / (layout.pipeline * layout.virtual_pipeline)
    recomputed = min(actor.recompute_layers or layers, layers) if actor.recompute == "full" else 0.0
    kept = everything - mlp if actor.recompute == "mlp" else everything
    saved = in_flight * (recomputed * layer_input + (layers - recomputed) * kept)
    # The layer in work has everything once more, and the gradient of as much.
    return 2 * (saved + 2 * everything)


def head_bytes(sizes: Sizes, layout: Layout, tokens: float, rows: float) -> float:
    """The fused head's workspace: one chunk of bf16 tiles, fp32 d weight, d hidden, and hidden gathered whole."""
    columns = sizes.shape.padded_vocab_size / layout.tensor
    gathered = 2 * tokens * sizes.shape.hidden_size * layout.sequence_parallel
    weight_gradient = 4 * columns * sizes.shape.hidden_size
    return 2 * min(rows, HEAD_CHUNK_ROWS) * columns + weight_gradient + 2 * rows * sizes.shape.hidden_size + gathered


def engine_memory(
    sizes: Sizes, gpu: Gpu, *, tensor: int, wanted_tokens: float, resident_trainer: float, memory_share: float
) -> EngineMemory:
    """One GPU of an engine over `tensor` GPUs that takes at most `memory_share` of each, if the trainer leaves it."""
    weights = 2 * sizes.parameters / tensor
    per_token = sizes.cache_bytes_per_token / min(tensor, sizes.shape.num_groups)
    free = min(memory_share * gpu.memory_bytes, gpu.memory_bytes - resident_trainer)
    cache = free - constant("serving_reserved_bytes") - weights
    return EngineMemory(weights, resident_trainer, cache, per_token, max(0.0, cache) / per_token, wanted_tokens)
