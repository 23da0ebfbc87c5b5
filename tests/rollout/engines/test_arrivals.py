"""Requests go to an engine together: when enough of them wait, or the first has waited long enough."""

from __future__ import annotations

import asyncio
import contextlib
import time

from rollout.engines.arrivals import Arrivals

FOREVER_S = 60.0


async def arrive(arrivals: Arrivals, num_requests: int) -> asyncio.Task[None]:
    task = asyncio.create_task(arrivals.join(num_requests))
    await asyncio.sleep(0)
    return task


async def test_none_waits_where_the_share_is_zero_or_nothing_runs():
    async with asyncio.timeout(1.0):
        await Arrivals(0.0, FOREVER_S).join(100)
        await Arrivals(0.5, FOREVER_S).join(1)


async def test_they_pass_together_once_they_are_the_share_of_those_that_run():
    arrivals = Arrivals(0.25, FOREVER_S)  # 8 run
    first = await arrive(arrivals, 9)
    assert not first.done()
    async with asyncio.timeout(1.0):
        await asyncio.gather(first, arrivals.join(10))
    third = await arrive(arrivals, 11)
    assert not third.done()  # the next ones wait anew
    third.cancel()


async def test_the_first_one_waits_no_longer_than_its_patience():
    arrivals = Arrivals(0.5, 0.2)
    started_s = time.perf_counter()
    first = await arrive(arrivals, 50)
    await asyncio.sleep(0.1)
    second = await arrive(arrivals, 51)
    await first
    assert time.perf_counter() - started_s > 0.19
    await asyncio.sleep(0)
    assert second.done()  # it has no patience of its own


async def test_a_request_that_was_cancelled_is_not_waited_for_and_does_not_count():
    arrivals = Arrivals(0.25, FOREVER_S)
    gone = await arrive(arrivals, 9)
    gone.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await gone
    first = await arrive(arrivals, 9)
    assert not first.done()
    async with asyncio.timeout(1.0):
        await asyncio.gather(first, arrivals.join(10))
