"""Requests of one pool to one engine wait for one another for a moment, so that several prompts come at once.

A step of an engine that takes in a prompt costs more than one that samples next tokens only: it is larger, and SGLang's
running requests stand still meanwhile. Where every episode goes on by itself some answer ends at nearly every step, and
each step would pay for one prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Arrivals:
    """Lets requests through together.

    Args:
        share: they pass as soon as those that wait are this share of those that run; 0: each at once.
        patience_s: or the first of them has waited so long.
    """

    def __init__(self, share: float, patience_s: float):
        self.num_running = 0
        self._share = share
        self._patience_s = patience_s
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Around one request: entered with the others that wait."""
        await self._wait()
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._open_if_enough()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if self._timer is None:
            self._timer = loop.call_later(self._patience_s, self._open)
        loop.call_soon(self._open_if_enough)  # not yet: others may come in this very moment
        try:
            await turn
        finally:
            if turn in self._waiting:  # cancelled
                self._waiting.remove(turn)

    def _open_if_enough(self) -> None:
        if len(self._waiting) >= self._share * self.num_running:
            self._open()

    def _open(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
