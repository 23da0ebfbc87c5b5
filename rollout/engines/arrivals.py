"""Requests to one engine wait for one another for a moment, so that it takes several prompts in at once.

A step of an engine that takes in a prompt costs a multiple of one that samples next tokens only: no CUDA graph covers
it, and SGLang's running requests stand still meanwhile. Where every episode goes on by itself some answer ends at
nearly every step, and each step would pay for one prompt.
"""

from __future__ import annotations

import asyncio


class Arrivals:
    """Lets requests through together: as soon as those that wait are `share` of those that run, or the first of them
    has waited `patience_s`. `share` 0 lets each through at once."""

    def __init__(self, share: float, patience_s: float):
        self._share = share
        self._patience_s = patience_s
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def join(self, num_requests: int) -> None:
        """Wait for the others; `num_requests` of the engine run or wait here, this one among them."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) >= self._share * (num_requests - len(self._waiting)):
            self._open()
        elif self._timer is None:
            self._timer = loop.call_later(self._patience_s, self._open)
        try:
            await turn
        finally:
            if turn in self._waiting:  # cancelled
                self._waiting.remove(turn)

    def _open(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
