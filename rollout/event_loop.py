"""One event loop for all a rollout awaits: HTTP clients and analyzers stay bound to the loop they first ran in."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any

GUEST_POLL_S = 0.005


class EventLoop:
    """Runs coroutines to their end: in the caller's thread; or one in a thread of its own while that goes on, and what
    is run meanwhile beside it."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._background: concurrent.futures.Future[Any] | None = None
        self._lock = threading.Lock()
        self._begun = threading.Event()
        self._started: asyncio.Task[Any] | None = None
        self._num_guests = 0
        self._is_stopped = False

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result. Not to be called from the loop itself."""
        if (loop := self._enter_as_guest()) is None:
            return self._runner.run(coroutine)
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
        finally:
            with self._lock:
                self._num_guests -= 1

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Run a coroutine in the background, one at a time."""
        self._begun.clear()
        self._background = self._thread.submit(self._runner.run, self._host(coroutine))
        return self._background

    def stop(self) -> None:
        """Cancel what was started, wait for its end, and start nothing any more."""
        with self._lock:
            self._is_stopped = True
            if self._started is not None:
                self._started.get_loop().call_soon_threadsafe(self._started.cancel)
        self._thread.shutdown()

    def close(self) -> None:
        self.stop()
        self._runner.close()

    def _enter_as_guest(self) -> asyncio.AbstractEventLoop | None:
        """The loop, if it runs in the background, and goes on until this guest leaves; else None."""
        background = self._background
        if background is None or background.done():
            return None
        self._begun.wait()
        with self._lock:
            if self._started is not None:
                self._num_guests += 1
                return self._started.get_loop()
        concurrent.futures.wait([background])  # it is about to end
        return None

    def _try_to_leave(self) -> bool:
        with self._lock:
            if self._num_guests:
                return False
            self._started = None
            return True

    async def _host(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run `coroutine`, and the loop until its last guest has left."""
        with self._lock:
            self._started = asyncio.current_task() if not self._is_stopped else None
        self._begun.set()
        if self._is_stopped:
            coroutine.close()
            raise asyncio.CancelledError
        try:
            return await coroutine
        finally:
            while not self._try_to_leave():
                await asyncio.sleep(GUEST_POLL_S)
