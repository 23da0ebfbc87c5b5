"""Sequences -> packed micro-batches: by token budget, balanced over data-parallel ranks by estimated operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_opid.actor.samples import TokenSequence
from megatron_opid.weights.hf_config import ModelShape

Plan = list[list[tuple[int, ...]]]
"""[data-parallel rank][micro-batch] -> indices of its sequences; every rank has the same number, some may be empty."""


@dataclass(frozen=True)
class PackedTokens:
    """One micro-batch for the model: input_ids int64 [1, t], and the response tokens' rows and targets int64 [T].

    Padding up to a multiple of the tensor-parallel size is one more sequence, without rows.
    """

    input_ids: Tensor
    sequences: PackedSeqParams
    rows: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Packer:
    """How this model's sequences become micro-batches.

    alignment: micro-batch lengths are multiples of it; multiple: so are the numbers of micro-batches per rank.
    """

    shape: ModelShape
    tokens_per_micro_batch: int
    alignment: int
    multiple: int
    device: torch.device

    def plan(self, sequences: Sequence[TokenSequence]) -> Plan:
        """The same plan for the same sequences, on every rank, whether they are scored or learnt from."""
        return plan_micro_batches(
            [sequence.num_tokens for sequence in sequences],
            [sequence_operations(self.shape, sequence) for sequence in sequences],
            tokens_per_micro_batch=self.tokens_per_micro_batch,
            num_ranks=parallel_state.get_data_parallel_world_size(),
            multiple=self.multiple,
        )

    def own_part(self, sequences: Sequence[TokenSequence]) -> list[tuple[int, ...]]:
        """The micro-batches of this data-parallel rank, as indices into `sequences`."""
        return self.plan(sequences)[parallel_state.get_data_parallel_rank()]


def sequence_operations(shape: ModelShape, sequence: TokenSequence) -> float:
    """Multiply-adds of one forward pass: linear layers, causal attention (quadratic), LM head on response rows."""
    query_size, key_size = shape.num_heads * shape.head_dim, shape.num_groups * shape.head_dim
    attention_weights = shape.hidden_size * (2 * query_size + 2 * key_size)
    layer_weights = attention_weights + 3 * shape.hidden_size * shape.ffn_size
    num_tokens, num_rows = sequence.num_tokens, len(sequence.response_ids)
    per_layer = num_tokens * layer_weights + num_tokens**2 * query_size
    return float(shape.num_layers * per_layer + num_rows * shape.hidden_size * shape.vocab_size)


def plan_micro_batches(
    num_tokens: Sequence[int],
    operations: Sequence[float],
    *,
    tokens_per_micro_batch: int,
    num_ranks: int,
    multiple: int = 1,
) -> Plan:
    """Deal sequences to `num_ranks` x m micro-batches of at most `tokens_per_micro_batch` tokens, m small.

    Longest-processing-time rule: dearest first, each to the cheapest micro-batch with room; if there is none, m grows
    by `multiple`, of which m is a multiple. The same arguments give the same plan on every rank.
    Raises: ValueError if a sequence exceeds the budget or there is none.
    """
    if not num_tokens:
        raise ValueError("no sequences to pack; give at least one")
    if max(num_tokens) > tokens_per_micro_batch:
        raise ValueError(
            f"a sequence of {max(num_tokens)} tokens does not fit actor.tokens_per_micro_batch="
            f"{tokens_per_micro_batch}; set at least {max(num_tokens)}"
        )
    order = sorted(range(len(num_tokens)), key=lambda index: (-operations[index], index))
    num_bins = num_ranks * multiple
    while sum(num_tokens) > num_bins * tokens_per_micro_batch:
        num_bins += num_ranks * multiple
    while (bins := _fill(order, num_tokens, operations, num_bins, tokens_per_micro_batch)) is None:
        num_bins += num_ranks * multiple
    return _deal(bins, operations, num_ranks)


def pack(sequences: Sequence[TokenSequence], *, alignment: int, device: torch.device) -> PackedTokens:
    """One micro-batch, its length a multiple of `alignment`; no sequences make `alignment` padding tokens."""
    ids, rows, targets, lengths = [], [], [], []
    start = 0
    for sequence in sequences:
        ids += [sequence.prompt_ids, sequence.response_ids[:-1]]
        first_row = start + len(sequence.prompt_ids) - 1
        rows.append(np.arange(first_row, first_row + len(sequence.response_ids)))
        targets.append(sequence.response_ids)
        lengths.append(sequence.num_tokens)
        start += sequence.num_tokens
    padding = -start % alignment if start else alignment
    if padding:
        ids.append(np.zeros(padding))
        lengths.append(padding)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return PackedTokens(
        input_ids=_int64(ids, device)[None],
        sequences=_packed_sequences(bounds, max(lengths), device),
        rows=_int64(rows, device),
        targets=_int64(targets, device),
    )


def _fill(
    order: Sequence[int], num_tokens: Sequence[int], operations: Sequence[float], num_bins: int, capacity: int
) -> list[list[int]] | None:
    """Bins of sequence indices, or None if the rule finds no room for one."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    load, room = [0.0] * num_bins, [capacity] * num_bins
    for index in order:
        candidates = [number for number in range(num_bins) if room[number] >= num_tokens[index]]
        if not candidates:
            return None
        chosen = min(candidates, key=lambda number: (load[number], number))
        bins[chosen].append(index)
        load[chosen] += operations[index]
        room[chosen] -= num_tokens[index]
    return bins


def _deal(bins: list[list[int]], operations: Sequence[float], num_ranks: int) -> Plan:
    """Similar bins side by side: at each turn of the schedule the ranks have about the same work."""
    by_cost = sorted(bins, key=lambda members: (-sum(operations[index] for index in members), members))
    return [[tuple(sorted(members)) for members in by_cost[rank::num_ranks]] for rank in range(num_ranks)]


def _packed_sequences(bounds: np.ndarray, max_length: int, device: torch.device) -> PackedSeqParams:
    cumulative = torch.as_tensor(bounds, dtype=torch.int32, device=device)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cumulative,
        cu_seqlens_kv=cumulative,
        max_seqlen_q=max_length,
        max_seqlen_kv=max_length,
    )


def _int64(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.as_tensor(np.concatenate([np.zeros(0), *parts]).astype(np.int64), device=device)
