"""Which episodes count as won when their skills are written and routed."""

from __future__ import annotations

from envs.base import load
from rollout.trajectory import Trajectory


def succeeded(trajectory: Trajectory, success_threshold: float) -> bool:
    """True if the environment says so, or if the score reaches `success_threshold` of the environment's full score.

    A threshold below 1 lets partial scores (WebShop) count as success; at 1 both conditions say the same.
    """
    full_score = load(trajectory.task.env).success_score(True)
    return trajectory.success or trajectory.score >= success_threshold * full_score
