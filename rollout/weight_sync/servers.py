"""What the transports to servers share: the pool that takes the weights, and the comparison of what it holds then."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any

from torch import Tensor

from rollout.engines.base import EngineError
from rollout.engines.pool import EnginePool
from rollout.weight_sync.base import WeightSync, exhaust
from rollout.weight_sync.digest import DigestMismatch

Run = Callable[[Coroutine[Any, Any, Any]], Any]
# Every rank's text, in rank order, on every rank; a barrier, too.
AllGather = Callable[[str], list[str]]


def alone(text: str) -> list[str]:
    """The gathering of a single rank."""
    return [text]


class ServerSync(WeightSync):
    """Called between collections, from outside any event loop.

    Args:
        pool: this rank's own view of the servers; every rank has one.
        run: runs a coroutine to its end on the event loop that the pool's requests run on (`RolloutWorker.run`).
        is_sender: whether this is rank 0.
        all_gather: over all ranks.
    """

    def __init__(
        self, pool: EnginePool, run: Run, verify_every: int, *, is_sender: bool, all_gather: AllGather = alone
    ):
        super().__init__(verify_every, is_sender=is_sender)
        self._pool = pool
        self._run = run
        self._all_gather = all_gather

    def verify(self, sent: Mapping[str, int]) -> None:
        """Compare what each server says of its weights, by what we add to its workers, with `sent`; and what it holds
        beside them, with the other servers."""
        self._run(self._compare(sent))

    def transfer(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Every rank `give`s; from then on all ranks ask the servers that took the weights.

        Raises:
            EngineError: a rank could not give, or no server has the weights; on every rank.
        """
        urls, failure = (), None
        try:
            urls = self.give(named_tensors, version)
        except (EngineError, OSError) as error:  # the latter of a server's restart: no process, a full disk
            failure = error
            exhaust(named_tensors)
        report = {"urls": [*urls], "failure": str(failure or "")}
        reports = [json.loads(text) for text in self._all_gather(json.dumps(report))]
        if failure is not None:
            raise failure
        for rank, other in enumerate(reports):
            if other["failure"]:
                raise EngineError(f"rank {rank}: {other['failure']}")
        self._run(self._pool.admit({url for other in reports for url in other["urls"]}, version))

    @abstractmethod
    def give(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> Collection[str]:
        """Do this rank's part; returns the URLs of the servers that took the weights from it.

        Raises:
            EngineError: servers hold incomplete weights, or all of them are out of reach.
        """

    async def _compare(self, sent: Mapping[str, int]) -> None:
        engines = self._pool.engines
        checksums = await asyncio.gather(*(engine.checksum(sent) for engine in engines))
        for engine, checksum in zip(engines, checksums, strict=True):
            if checksum != checksums[0]:
                raise DigestMismatch(
                    f"the weights of {engine.url} (checksum {checksum}) are not those of {engines[0].url} "
                    f"({checksums[0]}): the transfer or the loading is at fault; restart the servers"
                )
