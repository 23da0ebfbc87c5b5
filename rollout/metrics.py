"""What a collection of episodes says about the policy, and what its making cost."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from envs.base import is_admissible
from rollout.trajectory import Trajectory


@dataclass
class Tally:
    """Events of one collection while it runs; times are `time.perf_counter` seconds."""

    started_s: float = field(default_factory=time.perf_counter)
    last_episode_end_s: float = field(default_factory=time.perf_counter)
    num_failures: Counter[str] = field(default_factory=Counter)  # by cause; replayed attempts count as well
    num_replays: int = 0

    def count_failure(self, failure: str) -> None:
        """Count by what stands before the colon: environment, engine."""
        self.num_failures[failure.split(":")[0]] += 1


def summarize(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over the episodes that did not fail, success also per category ("success_rate/<category>").

    The environment's own numbers come as "environment/<name>", averaged over the episodes that have them.
    Rates are left out where nothing was counted.
    """
    played = [t for t in trajectories if t.failure is None]
    steps = [step for t in played for step in t.steps]
    metrics: dict[str, float] = {
        "num_episodes": len(trajectories),
        "num_failed_episodes": len(trajectories) - len(played),
        "num_steps": len(steps),
        "prompt_tokens": sum(len(step.prompt_ids) for step in steps),
        "response_tokens": sum(len(step.response_ids) for step in steps),
    }
    if played:
        metrics["success_rate"] = sum(t.success for t in played) / len(played)
        metrics["steps_mean"] = len(steps) / len(played)
        metrics["score_mean"] = sum(t.score for t in played) / len(played)
    if steps:
        metrics["valid_action_share"] = sum(step.valid for step in steps) / len(steps)
        choices = [step for step in steps if step.admissible]
        if choices:
            num_admissible = sum(is_admissible(step.action, step.admissible) for step in choices)
            metrics["admissible_action_share"] = num_admissible / len(choices)
        metrics["cut_response_share"] = sum(step.finish_reason == "length" for step in steps) / len(steps)
        metrics["prompt_tokens_mean"] = metrics["prompt_tokens"] / len(steps)
        metrics["response_tokens_mean"] = metrics["response_tokens"] / len(steps)
    by_category: dict[str, list[bool]] = defaultdict(list)
    for trajectory in played:
        by_category[trajectory.category].append(trajectory.success)
    for category in sorted(by_category):
        metrics[f"success_rate/{category}"] = sum(by_category[category]) / len(by_category[category])
    by_name: dict[str, list[float]] = defaultdict(list)
    for trajectory in played:
        for name, value in trajectory.numbers.items():
            by_name[name].append(value)
    return metrics | {f"environment/{name}": sum(by_name[name]) / len(by_name[name]) for name in sorted(by_name)}


def cost(tally: Tally, num_response_tokens: float, engine_busy_s: float) -> dict[str, float]:
    """Time and events of a collection that ends now."""
    seconds = time.perf_counter() - tally.started_s
    return {
        "seconds": seconds,
        "response_tokens_per_s": num_response_tokens / seconds,
        "num_replays": tally.num_replays,
        "num_failures/environment": tally.num_failures["environment"],
        "num_failures/engine": tally.num_failures["engine"],
        "engine_busy_share": engine_busy_s / seconds,
    }
