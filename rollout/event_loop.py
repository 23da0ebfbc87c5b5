"""One event loop for all a rollout awaits: HTTP clients and analyzers stay bound to the loop they first ran in."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

# Every operation of torch gives the interpreter up and wants it back, for which a thread waits this long by default
# 5 ms: a trainer beside a busy rollout would launch a few hundred kernels a second (tools/bench_beside.py).
SWITCH_INTERVAL_S = 2e-5


class EventLoop:
    """A loop in a thread of its own, from now until `close`: what mends servers goes on while the caller trains."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout", daemon=True)
        self._thread.start()
        self._started: Future[Any] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result; if the wait for it is interrupted it is cancelled. Not to be called from the loop
        itself."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the background, one at a time."""
        self._started = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return self._started

    def cancel(self) -> None:
        """Cancel what was started, if anything."""
        if self._started is not None:
            self._started.cancel()

    def close(self) -> None:
        """Cancel all that runs, and end the thread. A second time does nothing."""
        if not self._thread.is_alive():
            return
        self.run(_cancel_others())
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def in_own_thread(call: Callable[[], T]) -> T:
    """What `call` returns, in a thread that nobody waits for when this is cancelled, or the process ends: for calls
    that may never return. (asyncio.to_thread's threads are waited for at the end of the loop.)"""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result = error = None
        try:
            result = call()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="call", daemon=True).start()
    return await done


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
