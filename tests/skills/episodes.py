"""Hand-made episodes for the skill tests."""

from __future__ import annotations

from collections.abc import Sequence

from envs.base import Task
from rollout.trajectory import HindsightSkills, Step, Trajectory


def make_step(observation: str, action: str, *, admissible: Sequence[str] = (), valid: bool = True) -> Step:
    return Step(
        observation=observation,
        admissible=tuple(admissible),
        prompt_ids=(1, 2),
        response_ids=(3,),
        response_logprobs=(-0.5,),
        response=f"<action>{action}</action>",
        action=action,
        valid=valid,
        reward=0.0,
        weight_version=0,
    )


def make_trajectory(
    num_steps: int = 3,
    *,
    uid: str = "e0",
    success: bool = False,
    score: float | None = None,
    failure: str | None = None,
    skills: HindsightSkills | None = None,
) -> Trajectory:
    """An episode of the environment `toy` (conftest.py), whose full score is 10."""
    return Trajectory(
        task=Task("toy", 0, 0, "train"),
        uid=uid,
        group="g",
        goal="open the door",
        category="door",
        steps=tuple(make_step(f"room {index}", f"walk {index}") for index in range(num_steps)),
        success=success,
        score=(10.0 if success else 0.0) if score is None else score,
        failure=failure,
        skills=skills,
    )
