"""What a pool of engines is told: when one counts as hanging or slow, and who restarts those that died."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Owner(Protocol):
    """Whoever started the servers, and may start one anew."""

    def death(self, url: str) -> str | None:
        """Why the server's process ended; None while it runs."""
        ...

    async def restart(self, url: str) -> None:
        """Kill the server and start it; returns when it answers, raises EngineError if it does not."""
        ...

    def stop(self, url: str) -> None:
        """Kill the server."""
        ...


@dataclass(frozen=True)
class PoolSettings:
    """When an engine counts as hanging or slow, how long requests wait for one to come back, and for one another.

    A request that has taken `slow_ratio` times the 90th percentile of the other engines' requests, and at least
    `slow_after_s`, makes its engine slow. (One that hangs reaches its client's time limit.) New requests of an engine
    wait until they are `arrival_share` of those that run there, at most `arrival_patience_s` (`arrivals.Arrivals`).
    """

    recovery_timeout_s: float = 600.0
    probe_timeout_s: float = 60.0
    slow_ratio: float = 10.0
    slow_after_s: float = 30.0
    arrival_share: float = 0.12
    arrival_patience_s: float = 0.05
