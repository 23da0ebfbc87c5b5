"""One vocab-parallel LM head applied to chunks of rows: statistics, then gradients from per-token coefficients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_opid.kernels.linear_logprob.reference import accumulation_dtype
from megatron_opid.kernels.linear_logprob.vocab_parallel import RowStatistics, VocabShard, combine

Logits = Any
"""What a back end keeps of a chunk's logits between forward and gradient: its own business."""


class Backend(Protocol):
    """The arithmetic of one chunk on one shard; reference.TorchBackend documents each method."""

    def forward(
        self, hidden: Tensor, targets: Tensor, inverse_temperature: Tensor, with_entropy: bool, keep: bool
    ) -> tuple[Logits, Tensor]: ...

    def logits_gradient(
        self,
        logits: Logits,
        targets: Tensor,
        inverse_temperature: Tensor,
        rows: RowStatistics,
        d_logprob: Tensor,
        d_entropy: Tensor | None,
    ) -> Tensor: ...

    def hidden_gradient(self, d_logits: Tensor, out: Tensor) -> None: ...

    def weight_gradient(self, d_logits: Tensor, hidden: Tensor, out: Tensor, beta: int) -> None: ...


@dataclass(frozen=True)
class Chunk:
    """Rows of one chunk: hidden [C, H], targets [C] counted from the shard's first column, 1/temperature [C]."""

    rows: slice
    hidden: Tensor
    targets: Tensor
    inverse_temperature: Tensor


@dataclass(frozen=True)
class Head:
    """The LM head of this rank. One instance per call: it holds nothing between calls."""

    backend: Backend
    shard: VocabShard
    chunk_tokens: int

    def chunks(self, hidden: Tensor, targets: Tensor, temperature: float | Tensor) -> Iterator[Chunk]:
        """Splits rows into chunks; no rows make one empty chunk, so that every rank joins each collective."""
        dtype = accumulation_dtype(hidden)
        inverse = torch.as_tensor(temperature, dtype=dtype, device=hidden.device).reciprocal().expand(len(hidden))
        local_targets = targets - self.shard.start
        for start in range(0, max(len(hidden), 1), self.chunk_tokens):
            rows = slice(start, min(start + self.chunk_tokens, len(hidden)))
            yield Chunk(rows, hidden[rows], local_targets[rows], inverse[rows].contiguous())

    def forward(self, chunk: Chunk, with_entropy: bool, keep: bool) -> tuple[Logits, RowStatistics]:
        """The chunk's logits on this shard, as the back end keeps them for `backward` (keep), and row statistics."""
        logits, partials = self.backend.forward(
            chunk.hidden, chunk.targets, chunk.inverse_temperature, with_entropy, keep
        )
        return logits, combine(partials, self.shard)

    def backward(
        self,
        chunk: Chunk,
        logits: Logits,
        statistics: RowStatistics,
        d_logprob: Tensor,
        d_entropy: Tensor | None,
        d_hidden: Tensor | None,
        d_weight: Tensor | None,
    ) -> None:
        """Writes the chunk's rows of d hidden [T, H], summed over shards, and adds to d weight [V/tp, H].

        The first chunk overwrites d weight's valid rows instead, so they need not be zeroed before.
        Args: logits as `forward` gave them (overwritten); d_logprob, d_entropy [C]: the loss's derivatives.
        """
        d_logits = self.backend.logits_gradient(
            logits, chunk.targets, chunk.inverse_temperature, statistics, d_logprob, d_entropy
        )
        pending = None
        if d_hidden is not None:
            self.backend.hidden_gradient(d_logits, out=d_hidden[chunk.rows])
            if self.shard.group is not None:
                # The sum over shards travels while the weight's gradient is computed.
                pending = dist.all_reduce(d_hidden[chunk.rows], group=self.shard.group, async_op=True)
        if d_weight is not None:
            valid_rows = d_weight[: self.shard.num_columns]
            self.backend.weight_gradient(d_logits, chunk.hidden, out=valid_rows, beta=int(chunk.rows.start > 0))
        if pending is not None:
            pending.wait()
