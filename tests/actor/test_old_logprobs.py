"""The same update, bit for bit, wherever mathematics says that the old log-probs are the same."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("name", ["reuse_pp2", "reuse_dp2"])
def test_old_logprobs_of_the_updates_own_forward_are_the_scored_ones(name: str, two_ranks: dict[str, Any]) -> None:
    """Bit for bit: the loss, the gradient's norm, every weight after the update, the log-probs themselves."""
    result = two_ranks[name]
    assert result["reuse"] == result["recompute"]
    assert result["reuse"]["statistics"]["max_ratio_deviation"] == 0.0
    assert result["reuse"]["statistics"]["distillation_loss"] != 0.0


def test_reuse_and_an_exact_engine_learn_what_recompute_learns(one_rank: dict[str, Any]) -> None:
    """Skill terms of two levels, a state term and the distillation loss included; what is recorded, too."""
    results = one_rank["learning"]
    names = ("recompute", "recompute_before_skills", "reuse", "engine")
    assert [results[name].pop("scored_before") for name in names] == [True, True, False, True]
    assert results["recompute_before_skills"] == results["recompute"]
    assert results["reuse"] == results["recompute"]
    assert results["engine"] == results["recompute"]
    assert results["recompute"]["statistics"]["first_update_max_ratio_deviation"] == 0.0


def test_reuse_corrects_what_recompute_corrects(one_rank: dict[str, Any]) -> None:
    results = one_rank["learning"]
    for name in ("statistics", "advantages", "weights", "trainer_logprobs"):
        assert results["corrected_reuse"][name] == results["corrected_recompute"][name], name
    assert results["corrected_reuse"]["weights"] != results["recompute"]["weights"]
