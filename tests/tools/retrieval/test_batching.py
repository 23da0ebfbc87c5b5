"""Requests that come together are searched together, each gets its own results, and too many are refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from tools.retrieval.batching import Batcher, Busy


def make(search, sizes: list[int], **settings: int) -> Batcher:
    values = {"num_threads": 1, "max_batch": 8, "max_waiting": 100, **settings}
    return Batcher(search, observe_batch=sizes.append, **values)


async def test_what_waits_is_searched_together() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def search(queries: Sequence[str], topk: int) -> list[list[str]]:
        gate.wait()
        return [[f"{query}{rank}" for rank in range(topk)] for query in queries]

    batcher = make(search, sizes)
    tasks = [asyncio.create_task(batcher.submit([f"q{number}"], 1 + number % 3)) for number in range(12)]
    await asyncio.sleep(0.05)
    gate.set()
    results = await asyncio.gather(*tasks)
    assert results == [[[f"q{number}{rank}" for rank in range(1 + number % 3)]] for number in range(12)]
    assert sizes == [1, 8, 3]  # the first finds a free thread, the others wait for it
    batcher.close()


async def test_the_queue_is_bounded_and_an_error_reaches_who_asked() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def search(queries: Sequence[str], topk: int) -> list[list[str]]:
        gate.wait()
        if "bad" in queries:
            raise OSError("disk")
        return [[query] for query in queries]

    batcher = make(search, sizes, max_batch=1, max_waiting=2)
    running = [asyncio.create_task(batcher.submit([name], 1)) for name in ("first", "bad", "good")]
    await asyncio.sleep(0.05)
    assert batcher.num_waiting == 2
    with pytest.raises(Busy):
        await batcher.submit(["fourth"], 1)
    gate.set()
    results = await asyncio.gather(*running, return_exceptions=True)
    assert results[0] == [["first"]] and isinstance(results[1], OSError) and results[2] == [["good"]]
    assert await batcher.submit(["fifth"], 1) == [["fifth"]]
    batcher.close()
