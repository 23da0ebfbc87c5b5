"""The group that the trainer's rank 0 and all ranks of the servers form: NCCL for either server, gloo for our own.

Checked against the sources: vLLM 0.24.0's distributed/weight_transfer (nccl_engine.py, packed_tensor.py) and
SGLang 0.5.14's srt/model_executor/model_runner.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from rollout.engines.base import EngineError
from rollout.engines.http import EngineFault, HttpEngine
from rollout.weight_sync.communicator import broadcast_coalesced, broadcast_together

GLOO_TIMEOUT = timedelta(minutes=15)
# A group is formed of servers that have just answered: whoever is not there by then has died.
JOIN_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of one group find each other: rank 0, the trainer's, listens there."""

    address: str
    port: int
    world_size: int

    @property
    def name(self) -> str:
        """Of the group; one of its own, since torch remembers the name of a group that could not be ended."""
        return f"megatron_opid_{self.port}"


class Group(Protocol):
    """Rank 0 of the group, made on the GPU that is current in the thread."""

    def broadcast(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Begin to send tensors to every other rank, one after another but as one operation; what this returns waits
        until that is done: the tensors must stay till then. They may lie in host memory where the group streams
        (stream.py)."""
        ...

    def close(self) -> None:
        """End the group at once, whether the other ranks are there or not: a broadcast that waits in another thread
        for a rank that died returns or fails. May take long; nothing else needs it to return."""
        ...


OpenGroup = Callable[[Rendezvous], Group]


class VllmGroup:
    """vLLM's own communicator, outside torch.distributed; needs the vllm package in the trainer's environment.

    Its constructor makes a first all-reduce, which the servers answer while they join.
    """

    def __init__(self, rendezvous: Rendezvous):
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        info = {
            "master_address": rendezvous.address,
            "master_port": rendezvous.port,
            "world_size": rendezvous.world_size,
        }
        self._communicator: Any = NCCLWeightTransferEngine.trainer_init(info)
        if self._communicator.disabled:  # it would send nothing and say nothing
            raise EngineError("vLLM finds no NCCL in the trainer's process; is VLLM_DISABLE_PYNCCL set?")
        self._stream = torch.cuda.Stream(priority=-1)  # or the blocks of a kernel that gathers would hold it up
        self._is_closed = False

    def broadcast(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        with torch.cuda.stream(self._stream):  # not on the stream that gathers what is next
            on_gpu = [_on_gpu(tensor, self._communicator.device) for tensor in tensors]
            if self._is_closed:  # while this thread waited for a broadcast that has been ended
                raise EngineError("the group of the weight sync was ended")
            broadcast_together(self._communicator, on_gpu, self._stream)
        return self._stream.record_event().synchronize

    def close(self) -> None:
        self._is_closed = True
        self._communicator.destroy()


class SglangGroup:
    """A torch.distributed group beside the default one, named as the servers name it; needs the sglang package."""

    def __init__(self, rendezvous: Rendezvous):
        from sglang.srt.utils import init_custom_process_group

        # As the servers' tcp:// address makes it, but under torchrun as well, where torch would make rank 0 a client.
        store = _store(rendezvous, rank=0)
        self._group = init_custom_process_group(
            backend="nccl",
            store=distributed.PrefixStore(rendezvous.name, store),
            world_size=rendezvous.world_size,
            rank=0,
            group_name=rendezvous.name,
        )
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(priority=-1)  # as vLLM's

    def broadcast(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        with torch.cuda.stream(self._stream):  # not on the stream that gathers what is next
            broadcast_coalesced(self._group, [_on_gpu(tensor, self._device) for tensor in tensors])
        return self._stream.record_event().synchronize

    def close(self) -> None:
        # destroy_process_group would wait for ranks that died.
        distributed.distributed_c10d._abort_process_group(self._group)


class GlooGroup:
    """For our CPU servers, which are the other ranks; apart from torch.distributed's own groups."""

    def __init__(self, rendezvous: Rendezvous, rank: int = 0):
        self._group = distributed.ProcessGroupGloo(_store(rendezvous, rank), rank, rendezvous.world_size, GLOO_TIMEOUT)

    def broadcast(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Begin to send from rank 0; on the other ranks, to receive into `tensors`."""
        options = distributed.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        works = [self._group.broadcast([tensor], options) for tensor in tensors]

        def wait() -> None:
            for work in works:
                work.wait()

        return wait

    def close(self) -> None:
        """Nothing to do: the connections close with the last reference, and a rank that dies ends the broadcast."""


def _on_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    """By way of pinned memory: a copy from other memory would wait for the current stream."""
    return tensor if tensor.is_cuda else tensor.pin_memory().to(device, non_blocking=True)


def _store(rendezvous: Rendezvous, rank: int) -> distributed.TCPStore:
    timeout = timedelta(seconds=JOIN_TIMEOUT_S)
    return distributed.TCPStore(
        rendezvous.address, rendezvous.port, rendezvous.world_size, is_master=rank == 0, timeout=timeout
    )


def opener(backend: str, dialect: str) -> OpenGroup:
    """What makes the group, and blocks until every server's ranks have joined; `backend` is nccl or gloo.

    Imports what it needs of the server's package, which takes seconds: call it before the servers wait.

    Raises:
        EngineError: the package is not installed here.
    """
    if backend == "gloo":
        return GlooGroup
    try:
        if dialect == "vllm":
            import vllm.distributed.weight_transfer.nccl_engine  # noqa: F401

            return VllmGroup
        import sglang.srt.utils  # noqa: F401

        return SglangGroup
    except ImportError as error:
        raise EngineError(f"engine.sync=nccl needs {dialect} in the trainer's Python as well: {error}") from error


async def join(engine: HttpEngine, backend: str, rendezvous: Rendezvous, rank_offset: int) -> None:
    """Have one server's ranks join as `rank_offset`, `rank_offset` + 1, ..."""
    place = {
        "master_address": rendezvous.address,
        "master_port": rendezvous.port,
        "rank_offset": rank_offset,
        "world_size": rendezvous.world_size,
    }
    if engine.dialect == "vllm":
        await engine.post_update("/init_weight_transfer_engine", {"init_info": place})
    else:
        body = {**place, "group_name": rendezvous.name, "backend": backend}
        await engine.post_update("/init_weights_update_group", body)


async def leave(engine: HttpEngine, rendezvous: Rendezvous) -> None:
    """Have one server forget its part of an old group, if it has one; vLLM does that when it joins a new one."""
    if engine.dialect == "sglang":
        with contextlib.suppress(EngineFault):  # a restarted server has none
            await engine.post_update("/destroy_weights_update_group", {"group_name": rendezvous.name})
