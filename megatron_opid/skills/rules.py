"""The analyzer without a model: skills built from the trajectory by the rules of its environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module

from megatron_opid.skills.counters import AnalysisCounters
from megatron_opid.skills.outcome import succeeded
from rollout.trajectory import HindsightSkills, Trajectory

# (trajectory, success, max_step_skills) -> skills, or None where the rules do not understand the episode.
Rules = Callable[[Trajectory, bool, int], HindsightSkills | None]

# `NAME_skills` in megatron_opid.skills.NAME_rules; imported on demand: an environment may need packages of its own.
KNOWN = ("alfworld", "sciworld", "search", "webshop")


class RulesAnalyzer:
    """Analyzer over the rules of `env`.

    Raises:
        ValueError: no rules are known for `env`.
    """

    def __init__(self, env: str, max_step_skills: int, success_threshold: float):
        if env not in KNOWN:
            raise ValueError(
                f"skills.analyzer=rules knows no rules for env.name={env!r}, only for {', '.join(KNOWN)}; "
                "set skills.analyzer to openai or policy"
            )
        self._rules: Rules = getattr(import_module(f"megatron_opid.skills.{env}_rules"), f"{env}_skills")
        self._max_step_skills = max_step_skills
        self._success_threshold = success_threshold
        self._counters = AnalysisCounters()

    async def analyze(self, trajectory: Trajectory) -> HindsightSkills | None:
        start_s = time.monotonic()
        success = succeeded(trajectory, self._success_threshold)
        skills = self._rules(trajectory, success, self._max_step_skills)
        self._counters.add("analyses")
        self._counters.add_latency(time.monotonic() - start_s)
        if skills is None:
            self._counters.add_failure("rules")
        return skills

    def counters(self) -> dict[str, float]:
        return self._counters.drain()

    async def close(self) -> None:
        """Nothing is held."""
