"""The group that the trainer's rank 0 and all ranks of the servers form: NCCL for either server, gloo for our own.

Checked against the sources: vLLM 0.24.0's distributed/weight_transfer (nccl_engine.py, packed_tensor.py) and
SGLang 0.5.14's srt/model_executor/model_runner.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from rollout.engines.http import EngineFault, HttpEngine

GROUP_NAME = "megatron_opid"
GLOO_TIMEOUT = timedelta(minutes=15)
# A group is formed of servers that have just answered: whoever is not there by then has died.
JOIN_TIMEOUT_S = 60.0


class Group(Protocol):
    """Rank 0 of the group, made on the GPU that is current in the thread."""

    def broadcast(self, data: Tensor) -> None:
        """Send uint8 bytes to every other rank; returns when they are sent."""
        ...

    def close(self) -> None:
        """End the group in good order: the other ranks leave at the same time."""
        ...

    def abort(self) -> None:
        """End the group at once: a broadcast that waits in another thread for a rank that died returns or fails."""
        ...


class VllmGroup:
    """vLLM's own communicator, outside torch.distributed; needs the vllm package in the trainer's environment.

    Its constructor makes a first all-reduce, which the servers answer while they join.
    """

    def __init__(self, address: str, port: int, world_size: int):
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        info = {"master_address": address, "master_port": port, "world_size": world_size}
        self._communicator: Any = NCCLWeightTransferEngine.trainer_init(info)
        self._stream = torch.cuda.Stream()

    def broadcast(self, data: Tensor) -> None:
        self._communicator.broadcast(data, src=0, stream=self._stream)
        self._stream.synchronize()

    def close(self) -> None:
        self._communicator.destroy()

    def abort(self) -> None:
        self._communicator.destroy()


class SglangGroup:
    """A torch.distributed group beside the default one, named as the servers name it; needs the sglang package."""

    def __init__(self, address: str, port: int, world_size: int):
        from sglang.srt.utils import init_custom_process_group

        self._group = init_custom_process_group(
            backend="nccl",
            init_method=f"tcp://{address}:{port}",
            world_size=world_size,
            rank=0,
            group_name=GROUP_NAME,
        )

    def broadcast(self, data: Tensor) -> None:
        distributed.broadcast(data, src=0, group=self._group)
        torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # a group whose other ranks died cannot be ended in good order
            distributed.destroy_process_group(self._group)

    def abort(self) -> None:
        self._group.abort()


class GlooGroup:
    """For our CPU servers, which are the other ranks; apart from torch.distributed's own groups."""

    def __init__(self, address: str, port: int, world_size: int, rank: int = 0):
        store = distributed.TCPStore(
            address, port, world_size, is_master=rank == 0, timeout=timedelta(seconds=JOIN_TIMEOUT_S)
        )
        self._group = distributed.ProcessGroupGloo(store, rank, world_size, GLOO_TIMEOUT)

    def broadcast(self, data: Tensor) -> None:
        """Send from rank 0; on the other ranks, receive into `data`."""
        options = distributed.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        self._group.broadcast([data], options).wait()

    def close(self) -> None:
        """Nothing to do: the connections close with the last reference."""

    def abort(self) -> None:
        """Nothing to do: a rank that dies closes its connection, which ends the broadcast."""


def open_group(backend: str, dialect: str, address: str, port: int, world_size: int) -> Group:
    """Blocks until every server's ranks have joined; `backend` is nccl or gloo."""
    if backend == "gloo":
        return GlooGroup(address, port, world_size)
    return (VllmGroup if dialect == "vllm" else SglangGroup)(address, port, world_size)


async def join(engine: HttpEngine, backend: str, address: str, port: int, rank_offset: int, world_size: int) -> None:
    """Have one server's ranks join as `rank_offset`, `rank_offset` + 1, ..."""
    place = {"master_address": address, "master_port": port, "rank_offset": rank_offset, "world_size": world_size}
    if engine.dialect == "vllm":
        await engine.post_update("/init_weight_transfer_engine", {"init_info": place})
    else:
        body = {**place, "group_name": GROUP_NAME, "backend": backend}
        await engine.post_update("/init_weights_update_group", body)


async def leave(engine: HttpEngine) -> None:
    """Have one server forget its part of an old group, if it has one; vLLM does that when it joins a new one."""
    if engine.dialect == "sglang":
        with contextlib.suppress(EngineFault):  # a restarted server has none
            await engine.post_update("/destroy_weights_update_group", {"group_name": GROUP_NAME})


async def receive(engine: HttpEngine, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence, size: int) -> None:
    """Have one server take a packed bucket of `size` bytes: one broadcast, which must come meanwhile."""
    if engine.dialect == "vllm":
        # Its buffer is exactly the bucket: it would break a larger one into several broadcasts.
        info = {"names": names, "dtype_names": dtypes, "shapes": shapes}
        packing = {"packed": True, "packed_buffer_size_bytes": size}
        await engine.post_update("/update_weights", {"update_info": {**info, **packing}})
    else:
        body = {"names": names, "dtypes": dtypes, "shapes": shapes, "group_name": GROUP_NAME}
        options = {"load_format": "flattened_bucket", "flush_cache": False}
        await engine.post_update("/update_weights_from_distributed", {**body, **options})
