"""The split of packed sequences over context-parallel ranks: nothing lost, equal work, rows where their tokens are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_opid.actor.context_parallel import gathered_order, own_rows, own_tokens, padded_length

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@given(lengths=LENGTHS, num_ranks=st.integers(1, 4))
def test_every_token_has_one_rank_and_causal_work_is_equal(lengths: list[int], num_ranks: int) -> None:
    padded = [padded_length(length, num_ranks) for length in lengths]
    parts = [own_tokens(padded, num_ranks, rank) for rank in range(num_ranks)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(sum(padded)))
    positions = np.concatenate([np.arange(length) for length in padded])
    assert len({int(positions[part].sum()) for part in parts}) == 1
    assert all(0 <= pad - length < 2 * num_ranks for pad, length in zip(padded, lengths, strict=True))


@given(lengths=LENGTHS, num_ranks=st.integers(1, 4))
def test_gathered_order_undoes_the_split(lengths: list[int], num_ranks: int) -> None:
    padded = [padded_length(length, num_ranks) for length in lengths]
    tokens = np.random.default_rng(0).integers(0, 99, sum(padded))
    gathered = np.concatenate([tokens[own_tokens(padded, num_ranks, rank)] for rank in range(num_ranks)])
    assert (gathered[gathered_order(padded, num_ranks)] == tokens).all()


@given(lengths=LENGTHS, num_ranks=st.integers(1, 4), data=st.data())
def test_rows_are_found_on_the_rank_that_holds_them(lengths: list[int], num_ranks: int, data: st.DataObject) -> None:
    padded = [padded_length(length, num_ranks) for length in lengths]
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, sum(padded) - 1)))), dtype=np.int64)
    found = []
    for rank in range(num_ranks):
        own = own_tokens(padded, num_ranks, rank)
        local, chosen = own_rows(rows, own)
        assert (own[local] == rows[chosen]).all()
        found += chosen.tolist()
    assert sorted(found) == list(range(len(rows)))


def test_two_ranks() -> None:
    assert own_tokens([4, 8], 2, 0).tolist() == [0, 3, 4, 5, 10, 11]
    assert own_tokens([4, 8], 2, 1).tolist() == [1, 2, 6, 7, 8, 9]


def test_a_length_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens does not split into 4 equal pieces"):
        own_tokens([6], 2, 0)
