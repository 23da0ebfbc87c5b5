"""The trainer's end of the NCCL group that its rank 0 and all ranks of the servers form, for either server."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rollout.engines.http import EngineFault, HttpEngine

GROUP_NAME = "megatron_opid"


class Group(Protocol):
    """Rank 0 of the group."""

    def broadcast(self, data: Tensor) -> None:
        """Send uint8 bytes to every other rank; returns when they are sent."""
        ...

    def close(self) -> None: ...


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
        self._communicator = None


class SglangGroup:
    """A torch.distributed group beside the default one, named as the servers name it."""

    def __init__(self, address: str, port: int, world_size: int, backend: str = "nccl"):
        from sglang.srt.utils.common import init_custom_process_group

        self._group = init_custom_process_group(
            backend=backend,
            init_method=f"tcp://{address}:{port}",
            world_size=world_size,
            rank=0,
            group_name=GROUP_NAME,
        )

    def broadcast(self, data: Tensor) -> None:
        torch.distributed.broadcast(data, src=0, group=self._group)
        if data.is_cuda:
            torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # a group whose other ranks died cannot be ended in good order
            torch.distributed.destroy_process_group(self._group)


def open_group(dialect: str, address: str, port: int, world_size: int) -> Group:
    """Blocks until every server's ranks have joined."""
    return (VllmGroup if dialect == "vllm" else SglangGroup)(address, port, world_size)


async def join(engine: HttpEngine, address: str, port: int, rank_offset: int, world_size: int) -> None:
    """Have one server's ranks join as `rank_offset`, `rank_offset` + 1, ..."""
    place = {"master_address": address, "master_port": port, "rank_offset": rank_offset, "world_size": world_size}
    if engine.dialect == "vllm":
        await engine.post_update("/init_weight_transfer_engine", {"init_info": place})
    else:
        body = {**place, "group_name": GROUP_NAME, "backend": "nccl"}
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
