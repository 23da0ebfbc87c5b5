"""What of an episode that failed reaches training: nothing, neither its steps nor its part in the group's baseline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from envs.base import Task
from megatron_opid.batch import build_batch, outcome_advantages
from megatron_opid.config import AlgorithmConfig
from megatron_opid.skills.prompting import TeacherPrompts
from rollout.trajectory import Step, Trajectory

PENALTY = 0.1


def episode(uid: str, score: float, num_steps: int) -> Trajectory:
    steps = tuple(
        Step(f"at {i}", (), (1, i), (2, 3), (-1.0, -2.0), "", "", True, 0.0, weight_version=0) for i in range(num_steps)
    )
    return Trajectory(Task("e", 0, 0, "train"), uid, "group", "", "", steps, score > 0, score)


EPISODES = (episode("a", 10.0, 2), episode("b", 0.0, 3), episode("c", 10.0, 1))


def test_a_failed_episode_changes_nothing_for_the_others():
    """Its finished steps, a high score and prompts of a teacher are there, and are not used."""
    failed = replace(episode("f", 10.0, 4), failure="engine: it died")
    prompts = {"f": tuple(TeacherPrompts(episode=(9, 9)) for _ in failed.steps)}
    clean = build_batch(EPISODES, PENALTY)
    played = (EPISODES[0], failed, *EPISODES[1:])
    batch = build_batch(played, PENALTY).with_teachers(played, prompts)
    assert [t.uid for t in batch.trajectories] == ["a", "b", "c"] and batch.samples == clean.samples
    algorithm = AlgorithmConfig(name="gigpo", state_weight=1.0)
    assert torch.equal(outcome_advantages(batch, algorithm), outcome_advantages(clean, algorithm))


def test_every_step_gets_the_prompts_of_its_own_episode_and_place():
    prompts = {uid: tuple(TeacherPrompts(step=(ord(uid), index)) for index in range(3)) for uid in ("a", "b")}
    skilled = tuple(replace(trajectory, category="skilled") for trajectory in EPISODES[::-1])  # in any order
    batch = build_batch(EPISODES, PENALTY).with_teachers(skilled, prompts)
    steps = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)]
    assert [sample.teacher_prompts.step for sample in batch.samples] == [*((ord(u), i) for u, i in steps), None]
    assert [trajectory.category for trajectory in batch.trajectories] == ["skilled"] * 3


def test_an_episode_without_a_step_has_nothing_to_learn():
    assert len(build_batch((*EPISODES, episode("e", 0.0, 0)), PENALTY).trajectories) == 3


def test_a_step_of_failures_only_stops_the_run_with_their_causes():
    failed = [replace(e, failure=f"environment: fault {i % 2}") for i, e in enumerate(EPISODES)]
    with pytest.raises(RuntimeError, match="all 3 episodes failed.*environment: fault 0; environment: fault 1"):
        build_batch(failed, PENALTY)
