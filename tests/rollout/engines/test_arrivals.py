"""Requests go to an engine together: when enough of them wait, or the first has waited long enough."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

from rollout.engines.arrivals import Arrivals
from rollout.engines.base import Generation, Sampling
from rollout.engines.http import EngineFault
from rollout.engines.pool import EnginePool, PoolSettings

FOREVER_S = 60.0
SAMPLING = Sampling(temperature=1.0, max_tokens=4, stop_token_ids=(), seed=1)


class Requests:
    """Requests that run until they are ended, by name."""

    def __init__(self, share: float, patience_s: float = FOREVER_S):
        self.arrivals = Arrivals(share, patience_s)
        self.running: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._run(name))
        await settle()

    async def end(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
        await settle()

    async def _run(self, name: str) -> None:
        async with self.arrivals.together():
            self.running.append(name)
            await asyncio.sleep(FOREVER_S)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_none_waits_where_the_share_is_zero_or_nothing_runs():
    at_once, together = Requests(0.0), Requests(0.5)
    for name in "abc":
        await at_once.come(name)
    assert at_once.running == ["a", "b", "c"]
    await together.come(*"abcdefgh")  # all at once: the first opens for all
    assert together.running == list("abcdefgh")


async def test_they_pass_together_once_they_are_the_share_of_those_that_run():
    requests = Requests(0.25)
    await requests.come(*"abcdefgh")
    await requests.come("i")
    assert "i" not in requests.running
    await requests.come("j")
    assert requests.running[-2:] == ["i", "j"]
    await requests.come("k")
    assert "k" not in requests.running  # waits anew


async def test_those_that_end_let_the_waiting_ones_in():
    requests = Requests(0.25)
    await requests.come(*"abcdefgh")
    await requests.come("i")
    await requests.end(*"abc")
    assert "i" not in requests.running
    await requests.end("d")  # four are left
    assert requests.running[-1] == "i"


async def test_the_first_one_waits_no_longer_than_its_patience():
    requests = Requests(0.5, patience_s=0.2)
    await requests.come(*"abcdefgh")
    started_s = time.perf_counter()
    await requests.come("i", "j")
    while "i" not in requests.running:
        await asyncio.sleep(0.01)
    assert time.perf_counter() - started_s > 0.19
    assert requests.running[-1] == "j"  # it has no patience of its own


async def test_a_request_that_was_cancelled_is_not_waited_for_and_does_not_count():
    requests = Requests(0.25)
    await requests.come(*"abcdefgh")
    await requests.come("gone")
    await requests.end("gone")
    await requests.come("i")
    assert "i" not in requests.running
    await requests.come("j")
    assert requests.running[-2:] == ["i", "j"] and requests.arrivals.num_running == 10


class StubEngine(SimpleNamespace):
    """Answers when it is told to; `asked` are the sessions whose requests have come."""

    def __init__(self, url: str):
        super().__init__(url=url, expected_version=0, asked=[], answers=asyncio.Event())

    async def generate(self, prompt_ids, sampling, *, session: str) -> Generation:
        self.asked.append(session)
        await self.answers.wait()
        return Generation((1,), (0.0,), "length", 0)


async def test_a_pool_holds_requests_back_and_counts_only_what_its_engine_has():
    engine = StubEngine("http://first")
    pool = EnginePool([engine], PoolSettings(arrival_share=0.5, arrival_patience_s=FOREVER_S))
    asking = [asyncio.create_task(pool.generate([1], SAMPLING, session=str(i))) for i in range(4)]
    await settle()
    late = asyncio.create_task(pool.generate([1], SAMPLING, session="late"))
    await settle()
    assert engine.asked == ["0", "1", "2", "3"] and pool.busy_s > 0
    engine.answers.set()
    await asyncio.gather(*asking, late)  # those that ended let it in
    assert engine.asked[-1] == "late"
    busy_s = pool.busy_s
    await asyncio.sleep(0.05)
    assert pool.busy_s == busy_s
    await pool.halt()


async def test_requests_that_wait_for_an_engine_that_is_taken_out_go_to_another():
    engines = StubEngine("http://first"), StubEngine("http://second")
    pool = EnginePool(engines, PoolSettings(arrival_share=1.0, arrival_patience_s=FOREVER_S))
    asking = [asyncio.create_task(pool.generate([1], SAMPLING, session=str(i))) for i in range(6)]
    await settle()
    late = asyncio.create_task(pool.generate([1], SAMPLING, session="late"))
    await settle()
    (member,) = [member for member in pool._members if len(member.requests) > len(member.engine.asked)]
    pool._take_out(member, EngineFault("dead", "gone"))
    (other,) = [engine for engine in engines if engine is not member.engine]
    other.answers.set()
    generations = await asyncio.gather(*asking, late)
    assert [generation.token_ids for generation in generations] == [(1,)] * 7
    assert "late" in other.asked and "late" not in member.engine.asked
    await pool.halt()
