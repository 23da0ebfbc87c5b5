"""Weights that a trainer broadcasts, over gloo, in the steps and the packing of either real server's NCCL transfer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import torch
from torch import Tensor

from rollout.engines.server.host import Host
from rollout.weight_sync.bucket import Bucket, sizes_of
from rollout.weight_sync.groups import GlooGroup, Rendezvous
from rollout.weight_sync.stream import receive


class Transfer:
    """One server's end. Weights are kept until all have come and are loaded at once (the real servers load as they
    receive; the local engine takes whole updates only)."""

    def __init__(self, host: Host):
        self._host = host
        self._group: GlooGroup | None = None
        self._received: dict[str, Tensor] = {}

    @property
    def loads_in_place(self) -> bool:
        """As what we add to a real worker, which leaves the fused experts of a mixture to the server's own loading."""
        return not any(".experts." in name for name, _ in self._host.engine.model.named_parameters())

    async def join(self, address: str, port: int, rank: int, world_size: int) -> None:
        """Enter the trainer's group, leaving an older one; returns when all ranks are there."""
        self._group = await asyncio.to_thread(GlooGroup, Rendezvous(address, port, world_size), rank)

    def leave(self) -> bool:
        """Whether there was a group to leave."""
        group, self._group = self._group, None
        return group is not None

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
        group, start, num_bytes = self._joined(), 0, 0
        for end, size in enumerate(sizes_of(dtypes, shapes), start=1):
            num_bytes += size
            if end == len(names) or (max_bytes is not None and num_bytes > max_bytes):
                bucket = Bucket.of(names[start:end], dtypes[start:end], shapes[start:end], torch.device("cpu"))
                await asyncio.to_thread(group.broadcast([bucket.buffer]))
                self._received.update(bucket.tensors())
                start, num_bytes = end, 0

    async def receive_all(self) -> None:
        """Take tensors that tell what they are, until the trainer says that all have come.

        Raises:
            RuntimeError: no group, or its rank 0 is gone, or could not gather all.
        """
        group = self._joined()

        def take() -> None:
            for tensors in receive(group.broadcast, torch.device("cpu")):
                self._received.update(tensors)

        await asyncio.to_thread(take)

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

    async def load_all(self) -> None:
        """Load what has come.

        Raises:
            ValueError: it is not the whole model, or not the model's.
        """
        if not await self.load():
            raise ValueError("weights are missing")

    def _joined(self) -> GlooGroup:
        if self._group is None:
            raise RuntimeError("no group was joined")
        return self._group
