"""Seconds of a micro-batch on one GPU: products at the measured rate, attention, passes over memory, launches."""

from __future__ import annotations

from dataclasses import dataclass

from tools.plan.constants import Gpu, constant
from tools.plan.layout import Layout
from tools.plan.memory import HEAD_CHUNK_ROWS
from tools.plan.shape import Sizes


@dataclass(frozen=True)
class LayerTime:
    """One layer's passes over `tokens` tokens. `flops` counts a forward of the whole layer, for MFU."""

    forward_s: float
    backward_s: float
    attention_forward_s: float
    mlp_forward_s: float
    flops: float


def layer_time(sizes: Sizes, layout: Layout, gpu: Gpu, *, tokens: float, sequence_tokens: float) -> LayerTime:
    """One rank's share of an average layer over a micro-batch of `tokens`, packed from equal sequences.

    forward = max(products + attention + element-wise passes, launches); the backward has twice the products, 2.5 times
    the attention's operations and twice the passes. `tokens` is what the tensor-parallel group works on together.
    """
    tokens = tokens / layout.context
    products = 2 * tokens * sizes.dense_matrix / layout.tensor / gpu.gemm_flops_per_s
    # Every rank of the tensor-parallel group dispatches its part of the sequence, so experts share the tokens, too.
    expert_flops = 2 * tokens * sizes.active_expert_matrix
    experts = expert_flops / layout.tensor / (gpu.gemm_flops_per_s * constant("grouped_gemm_share"))
    attention_flops = 2 * tokens * sequence_tokens * sizes.query
    attention = attention_flops / layout.tensor / constant("attention_forward_flops_per_s")
    attention_backward = 2.5 * attention_flops / layout.tensor / constant("attention_backward_flops_per_s")
    passes = tokens * _elementwise_bytes(sizes, layout) / gpu.copy_bytes_per_s
    floor = constant("layer_floor_s") * (2 if sizes.is_mixture else 1)
    mlp = 2 * tokens * 3 * sizes.shape.hidden_size * sizes.shape.ffn_size / layout.tensor / gpu.gemm_flops_per_s
    return LayerTime(
        forward_s=max(products + experts + attention + passes, floor),
        backward_s=max(2 * (products + experts + passes) + attention_backward, floor),
        attention_forward_s=attention,
        mlp_forward_s=experts if sizes.is_mixture else mlp,
        flops=2 * tokens * (sizes.dense_matrix + sizes.active_expert_matrix) + attention_flops,
    )


def _elementwise_bytes(sizes: Sizes, layout: Layout) -> float:
    """Read and written per token by one layer's forward outside of its products and attention, bf16.

    Two norms (2 H each) and two residual additions (3 H each), rope and q/k norms (2 (Q + K) each), the gated
    activation (3 F); experts add the copies to and from them (4 H for each chosen one).
    """
    shape = sizes.shape
    sequence_split = layout.tensor if layout.sequence_parallel else 1
    elements = 10 * shape.hidden_size / sequence_split
    elements += 2 * (1 + shape.qk_norm) * (sizes.query + sizes.key) / layout.tensor
    if shape.experts:
        per_expert = 4 * shape.hidden_size + 3 * shape.experts.ffn_size
        elements += shape.experts.num_chosen * per_expert / sequence_split
    else:
        elements += 3 * shape.ffn_size / layout.tensor
    return 2 * elements


def head_score_s(sizes: Sizes, layout: Layout, gpu: Gpu, rows: float) -> float:
    """Log-probs of `rows` rows: 2·T·H·V operations."""
    return 2 * rows * _head_matrix(sizes, layout) / gpu.gemm_flops_per_s


def head_train_s(sizes: Sizes, layout: Layout, gpu: Gpu, rows: float) -> float:
    """Loss and both gradients: 6·T·H·V operations, a bf16 pass over the tiles and fp32 d weight once per chunk."""
    matrix = _head_matrix(sizes, layout)
    tiles = 4 * rows * sizes.shape.padded_vocab_size / layout.tensor
    weight_gradient = 8 * matrix * max(1.0, rows / HEAD_CHUNK_ROWS)
    return 6 * rows * matrix / gpu.gemm_flops_per_s + (tiles + weight_gradient) / gpu.copy_bytes_per_s


def optimizer_s(parameters: float, state_elements: float, gpu: Gpu) -> float:
    """Gradient norm over all gradients, then AdamW on this rank's shard: fp32 weight and moments read and written."""
    return (4 * parameters + (4 + 24 + 2) * state_elements) / gpu.copy_bytes_per_s


def _head_matrix(sizes: Sizes, layout: Layout) -> float:
    return sizes.padded_embedding / layout.tensor
