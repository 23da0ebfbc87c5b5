"""What we add to a vLLM worker (by vllm_worker.py).

The version of its weights, which dies with the process; weights taken in place; and digests of them by Hugging Face
name. What comes is copied into the blocks of this rank's tensors (vllm_shards.py), where vLLM's own update would
rebuild each layer. A digest is a sum over elements, each weighed by its position in the whole tensor
(rollout/weight_sync/digest.py), so each rank sums up the elements that it holds, and the client adds the ranks' sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rollout.engines.vllm_shards import Shard, blocks_by_name, is_plain, shards
from rollout.weight_sync.bucket import Bucket
from rollout.weight_sync.communicator import broadcast_together
from rollout.weight_sync.handles import open_handle
from rollout.weight_sync.stream import receive


class WeightBook:
    """Mixed into the worker class by vLLM: no name here may be one of the worker's."""

    _opid_version: int | None = None
    _opid_in_place: bool | None = None  # found out once: which layers a model has does not change
    _opid_blocks: dict[str, list[Shard]] | None = None
    _opid_filled: set[str]
    # One for all updates: what a stream has freed the allocator gives to no other.
    _opid_incoming: torch.cuda.Stream | None = None

    def opid_begin_update(self) -> dict[str, Any]:
        """The weights have no version from now on.

        Returns: their `version` until now; `in_place`: whether new ones are taken by `opid_receive` and `opid_read`;
        else by vLLM's own update.
        """
        held = self.opid_weight_version()
        self._opid_version, self._opid_filled = None, set()
        if self._opid_in_place is None:
            has_all_layers = self.parallel_config.pipeline_parallel_size == 1
            self._opid_in_place = has_all_layers and is_plain(self.model_runner.get_model())
        if self._opid_in_place and (self._opid_blocks is None or held["version"] is None):
            # To find them takes some milliseconds: they are kept from one update to the next, if that ended.
            self._opid_blocks = blocks_by_name(self.model_runner.get_model())
        return held | {"in_place": self._opid_in_place}

    def opid_receive(self, version: int) -> None:
        """Take what the trainer broadcasts, until it says that all has come: the weights are `version` then. A tensor
        that cannot be taken is a fault at the end: the other ranks would wait for this one in the next broadcast."""
        group, fault = self.weight_transfer_engine.model_update_group, None
        is_gpu = self.device.type == "cuda"
        if is_gpu and self._opid_incoming is None:
            # Before what fills: the blocks of a kernel that copies would hold the next broadcast up.
            self._opid_incoming = torch.cuda.Stream(self.device, priority=-1)
        filling, incoming = torch.cuda.current_stream(self.device) if is_gpu else None, self._opid_incoming

        def take(tensors: Sequence[Tensor]) -> Callable[[], object]:
            broadcast_together(group, tensors, incoming)
            return lambda: None  # what follows follows in the order of the stream

        with torch.cuda.stream(incoming):
            if incoming is not None:
                incoming.wait_stream(filling)
            for tensors in receive(take, self.device, self._opid_place):
                if filling is not None:
                    filling.wait_stream(incoming)
                    for name, tensor in tensors.items():
                        if tensor is not self._opid_place(name, tensor.dtype, tensor.shape):
                            tensor.record_stream(filling)
                with torch.cuda.stream(filling):  # while the next ones come
                    fault = fault or self._opid_fill(tensors.items())
        if fault is not None:
            raise fault
        self.opid_end_update(version, in_place=True)

    def opid_read(
        self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], handles: Sequence[str]
    ) -> None:
        """Take the bucket that lies in another process's memory of this GPU; returns when it has been read."""
        fault = self._opid_fill(Bucket.over(open_handle(handles, self.device), names, dtypes, shapes).tensors())
        torch.cuda.synchronize(self.device)
        if fault is not None:
            raise fault

    def opid_end_update(self, version: int, in_place: bool) -> None:
        """The weights are `version` from now on.

        Raises:
            RuntimeError: they were to be taken in place, and some did not come.
        """
        held = self._opid_blocks if in_place else {}
        missing = held.keys() - self._opid_filled
        if not in_place:
            self._opid_blocks = None  # vLLM's own loading may have made other tensors
        if missing:
            raise RuntimeError(f"{len(missing)} of {len(held)} weights did not come, among them {min(missing)}")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._opid_version = version

    def opid_weight_version(self) -> dict[str, int | None]:
        return {"version": self._opid_version}

    def opid_weight_digests(self) -> dict[str, str]:
        """This rank's part of each weight's digest, modulo 2^64, in decimal (JSON readers round large numbers)."""
        digests: dict[str, int] = {}
        for shard in shards(self.model_runner.get_model()):
            if not shard.is_replica:
                value = digests.get(shard.name, 0) + shard.digest()
                digests[shard.name] = value % 2**64
        return {name: str(value) for name, value in digests.items()}

    def _opid_place(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor | None:
        """This rank's own tensor, where it is the whole weight and as it is sent."""
        shards = self._opid_blocks.get(name, ())
        whole = [shard.tensor for shard in shards if shard.tensor.dtype == dtype and shard.is_whole(shape)]
        return whole[0] if len(shards) == 1 and whole and whole[0].is_contiguous() else None

    def _opid_fill(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Exception | None:
        """Why some of the tensors were not taken; one that `_opid_place` has given is where it should be."""
        try:
            for name, tensor in named_tensors:
                if name not in self._opid_blocks:
                    raise ValueError(f"this model has no weight {name}")
                for shard in self._opid_blocks[name]:
                    if shard.tensor is not tensor:
                        shard.fill(tensor)
                self._opid_filled.add(name)
        except Exception as error:
            return error
        return None
