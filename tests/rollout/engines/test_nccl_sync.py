"""The transfer by NCCL, over gloo: into real servers of both dialects, and when one of them dies in its middle."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import httpx
import pytest
import torch

from rollout.engines.base import EngineError, Sampling
from rollout.engines.http import EngineFault, HttpEngine
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.weight_sync import nccl, stream
from rollout.weight_sync.digest import DigestMismatch
from rollout.weight_sync.nccl import NcclSync
from tests.rollout.engines.conftest import PAUSE, RESUME, Farm, kill_server
from tests.rollout.tiny import make_model

KIB = 1024
BUCKET = ("/update_weights", "/update_weights_from_distributed")
STREAM_REQUESTS = {
    "vllm": ["opid_begin_update", "opid_receive"],
    "sglang": ["/model_info", "/update_weight_version", "/update_weights_from_distributed"],
}
PROMPT = [5, 6, 7] * 10


class Loop:
    """A pool's own event loop, and a sync on it."""

    def __init__(self, farm: Farm, dialect: str, *, bucket_bytes: int = 16 * KIB):
        self.runner = asyncio.Runner()
        engines = [farm.engine(dialect, index) for index in range(len(farm.urls(dialect)))]
        self.pool = EnginePool(engines, PoolSettings(recovery_timeout_s=1.0))
        self.sync = NcclSync(
            self.pool, self.runner.run, verify_every=1, is_sender=True, bucket_bytes=bucket_bytes, backend="gloo"
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.runner.run(self.pool.close())
        self.runner.close()

    def answers(self) -> list[tuple[int, ...]]:
        """What every server samples now, greedily."""
        greedy = Sampling(temperature=0.0, max_tokens=8, stop_token_ids=())

        async def ask():
            async with asyncio.timeout(20):
                return [(await engine.generate(PROMPT, greedy, session="a")).token_ids for engine in self.pool.engines]

        return self.runner.run(ask())

    def held(self) -> set[int | None]:
        """The versions that the servers hold by their own account."""

        async def ask():
            return {await engine.held_version() for engine in self.pool.engines}

        return self.runner.run(ask())


@pytest.fixture(autouse=True)
def gloo_on_loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def weights(seed: int):
    return ((name, tensor.detach()) for name, tensor in make_model(seed).named_parameters())


def greedy(seed: int) -> tuple[int, ...]:
    ids = torch.tensor([PROMPT])
    return tuple(make_model(seed).generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 30:].tolist())


def restart(farm: Farm, dialect: str) -> None:
    for url in farm.urls(dialect):
        asyncio.run(farm.launchers[dialect].restart(url))


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_pushes_reach_every_server_in_buckets_of_any_size(farm: Farm, dialect: str):
    """The largest tensor is 33 KiB: it needs a bucket of its own where the others are smaller."""
    with Loop(farm, dialect) as loop:
        for version, seed in ((3, 1), (4, 0), (5, 1)):
            report = loop.sync.push(weights(seed), version)
            assert report.verified
            assert report.num_bytes == sum(4 * p.numel() for p in make_model(seed).parameters())
            assert loop.answers() == [greedy(seed)] * len(farm.urls(dialect))
    with Loop(farm, dialect, bucket_bytes=1024 * KIB) as loop:  # one bucket; another group, by the same servers
        loop.sync.push(weights(0), 6)
        assert loop.answers() == [greedy(0)] * len(farm.urls(dialect))


def as_a_mixture(engine: HttpEngine) -> Callable[[], Awaitable[int | None]]:
    begin_update = engine.begin_update

    async def begin() -> int | None:
        held = await begin_update()
        engine.loads_in_place = False
        return held

    return begin


def test_servers_that_take_weights_in_different_ways_are_refused(farm: Farm):
    with Loop(farm, "vllm") as loop:
        first, _ = loop.pool.engines
        first.begin_update = as_a_mixture(first)
        with pytest.raises(EngineError, match=f"{first.url} cannot take weights in place as the others do"):
            loop.sync.push(weights(1), 1)
    restart(farm, "vllm")


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_weights_that_are_not_taken_in_place_go_through_the_servers_own_update(
    farm: Farm, dialect: str, monkeypatch: pytest.MonkeyPatch, routes: list[str]
):
    """A mixture's experts, for one. The servers are paused: from one bucket to the next they would sample."""
    monkeypatch.delattr(stream.Sender, "send")
    with Loop(farm, dialect) as loop:
        for engine in loop.pool.engines:
            engine.begin_update = as_a_mixture(engine)
        for version, seed in ((1, 1), (2, 0)):
            routes.clear()
            loop.sync.push(weights(seed), version)
            buckets = [place for place, route in enumerate(routes) if route in BUCKET]
            assert len(buckets) > 2 and routes.index(PAUSE[dialect]) < buckets[0]
            assert buckets[-1] < routes.index(RESUME[dialect])
            assert loop.answers() == [greedy(seed)] * len(farm.urls(dialect))


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_a_stream_is_one_request_beside_few_others(farm: Farm, dialect: str, routes: list[str]):
    with Loop(farm, dialect) as loop:
        loop.sync.push(weights(0), 1)
        loop.pool._members[1:] = []
        loop.sync.push(weights(1), 2)  # in another group
        loop.sync._verify_every = 1000
        routes.clear()
        loop.sync.push(weights(0), 3)
        assert sorted(routes) == STREAM_REQUESTS[dialect]
    restart(farm, dialect)  # one was left out


def test_a_stream_aborts_what_runs_in_sglang_and_holds_back_what_comes(farm: Farm):
    """While the weights come, neither is sampled with: SGLang's writer lock would wait for what runs."""
    with Loop(farm, "sglang") as loop, ThreadPoolExecutor(1) as thread:
        loop.sync.push(weights(0), 1)
        first = loop.pool.engines[0]

        async def begin_endless() -> asyncio.Task:
            endless = Sampling(temperature=1.0, max_tokens=450, stop_token_ids=(), seed=1)
            return asyncio.create_task(first.generate(PROMPT, endless, session="a"))

        def ask() -> dict:
            params = {"temperature": 0.0, "max_new_tokens": 8}
            return httpx.post(f"{first.url}/generate", json={"input_ids": PROMPT, "sampling_params": params}).json()

        running = loop.runner.run(begin_endless())
        asked: list[Future[dict]] = []

        def while_they_come() -> Iterator[tuple[str, torch.Tensor]]:
            for number, named in enumerate(weights(1)):
                if number == 5:
                    deadline_s = time.monotonic() + 10
                    while not running.done():
                        assert time.monotonic() < deadline_s, "what runs is waited for"
                        time.sleep(0.01)
                    asked.append(thread.submit(ask))
                    time.sleep(0.3)
                    assert not asked[0].done()
                yield named

        loop.sync.push(while_they_come(), 2)
        assert isinstance(running.exception(), EngineFault) and running.exception().kind == "aborted"
        answer = asked[0].result()
        assert (tuple(answer["output_ids"]), answer["meta_info"]["weight_version"]) == (greedy(1), "2")


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_a_server_that_others_paused_serves_again_after_a_stream(farm: Farm, dialect: str):
    """Before the first push, as another run may have left it; or later: it counts as hanging then."""
    with Loop(farm, dialect) as other, Loop(farm, dialect) as loop:
        for version, seed in ((1, 1), (2, 0)):
            stranger = other.pool.engines[0]
            other.runner.run(stranger.pause())
            if version == 2:
                member = loop.pool._members[0]
                loop.pool._mark_out(member, EngineFault("hanging", f"{member.engine.url} does not answer"))
            loop.sync.push(weights(seed), version)
            assert loop.answers() == [greedy(seed)] * len(farm.urls(dialect))


def change_before_sending(change: Callable[[dict[str, torch.Tensor]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    send = stream.Sender.send
    monkeypatch.setattr(stream.Sender, "send", lambda sender, tensors: (change(tensors), send(sender, tensors)))


def test_gathering_goes_on_while_a_bucket_is_sent(farm: Farm, monkeypatch: pytest.MonkeyPatch):
    """Sending takes as long as gathering here: together they take little more than either."""
    pause_s = 0.1

    def slowly():
        for name, tensor in weights(1):
            time.sleep(pause_s)
            yield name, tensor

    with Loop(farm, "vllm", bucket_bytes=1) as loop:  # a bucket per tensor
        loop.sync.push(weights(1), 1)
        change_before_sending(lambda tensors: time.sleep(pause_s), monkeypatch)
        started_s = time.perf_counter()
        report = loop.sync.push(slowly(), 2)
    assert time.perf_counter() - started_s < 1.6 * report.num_tensors * pause_s


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_a_wrong_byte_on_the_way_is_found_out(farm: Farm, dialect: str, monkeypatch: pytest.MonkeyPatch):
    def corrupt(tensors: dict[str, torch.Tensor]) -> None:
        stream.as_bytes(next(iter(tensors.values())).detach())[7] ^= 1

    with Loop(farm, dialect) as loop:
        loop.sync.push(weights(1), 1)
        change_before_sending(corrupt, monkeypatch)
        with pytest.raises(DigestMismatch, match="differs at the engine"):
            loop.sync.push(weights(1), 2)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_a_server_that_lacks_a_weight_is_named_and_serves_nothing(farm: Farm, dialect: str):
    with Loop(farm, dialect) as loop:
        loop.sync.push(weights(0), 1)
        urls = "|".join(farm.urls(dialect))
        with pytest.raises(EngineError, match=f"version 2 were not taken .* ({urls}): HTTP .*weights are missing"):
            loop.sync.push(itertools.islice(weights(1), 5), 2)
        assert loop.held() == {None}
    restart(farm, dialect)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_weights_that_were_not_all_gathered_are_never_served(farm: Farm, dialect: str):
    def broken():
        yield from list(weights(1))[:5]
        raise KeyError("layers.1")

    with Loop(farm, dialect) as loop:
        loop.sync.push(weights(0), 1)
        with pytest.raises(KeyError, match="layers.1"):
            loop.sync.push(broken(), 2)
        assert loop.held() == {None}
    restart(farm, dialect)  # as the message says: vLLM begins no update while another has not ended


def test_a_group_that_is_left_can_be_formed_again(farm: Farm):
    with Loop(farm, "sglang") as loop:
        loop.sync.push(weights(1), 1)
        loop.sync.close()
        assert loop.sync._group is None
        loop.sync.push(weights(0), 2)
        assert loop.answers() == [greedy(0)]


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_a_transfer_that_stands_still_is_named_and_stops_the_run(
    farm: Farm, dialect: str, monkeypatch: pytest.MonkeyPatch
):
    """As it does where a rank has left it: the servers answer after load_timeout_s only."""
    goes_on = threading.Event()
    monkeypatch.setattr(nccl, "STALL_TIMEOUT_S", 2.0)
    with Loop(farm, dialect) as loop:
        loop.sync.push(weights(0), 1)
        group, _ = loop.sync._group
        broadcast, numbers = group.broadcast, itertools.count()

        def broadcast_four(tensors: list[torch.Tensor]) -> Callable[[], object]:
            return broadcast(tensors) if next(numbers) < 4 else partial(goes_on.wait, 60)

        monkeypatch.setattr(group, "broadcast", broadcast_four)
        started_s = time.monotonic()
        with pytest.raises(EngineError, match="a batch of weights was not taken within 2 s"):
            loop.sync.push(weights(1), 2)
        assert time.monotonic() - started_s < 20
        goes_on.set()
    restart(farm, dialect)


def test_a_server_that_dies_in_the_transfer_stops_the_run_and_is_back_after_a_restart(farm: Farm):
    taken = []

    def interrupted():
        for name, tensor in weights(1):
            if len(taken) == 3:
                kill_server(farm, "vllm", 1)
            taken.append(name)
            yield name, tensor

    with Loop(farm, "vllm") as loop:
        loop.sync.push(weights(1), 1)
        with pytest.raises(EngineError, match=r"version 2 were not taken by all servers, restart them"):
            loop.sync.push(interrupted(), 2)
        assert len(taken) == len(list(make_model(1).named_parameters()))  # no other rank waits for this one
    restart(farm, "vllm")
    with Loop(farm, "vllm") as loop:
        loop.sync.push(weights(1), 2)
        assert loop.answers() == [greedy(1)] * 2
