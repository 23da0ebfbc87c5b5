"""Answers that a server draws."""

from __future__ import annotations

import asyncio

import pytest

from rollout.engines.base import Sampling
from tests.rollout.tiny import make_model
from tools.faulty_server import DrawnAnswers


@pytest.mark.parametrize(("mean_tokens", "expected"), [(None, 50), (10.0, 10)])
def test_lengths_are_even_or_have_a_long_tail(monkeypatch, mean_tokens: float | None, expected: float):
    monkeypatch.setattr(DrawnAnswers, "mean_tokens", mean_tokens)
    engine = DrawnAnswers(make_model(0))

    async def draw(seed: int) -> int:
        sampling = Sampling(temperature=1.0, max_tokens=100, stop_token_ids=(2,), seed=seed)
        return len((await engine.generate([5, 6], sampling, session="")).token_ids)

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*map(draw, range(400)))

    lengths = asyncio.run(all_of_them())
    assert lengths == asyncio.run(all_of_them())
    assert min(lengths) >= 1 and max(lengths) <= 100
    assert sum(lengths) / len(lengths) == pytest.approx(expected, rel=0.15)
