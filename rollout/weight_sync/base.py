"""Weight sync: the trainer's weights to the engines, one interface, one file per transport."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from rollout.weight_sync.digest import compare, digest


@dataclass(frozen=True)
class PushReport:
    """What one push moved; `verified` tells whether digests were compared."""

    num_tensors: int
    num_bytes: int
    seconds: float
    verified: bool


class WeightSync(ABC):
    """Sends full tensors under Hugging Face names; compares digests on the first of every `verify_every` pushes.

    A transport implements `transfer` and `held_digests`. It consumes the iterator once, in order, and makes its own
    buckets: no more than a bucket need be in memory at once.

    Raises:
        ValueError: `verify_every` is below 1.
    """

    def __init__(self, verify_every: int):
        if verify_every < 1:
            raise ValueError(f"engine.verify_every={verify_every} must be at least 1")
        self._verify_every = verify_every
        self._num_pushes = 0

    def push(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> PushReport:
        """Replace the engines' weights; returns when every engine serves `version`.

        Raises:
            DigestMismatch: an engine holds something else than what was sent; the error names the tensor.
        """
        started_s = time.perf_counter()
        verify = self._num_pushes % self._verify_every == 0
        sizes: dict[str, int] = {}
        sent: dict[str, int] = {}

        def watched() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in named_tensors:
                sizes[name] = tensor.nbytes
                if verify:
                    sent[name] = digest(tensor)
                yield name, tensor

        self.transfer(watched(), version)
        if verify:
            compare(sent, self.held_digests())
        self._num_pushes += 1
        return PushReport(len(sizes), sum(sizes.values()), time.perf_counter() - started_s, verify)

    @abstractmethod
    def transfer(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Move every tensor to every engine and switch the engines to `version`."""

    @abstractmethod
    def held_digests(self) -> Mapping[str, int]:
        """Digests of the weights that the engines hold now, by Hugging Face name."""
