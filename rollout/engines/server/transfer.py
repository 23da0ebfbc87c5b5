"""Weights that a trainer broadcasts, over gloo, in the steps and the packing of either real server's NCCL transfer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rollout.engines.server.host import Host
from rollout.weight_sync.groups import GlooGroup, Rendezvous


class Transfer:
    """One server's end. Weights are kept until all have come and are loaded at once (the real servers load as they
    receive; the local engine takes whole updates only)."""

    def __init__(self, host: Host):
        self._host = host
        self._group: GlooGroup | None = None
        self._received: dict[str, Tensor] = {}

    async def join(self, address: str, port: int, rank: int, world_size: int) -> None:
        """Enter the trainer's group, leaving an older one; returns when all ranks are there."""
        self._group = await asyncio.to_thread(GlooGroup, Rendezvous(address, port, world_size), rank)

    def leave(self) -> bool:
        """Whether there was a group to leave."""
        group, self._group = self._group, None
        return group is not None

    @property
    def has_received(self) -> bool:
        """Whether there is something to load."""
        return bool(self._received)

    def start(self) -> None:
        """Forget what an update that never ended has left."""
        self._received = {}

    async def receive(
        self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], max_bytes: int | None
    ) -> None:
        """Take tensors in one broadcast each time they exceed `max_bytes`, as vLLM packs them; None: all in one.

        Raises:
            RuntimeError: no group, or its rank 0 is gone.
        """
        if self._group is None:
            raise RuntimeError("no group was joined")
        pending: list[tuple[str, torch.dtype, Sequence[int], int]] = []
        for name, dtype_name, shape in zip(names, dtypes, shapes, strict=True):
            dtype = getattr(torch, dtype_name)
            pending.append((name, dtype, shape, math.prod(shape) * dtype.itemsize))
            if max_bytes is not None and sum(size for *_, size in pending) > max_bytes:
                await self._broadcast(pending)
                pending = []
        if pending:
            await self._broadcast(pending)

    async def load(self) -> bool:
        """Load what has come if it is the whole model; whether it was.

        Raises:
            ValueError: a tensor is not the model's.
        """
        if not set(dict(self._host.engine.model.named_parameters())) <= set(self._received):
            return False
        received, self._received = self._received, {}
        await self._host.load_tensors(received.items())
        return True

    async def _broadcast(self, parts: Sequence[tuple[str, torch.dtype, Sequence[int], int]]) -> None:
        data = torch.empty(sum(size for *_, size in parts), dtype=torch.uint8)
        await asyncio.to_thread(self._group.broadcast, data)
        start = 0
        for name, dtype, shape, size in parts:
            self._received[name] = data[start : start + size].clone().view(dtype).reshape(tuple(shape))
            start += size
