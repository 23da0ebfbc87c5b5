"""What the report's trajectory browser is fed: an index of all episodes, and each episode compressed by itself.

Episodes of one run repeat their prompts, so gzip shrinks them about tenfold; the page unpacks the one that is opened.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_opid.metrics import finite_or_none
from megatron_opid.report.records import SavedStep, TokenScores
from rollout.trajectory import Step, Trajectory

MAX_EPISODES = 500
_SCALE_QUANTILE = 0.98  # tokens beyond it have the fullest colour
_MIN_SCALE_NATS = 0.01

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Browser:
    """`index` has one row per episode, `packed` its content (base64 of gzip of JSON) at the same position.

    `scale_nats` is the |teacher − old| that gets the fullest colour; `num_recorded` counts the episodes on disk.
    """

    index: list[dict[str, Any]]
    packed: list[str]
    scale_nats: float
    num_recorded: int


def browser_data(saved_steps: Sequence[SavedStep], decode: Decode | None = None) -> Browser:
    """Feed for the browser: the first episodes of each saved step, MAX_EPISODES in all or one of each step.

    `decode` turns prompt ids into what the model saw; without it the page shows the recorded observations.
    """
    per_step = max(1, MAX_EPISODES // max(1, len(saved_steps)))
    index, packed, deltas = [], [], []
    for saved in saved_steps:
        for trajectory in saved.trajectories[:per_step]:
            scores = [saved.scores.get((trajectory.uid, i), ()) for i in range(len(trajectory.steps))]
            index.append(_row(saved.step, trajectory))
            packed.append(pack(_content(trajectory, scores, decode)))
            deltas += [delta for of_step in scores for record in of_step for delta in _absolute_deltas(record)]
    num_recorded = sum(len(saved.trajectories) for saved in saved_steps)
    return Browser(index, packed, _scale(deltas), num_recorded)


def pack(data: Any) -> str:
    """Base64 of gzip of JSON: safe in any place of an HTML page. Numbers that are not finite become null."""
    text = data if isinstance(data, str) else json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")


def _row(step: int, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "step": step,
        "uid": trajectory.uid,
        "category": trajectory.category,
        "goal": trajectory.goal,
        "outcome": "fault" if trajectory.failure else "success" if trajectory.success else "failure",
        "num_steps": len(trajectory.steps),
    }


def _content(trajectory: Trajectory, scores: Sequence[Sequence[TokenScores]], decode: Decode | None) -> dict[str, Any]:
    skills = trajectory.skills
    return {
        "score": trajectory.score,
        "group": trajectory.group,
        "fault": trajectory.failure,
        "summary": skills.summary if skills else None,
        "episode_skill": skills.episode if skills else None,
        "steps": [
            _step(step, skills.steps.get(i) if skills else None, scores[i], decode)
            for i, step in enumerate(trajectory.steps)
        ],
    }


def _step(step: Step, step_skill: str | None, scores: Sequence[TokenScores], decode: Decode | None) -> dict[str, Any]:
    return {
        "prompt": decode(step.prompt_ids) if decode else None,
        "observation": step.observation,
        "admissible": step.admissible,
        "response": step.response,
        "action": step.action,
        "valid": step.valid,
        "reward": step.reward,
        "weight_version": step.weight_version,
        "finish_reason": step.finish_reason,
        "num_prompt_tokens": len(step.prompt_ids),
        "num_response_tokens": len(step.response_ids),
        "step_skill": step_skill,
        "scores": [
            {
                "level": record.level,
                "skill": record.skill,
                "tokens": record.token_texts,
                "old": record.old_logprobs,
                "teacher": record.teacher_logprobs,
                "advantage": record.advantages,
            }
            for record in scores
        ],
    }


def _absolute_deltas(record: TokenScores) -> list[float]:
    pairs = zip(record.old_logprobs, record.teacher_logprobs, strict=True)
    return [abs(teacher - old) for old, teacher in pairs if old is not None and teacher is not None]


def _scale(deltas: list[float]) -> float:
    if not deltas:
        return _MIN_SCALE_NATS
    deltas.sort()
    return max(_MIN_SCALE_NATS, deltas[int(_SCALE_QUANTILE * (len(deltas) - 1))])


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return finite_or_none(data)
