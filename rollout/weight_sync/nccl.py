"""Weight sync by NCCL: the trainer's rank 0 broadcasts weights to all ranks of all servers, which have other GPUs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import queue
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor

from rollout.address import EVERYWHERE, address_towards
from rollout.engines.base import EngineError
from rollout.engines.http import HttpEngine
from rollout.engines.launch import free_ports
from rollout.engines.pool import EnginePool
from rollout.event_loop import in_own_thread
from rollout.weight_sync import stream, update
from rollout.weight_sync.base import exhaust
from rollout.weight_sync.bucket import Bucket, buckets
from rollout.weight_sync.groups import JOIN_TIMEOUT_S, Group, OpenGroup, Rendezvous, join, leave, opener
from rollout.weight_sync.servers import AllGather, Run, ServerSync, alone

logger = logging.getLogger(__name__)

# To end a group: servers that died do not answer, and NCCL may wait for them forever.
CLOSE_TIMEOUT_S = 10.0
# Of a batch, which takes a second where a link is slow, and that the servers begin: they were asked a moment before.
STALL_TIMEOUT_S = 120.0
# Of a batch to servers of several ranks: what is no rank's whole tensor comes into memory beside what the server was
# given, three batches at once, and where that runs out the other ranks wait for one that has failed.
SHARDED_BATCH_BYTES = 1 << 28


class End(Enum):
    """What comes after the last item."""

    COMPLETE = "all weights were gathered"
    BROKEN = "gathering the weights failed"


# Tensors as they are, or copied into a bucket.
Item = dict[str, Tensor] | Bucket | End


class NcclSync(ServerSync):
    """While tensors are sent the next are gathered; at most five times `bucket_bytes` are in memory, or a larger tensor
    for each: two in transit, one announced, one waits, one is in the making.

    All servers that answer form one group with this rank. A server that fails during a transfer leaves the others with
    weights of which nobody knows how many are new: the run stops, and the same command, with the servers restarted,
    resumes it. A server that was restarted between two pushes is in the next push's group again.

    Args:
        backend: of the group; gloo for our CPU servers.
    """

    def __init__(
        self,
        pool: EnginePool,
        run: Run,
        verify_every: int,
        *,
        is_sender: bool,
        bucket_bytes: int,
        backend: Literal["nccl", "gloo"] = "nccl",
        all_gather: AllGather = alone,
    ):
        super().__init__(pool, run, verify_every, is_sender=is_sender, all_gather=all_gather)
        self._bucket_bytes = bucket_bytes
        self._backend = backend
        self._device = torch.cuda.current_device() if backend == "nccl" else None
        self._group: tuple[Group, Rendezvous] | None = None
        self._members: frozenset[str] = frozenset()

    def give(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> Collection[str]:
        self._run(self._pool.halt())
        self._all_gather("")  # from now on no rank restarts a server
        if not self._is_sender:
            exhaust(named_tensors)
            return ()
        # This thread gathers, which is a collective of the trainer's ranks, while the event loop's sends.
        waiting: queue.Queue[Item] = queue.Queue(maxsize=1)
        batch_bytes: Future[int | None] = Future()
        with ThreadPoolExecutor(1, "weight_sync") as thread:
            sending = thread.submit(lambda: self._run(self._send(waiting, batch_bytes, version)))
            sending.add_done_callback(lambda _: batch_bytes.done() or batch_bytes.set_result(self._bucket_bytes))
            try:
                for item in self._items(named_tensors, batch_bytes):
                    if self._device is not None:
                        torch.cuda.current_stream().synchronize()  # the sender reads on a stream of its own
                    _hand_over(waiting, item, sending)
            except BaseException:
                _hand_over(waiting, End.BROKEN, sending)
                raise
            _hand_over(waiting, End.COMPLETE, sending)
            return sending.result()

    def _items(self, named_tensors: Iterator[tuple[str, Tensor]], batch_bytes: Future[int | None]) -> Iterator[Item]:
        """Buckets where it turns out that there are no batches; the first tensor is gathered before that is known."""
        first = list(itertools.islice(named_tensors, 1))
        everything = itertools.chain(first, named_tensors)
        if batch_bytes.result() is None:
            return buckets(everything, self._bucket_bytes)
        return stream.batches(everything, batch_bytes.result())

    def close(self) -> None:
        """Leave the group, while the servers live: torch would wait at the end for ranks of it that are gone."""
        if self._group is not None:
            self._run(self._part(self._pool.engines))

    async def _send(self, waiting: queue.Queue[Item], batch_bytes: Future[int | None], version: int) -> list[str]:
        """Sets how large batches of tensors are, None where tensors are to be copied into buckets; returns the URLs of
        the servers that have the weights now."""
        held: dict[str, int | None] = {}

        async def begin(engine: HttpEngine) -> None:
            held[engine.url] = await engine.begin_update()

        engines = await self._pool.reachable(begin)
        try:
            all_known = all(held[engine.url] == engine.expected_version is not None for engine in engines)
            await self._join(engines, all_known)
            streams = _load_in_place(engines)
            batch_bytes.set_result(self._batch_bytes(len(engines)) if streams else None)
            await (self._stream if streams else self._request_each)(engines, waiting, version)
        except (RuntimeError, ExceptionGroup) as error:  # torch's of a group, and EngineError, are RuntimeErrors
            fault = (
                f"weights of version {version} were not taken by all servers, restart them and start the same command "
                f"again: {_cause(error)}"
            )
            logger.error(fault)  # at once: what follows may take its time
            await self._part(())
            raise EngineError(fault) from error
        return [engine.url for engine in engines]

    def _batch_bytes(self, num_engines: int) -> int:
        _, rendezvous = self._group
        is_sharded = rendezvous.world_size > 1 + num_engines
        return min(self._bucket_bytes, SHARDED_BATCH_BYTES) if is_sharded else self._bucket_bytes

    async def _stream(self, engines: tuple[HttpEngine, ...], waiting: queue.Queue[Item], version: int) -> None:
        """Broadcast all tensors, which tell what they are."""
        group, rendezvous = self._group
        began_s = math.inf  # of what is being sent, not of waiting for what is gathered

        @contextlib.contextmanager
        def watched() -> Iterator[None]:
            nonlocal began_s
            began_s = time.monotonic()
            yield
            began_s = math.inf

        def send() -> None:
            sender = stream.Sender(group.broadcast)
            while not isinstance(batch := waiting.get(), End):
                with watched():
                    sender.send(batch)
            with watched():
                sender.end(batch.value if batch is End.BROKEN else "")

        async def watch() -> None:
            while time.monotonic() - began_s < STALL_TIMEOUT_S:
                await asyncio.sleep(1.0)
            raise EngineError(
                f"a batch of weights was not taken within {STALL_TIMEOUT_S:.0f} s; the servers' logs tell why (a rank "
                "whose memory ran out leaves the others waiting)"
            )

        async with asyncio.TaskGroup() as tasks:
            for engine in engines:
                tasks.create_task(update.receive_stream(engine, rendezvous, version))
            watching = tasks.create_task(watch())
            await self._in_thread(send)
            watching.cancel()
        await asyncio.gather(*(engine.serve_again() for engine in engines))

    async def _request_each(self, engines: tuple[HttpEngine, ...], waiting: queue.Queue[Item], version: int) -> None:
        """Broadcast each bucket when all servers have been told what it holds."""
        group, rendezvous = self._group
        await asyncio.gather(*map(update.begin, engines))
        while not isinstance(bucket := await in_own_thread(waiting.get), End):
            async with asyncio.TaskGroup() as tasks:
                for engine in engines:
                    tasks.create_task(update.receive(engine, rendezvous, bucket))
                tasks.create_task(self._in_thread(partial(_broadcast, group, bucket)))
        if bucket is End.BROKEN:
            raise EngineError(bucket.value)
        await asyncio.gather(*map(update.finish, engines))
        await asyncio.gather(*(engine.end_update(version) for engine in engines))

    async def _join(self, engines: tuple[HttpEngine, ...], all_known: bool) -> None:
        """Form the group anew if other servers are to be in it, or if one does not have the weights of the last push:
        its process is another one then."""
        members = frozenset(engine.url for engine in engines)
        if all_known and members == self._members:
            return
        await self._part(engines)
        sizes = [await engine.world_size() for engine in engines]
        (port,) = free_ports(1, EVERYWHERE)
        rendezvous = Rendezvous(_own_address([engine.url for engine in engines]), port, 1 + sum(sizes))
        offsets = [1 + sum(sizes[:index]) for index in range(len(sizes))]
        open_group = await self._in_thread(lambda: opener(self._backend, engines[0].dialect))
        self._group = await self._open(open_group, rendezvous, engines, offsets), rendezvous
        self._members = members

    async def _open(
        self, open_group: OpenGroup, rendezvous: Rendezvous, engines: tuple[HttpEngine, ...], offsets: Sequence[int]
    ) -> Group:
        joining = (
            join(engine, self._backend, rendezvous, offset) for engine, offset in zip(engines, offsets, strict=True)
        )
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                *_, group = await asyncio.gather(*joining, self._in_thread(lambda: open_group(rendezvous)))
        except TimeoutError:
            urls = ", ".join(engine.url for engine in engines)
            raise EngineError(f"not all of {urls} joined a group within {JOIN_TIMEOUT_S:.0f} s") from None
        return group

    async def _part(self, engines: Sequence[HttpEngine]) -> None:
        """End the group, if there is one; `engines` leave it at the same time, since each end may wait for the
        others."""
        if self._group is None:
            return
        (group, rendezvous), self._group, self._members = self._group, None, frozenset()
        leaving: list[Coroutine[Any, Any, None]] = [leave(engine, rendezvous) for engine in engines]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                results = await asyncio.gather(self._in_thread(group.close), *leaving, return_exceptions=True)
                for error in filter(None, results):
                    logger.warning("an old group of the weight sync did not end well: %s", error)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Call in a thread, on this rank's GPU: every thread has a current device of its own."""

        def on_device() -> Any:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            return call()

        return await in_own_thread(on_device)


def _hand_over(waiting: queue.Queue[Item], item: Item, sending: Future[None]) -> None:
    """Wait until the sender takes the item, or has failed."""
    while not sending.done():
        try:
            waiting.put(item, timeout=0.2)
            return
        except queue.Full:
            continue


def _broadcast(group: Group, bucket: Bucket) -> None:
    wait = group.broadcast([bucket.data])
    wait()


def _load_in_place(engines: Sequence[HttpEngine]) -> bool:
    """Raises: EngineError where one does and another does not."""
    in_place = {engine.url: engine.loads_in_place for engine in engines}
    if len(set(in_place.values())) > 1:
        names = ", ".join(url for url, loads in in_place.items() if not loads)
        raise EngineError(f"{names} cannot take weights in place as the others do: have all serve the model alike")
    return all(in_place.values())


def _cause(error: RuntimeError | ExceptionGroup) -> BaseException:
    """Of several failures of one bucket the server's own: a broken broadcast says little."""
    if not isinstance(error, ExceptionGroup):
        return error
    return min(error.exceptions, key=lambda one: not isinstance(one, EngineError))


def _own_address(urls: Sequence[str]) -> str:
    """This machine's address as the servers see it: loopback only where all of them are on loopback."""
    hosts = [urlsplit(url).hostname for url in urls]
    addresses = [address_towards(host) for host in hosts]
    return next((address for address in addresses if not address.startswith("127.")), addresses[0])
