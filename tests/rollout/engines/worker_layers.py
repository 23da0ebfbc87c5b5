"""Modules with the class names and attributes of vLLM's and SGLang's layers, which do not run here; sharded alike."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

HEADS, KV_HEADS, HEAD_SIZE, HIDDEN, FEED_FORWARD, VOCABULARY = 4, 2, 8, 16, 24, 41


class _Layer(nn.Module):
    def __init__(self, weight: torch.Tensor, rank: int, size: int, **attributes: object):
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.tp_rank, self.tp_size = rank, size
        vars(self).update(attributes)


class QKVParallelLinear(_Layer): ...


class MergedColumnParallelLinear(_Layer): ...


class ColumnParallelLinear(_Layer): ...


class RowParallelLinear(_Layer): ...


class VocabParallelEmbedding(nn.Module):
    """Has no tp_rank: where its rows start says whose they are."""

    def __init__(self, weight: torch.Tensor, size: int, **attributes: object):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.tp_size = size
        vars(self).update(attributes)


class RoutedExperts(nn.Module): ...


class OurExperts(RoutedExperts): ...


class RMSNorm(_Layer): ...


def whole(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": (HEADS * HEAD_SIZE, HIDDEN),
        "model.layers.0.self_attn.k_proj.weight": (KV_HEADS * HEAD_SIZE, HIDDEN),
        "model.layers.0.self_attn.v_proj.weight": (KV_HEADS * HEAD_SIZE, HIDDEN),
        "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_SIZE),
        "model.layers.0.mlp.gate_proj.weight": (FEED_FORWARD, HIDDEN),
        "model.layers.0.mlp.up_proj.weight": (FEED_FORWARD, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def shard_of(tensors: dict[str, torch.Tensor], rank: int, size: int) -> nn.Module:
    """The model of one tensor-parallel rank."""
    layer = "model.layers.0"

    def rows(name: str, parts: int = size, index: int = rank) -> torch.Tensor:
        return tensors[name].chunk(parts)[index]

    replicas = max(1, size // KV_HEADS)
    kv = (min(size, KV_HEADS), rank // replicas)
    qkv = [
        rows(f"{layer}.self_attn.q_proj.weight"),
        rows(f"{layer}.self_attn.k_proj.weight", *kv),
        rows(f"{layer}.self_attn.v_proj.weight", *kv),
    ]
    per_rank = -(-VOCABULARY // (8 * size)) * 8  # padded to 8 rows, as vLLM pads to 64
    start = min(rank * per_rank, VOCABULARY)
    held = tensors["model.embed_tokens.weight"][start : start + per_rank]
    padded = torch.cat([held, torch.full((per_rank - len(held), HIDDEN), 7.0, dtype=held.dtype)])
    indices = SimpleNamespace(org_vocab_start_index=start, num_org_elements=len(held))

    model = nn.Module()
    model.model = nn.Module()
    model.model.embed_tokens = VocabParallelEmbedding(padded, size, shard_indices=indices, org_vocab_size=VOCABULARY)
    block = nn.Module()
    block.self_attn = nn.Module()
    block.self_attn.qkv_proj = QKVParallelLinear(
        torch.cat(qkv),
        rank,
        size,
        num_heads=HEADS // size,
        num_kv_heads=max(1, KV_HEADS // size),
        head_size=HEAD_SIZE,
        num_kv_head_replicas=replicas,
    )
    block.self_attn.o_proj = RowParallelLinear(
        tensors[f"{layer}.self_attn.o_proj.weight"].chunk(size, dim=1)[rank], rank, size
    )
    block.mlp = nn.Module()
    gate_up = [rows(f"{layer}.mlp.{name}_proj.weight") for name in ("gate", "up")]
    block.mlp.gate_up_proj = MergedColumnParallelLinear(
        torch.cat(gate_up),
        rank,
        size,
        output_partition_sizes=[FEED_FORWARD // size] * 2,
        output_sizes=[FEED_FORWARD] * 2,
    )
    model.model.layers = nn.ModuleList([block])
    model.model.norm = RMSNorm(tensors["model.norm.weight"], 0, 1)
    return model
