"""Plans: every sequence once, within the budget, balanced, the same number of micro-batches on each rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_opid.actor.packing import pack, plan_micro_batches
from megatron_opid.actor.samples import TokenSequence


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    num_ranks=st.integers(1, 5),
    multiple=st.integers(1, 3),
    budget=st.integers(100, 400),
)
def test_plan(lengths: list[int], num_ranks: int, multiple: int, budget: int) -> None:
    operations = [length**2 for length in lengths]
    options = {"tokens_per_micro_batch": budget, "num_ranks": num_ranks, "multiple": multiple}
    plan = plan_micro_batches(lengths, operations, **options)
    assert len(plan) == num_ranks
    assert len({len(rank) for rank in plan}) == 1
    assert len(plan[0]) % multiple == 0
    micro_batches = [members for rank in plan for members in rank]
    assert sorted(index for members in micro_batches for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= budget for members in micro_batches)
    assert plan == plan_micro_batches(lengths, operations, **options)


def test_ranks_are_balanced() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(50, 500, 200).tolist()
    operations = [length * (1000 + length) for length in lengths]
    plan = plan_micro_batches(lengths, operations, tokens_per_micro_batch=4096, num_ranks=4)
    loads = [sum(operations[index] for members in rank for index in members) for rank in plan]
    assert max(loads) / min(loads) < 1.02
    assert len(plan[0]) <= -(-sum(lengths) // (4 * 4096)) + 1


def test_a_sequence_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="101 tokens does not fit actor.tokens_per_micro_batch=100; set at least 101"):
        plan_micro_batches([5, 101], [1, 1], tokens_per_micro_batch=100, num_ranks=1)
    with pytest.raises(ValueError, match="no sequences"):
        plan_micro_batches([], [], tokens_per_micro_batch=100, num_ranks=1)


def test_pack() -> None:
    sequences = [
        TokenSequence(np.array([1, 2, 3]), np.array([4, 5])),
        TokenSequence(np.array([6]), np.array([7])),
    ]
    packed = pack(sequences, alignment=4, device=torch.device("cpu"))
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 6, 0, 0, 0]]
    assert packed.sequences.cu_seqlens_q.tolist() == [0, 4, 5, 8]
    assert packed.sequences.max_seqlen_q == 4
    assert packed.rows.tolist() == [2, 3, 4]
    assert packed.targets.tolist() == [4, 5, 7]


def test_pack_of_nothing_is_padding() -> None:
    packed = pack([], alignment=2, device=torch.device("cpu"))
    assert packed.input_ids.tolist() == [[0, 0]]
    assert packed.rows.tolist() == []


def test_an_empty_response_is_refused() -> None:
    with pytest.raises(ValueError, match="3 prompt and 0 response tokens"):
        TokenSequence(np.arange(3), np.arange(0))
