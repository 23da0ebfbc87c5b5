"""One engine of a pool, and what it is doing for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence

from rollout.engines.arrivals import Arrivals
from rollout.engines.base import Generation, Sampling
from rollout.engines.http import CacheCounts, EngineFault, HttpEngine

NUM_DURATIONS = 64


class PoolMember:
    """`fault` is why the engine is out, None while it serves; `durations_s` are those of its last answers; `is_own`:
    whether this pool is the one that looks after it."""

    def __init__(self, engine: HttpEngine, arrivals: Arrivals, *, is_own: bool):
        self.engine = engine
        self.is_own = is_own
        self.fault: EngineFault | None = None
        self.recovery: asyncio.Task[None] | None = None
        self.requests: dict[asyncio.Task[Generation], float] = {}  # to when they began
        self.durations_s: deque[float] = deque(maxlen=NUM_DURATIONS)
        self.num_faults = 0
        self._arrivals = arrivals
        self._busy_s = self._busy_since_s = 0.0
        self._cache = CacheCounts(0.0, 0.0)

    @property
    def busy_s(self) -> float:
        """Seconds in which the engine had a request of this pool."""
        return self._busy_s + (time.monotonic() - self._busy_since_s if self._arrivals.num_running else 0.0)

    @property
    def oldest_s(self) -> float:
        """How long ago the oldest request was made."""
        return time.monotonic() - min(tuple(self.requests.values()), default=time.monotonic())

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Generation | None:
        """The engine's answer; None if the request was cancelled because the engine was taken out."""
        task = asyncio.ensure_future(self._ask(prompt_ids, sampling, session))
        started_s = time.monotonic()
        self.requests[task] = started_s
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            del self.requests[task]
        if task.cancelled():
            return None
        generation = task.result()
        self.durations_s.append(time.monotonic() - started_s)
        return generation

    async def _ask(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Generation:
        async with self._arrivals.together():
            if self._arrivals.num_running == 1:
                self._busy_since_s = time.monotonic()
            try:
                return await self.engine.generate(prompt_ids, sampling, session=session)
            finally:
                if self._arrivals.num_running == 1:
                    self._busy_s += time.monotonic() - self._busy_since_s

    async def cache_delta(self) -> CacheCounts:
        """What the cache counted since the last call; a restarted server counts from 0."""
        before = self._cache
        with contextlib.suppress(EngineFault):
            self._cache = await self.engine.cache_counts()
        if self._cache.queried_tokens < before.queried_tokens:
            before = CacheCounts(0.0, 0.0)
        queried = self._cache.queried_tokens - before.queried_tokens
        return CacheCounts(queried, self._cache.hit_tokens - before.hit_tokens)

    def describe(self) -> str:
        if self.fault is not None:
            return f"engine {self.engine.url} is out: {self.fault}"
        return f"engine {self.engine.url}: {len(self.requests)} requests, the oldest for {self.oldest_s:.0f} s"


async def cancel(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait until it has ended."""
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
