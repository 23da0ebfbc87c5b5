"""HF tensors <-> full Megatron parameter <-> the slice of one tensor-parallel rank. Values are only copied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_opid.weights.families import Kind, Parameter
from megatron_opid.weights.hf_config import ModelShape

SPLIT_DIM = {Kind.REPLICATED: None, Kind.VOCABULARY: 0, Kind.ROW: 1, Kind.QKV: 0, Kind.GATE_UP: 1}


def fuse(parameter: Parameter, tensors: Sequence[Tensor], shape: ModelShape) -> Tensor:
    """The full parameter from its HF tensors; a vocabulary is filled up with zero rows to the padded size.

    GATE_UP gives [2, F, H]; the other kinds give Megatron's own layout.
    """
    if parameter.kind is Kind.QKV:
        per_group = [tensor.unflatten(0, (shape.num_groups, -1)) for tensor in tensors]
        return torch.cat(per_group, dim=1).flatten(0, 1)
    if parameter.kind is Kind.GATE_UP:
        return torch.stack(tuple(tensors))
    (tensor,) = tensors
    if parameter.kind is Kind.VOCABULARY:
        padding = tensor.new_zeros(shape.padded_vocab_size - shape.vocab_size, shape.hidden_size)
        return torch.cat([tensor, padding])
    return tensor


def unfuse(parameter: Parameter, full: Tensor, shape: ModelShape) -> list[Tensor]:
    """The HF tensors of a full parameter, contiguous; inverse of `fuse`."""
    if parameter.kind is Kind.QKV:
        rows = [sizes[0] // shape.num_groups for sizes in parameter.hf_shapes]
        parts = full.unflatten(0, (shape.num_groups, -1)).split(rows, dim=1)
        return [part.flatten(0, 1).contiguous() for part in parts]
    if parameter.kind is Kind.GATE_UP:
        return [part.contiguous() for part in full.unbind(0)]
    if parameter.kind is Kind.VOCABULARY:
        return [full[: shape.vocab_size].contiguous()]
    return [full.contiguous()]


def take_shard(kind: Kind, full: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The slice of `full` that tensor-parallel rank `rank` of `num_ranks` holds, in the shape of its parameter."""
    dim = SPLIT_DIM[kind]
    shard = full if dim is None else full.chunk(num_ranks, dim=dim)[rank]
    return shard.flatten(0, 1) if kind is Kind.GATE_UP else shard


def join_shards(kind: Kind, shards: Sequence[Tensor]) -> Tensor:
    """The full parameter from the slices of all tensor-parallel ranks in order; inverse of `take_shard`."""
    dim = SPLIT_DIM[kind]
    if dim is None:
        return shards[0]
    if kind is Kind.GATE_UP:
        shards = [shard.unflatten(0, (2, -1)) for shard in shards]
    return torch.cat(list(shards), dim=dim) if len(shards) > 1 else shards[0]
