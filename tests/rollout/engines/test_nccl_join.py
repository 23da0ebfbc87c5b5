"""Forming the group of a transfer when a server never joins: an error in seconds, that says what to do."""

from __future__ import annotations

import time

import pytest
import torch

from rollout.engines.base import EngineError
from rollout.event_loop import EventLoop
from rollout.weight_sync.groups import Rendezvous, opener
from rollout.weight_sync.nccl import SHARDED_BATCH_BYTES, NcclSync


class SilentServer:
    """Answers everything, and joins no group: as one that dies between its answer and the join."""

    dialect, url, expected_version = "vllm", "http://127.0.0.1:9", None

    async def begin_update(self) -> None: ...
    async def world_size(self) -> int:
        return 1

    async def post_update(self, route: str, body: dict) -> None: ...


class Pool:
    engines = (SilentServer(),)

    async def halt(self) -> None: ...

    async def reachable(self, ask) -> tuple[SilentServer, ...]:
        for engine in self.engines:
            await ask(engine)
        return self.engines


class ClosedOnce:
    """An older group."""

    def __init__(self):
        self.num_closed = 0

    def close(self) -> None:
        self.num_closed += 1


@pytest.mark.parametrize("store_s, join_s, words", [(1, 60, "Timed out"), (60, 0.3, "not all of .*:9 joined")])
def test_a_server_that_never_joins_stops_the_run_at_once(monkeypatch, store_s: int, join_s: float, words: str):
    monkeypatch.setattr("rollout.weight_sync.groups.JOIN_TIMEOUT_S", store_s)
    monkeypatch.setattr("rollout.weight_sync.nccl.JOIN_TIMEOUT_S", join_s)
    loop, older = EventLoop(), ClosedOnce()
    sync = NcclSync(Pool(), loop.run, 1, is_sender=True, bucket_bytes=64, backend="gloo")
    sync._group = older, Rendezvous("127.0.0.1", 9, 2)
    started_s = time.perf_counter()
    with pytest.raises(EngineError, match=rf"version 2 were not taken by all servers, restart them.*({words})"):
        sync.push([("weight", torch.zeros(4))], 2)
    loop.close()  # does not wait for the thread that still waits for the server
    assert time.perf_counter() - started_s < 30  # of the store's 60
    assert older.num_closed == 1 and sync._group is None


def test_the_ranks_of_several_servers_follow_one_another(monkeypatch):
    class Server(SilentServer):
        def __init__(self, url: str, num_ranks: int):
            self.url, self.num_ranks, self.places = url, num_ranks, []

        async def world_size(self) -> int:
            return self.num_ranks

        async def post_update(self, route: str, body: dict) -> None:
            self.places.append(body["init_info"])

    monkeypatch.setattr("rollout.weight_sync.nccl.JOIN_TIMEOUT_S", 0.3)
    servers = [Server("http://127.0.0.1:9", 2), Server("http://127.0.0.1:10", 4), Server("http://127.0.0.1:11", 1)]
    monkeypatch.setattr(Pool, "engines", servers)
    loop = EventLoop()
    with pytest.raises(EngineError, match="not all of"):
        NcclSync(Pool(), loop.run, 1, is_sender=True, bucket_bytes=64, backend="gloo").push(
            [("weight", torch.zeros(4))], 1
        )
    loop.close()
    places = [place for server in servers for place in server.places]
    assert [place["rank_offset"] for place in places] == [1, 3, 7]
    assert len({(place["master_address"], place["master_port"], place["world_size"]) for place in places}) == 1
    assert places[0]["world_size"] == 8


def test_the_trainer_without_the_servers_package_is_told_what_is_missing():
    for dialect in ("vllm", "sglang"):
        with pytest.raises(EngineError, match=f"engine.sync=nccl needs {dialect} in the trainer's Python as well"):
            opener("nccl", dialect)


@pytest.mark.parametrize(("num_ranks", "expected_bytes"), [(2, SHARDED_BATCH_BYTES), (1, 1 << 30)])
def test_servers_that_shard_get_smaller_batches(num_ranks: int, expected_bytes: int):
    """Their ranks receive whole tensors into memory that nobody has set apart."""
    loop = EventLoop()
    sync = NcclSync(Pool(), loop.run, 1, is_sender=True, bucket_bytes=1 << 30, backend="gloo")
    sync._group = ClosedOnce(), Rendezvous("127.0.0.1", 9, 1 + 3 * num_ranks)
    assert sync._batch_bytes(num_engines=3) == expected_bytes
    loop.close()
