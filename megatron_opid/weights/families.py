"""Which Hugging Face tensors make which Megatron parameter, per model family. Imports no torch.

Megatron names are those of the local layer spec with global layer numbers; `canonical_name` maps Transformer Engine's
names, which fold two norms into the linear layer after them and number the experts of a grouped layer, onto the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from megatron_opid.weights.hf_config import ModelShape


class Kind(Enum):
    """How HF tensors are fused into a parameter and along which dimension tensor parallelism splits it."""

    REPLICATED = "replicated"
    VOCABULARY = "vocabulary"  # [padded vocabulary, H], rows split
    ROW = "row"  # [out, in], columns split
    QKV = "qkv"  # per query group: its query heads, its key head, its value head; rows split by group
    GATE_UP = "gate_up"  # [2, F, H] gate and up; F split, so that a rank holds its gate rows, then its up rows


@dataclass(frozen=True)
class Parameter:
    """One Megatron parameter, the HF tensors it is made of and their shapes, in the order that `Kind` fuses them.

    expert: its number in the layer, from 0; experts are dealt to expert-parallel ranks in runs and split over the
    expert-tensor-parallel ranks, everything else (None) over the tensor-parallel ranks.
    """

    name: str
    kind: Kind
    hf_names: tuple[str, ...]
    hf_shapes: tuple[tuple[int, ...], ...]
    expert: int | None = None


EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
EXPERTS = "mlp.experts.local_experts."

TRANSFORMER_ENGINE_SUFFIXES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
TRANSFORMER_ENGINE_EXPERT = re.compile(r"mlp\.experts\.(linear_fc[12])\.weight(\d+)$")


def canonical_name(name: str) -> str:
    """The local spec's name of a parameter of either layer spec."""
    name = TRANSFORMER_ENGINE_EXPERT.sub(r"mlp.experts.local_experts.\2.\1.weight", name)
    for suffix, canonical in TRANSFORMER_ENGINE_SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix) + canonical
    return name


def parameters(shape: ModelShape) -> Iterator[Parameter]:
    """All parameters of the model in the order of the HF file; a tied head has no parameter of its own."""
    vocabulary = (shape.vocab_size, shape.hidden_size)
    yield Parameter(EMBEDDING, Kind.VOCABULARY, ("model.embed_tokens.weight",), (vocabulary,))
    for layer in range(shape.num_layers):
        yield from _attention(shape, layer)
        yield from _mlp(shape, layer)
    yield _norm("decoder.final_layernorm.weight", "model.norm.weight", shape.hidden_size)
    if not shape.tied_embeddings:
        yield Parameter(OUTPUT, Kind.VOCABULARY, ("lm_head.weight",), (vocabulary,))


def _attention(shape: ModelShape, layer: int) -> Iterator[Parameter]:
    megatron, hf = f"decoder.layers.{layer}", f"model.layers.{layer}"
    query_size, key_size = shape.num_heads * shape.head_dim, shape.num_groups * shape.head_dim
    rows = (query_size, key_size, key_size)
    yield _norm(f"{megatron}.input_layernorm.weight", f"{hf}.input_layernorm.weight", shape.hidden_size)
    yield Parameter(
        f"{megatron}.self_attention.linear_qkv.weight",
        Kind.QKV,
        tuple(f"{hf}.self_attn.{part}_proj.weight" for part in "qkv"),
        tuple((size, shape.hidden_size) for size in rows),
    )
    if shape.qkv_bias:
        yield Parameter(
            f"{megatron}.self_attention.linear_qkv.bias",
            Kind.QKV,
            tuple(f"{hf}.self_attn.{part}_proj.bias" for part in "qkv"),
            tuple((size,) for size in rows),
        )
    if shape.qk_norm:
        for part in "qk":
            name = f"{megatron}.self_attention.{part}_layernorm.weight"
            yield _norm(name, f"{hf}.self_attn.{part}_norm.weight", shape.head_dim)
    yield Parameter(
        f"{megatron}.self_attention.linear_proj.weight",
        Kind.ROW,
        (f"{hf}.self_attn.o_proj.weight",),
        ((shape.hidden_size, query_size),),
    )


def _mlp(shape: ModelShape, layer: int) -> Iterator[Parameter]:
    megatron, hf = f"decoder.layers.{layer}", f"model.layers.{layer}"
    yield _norm(f"{megatron}.pre_mlp_layernorm.weight", f"{hf}.post_attention_layernorm.weight", shape.hidden_size)
    if not shape.has_experts(layer):
        yield from _feed_forward(f"{megatron}.mlp", f"{hf}.mlp", shape.hidden_size, shape.ffn_size)
        return
    experts = shape.experts
    yield Parameter(
        f"{megatron}.mlp.router.weight",
        Kind.REPLICATED,
        (f"{hf}.mlp.gate.weight",),
        ((experts.num_experts, shape.hidden_size),),
    )
    for expert in range(experts.num_experts):
        prefix, hf_prefix = f"{megatron}.mlp.experts.local_experts.{expert}", f"{hf}.mlp.experts.{expert}"
        yield from _feed_forward(prefix, hf_prefix, shape.hidden_size, experts.ffn_size, expert)


def _feed_forward(
    prefix: str, hf_prefix: str, hidden_size: int, ffn_size: int, expert: int | None = None
) -> Iterator[Parameter]:
    yield Parameter(
        f"{prefix}.linear_fc1.weight",
        Kind.GATE_UP,
        (f"{hf_prefix}.gate_proj.weight", f"{hf_prefix}.up_proj.weight"),
        ((ffn_size, hidden_size),) * 2,
        expert,
    )
    yield Parameter(
        f"{prefix}.linear_fc2.weight",
        Kind.ROW,
        (f"{hf_prefix}.down_proj.weight",),
        ((hidden_size, ffn_size),),
        expert,
    )


def _norm(name: str, hf_name: str, size: int) -> Parameter:
    return Parameter(name, Kind.REPLICATED, (hf_name,), ((size,),))
