"""The record of an episode: what crosses from rollout to the analyzer, the trainer and the files people read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from envs.base import PromptView, Task


@dataclass(frozen=True)
class Step:
    """One agent step = one prompt and one response; the ids are those that the engine saw and sampled.

    `response_logprobs` are the engine's, of the sampled tokens, natural log, at the sampling temperature.
    `valid` is the format check of the response; `reward` is the environment's own reward of this step.
    """

    observation: str
    admissible: tuple[str, ...]
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_logprobs: tuple[float, ...]
    response: str
    action: str
    valid: bool
    reward: float
    weight_version: int
    finish_reason: str = "stop"
    affordances: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class HindsightSkills:
    """What an analyzer made of a finished episode; `steps` maps a step's index (0-based) to its step skill."""

    summary: str
    episode: str
    steps: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """A finished episode. `score` is its outcome (0 or the environment's success score).

    `failure` names an environment or engine fault; such an episode is reported and never learned from.
    `skills` is None until an annotator has run, and stays None when the analysis failed. `numbers` are the
    environment's own figures of the episode (the last `Outcome.info`).
    """

    task: Task
    uid: str
    group: str
    goal: str
    category: str
    steps: tuple[Step, ...]
    success: bool
    score: float
    failure: str | None = None
    skills: HindsightSkills | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)

    def view(self, index: int, history_length: int) -> PromptView:
        """What the prompt of step `index` showed: the same view that the agent loop rendered."""
        step = self.steps[index]
        return PromptView(
            goal=self.goal,
            history=recent(self.steps[:index], history_length),
            index=index,
            observation=step.observation,
            admissible=step.admissible,
            affordances=step.affordances,
        )


def recent(steps: Sequence[Step], length: int) -> tuple[tuple[str, str], ...]:
    """The last `length` (observation, action) pairs: the history that the next prompt shows."""
    return tuple((step.observation, step.action) for step in steps[max(0, len(steps) - length) :])


def to_json(trajectory: Trajectory) -> str:
    """One line of JSON."""
    return json.dumps(to_fields(trajectory), ensure_ascii=False, separators=(",", ":"))


def from_json(line: str) -> Trajectory:
    """The inverse of `to_json`, field for field."""
    return from_fields(json.loads(line))


def to_fields(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as dictionaries, which share its values."""
    # Not dataclasses.asdict: it copies every token id and log-prob one by one, which costs more than all the rest.
    fields = {**vars(trajectory), "task": vars(trajectory.task), "steps": [vars(step) for step in trajectory.steps]}
    if trajectory.skills is not None:
        fields["skills"] = vars(trajectory.skills)
    return fields


def from_fields(data: Mapping[str, Any]) -> Trajectory:
    """The inverse of `to_fields`, also where JSON made lists of tuples."""
    skills = data["skills"]
    return Trajectory(
        **{
            **data,
            "task": Task(**data["task"]),
            "steps": tuple(_step(step) for step in data["steps"]),
            "skills": skills and skills_from_fields(skills),
        }
    )


def skills_from_fields(data: Mapping[str, Any]) -> HindsightSkills:
    """The inverse of `vars`, also where JSON made text of step numbers."""
    return HindsightSkills(data["summary"], data["episode"], {int(k): v for k, v in data["steps"].items()})


def with_skills(trajectory: Trajectory, skills: HindsightSkills | None) -> Trajectory:
    """The trajectory with an annotator's result."""
    return replace(trajectory, skills=skills)


def _step(data: Mapping[str, Any]) -> Step:
    lists = ("admissible", "prompt_ids", "response_ids", "response_logprobs")
    affordances = {kind: tuple(names) for kind, names in data.get("affordances", {}).items()}
    return Step(**{**data, **{name: tuple(data[name]) for name in lists}, "affordances": affordances})
