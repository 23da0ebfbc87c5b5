"""Engine against trainer: the mismatch by staleness and by position, and when it stops a run."""

from __future__ import annotations

import math

import pytest
import torch

from envs.base import Task
from megatron_opid.batch import Batch, build_batch
from megatron_opid.step_statistics import mismatch_statistics, refuse_mismatch
from rollout.trajectory import Step, Trajectory

ENGINE = (-1.0, -2.0, -0.5)


def batch_of(versions: tuple[int, ...]) -> Batch:
    """One episode, a step of three tokens for each weight version."""
    steps = tuple(Step("", (), (1,), (2, 3, 4), ENGINE, "", "", True, 0.0, version) for version in versions)
    return build_batch([Trajectory(Task("e", 0, 0, "train"), "u", "g", "", "", steps, True, 1.0)], 0.0)


def test_groups_by_staleness_and_position():
    trainer = torch.tensor([*ENGINE, *(value + 0.2 for value in ENGINE)])
    statistics = mismatch_statistics(batch_of((5, 4)), trainer, step=5)
    assert statistics["fresh"] == {"k3": 0.0, "logprob_abs_mean": 0.0, "logprob_abs_max": 0.0, "large_share": 0.0}
    assert statistics["stale"]["k3"] == pytest.approx(math.exp(0.2) - 1 - 0.2, rel=1e-4)
    assert statistics["stale"]["large_share"] == 1.0 and statistics["large_share"] == 0.5
    assert statistics["max_staleness"] == 1.0
    assert [name for name in statistics if "position" in name] == ["position_0", "position_1_to_7"]
    assert statistics["position_0"]["logprob_abs_mean"] == pytest.approx(0.1)


def test_unknown_tokens_are_left_out():
    trainer = torch.tensor([*ENGINE, math.nan, math.nan, math.nan])
    statistics = mismatch_statistics(batch_of((0, 0)), trainer, step=0)
    assert statistics["k3"] == 0.0 and "stale" not in statistics


@pytest.mark.parametrize(
    ("version", "named"), [(3, ("fresh", "engine.verify_every=1")), (2, ("stale", "learning_rate"))]
)
def test_a_large_mismatch_stops_the_run_and_says_where_to_look(version: int, named: tuple[str, str]):
    statistics = mismatch_statistics(batch_of((version,)), torch.tensor(ENGINE) - torch.tensor([0.0, 0, 2]), step=3)
    refuse_mismatch(statistics, max_k3=0.5)
    with pytest.raises(RuntimeError, match=f"over {named[0]} tokens.*max_mismatch_k3=0.1.*1_to_7.*{named[1]}"):
        refuse_mismatch(statistics, max_k3=0.1)


def test_a_mismatch_that_is_no_number_stops_the_run():
    statistics = mismatch_statistics(batch_of((0,)), torch.tensor([-1.0, -math.inf, -0.5]), step=0)
    with pytest.raises(RuntimeError, match="engine and trainer disagree"):
        refuse_mismatch(statistics, max_k3=0.1)
