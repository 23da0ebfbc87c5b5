"""Weight sync into an engine of the same process: one copy, in place."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from torch import Tensor

from rollout.engines.local import LocalEngine
from rollout.weight_sync.base import WeightSync
from rollout.weight_sync.digest import compare


class InProcessSync(WeightSync):
    """Copies into a LocalEngine. Called between collections, from outside any event loop.

    Args:
        run: runs a coroutine to its end on the event loop that the engine's requests ran on (`RolloutWorker.run`): a
            request that was cancelled there may have left the engine's decoding unfinished, and only that loop ends it.
    """

    def __init__(self, engine: LocalEngine, run: Callable[[Coroutine[Any, Any, None]], None], verify_every: int):
        super().__init__(verify_every)
        self._engine = engine
        self._run = run

    def transfer(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        self._run(self._engine.update_weights(named_tensors, version))

    def verify(self, sent: Mapping[str, int]) -> None:
        compare(sent, self._engine.digests())
