"""What the transports to servers share: the pool that takes the weights, and the comparison of what it holds then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from torch import Tensor

from rollout.engines.pool import EnginePool
from rollout.weight_sync.base import WeightSync, exhaust
from rollout.weight_sync.digest import DigestMismatch

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class ServerSync(WeightSync):
    """Called between collections, from outside any event loop.

    Args:
        pool: this rank's own view of the servers; every rank has one.
        run: runs a coroutine to its end on the event loop that the pool's requests run on (`RolloutWorker.run`).
        is_sender: whether this rank gives the servers their weights; the others only expect them.
    """

    def __init__(self, pool: EnginePool, run: Run, verify_every: int, *, is_sender: bool):
        super().__init__(verify_every, is_sender=is_sender)
        self._pool = pool
        self._run = run

    def verify(self, sent: Mapping[str, int]) -> bool:
        """Whether the servers' digests were compared with `sent`: vLLM's are, by our extension of its workers.

        SGLang's checksums are of its own fused and sharded tensors: they are compared between servers only, which finds
        nothing where there is one server, nor a fault that all of them share.
        """
        self._run(self._compare(sent))
        return all(engine.dialect == "vllm" for engine in self._pool.engines)

    def follow(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        exhaust(named_tensors)
        self._pool.expect(version)

    async def _compare(self, sent: Mapping[str, int]) -> None:
        engines = self._pool.engines
        checksums = await asyncio.gather(*(engine.checksum(sent) for engine in engines))
        for engine, checksum in zip(engines, checksums, strict=True):
            if checksum != checksums[0]:
                raise DigestMismatch(
                    f"the weights of {engine.url} (checksum {checksum}) are not those of {engines[0].url} "
                    f"({checksums[0]}): the transfer or the loading is at fault; restart the servers"
                )
