"""Weight sync into an engine of the same process: one copy, in place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from torch import Tensor

from rollout.engines.local import LocalEngine
from rollout.weight_sync.base import WeightSync


class InProcessSync(WeightSync):
    """Copies into a LocalEngine. Called between collections, from outside any event loop."""

    def __init__(self, engine: LocalEngine, verify_every: int):
        super().__init__(verify_every)
        self._engine = engine

    def transfer(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        asyncio.run(self._engine.update_weights(named_tensors, version))

    def held_digests(self) -> Mapping[str, int]:
        return self._engine.digests()
