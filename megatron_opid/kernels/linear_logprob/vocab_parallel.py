"""The vocabulary split over a tensor-parallel group: the columns of a rank, and the combination of row statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """This rank's columns of the LM head: token ids [start, start + num_columns), padding columns left out."""

    start: int
    num_columns: int
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, weight: Tensor, num_valid_columns: int | None, group: dist.ProcessGroup | None) -> VocabShard:
        """The shard of `weight` [V/tp, H]; every rank of `group` holds as many rows, rank r the r-th block."""
        rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
        num_rows = weight.shape[0]
        num_valid = num_rows * size if num_valid_columns is None else num_valid_columns
        if not 0 < num_valid <= num_rows * size:
            raise ValueError(
                f"num_valid_columns={num_valid}; set it within 1..{num_rows * size}, the padded vocabulary"
            )
        start = rank * num_rows
        return cls(start, min(max(num_valid - start, 0), num_rows), group if size > 1 else None)


@dataclass(frozen=True)
class RowStatistics:
    """Of each row's softmax over the whole vocabulary, [C] each: log-prob of the target, log Σexp, entropy or None."""

    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor | None


def combine(partials: Tensor, shard: VocabShard) -> RowStatistics:
    """Row statistics of the whole vocabulary from those of each shard, the same bits on every rank.

    Args: partials [C, 3 or 4], of this shard's scaled logits z: m = max z, Σexp(z − m), the target's z (−inf where
    another shard owns it) and, if the entropy is wanted, Σexp(z − m)·(z − m). One all-gather; the sum over shards has a
    fixed order. log-prob = (z_y − M) − log S: subtracting the maximum first keeps a large common offset harmless.
    """
    gathered = partials[None]
    if shard.group is not None:
        gathered = partials.new_empty(shard.group.size(), *partials.shape)
        dist.all_gather(list(gathered.unbind()), partials, group=shard.group)
    maxima, sums, target_logits = gathered[..., 0], gathered[..., 1], gathered[..., 2]
    maximum = maxima.amax(0)
    shift = maxima - maximum
    scale = shift.exp()
    total = (sums * scale).sum(0)
    log_total = total.log()
    entropy = None
    if partials.shape[1] == 4:
        # A shard of padding alone has m = −inf and sum 0: its term is 0, not the NaN of 0·(−inf).
        moments = torch.where(scale > 0, scale * (gathered[..., 3] + sums * shift), 0.0)
        entropy = log_total - moments.sum(0) / total
    return RowStatistics((target_logits.amax(0) - maximum) - log_total, maximum + log_total, entropy)
