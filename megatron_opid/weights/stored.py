"""Where a parameter lies in a Megatron distributed checkpoint, and how a parallel layout deals its pieces to files.

Megatron-Core stacks equal layers: `decoder.layers.mlp.linear_fc2.weight` is [layers, H, F]. If some layers have experts
and others none, every layer has keys of its own. Experts are stacked, too. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_opid.weights.families import EXPERTS, TRANSFORMER_ENGINE_SUFFIXES, Kind, Parameter
from megatron_opid.weights.hf_config import ModelShape

STORED_NORMS = {canonical: stored for stored, canonical in TRANSFORMER_ENGINE_SUFFIXES.items()}
STORED_EXPERTS = "mlp.experts.experts."
SPLIT_DIM = {Kind.VOCABULARY: 0, Kind.QKV: 0, Kind.GATE_UP: 0, Kind.ROW: 1}


@dataclass(frozen=True)
class Place:
    """A parameter is the tensor `key` of the checkpoint, taken at `index` along its leading dimensions.

    sizes: of the stored tensor, leading dimensions included; gate and up are one matrix [2F, H] there.
    """

    key: str
    index: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class TargetLayout:
    """Whose files are written: one for each tensor-parallel (or expert-parallel) rank of each pipeline stage."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1


@dataclass(frozen=True)
class Piece:
    """Rows and columns of a parameter that one rank holds: `offsets` and `sizes` within the parameter."""

    rank: tuple[int, int]  # pipeline stage; rank in it
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def place(parameter: Parameter, shape: ModelShape) -> Place:
    """Where Megatron-Core 0.16.1 puts this parameter, with either layer spec."""
    sizes = parameter_sizes(parameter, shape)
    layer, rest = split_layer(parameter.name)
    if layer is None:
        return Place(rest, (), sizes)
    index: tuple[int, ...] = ()
    if parameter.expert is not None:
        rest = STORED_EXPERTS + rest.removeprefix(f"{EXPERTS}{parameter.expert}.")
        index, sizes = (parameter.expert,), (shape.experts.num_experts, *sizes)
    elif rest in STORED_NORMS and not (rest.startswith("pre_mlp") and shape.has_experts(layer)):
        rest = STORED_NORMS[rest]
    if shape.experts is not None and len(shape.experts.layers) < shape.num_layers:
        return Place(f"decoder.layers.{layer}.{rest}", index, sizes)
    return Place(f"decoder.layers.{rest}", (layer, *index), (shape.num_layers, *sizes))


def split_layer(name: str) -> tuple[int | None, str]:
    """`decoder.layers.7.mlp.…` -> (7, `mlp.…`); (None, name) outside of the layers."""
    if not name.startswith("decoder.layers."):
        return None, name
    _, _, layer, rest = name.split(".", 3)
    return int(layer), rest


def parameter_sizes(parameter: Parameter, shape: ModelShape) -> tuple[int, ...]:
    """The whole parameter's sizes as they are stored: HF tensors one below the other, the vocabulary padded."""
    _, *inner = parameter.hf_shapes[0]
    if parameter.kind is Kind.VOCABULARY:
        return (shape.padded_vocab_size, *inner)
    return (sum(sizes[0] for sizes in parameter.hf_shapes), *inner)


def pieces(parameter: Parameter, shape: ModelShape, layout: TargetLayout) -> Iterator[Piece]:
    """The pieces of a parameter in the files of `layout`; together they are the whole parameter, without overlap."""
    sizes = parameter_sizes(parameter, shape)
    stage = _stage(parameter, shape, layout)
    if parameter.expert is not None:
        owner = parameter.expert // (shape.experts.num_experts // layout.expert_parallel)
        num_ranks, ranks = 1, [owner]
    else:
        num_ranks = layout.tensor_parallel if parameter.kind in SPLIT_DIM else 1
        ranks = list(range(num_ranks))
    # Megatron stores a rank's gate rows and its up rows apart.
    num_parts = 2 if parameter.kind is Kind.GATE_UP else 1
    dim = SPLIT_DIM.get(parameter.kind, 0)
    size = sizes[dim] // (num_ranks * num_parts)
    piece_sizes = (*sizes[:dim], size, *sizes[dim + 1 :])
    for part in range(num_parts):
        for number, rank in enumerate(ranks):
            offset = (part * num_ranks + number) * size
            yield Piece((stage, rank), (*(0,) * dim, offset, *(0,) * (len(sizes) - dim - 1)), piece_sizes)


def _stage(parameter: Parameter, shape: ModelShape, layout: TargetLayout) -> int:
    layer, name = split_layer(parameter.name)
    if layer is not None:
        return layer // (shape.num_layers // layout.pipeline_parallel)
    return 0 if name.startswith("embedding.") else layout.pipeline_parallel - 1
