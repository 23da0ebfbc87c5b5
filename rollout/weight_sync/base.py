"""Weight sync: the trainer's weights to the engines, one interface, one file per transport."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from rollout.weight_sync.digest import digest


@dataclass(frozen=True)
class PushReport:
    """What one push moved; `verified` tells whether the engines' digests were compared with ours."""

    num_tensors: int
    num_bytes: int
    seconds: float
    verified: bool


class WeightSync(ABC):
    """Sends full tensors under Hugging Face names; compares digests on the first of every `verify_every` pushes.

    All ranks of the trainer push: gathering a tensor is a collective, so each one exhausts the iterator, whatever
    happens. A transport implements `transfer` and `verify`, and makes its own buckets, of which a few are in memory at
    once, never all. One rank compares digests: `is_sender`, which also sends where only one rank does.

    Raises:
        ValueError: `verify_every` is below 1.
    """

    def __init__(self, verify_every: int, *, is_sender: bool = True):
        if verify_every < 1:
            raise ValueError(f"engine.verify_every={verify_every} must be at least 1")
        self._verify_every = verify_every
        self._is_sender = is_sender
        self._num_pushes = 0

    def push(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> PushReport:
        """Replace the engines' weights; returns when every engine that serves has `version`.

        Raises:
            DigestMismatch: an engine holds something else than what was sent; the error names the tensor.
            EngineError: no engine took the weights.
        """
        started_s = time.perf_counter()
        verified = self._is_sender and self._num_pushes % self._verify_every == 0
        sizes: dict[str, int] = {}
        sent: dict[str, int] = {}
        source = iter(named_tensors)

        def watched() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in source:
                sizes[name] = tensor.nbytes
                if verified:
                    sent[name] = digest(tensor)
                yield name, tensor

        try:
            self.transfer(watched(), version)
        finally:
            exhaust(source)  # a rank that has failed must not leave the others in a collective
        if verified:
            self.verify(sent)
        self._num_pushes += 1
        return PushReport(len(sizes), sum(sizes.values()), time.perf_counter() - started_s, verified)

    def close(self) -> None:  # noqa: B027 (most transports keep nothing open)
        """End what is kept open between pushes, while the engines still run."""

    @abstractmethod
    def transfer(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        """This rank's part in moving every tensor to every engine, which then has `version`; consumes the iterator."""

    @abstractmethod
    def verify(self, sent: Mapping[str, int]) -> None:
        """Raise DigestMismatch unless the engines hold the weights whose digests, by Hugging Face name, are `sent`."""


def exhaust(named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Take part in the gathering of every tensor."""
    for _ in named_tensors:
        pass
