"""What a pool does with engines that are out: while the trainer has the memory, and when newer weights come."""

from __future__ import annotations

import asyncio
import time

import pytest

from rollout.engines import pool as pool_module
from rollout.engines.base import EngineError
from rollout.engines.http import EngineFault
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.event_loop import EventLoop


class Server:
    """A server and its client in one; `down` makes every call fail."""

    def __init__(self, url: str):
        self.url, self.expected_version, self.held = url, None, None
        self.is_asleep = self.down = False
        self.calls: list[str] = []
        self.while_probed = lambda: None

    async def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.down:
            raise EngineFault("dead", f"{self.url} is down")

    async def load(self, version: int) -> None:
        await self._called("load")
        self.held = version
        self.is_asleep = False

    async def sleep(self) -> None:
        await self._called("sleep")
        self.is_asleep = True

    async def health(self) -> None:
        await self._called("health")

    async def generate(self, prompt_ids, sampling, *, session: str):
        await self._called("generate")
        return f"by {self.url}"

    async def verify_version(self) -> None:
        await self._called("verify")
        if self.held != self.expected_version:
            raise EngineFault("stale", f"{self.url} holds {self.held}")

    async def probe(self, timeout_s: float) -> None:
        await self._called("probe")
        self.while_probed()

    async def close(self) -> None: ...


class Owner:
    def __init__(self, *servers: Server):
        self.servers = {server.url: server for server in servers}
        self.stopped: list[str] = []
        self.dead: set[str] = set()
        self.restart_errors: list[Exception] = []

    def death(self, url: str) -> str | None:
        return "its process has ended" if url in self.dead else None

    def stop(self, url: str) -> None:
        self.stopped.append(url)

    async def restart(self, url: str) -> None:
        if self.restart_errors:
            raise self.restart_errors.pop()
        self.dead.discard(url)
        self.servers[url].down, self.servers[url].held = False, None


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(pool_module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(pool_module, "WATCH_INTERVAL_S", 0.01)


async def until_serving(pool: EnginePool, number: int) -> None:
    async with asyncio.timeout(5):
        while len(pool.engines) < number:
            await asyncio.sleep(0.01)


def made(*, owned: bool) -> tuple[EnginePool, Owner, Server, Server]:
    good, bad = Server("http://good"), Server("http://bad")
    owner = Owner(good, bad)
    return EnginePool([good, bad], PoolSettings(), owner if owned else None), owner, good, bad


@pytest.mark.parametrize("owned", [True, False])
async def test_engines_that_are_out_give_their_memory_back_as_well(owned: bool):
    pool, owner, good, bad = made(owned=owned)
    await pool.update(lambda engine: engine.load(1), 1)
    bad.down = True
    pool._take_out(pool._members[1], EngineFault("hanging", "it hangs"))
    calls = len(bad.calls)
    await pool.sleep()
    assert good.is_asleep and owner.stopped == ([bad.url] if owned else [])
    assert bad.calls[calls:] == ([] if owned else ["sleep"])
    await asyncio.sleep(0.1)
    assert bad.calls[calls:] == ([] if owned else ["sleep"])  # nobody mends it while the trainer works
    bad.down = owned  # one of ours must be restarted first
    pool.give_weights = lambda engine: engine.load(2)
    await pool.update(lambda engine: engine.load(2), 2)
    await until_serving(pool, 2)
    assert bad.held == 2 and not bad.is_asleep
    await pool.close()


async def test_a_serving_engine_of_ours_that_cannot_sleep_is_killed():
    pool, owner, _, bad = made(owned=True)
    await pool.update(lambda engine: engine.load(1), 1)
    bad.down = True
    await pool.sleep()
    assert owner.stopped == [bad.url] and [engine.url for engine in pool.engines] == ["http://good"]
    await pool.close()


async def test_an_engine_probed_under_older_weights_does_not_come_back():
    pool, _, _, bad = made(owned=False)
    newest = 1
    pool.give_weights = lambda engine: engine.load(newest)
    await pool.update(pool.give_weights, 1)

    def newer_weights_come() -> None:
        nonlocal newest
        newest, bad.while_probed = 2, lambda: None
        pool.expect(2)
        asyncio.get_running_loop().call_soon(lambda: served.append([engine.held for engine in pool.engines]))

    served: list[list[int]] = []
    bad.while_probed = newer_weights_come
    pool._take_out(pool._members[1], EngineFault("slow", "it is slow"))
    await until_serving(pool, 2)
    assert served == [[1]] and bad.held == 2
    await pool.close()


async def test_a_restart_that_the_system_refuses_is_tried_again():
    pool, owner, _, bad = made(owned=True)
    pool.give_weights = lambda engine: engine.load(1)
    await pool.update(pool.give_weights, 1)
    owner.restart_errors = [OSError("no space left"), BlockingIOError("no more processes")]
    bad.down = True
    pool._take_out(pool._members[1], EngineFault("dead", "it died"))
    await until_serving(pool, 2)
    assert bad.held == 1 and not owner.restart_errors
    await pool.close()


async def test_another_ranks_engine_is_asked_until_it_is_back_and_left_alone():
    mine, other = Server("http://mine"), Server("http://other")
    owner = Owner(mine)
    pool = EnginePool([mine, other], PoolSettings(), owner, own=[mine.url])
    pool.give_weights = lambda engine: engine.load(1)
    assert await pool.update(pool.give_weights, 1) == (mine.url,)
    other.held = 1  # by its own rank
    await pool.admit({mine.url, other.url}, 1)
    pool._take_out(pool._members[1], EngineFault("dead", "it died"))
    await pool.sleep()
    assert mine.is_asleep and not other.is_asleep and not owner.stopped
    other.held = None
    await pool.update(pool.give_weights, 1)
    await pool.admit({mine.url}, 1)
    await asyncio.sleep(0.1)
    assert [engine.url for engine in pool.engines] == [mine.url] and "load" not in other.calls
    other.held = 1
    await until_serving(pool, 2)
    await pool.close()


def test_a_server_that_dies_while_the_trainer_trains_is_mended_meanwhile():
    pool, owner, _, bad = made(owned=True)
    pool.give_weights = lambda engine: engine.load(1)
    loop = EventLoop()
    try:
        loop.run(pool.update(lambda engine: engine.load(1), 1))
        loop.run(pool.resume())
        owner.dead.add(bad.url)
        deadline_s = time.monotonic() + 60
        while bad.calls != ["load", "load", "verify", "probe", "verify"]:  # nothing is run on the loop
            assert time.monotonic() < deadline_s, bad.calls
            time.sleep(0.01)
        assert not owner.dead
        loop.run(pool.close())
    finally:
        loop.close()


async def test_no_request_waits_for_weights_that_only_a_push_brings():
    """By NCCL and handles of memory a restarted server gets none in between."""
    pool, _, good, bad = made(owned=True)
    await pool.update(lambda engine: engine.load(1), 1)
    good.down = bad.down = True
    async with asyncio.timeout(5):  # recovery_timeout_s is 10 min
        with pytest.raises(EngineError, match="none can be given weights before the next push.*holds None"):
            await pool.generate([1], None, session="a")
        await pool.pause()  # nor does a push wait for it
    assert await pool.reachable() == (good, bad)
    await pool.close()


async def test_a_push_restarts_our_servers_where_none_answers():
    pool, owner, good, bad = made(owned=True)
    await pool.update(lambda engine: engine.load(1), 1)
    bad.down = True
    assert await pool.reachable() == (good,)
    good.down = True
    assert await pool.reachable() == (good, bad)
    assert pool._events.drain()["num_restarts"] == 2
    await pool.sleep()
    good.down = bad.down = True
    owner.restart_errors = [OSError("no space left")]  # of one of them
    (up,) = await pool.reachable()
    assert not up.is_asleep  # a restarted server never slept
    given = EnginePool([good], PoolSettings())
    good.down = True
    with pytest.raises(EngineError, match="no engine answers: http://good is down"):
        await given.reachable()
    await pool.close()
