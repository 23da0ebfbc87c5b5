"""How context parallelism splits packed sequences: index functions, pure.

With C ranks a sequence, padded to a multiple of 2·C tokens, is cut into 2·C equal pieces; rank r holds the pieces r and
2·C − 1 − r, one early and one late, so that causal attention costs every rank the same. That is the order in which
Transformer Engine's packed attention and Megatron's rotary embedding expect a rank's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def padded_length(num_tokens: int, num_ranks: int) -> int:
    """`num_tokens` filled up to what `num_ranks` can split; without context parallelism as it is."""
    return num_tokens if num_ranks == 1 else -(-num_tokens // (2 * num_ranks)) * 2 * num_ranks


def own_tokens(lengths: Sequence[int], num_ranks: int, rank: int) -> np.ndarray:
    """Where the tokens that `rank` holds lie in the whole packed micro-batch, int64 [sum(lengths) / num_ranks].

    Args: lengths: of the packed sequences, each a multiple of 2·num_ranks (padded_length).
    Raises: ValueError naming a length that is not.
    """
    if num_ranks == 1:
        return np.arange(sum(lengths))
    pieces, start = [np.zeros(0, dtype=np.int64)], 0
    for length in lengths:
        if length % (2 * num_ranks):
            raise ValueError(f"a sequence of {length} tokens does not split into {2 * num_ranks} equal pieces")
        size = length // (2 * num_ranks)
        for piece in (rank, 2 * num_ranks - 1 - rank):
            pieces.append(np.arange(start + piece * size, start + (piece + 1) * size))
        start += length
    return np.concatenate(pieces)


def own_rows(rows: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `rows` (positions in the whole micro-batch) those that a rank holds: (positions among its own tokens, which of
    `rows` they are), int64 [k] each, in the order of `rows`."""
    place = np.full(int(max(own.max(initial=-1), rows.max(initial=-1))) + 1, -1, dtype=np.int64)
    place[own] = np.arange(len(own))
    local = place[rows]
    chosen = np.flatnonzero(local >= 0)
    return local[chosen], chosen


def gathered_order(lengths: Sequence[int], num_ranks: int) -> np.ndarray:
    """Where each token of the whole micro-batch lies in the ranks' tokens set one after another, int64 [sum(lengths)]:
    indexing with it undoes the split."""
    order = np.concatenate([own_tokens(lengths, num_ranks, rank) for rank in range(num_ranks)])
    return np.argsort(order)
