"""Several servers behind one Engine: sessions stay where their cache is, a faulty server's requests go elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from rollout.engines.arrivals import Arrivals
from rollout.engines.base import EngineError, Generation, Sampling
from rollout.engines.events import PoolEvents
from rollout.engines.http import EngineFault, HttpEngine
from rollout.engines.pool_member import PoolMember, cancel
from rollout.engines.pool_settings import Owner, PoolSettings

logger = logging.getLogger(__name__)

# An engine may hold this much more than its even share before a session leaves it (consistent hashing, bounded loads).
LOAD_FACTOR = 1.25
# A request that has failed this often is given up: it might be what kills its engines.
MAX_ATTEMPTS = 4
# What "slow" is measured against: so many answers of the other engines, the 90th percentile of their times.
SLOW_QUANTILE, MIN_DURATIONS = 0.9, 8
WATCH_INTERVAL_S = 1.0
PROBE_INTERVAL_S = 15.0
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0

GiveWeights = Callable[[HttpEngine], Awaitable[None]]
Ask = Callable[[HttpEngine], Awaitable[object]]


class EnginePool:
    """An Engine over `engines`. All calls come from one event loop.

    An engine that fails a request is taken out: what it was doing is cancelled and done by others, with the same
    sampling seed, and only one answer of a request ever leaves the pool. It comes back when it has generated a token
    under the expected weights; `owner` restarts it before, and `give_weights` (set by the weight sync) syncs it.

    Of the pools of several ranks over the same engines one looks after each: it alone gives it weights, puts it to
    sleep and restarts it, and the others see it come back. `own` are the URLs that this pool looks after; None: all.
    """

    def __init__(
        self,
        engines: Sequence[HttpEngine],
        settings: PoolSettings,
        owner: Owner | None = None,
        own: Collection[str] | None = None,
    ):
        if not engines:
            raise ValueError("a pool needs at least one engine")
        self.give_weights: GiveWeights | None = None
        self._members = [
            PoolMember(
                engine,
                Arrivals(settings.arrival_share, settings.arrival_patience_s),
                is_own=own is None or engine.url in own,
            )
            for engine in engines
        ]
        self._settings = settings
        self._owner = owner
        self._events = PoolEvents()
        self._changed = asyncio.Event()  # an engine came back, or why it is out did
        self._is_open, self._is_idle = asyncio.Event(), asyncio.Event()
        self._is_open.set()
        self._is_idle.set()
        self._num_requests = 0
        self._watching: asyncio.Task[None] | None = None

    @property
    def engines(self) -> tuple[HttpEngine, ...]:
        """The engines that serve now."""
        return tuple(member.engine for member in self._serving())

    @property
    def own_urls(self) -> tuple[str, ...]:
        """The servers that this pool looks after, whether they serve or not."""
        return tuple(member.engine.url for member in self._members if member.is_own)

    @property
    def busy_s(self) -> float:
        """Seconds in which an engine had a request of this pool, on average over the engines."""
        return sum(member.busy_s for member in self._members) / len(self._members)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Generation:
        """Sample one response on the session's engine, or on another if that fails; later, while the pool is paused.

        Raises:
            EngineError: the request failed four times, or no engine served for `recovery_timeout_s`.
            ValueError: the request cannot be run by any engine.
        """
        await self._is_open.wait()
        self._num_requests += 1
        self._is_idle.clear()
        try:
            return await self._sample(prompt_ids, sampling, session)
        finally:
            self._num_requests -= 1
            if not self._num_requests:
                self._is_idle.set()

    async def pause(self) -> None:
        """Hold new requests back; return when those that run have their answers."""
        self._is_open.clear()
        await self._is_idle.wait()

    async def resume(self) -> None:
        self._is_open.set()
        self._watch()  # also where this rank has no episodes: other ranks may need engines that it looks after

    async def _sample(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Generation:
        self._watch()
        faults: list[EngineFault] = []
        while len(faults) < MAX_ATTEMPTS:
            member = await self._choose(session)
            try:
                generation = await member.sample(prompt_ids, sampling, session)
                if generation is not None:
                    return generation
            except EngineFault as fault:
                faults.append(fault)
                if fault.kind == "aborted":
                    self._events.fault(fault.kind)
                else:
                    self._take_out(member, fault)
            self._events.moved()
        raise EngineError(f"a request failed {MAX_ATTEMPTS} times, last: {faults[-1]}")

    async def update(self, load: GiveWeights, version: int) -> tuple[str, ...]:
        """Have our engines that serve take the weights of `version` by `load`, and take those out that fail.

        Returns: the URLs of those that have them; an engine that is out is given them when it is mended.
        """
        await self._stop_watching()
        serving = [member for member in self._serving() if member.is_own]
        results = await asyncio.gather(*(load(member.engine) for member in serving), return_exceptions=True)
        self.expect(version)  # not before: an engine finds out whether it holds what this pool has given it
        for member, result in zip(serving, results, strict=True):
            if isinstance(result, EngineFault):
                self._take_out(member, result)
            elif isinstance(result, BaseException):
                raise result
        self._mend_again()
        return tuple(member.engine.url for member in serving if member.fault is None)

    async def reachable(self, ask: Ask = lambda engine: engine.health()) -> tuple[HttpEngine, ...]:
        """All engines that answer `ask` now, also of those that are out; where none does, our own are restarted first.

        Nothing else is mended until `admit`.

        Raises:
            EngineError: none answers.
        """
        await self.halt()
        faults, failures = await self._silences(ask), []
        if None not in faults and self._owner is not None:
            restarts = (self._try_restart(member) for member in self._members if member.is_own)
            failures = [failure for failure in await asyncio.gather(*restarts) if failure]
            faults = await self._silences(ask)
        if None not in faults:
            raise EngineError(f"no engine answers: {'; '.join(map(str, [*faults, *failures]))}")
        engines = []
        for member, fault in zip(self._members, faults, strict=True):
            if fault is None:
                engines.append(member.engine)
            else:
                self._mark_out(member, fault)
        return tuple(engines)

    async def _silences(self, ask: Ask) -> list[EngineFault | None]:
        """Why each engine does not answer; None of one that does."""

        async def silence(member: PoolMember) -> EngineFault | None:
            try:
                await ask(member.engine)
            except EngineFault as fault:
                return fault
            return None

        return await asyncio.gather(*map(silence, self._members))

    async def halt(self) -> None:
        """Mend nothing until `update` or `admit`."""
        await self._stop_watching()
        for member in self._members:
            await cancel(member.recovery)
            member.recovery = None

    async def admit(self, urls: Collection[str], version: int) -> None:
        """The engines at `urls` have the weights of `version` and serve; the others are taken out, or stay out.

        Raises:
            EngineError: none has them, and none came back.
        """
        self.expect(version)
        for member in self._members:
            if member.engine.url not in urls:
                self._take_out(member, EngineFault("dead", f"{member.engine.url} did not take version {version}"))
            elif member.fault is not None:
                await cancel(member.recovery)
                self._return(member)
        self._mend_again()
        if not self._serving():
            await self._wait_for_return(f"no engine took the weights of version {version}")

    def expect(self, version: int) -> None:
        """From now on only answers under the weights of `version` count (who synced them is of no importance)."""
        for member in self._members:
            member.engine.expected_version = version

    async def sleep(self) -> None:
        """Our engines give their memory back until the next weights, also those that are out; none is mended meanwhile.

        A server that we started and that cannot is killed: its memory is the trainer's now, and new weights have it
        restarted.
        """
        await self.halt()
        for member in self._members:
            if not member.is_own:
                continue
            if self._owner is None or member.fault is None or member.fault.kind == "stale":
                try:
                    await member.engine.sleep()
                    continue
                except EngineFault as fault:
                    self._mark_out(member, fault)
            if self._owner is not None:
                self._owner.stop(member.engine.url)
                member.fault = EngineFault("dead", f"{member.engine.url} was killed for its memory: {member.fault}")
            else:
                logger.warning("engine %s may keep its memory: %s", member.engine.url, member.fault)

    async def close(self) -> None:
        """Close the connections and stop what runs in the background; the servers go on."""
        await self.halt()
        for member in self._members:
            await member.engine.close()

    async def counters(self) -> dict[str, float]:
        """Events since the last call (`events.PoolEvents.drain`), and the share of prompt tokens found in caches."""
        values = self._events.drain()
        deltas = [await member.cache_delta() for member in self._serving()]
        queried = sum(delta.queried_tokens for delta in deltas)
        if queried:
            values["prefix_cache_hit_rate"] = sum(delta.hit_tokens for delta in deltas) / queried
        return values

    def waiting(self) -> list[str]:
        """What each engine works on or why it is out, a line per engine; callable from any thread."""
        return [member.describe() for member in self._members]

    def _serving(self) -> list[PoolMember]:
        return [member for member in self._members if member.fault is None]

    async def _choose(self, session: str) -> PoolMember:
        if not self._serving():
            await self._wait_for_return("no engine serves")
        serving = self._serving()
        bound = math.ceil(LOAD_FACTOR * (sum(len(member.requests) for member in serving) + 1) / len(serving))
        ranked = sorted(serving, key=lambda member: _rendezvous(session, member.engine.url))
        return next(member for member in ranked if len(member.requests) < bound)

    async def _wait_for_return(self, what: str) -> None:
        try:
            async with asyncio.timeout(self._settings.recovery_timeout_s):
                while not self._serving():
                    if self.give_weights is None and all(member.fault.kind == "stale" for member in self._members):
                        raise EngineError(
                            f"{what}, and none can be given weights before the next push (engine.sync=nccl, ipc): "
                            f"{self._reasons()}; the same command again resumes the run"
                        )
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            waited = f"{self._settings.recovery_timeout_s:.0f} s"
            raise EngineError(f"{what}, and none came back within {waited}: {self._reasons()}") from None

    def _reasons(self) -> str:
        return "; ".join(str(member.fault) for member in self._members)

    def _take_out(self, member: PoolMember, fault: EngineFault) -> None:
        if member.fault is None:
            self._mark_out(member, fault)
            member.recovery = asyncio.create_task(self._recover(member))

    def _mark_out(self, member: PoolMember, fault: EngineFault) -> None:
        if member.fault is not None:
            return
        logger.warning("engine %s is taken out (%s): %s", member.engine.url, fault.kind, fault)
        member.fault = fault
        member.engine.is_paused = True  # for all we know: to resume one that is not does nothing
        self._events.fault(fault.kind)
        self._events.taken_out(member.engine.url)
        for task in member.requests:
            task.cancel()

    def _mend_again(self) -> None:
        """New weights are new hope: whoever is out is tried at once, and mended from now on if that was halted."""
        for member in self._members:
            member.num_faults = 0
            if member.fault is not None and member.recovery is None:
                member.recovery = asyncio.create_task(self._recover(member))

    async def _recover(self, member: PoolMember) -> None:
        """Restart (where we started it), sync and probe until the engine does its work again; another rank's engine is
        asked until it does."""
        member.num_faults += 1  # since the last weights: what fails again and again is tried less and less often
        retry_s = min(FIRST_RETRY_S * 2 ** (member.num_faults - 1), LAST_RETRY_S)
        while True:
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)
            try:
                if self._owner is not None and member.is_own and member.fault.kind != "stale":
                    await self._restart(member)
                if self.give_weights is not None and member.is_own:
                    await self.give_weights(member.engine)
                await member.engine.verify_version()
                await member.engine.probe(self._settings.probe_timeout_s)
                await member.engine.verify_version()  # other weights may have come to be expected meanwhile
                break
            except EngineFault as fault:
                logger.info("engine %s is not back: %s", member.engine.url, fault)
                member.fault = fault
                self._changed.set()
            except (EngineError, OSError) as error:  # the latter: no process, no log file, a full disk
                logger.warning("engine %s cannot be restarted: %s", member.engine.url, error)
                member.fault = EngineFault("dead", str(error))
        self._return(member)

    async def _try_restart(self, member: PoolMember) -> str:
        """Why it failed, empty if it did not."""
        try:
            await self._restart(member)
        except (EngineError, OSError) as error:
            logger.warning("engine %s cannot be restarted: %s", member.engine.url, error)
            return str(error)
        return ""

    async def _restart(self, member: PoolMember) -> None:
        await self._owner.restart(member.engine.url)
        self._events.restarted()
        member.engine.is_asleep = member.engine.is_paused = False

    def _return(self, member: PoolMember) -> None:
        logger.warning("engine %s serves again", member.engine.url)
        self._events.returned(member.engine.url)
        member.durations_s.clear()
        member.fault = member.recovery = None
        self._changed.set()

    def _watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch_forever())

    async def _stop_watching(self) -> None:
        await cancel(self._watching)
        self._watching = None

    async def _watch_forever(self) -> None:
        """Find engines that are slow, and those that died or hang while nobody asks them anything."""
        probed_s = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for member in self._serving():
                url = member.engine.url
                death = self._owner.death(url) if self._owner is not None and member.is_own else None
                if death is not None:
                    self._take_out(member, EngineFault("dead", f"{url}: {death}"))
                elif (limit_s := self._slow_limit_s(member)) is not None and member.oldest_s > limit_s:
                    self._take_out(member, EngineFault("slow", f"{url} works on a request for {member.oldest_s:.0f} s"))
            # Other ranks may need an engine of ours that this rank does not use.
            if time.monotonic() - probed_s > PROBE_INTERVAL_S:
                for member in [member for member in self._serving() if member.is_own and not member.requests]:
                    try:
                        await member.engine.probe(self._settings.probe_timeout_s)
                    except EngineFault as fault:
                        self._take_out(member, fault)
                probed_s = time.monotonic()

    def _slow_limit_s(self, member: PoolMember) -> float | None:
        """How long a request may take there, by the other engines' times; None while too few are known."""
        others = sorted(seconds for other in self._serving() if other is not member for seconds in other.durations_s)
        if len(others) < MIN_DURATIONS:
            return None
        usual_s = others[int(SLOW_QUANTILE * (len(others) - 1))]
        return max(self._settings.slow_after_s, self._settings.slow_ratio * usual_s)


def _rendezvous(session: str, url: str) -> bytes:
    """Highest random weight hashing: each session ranks the engines in an order of its own."""
    return hashlib.blake2b(f"{session}\x1f{url}".encode(), digest_size=8).digest()
