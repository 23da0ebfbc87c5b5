"""The analyzer without a model: skills built from the trajectory by the rules of its environment."""

from __future__ import annotations

import time
from collections.abc import Callable

from megatron_opid.skills.alfworld_rules import alfworld_skills
from megatron_opid.skills.counters import AnalysisCounters
from megatron_opid.skills.outcome import succeeded
from megatron_opid.skills.sciworld_rules import sciworld_skills
from megatron_opid.skills.search_rules import search_skills
from megatron_opid.skills.webshop_rules import webshop_skills
from rollout.trajectory import HindsightSkills, Trajectory

# (trajectory, success, max_step_skills) -> skills, or None where the rules do not understand the episode.
Rules = Callable[[Trajectory, bool, int], HindsightSkills | None]

RULES: dict[str, Rules] = {
    "alfworld": alfworld_skills,
    "sciworld": sciworld_skills,
    "search": search_skills,
    "webshop": webshop_skills,
}


class RulesAnalyzer:
    """Analyzer over RULES[env].

    Raises:
        ValueError: no rules are known for `env`.
    """

    def __init__(self, env: str, max_step_skills: int, success_threshold: float):
        if env not in RULES:
            raise ValueError(
                f"skills.analyzer=rules knows no rules for env.name={env!r}, only for {', '.join(sorted(RULES))}; "
                "set skills.analyzer to openai or policy"
            )
        self._rules = RULES[env]
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
