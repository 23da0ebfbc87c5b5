"""What the analyses of one training step cost and how many failed."""

from __future__ import annotations

from collections import Counter

import numpy as np

# Why an analysis gave no skills. Every cause is always reported, so that a metric never appears halfway through a run.
CAUSES = (
    "timeout",
    "connection",
    "rate_limit",
    "server",
    "request",
    "empty",
    "unparseable",
    "too_long",
    "engine",
    "rules",
)


class AnalysisError(Exception):
    """An analysis gave no skills. `cause` is one of CAUSES, the message says more."""

    def __init__(self, cause: str, reason: str):
        super().__init__(reason)
        self.cause = cause


class AnalysisCounters:
    """Adds up until drained.

    Keys: `analyses`, `cache_hits`, `retries`, `failures` and `failures_<cause>`, `dropped_step_skills` (unknown,
    duplicate, blank or surplus), `prompt_tokens`, `completion_tokens`, `latency_mean_s`, `latency_p95_s` (of analyses
    that were computed, not found in the cache; waiting for a slot and retries included; absent where there was none).
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._latencies_s: list[float] = []

    def add(self, name: str, count: int = 1) -> None:
        """Raise the counter `name` by `count`."""
        self._counts[name] += count

    def add_latency(self, latency_s: float) -> None:
        """Note how long one analysis took, failed ones included."""
        self._latencies_s.append(latency_s)

    def add_failure(self, cause: str) -> int:
        """Count one failed analysis; returns how many failed of this `cause` since the last drain."""
        self._counts[f"failures_{cause}"] += 1
        return self._counts[f"failures_{cause}"]

    def drain(self) -> dict[str, float]:
        """The values since the last drain; all start again from 0."""
        names = ["analyses", "cache_hits", "retries", "dropped_step_skills", "prompt_tokens", "completion_tokens"]
        values = {name: float(self._counts[name]) for name in names}
        values |= {f"failures_{cause}": float(self._counts[f"failures_{cause}"]) for cause in CAUSES}
        values["failures"] = sum(values[f"failures_{cause}"] for cause in CAUSES)
        if self._latencies_s:
            values["latency_mean_s"] = float(np.mean(self._latencies_s))
            values["latency_p95_s"] = float(np.percentile(self._latencies_s, 95))
        self._counts.clear()
        self._latencies_s.clear()
        return values
