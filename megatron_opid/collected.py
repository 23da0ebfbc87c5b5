"""One step's episodes and their skills from all ranks: how shares become one, and how a checkpoint keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rollout.compact import from_compact, to_compact
from rollout.metrics import summarize
from rollout.trajectory import HindsightSkills, Trajectory, skills_from_fields

# How the ranks' own figures become one: what is not named here is added up.
LARGEST = ("seconds", "annotator_exposed_s", "latency_p95_s")
AVERAGED = ("engine_busy_share", "engine/prefix_cache_hit_rate", "latency_mean_s")
# Every rank sees the same servers: one that died is not as many faults as there are ranks.
SEEN_BY_ALL = ("engine/num_faults/", "engine/num_returns", "engine/seconds_out")


@dataclass(frozen=True)
class Collected:
    """The episodes of training step `step` that one rank played, or all of them, and their figures."""

    step: int
    metrics: Mapping[str, float]
    analyzer_metrics: Mapping[str, float]
    trajectories: tuple[Trajectory, ...]

    def to_json(self) -> str:
        return json.dumps(vars(self) | {"trajectories": [to_compact(trajectory) for trajectory in self.trajectories]})

    @classmethod
    def from_json(cls, text: str) -> Collected:
        data = json.loads(text)
        return cls(**data | {"trajectories": tuple(map(from_compact, data["trajectories"]))})


@dataclass(frozen=True)
class Annotations:
    """What the analyzer said of the episodes of one rank, or of all, by their uid, and its figures."""

    metrics: Mapping[str, float]
    analyzer_metrics: Mapping[str, float]
    skills: Mapping[str, HindsightSkills]

    def to_json(self) -> str:
        return json.dumps(vars(self) | {"skills": {uid: vars(skills) for uid, skills in self.skills.items()}})

    @classmethod
    def from_json(cls, text: str) -> Annotations:
        data = json.loads(text)
        return cls(**data | {"skills": {uid: skills_from_fields(skills) for uid, skills in data["skills"].items()}})


def join_annotations(shares: Sequence[Annotations]) -> Annotations:
    """What was said of all ranks' episodes."""
    return Annotations(
        _combine([share.metrics for share in shares]),
        _combine([share.analyzer_metrics for share in shares]),
        {uid: skills for share in shares for uid, skills in share.skills.items()},
    )


def join_shares(shares: Sequence[Collected], num_tasks: int, group_size: int) -> Collected:
    """What all ranks played, in order of tasks, then members of the group.

    Args: shares: one of each rank, in rank order; rank r played tasks r, r + ranks, r + 2·ranks, ...
    """
    trajectories = _in_task_order([share.trajectories for share in shares], num_tasks, group_size)
    metrics = _combine([share.metrics for share in shares]) | summarize(trajectories)
    return Collected(shares[0].step, metrics, _combine([share.analyzer_metrics for share in shares]), trajectories)


def _in_task_order(shares: Sequence[Sequence[Trajectory]], num_tasks: int, group_size: int) -> tuple[Trajectory, ...]:
    ordered: list[Trajectory] = []
    for task in range(num_tasks):
        turn, rank = divmod(task, len(shares))
        ordered += shares[rank][turn * group_size : (turn + 1) * group_size]
    return tuple(ordered)


def _combine(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    combined: dict[str, float] = {}
    for name in {name: None for part in parts for name in part}:
        values = [part[name] for part in parts if name in part]
        if name in LARGEST or name.startswith(SEEN_BY_ALL):
            combined[name] = max(values)
        elif name in AVERAGED:
            combined[name] = sum(values) / len(values)
        else:
            combined[name] = sum(values)
    return combined
