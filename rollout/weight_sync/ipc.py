"""Weight sync on the same GPUs: servers read the trainer's buckets through handles of its device memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from rollout.engines.base import EngineError
from rollout.engines.http import HttpEngine
from rollout.engines.pool import EnginePool
from rollout.weight_sync import update
from rollout.weight_sync.bucket import Bucket, buckets, new_memory
from rollout.weight_sync.handles import make_handle
from rollout.weight_sync.servers import AllGather, Run, ServerSync

NUM_BUFFERS = 2


class IpcSync(ServerSync):
    """Every rank packs the same full tensors into buffers on its own GPU, and makes a handle for the server there.

    The rank that looks after servers sends them the handles of their GPUs, which are of its machine.

    A bucket is packed while the servers load the one before: two buffers of `bucket_bytes` per GPU, or of a tensor that
    is larger (the vocabulary of an 8B takes 1.2 GB). A machine's server i has the GPUs of its ranks i·TP to
    (i + 1)·TP − 1. Handles go to this machine's servers only. Both servers answer only when they have read a bucket
    (vLLM synchronizes its device; SGLang's last reference to the buffer does).

    A rank that fails to send goes on packing, since every bucket is a meeting of all ranks, and raises at the end.

    Args:
        first_rank: the first rank of this machine.
        tensor_parallel: of each server.
        make_handle: of a filled bucket, for a server of a dialect.
    """

    def __init__(
        self,
        pool: EnginePool,
        run: Run,
        verify_every: int,
        *,
        is_sender: bool,
        bucket_bytes: int,
        all_gather: AllGather,
        tensor_parallel: int,
        first_rank: int = 0,
        make_handle: Callable[[Bucket, str], str] = make_handle,
    ):
        super().__init__(pool, run, verify_every, is_sender=is_sender, all_gather=all_gather)
        self._bucket_bytes = bucket_bytes
        self._tensor_parallel = tensor_parallel
        self._first_rank = first_rank
        self._make_handle = make_handle
        # A server's place among them says which GPUs it has, whichever of them serve at the moment.
        self._urls = pool.own_urls
        self._dialect = pool.engines[0].dialect

    def give(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> Collection[str]:
        if not self._urls:
            self._pack(named_tensors, lambda number: None, lambda *parts: None)
            return ()
        with ThreadPoolExecutor(1, "weight_sync") as thread:
            engines: tuple[HttpEngine, ...] = ()
            loading: list[Future[None]] = []

            def begin() -> None:
                nonlocal engines
                reachable = self._run(self._pool.reachable())
                engines = tuple(engine for engine in reachable if engine.url in self._urls)
                self._all(engines, _begin)

            def load(bucket: Bucket, handles: Sequence[str]) -> None:
                if any(step.done() and step.exception() for step in (beginning, *loading)):
                    return
                self._all(engines, lambda engine: update.read(engine, bucket, self._own(engine, handles)))

            def send(bucket: Bucket, handles: Sequence[str]) -> None:
                loading.append(thread.submit(load, bucket, handles))

            def wait(number: int) -> None:
                if 0 <= number < len(loading):
                    futures.wait([loading[number]])

            beginning = thread.submit(begin)
            self._pack(named_tensors, wait, send)
            for step in (beginning, *loading):
                step.result()
            self._all(engines, lambda engine: _end(engine, version))
        return [engine.url for engine in engines]

    def _pack(
        self,
        named_tensors: Iterator[tuple[str, Tensor]],
        wait: Callable[[int], None],
        send: Callable[[Bucket, list[str]], None],
    ) -> None:
        """Fill the two buffers in turn: on every rank alike, so that every rank makes the same number of gathers."""
        buffers: list[Tensor] = []
        number = 0

        def take_buffer(num_bytes: int, device: torch.device) -> Tensor:
            wait(number - NUM_BUFFERS)  # the servers have read what is in this buffer
            self._all_gather("")
            place = number % NUM_BUFFERS
            if len(buffers) <= place:
                buffers.append(new_memory(num_bytes, device))
            elif len(buffers[place]) < num_bytes:
                buffers[place] = new_memory(num_bytes, device)
            return buffers[place][:num_bytes]

        for bucket in buckets(named_tensors, self._bucket_bytes, take_buffer):
            if bucket.buffer.is_cuda:
                torch.cuda.synchronize()
            send(bucket, self._all_gather(self._make_handle(bucket, self._dialect)))
            number += 1
        for last in range(number - NUM_BUFFERS, number):
            wait(last)
        self._all_gather("")  # no rank frees its buffers before the servers have read them
        if buffers and buffers[0].is_cuda:
            torch.cuda.ipc_collect()

    def _own(self, engine: HttpEngine, handles: Sequence[str]) -> Sequence[str]:
        first = self._first_rank + self._urls.index(engine.url) * self._tensor_parallel
        return handles[first : first + self._tensor_parallel]

    def _all(self, engines: Sequence[HttpEngine], call: Callable[[HttpEngine], Any]) -> None:
        async def gather() -> None:
            outcomes = await asyncio.gather(*(call(engine) for engine in engines), return_exceptions=True)
            for outcome in outcomes:  # when all have ended: until then they read the buffer
                if isinstance(outcome, BaseException):
                    raise outcome

        try:
            self._run(gather())
        except EngineError as error:
            raise EngineError(f"the servers' weights are incomplete, restart them: {error}") from error


async def _begin(engine: HttpEngine) -> None:
    await engine.begin_update()
    await update.begin_without_group(engine)


async def _end(engine: HttpEngine, version: int) -> None:
    await update.finish(engine)
    await engine.end_update(version)
