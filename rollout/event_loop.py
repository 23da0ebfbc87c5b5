"""One event loop for all a rollout awaits: HTTP clients and analyzers stay bound to the loop they first ran in."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any


class EventLoop:
    """Runs coroutines to their end, one at a time: in the caller's thread, or in one of its own while that goes on."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._started: asyncio.Task[Any] | None = None
        self._is_stopped = False

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result. Raises: RuntimeError while one that was started still runs."""
        return self._runner.run(coroutine)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Run a coroutine in the background; until its result is there nothing else may run here."""
        return self._thread.submit(self.run, self._cancellable(coroutine))

    def stop(self) -> None:
        """Cancel what was started, wait for its end, and start nothing any more."""
        self._is_stopped = True
        if self._started is not None:
            self._started.get_loop().call_soon_threadsafe(self._started.cancel)
        self._thread.shutdown()

    def close(self) -> None:
        self.stop()
        self._runner.close()

    async def _cancellable(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        self._started = asyncio.current_task()
        if self._is_stopped:
            coroutine.close()
            raise asyncio.CancelledError
        try:
            return await coroutine
        finally:
            self._started = None
