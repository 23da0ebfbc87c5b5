"""Hand-over by handles of memory: two ranks (threads) with a server each, which reads a buffer as late as it may.

The ranks are on one machine, whose first rank sends the handles, or each is on a machine of its own.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from rollout.engines.base import EngineError
from rollout.engines.http import EngineFault
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.weight_sync.bucket import Bucket
from rollout.weight_sync.handles import make_handle, vllm_payload
from rollout.weight_sync.ipc import IpcSync
from tests.rollout.tiny import make_model

BUCKET_BYTES = 40 * 1024
NUM_RANKS = 2
WEIGHTS = {name: parameter.detach() for name, parameter in make_model(1).named_parameters()}


class Reader:
    """What a server is to the sync; handles are keys of `memory`, as those of CUDA are of a GPU's memory."""

    dialect = "sglang"
    expected_version: int | None = None
    is_asleep = False  # as at the first push of a run

    def __init__(self, number: int, memory: dict[str, Bucket], fault: str = ""):
        self.url = f"http://127.0.0.1:{9000 + number}"
        self.held: dict[str, torch.Tensor] = {}
        self.handles: list[str] = []
        self.is_paused = False
        self.version: int | None = None
        self._memory, self._fault = memory, fault

    async def health(self) -> None:
        if self._fault == "dead":
            raise EngineFault("dead", f"{self.url}: no connection")

    async def begin_update(self) -> None:
        if self._fault == "begin":
            raise EngineFault("refused", f"{self.url}: HTTP 500")

    async def pause(self) -> None:
        self.is_paused = True

    async def post_update(self, route: str, body: dict) -> None:
        assert self.is_paused  # it would sample with some of the new weights
        (handle,) = body["serialized_named_tensors"]
        self.handles.append(handle)
        await asyncio.sleep(0.01)  # a buffer that is filled too early shows now
        if self._fault == "load" and len(self.handles) == 3:
            raise EngineFault("dead", f"{self.url}: cut")
        bucket, start = self._memory[handle], 0
        for name, dtype, shape, size in zip(bucket.names, bucket.dtypes, bucket.shapes, bucket.sizes, strict=True):
            data = bucket.buffer[start : start + size].clone()
            self.held[name] = data.view(getattr(torch, dtype)).reshape(shape)
            start += size

    async def end_update(self, version: int) -> None:
        self.version = version

    async def checksum(self, sent) -> str:
        return "equal"

    async def close(self) -> None:
        pass


class Ranks:
    """Both ranks' syncs; `push` has them push at the same time and gives what each returned or raised."""

    def __init__(self, *faults: str, ranks_per_machine: int = NUM_RANKS, bucket_bytes: int = BUCKET_BYTES):
        self._ranks_per_machine = ranks_per_machine
        self._bucket_bytes = bucket_bytes
        self._barrier = threading.Barrier(NUM_RANKS, timeout=30)
        self._texts = [""] * NUM_RANKS
        self.readers: list[Reader] = []
        self._memory: dict[str, Bucket] = {}
        self.readers = [Reader(number, self._memory, fault) for number, fault in enumerate(faults)]

    def push(self, version: int) -> list:
        with ThreadPoolExecutor(NUM_RANKS) as threads:
            pushes = [threads.submit(self._push, rank, version) for rank in range(NUM_RANKS)]
            return [push.exception() or push.result() for push in pushes]

    def _push(self, rank: int, version: int):
        numbers = itertools.count()

        def make_handle(bucket: Bucket, dialect: str) -> str:
            key = f"{rank}/{next(numbers)}"
            self._memory[key] = bucket
            return key

        with asyncio.Runner() as runner:
            pool = EnginePool(self.readers, PoolSettings(), own=self._urls_of(rank))
            sync = IpcSync(
                pool,
                runner.run,
                verify_every=1,
                is_sender=rank == 0,
                bucket_bytes=self._bucket_bytes,
                all_gather=lambda text: self._all_gather(rank, text),
                tensor_parallel=1,
                first_rank=rank // self._ranks_per_machine * self._ranks_per_machine,
                make_handle=make_handle,
            )
            try:
                return sync.push(iter(WEIGHTS.items()), version)
            finally:
                runner.run(pool.close())

    def _urls_of(self, rank: int) -> list[str]:
        """The servers of a machine are its first rank's."""
        if rank % self._ranks_per_machine:
            return []
        return [reader.url for reader in self.readers[rank : rank + self._ranks_per_machine]]

    def _all_gather(self, rank: int, text: str) -> list[str]:
        self._texts[rank] = text
        self._barrier.wait()
        texts = list(self._texts)
        self._barrier.wait()
        return texts


def test_vllm_finds_the_memory_of_each_of_its_gpus_by_name(monkeypatch):
    """What its workers unpickle are the arguments of torch's rebuild_cuda_tensor, to the byte those of each rank."""
    buffers = {uuid: torch.zeros(10, dtype=torch.uint8) for uuid in ("gpu-a", "gpu-b")}
    reduced = {
        uuid: (
            *(torch.Tensor, buffer.size(), buffer.stride(), 0, type(buffer._typed_storage()), torch.uint8),
            *(number, bytes([number, 255, 0]), 2048, 512 * number, False, b"counter", 7, b"event", True),
        )
        for number, (uuid, buffer) in enumerate(buffers.items())
    }
    of_buffer = {id(buffer): uuid for uuid, buffer in buffers.items()}
    monkeypatch.setattr("torch.multiprocessing.reductions.reduce_tensor", lambda b: (None, reduced[of_buffer[id(b)]]))
    handles = []
    for uuid, buffer in buffers.items():
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device, uuid=uuid: SimpleNamespace(uuid=uuid))
        handles.append(make_handle(Bucket(buffer), "vllm"))
    assert pickle.loads(base64.b64decode(vllm_payload(handles))) == reduced


@pytest.mark.parametrize("ranks_per_machine", [1, 2])
def test_each_server_reads_every_bucket_from_its_own_ranks_memory(ranks_per_machine: int):
    ranks = Ranks("", "", ranks_per_machine=ranks_per_machine)
    reports = ranks.push(4)
    assert [report.num_tensors for report in reports] == [len(WEIGHTS)] * 2
    for number, reader in enumerate(ranks.readers):
        assert reader.version == 4 and len(reader.handles) > 2
        assert {handle.split("/")[0] for handle in reader.handles} == {str(number)}
        assert all(torch.equal(reader.held[name], tensor) for name, tensor in WEIGHTS.items())


def test_a_tensor_above_the_bucket_gets_a_larger_buffer():
    sizes = [tensor.nbytes for tensor in WEIGHTS.values()]
    ranks = Ranks("", "", bucket_bytes=max(sizes) // 2)
    ranks.push(4)
    for reader in ranks.readers:
        assert all(torch.equal(reader.held[name], tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize("ranks_per_machine", [1, 2])
def test_a_dead_servers_neighbour_keeps_its_own_gpu(ranks_per_machine: int):
    ranks = Ranks("dead", "", ranks_per_machine=ranks_per_machine)
    assert [report.num_tensors for report in ranks.push(4)] == [len(WEIGHTS)] * 2
    assert {handle.split("/")[0] for handle in ranks.readers[1].handles} == {"1"}


@pytest.mark.parametrize("fault", ["begin", "load"])
@pytest.mark.parametrize("ranks_per_machine", [1, 2])
def test_a_server_that_fails_stops_all_ranks_and_leaves_none_waiting(fault: str, ranks_per_machine: int):
    ranks = Ranks("", fault, ranks_per_machine=ranks_per_machine)
    errors = ranks.push(4)
    sender = 0 if ranks_per_machine == 2 else 1
    assert all(isinstance(error, EngineError) and "incomplete, restart them" in str(error) for error in errors)
    assert str(errors[1 - sender]).startswith(f"rank {sender}: ")
    assert ranks.readers[1].version is None
