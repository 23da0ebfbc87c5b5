"""Joins the queries of concurrent requests into batches for a back end that runs in threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

# (queries, topk) -> one result for each query
Search = Callable[[Sequence[str], int], list[list[Any]]]


class Busy(RuntimeError):
    """More queries wait than may."""


@dataclass(frozen=True)
class _Waiting:
    query: str
    topk: int
    result: asyncio.Future[list[Any]]


class Batcher:
    """A bounded queue in front of `num_threads` threads. A batch is what waits when a thread becomes free, so nobody
    waits for a batch to fill.

    Args:
        search: called in a thread with at most `max_batch` queries.
        max_waiting: queries that may wait, those in work not counted.
        observe_batch: called with the size of every batch.
    """

    def __init__(
        self,
        search: Search,
        *,
        num_threads: int,
        max_batch: int,
        max_waiting: int,
        observe_batch: Callable[[int], None],
    ) -> None:
        self._search = search
        self._max_batch = max_batch
        self.max_waiting = max_waiting
        self._observe_batch = observe_batch
        self._waiting: deque[_Waiting] = deque()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="search")
        self._idle_threads = num_threads
        self._running: set[asyncio.Task[None]] = set()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def submit(self, queries: Sequence[str], topk: int) -> list[list[Any]]:
        """The results of `queries`, at most `topk` each.

        Raises:
            Busy: more than `max_waiting` queries would wait.
        """
        if len(self._waiting) + len(queries) > self.max_waiting:
            raise Busy
        loop = asyncio.get_running_loop()
        entries = [_Waiting(query, topk, loop.create_future()) for query in queries]
        self._waiting.extend(entries)
        self._start_batches()
        return list(await asyncio.gather(*(entry.result for entry in entries)))

    def _start_batches(self) -> None:
        while self._waiting and self._idle_threads:
            count = min(self._max_batch, -(-len(self._waiting) // self._idle_threads))
            batch = [self._waiting.popleft() for _ in range(count)]
            self._idle_threads -= 1
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, batch: list[_Waiting]) -> None:
        self._observe_batch(len(batch))
        queries, topk = [entry.query for entry in batch], max(entry.topk for entry in batch)
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._pool, self._search, queries, topk)
        except Exception as error:  # whatever the back end raises belongs to those who asked
            for entry in batch:
                if not entry.result.done():
                    entry.result.set_exception(error)
        else:
            for entry, result in zip(batch, results, strict=True):
                if not entry.result.done():  # the client may have gone
                    entry.result.set_result(result[: entry.topk])
        finally:
            self._idle_threads += 1
            self._start_batches()

    def close(self) -> None:
        """Wait for what is in work."""
        self._pool.shutdown()
