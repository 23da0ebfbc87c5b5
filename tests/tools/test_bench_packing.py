"""The planner is better balanced than what it replaces, and padding below one percent, on the benchmark's batches."""

from __future__ import annotations

import pytest

from megatron_opid.weights.hf_config import parse_hf_config
from tools.bench_actor_cases import BATCHES, hf_config, make_sequences
from tools.bench_packing import LAYOUTS, balance, padding


@pytest.mark.parametrize("batch", BATCHES)
def test_balance(batch: str) -> None:
    shape = parse_hf_config(hf_config("qwen3-1.7b"))
    measured = balance(shape, make_sequences(BATCHES[batch], 128, shape.vocab_size), 8)
    assert 1 <= measured["planner"] <= measured["sorted"] < measured["in order"]
    assert measured["planner"] < 1.02


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding(layout: str) -> None:
    assert 0 <= padding(make_sequences(BATCHES["agentic"], 64, 1000), LAYOUTS[layout]) < 0.01
