"""The weights that one rank of an engine holds: taken in place, and summed up by Hugging Face name.

What comes is received into, or copied into, the blocks of this rank's tensors (worker_shards.py), where the engine's
own loading would go layer by layer. A digest is a sum over elements, each weighed by its position in the whole tensor
(rollout/weight_sync/digest.py), so each rank sums up the elements that it holds, and the client adds the ranks' sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from rollout.engines.worker_shards import Shard, blocks_by_name, shards
from rollout.weight_sync.stream import receive


class WorkerWeights:
    """Of a model whose layers are plain (`worker_shards.is_plain`) where weights are taken in place."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._device = next(model.parameters()).device
        self._blocks: dict[str, list[Shard]] = {}
        self._filled: set[str] = set()
        self._has_ended = False
        # One for all updates: what a stream has freed the allocator gives to no other.
        self._incoming: torch.cuda.Stream | None = None

    def begin(self) -> None:
        """What comes before new weights. To find the blocks takes some milliseconds: they are kept from one update to
        the next, if that ended."""
        if not self._has_ended:
            self._blocks = blocks_by_name(self._model)
        self._has_ended, self._filled = False, set()

    def receive(self, take: Callable[[Sequence[Tensor]], None]) -> None:
        """Take all that the trainer's `stream.Sender` sends; the update has ended then.

        Args:
            take: begins to broadcast tensors from rank 0, in order, as one operation of the current stream.

        Raises:
            RuntimeError: the sender gave up, or some weights did not come.
            ValueError: a tensor has no place here. Raised at the end: the other ranks would wait for this one in the
                next broadcast, as they do where memory for a tensor runs out.
        """
        fault = None
        filling, incoming = self._streams()
        in_place: set[str] = set()

        def place(name: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor | None:
            own = self._place(name, dtype, shape)
            if own is not None:
                in_place.add(name)
            return own

        def begin(tensors: Sequence[Tensor]) -> Callable[[], object]:
            take(tensors)
            return lambda: None  # what follows follows in the order of the stream

        with torch.cuda.stream(incoming):
            if incoming is not None:
                incoming.wait_stream(filling)
            for tensors in receive(begin, self._device, place):
                if filling is not None:
                    filling.wait_stream(incoming)
                    for name in tensors.keys() - in_place:
                        tensors[name].record_stream(filling)
                with torch.cuda.stream(filling):  # while the next ones come
                    fault = fault or self.fill(tensors.items())
        if fault is not None:
            raise fault
        self.end()

    def fill(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Exception | None:
        """Why some of the tensors were not taken; one that `_place` has given is where it should be."""
        try:
            for name, tensor in named_tensors:
                if name not in self._blocks:
                    raise ValueError(f"this model has no weight {name}")
                for shard in self._blocks[name]:
                    if shard.tensor is not tensor:
                        shard.fill(tensor)
                self._filled.add(name)
        except Exception as error:
            return error
        return None

    def end(self) -> None:
        """All weights have come, and are in place when this returns.

        Raises:
            RuntimeError: some did not come.
        """
        missing = self._blocks.keys() - self._filled
        if missing:
            raise RuntimeError(f"{len(missing)} of {len(self._blocks)} weights did not come, among them {min(missing)}")
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._has_ended = True

    def digests(self) -> dict[str, str]:
        """This rank's part of each weight's digest, modulo 2^64, in decimal (JSON readers round large numbers)."""
        digests: dict[str, int] = {}
        for shard in shards(self._model):
            if not shard.is_replica:
                value = digests.get(shard.name, 0) + shard.digest()
                digests[shard.name] = value % 2**64
        return {name: str(value) for name, value in digests.items()}

    def _streams(self) -> tuple[torch.cuda.Stream | None, torch.cuda.Stream | None]:
        """The one that fills, which is the current one, and the one that receives."""
        if self._device.type != "cuda":
            return None, None
        if self._incoming is None:
            # Before what fills: the blocks of a kernel that copies would hold the next broadcast up.
            self._incoming = torch.cuda.Stream(self._device, priority=-1)
        return torch.cuda.current_stream(self._device), self._incoming

    def _place(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor | None:
        """This rank's own tensor, where it is the whole weight and as it is sent."""
        shards = self._blocks.get(name, ())
        whole = [shard.tensor for shard in shards if shard.tensor.dtype == dtype and shard.is_whole(shape)]
        return whole[0] if len(shards) == 1 and whole and whole[0].is_contiguous() else None
