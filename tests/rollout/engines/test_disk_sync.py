"""Weight sync from disk into real servers of both dialects, and what happens when it goes wrong."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from safetensors.torch import load_file

from megatron_opid.config import load
from megatron_opid.engines import weights_directory
from rollout.engines.base import EngineError, Sampling
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.weight_sync.digest import DigestMismatch
from rollout.weight_sync.disk import DiskSync
from tests.rollout.engines.conftest import EMPTY_CACHE, PAUSE, RESUME, Farm
from tests.rollout.tiny import make_model

KIB = 1024
GREEDY = Sampling(temperature=0.0, max_tokens=4, stop_token_ids=())


class Loop:
    """A pool's own event loop, a sync on it, and its directory."""

    def __init__(
        self, farm: Farm, dialect: str, directory, *, own: tuple[str, ...] | None = None, is_sender=True, others=()
    ):
        """`others` are the URLs to which another rank has given weights."""
        self.runner = asyncio.Runner()
        engines = [farm.engine(dialect, index) for index in range(len(farm.urls(dialect)))]
        self.pool = EnginePool(engines, PoolSettings(recovery_timeout_s=1.0), own=own)
        self.sync = DiskSync(
            self.pool,
            self.runner.run,
            verify_every=1,
            is_sender=is_sender,
            directory=directory,
            source=farm.models[0],
            bucket_bytes=40 * KIB,
            all_gather=lambda text: [text, json.dumps({"urls": others, "failure": ""})],
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.runner.run(self.pool.close())
        self.runner.close()

    def held(self) -> list[int | None]:
        async def ask():
            return [await engine.held_version() for engine in self.pool.engines]

        return self.runner.run(ask())


def weights(seed: int):
    return ((name, tensor.detach()) for name, tensor in make_model(seed).named_parameters())


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_a_push_reaches_every_server_in_buckets_and_leaves_one_version(farm: Farm, dialect: str, tmp_path):
    with Loop(farm, dialect, tmp_path / "weights") as loop:
        for version in (5, 6):
            report = loop.sync.push(weights(1), version)
        assert report.verified
        assert report.num_bytes == sum(4 * p.numel() for p in make_model(1).parameters())
        assert loop.held() == [6] * len(farm.urls(dialect))
        assert {engine.expected_version for engine in loop.pool.engines} == {6}
    (directory,) = (tmp_path / "weights").iterdir()
    assert directory.name == "version_6" and (directory / "config.json").is_file()
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) > 2 and set(json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"])
    held = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in weights(1))


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_weights_by_a_number_that_another_run_used_are_new_ones(farm: Farm, dialect: str, tmp_path, routes):
    """The other run's prefixes go, and a server that it left paused serves; one that has this run's keeps its own."""
    load = {"vllm": "reload_weights", "sglang": "/update_weights_from_disk"}[dialect]
    with Loop(farm, dialect, tmp_path / "gone") as gone:
        gone.sync.push(weights(1), 5)
        for engine in gone.pool.engines:
            gone.runner.run(engine.pause())
    with Loop(farm, dialect, tmp_path / "run") as loop:
        loop.pool._members[1:] = []  # the requests of one server, in order
        for version in (5, 6):
            routes.clear()
            loop.sync.push(weights(2), version)
            assert routes.index(PAUSE[dialect]) < routes.index(load) < routes.index(RESUME[dialect])
            assert (EMPTY_CACHE[dialect] in routes) == (version == 5)
            sampled = loop.runner.run(loop.pool.engines[0].generate([5, 6], GREEDY, session="a"))
            assert sampled.weight_version == version


def test_only_older_versions_of_this_run_are_deleted(farm: Farm, tmp_path):
    for name in ("version_4", "other_run/version_4"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("somebody's")
    with Loop(farm, "sglang", tmp_path) as loop:
        loop.sync.push(weights(1), 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "other_run", "version_5"]
    assert (tmp_path / "other_run" / "version_4").is_dir()


def test_runs_that_share_a_directory_for_weights_have_their_own_below_it(tmp_path):
    shared, runs = tmp_path / "shared", [tmp_path / "a" / "seed_0", tmp_path / "b" / "seed_0"]
    words = [f"engine.sync_dir={shared}"]
    own, other = (weights_directory(load([*words, f"run.dir={run}"])) for run in runs)
    assert own != other and own.is_relative_to(shared) and other.is_relative_to(shared)
    assert weights_directory(load([f"run.dir={runs[0]}"])) == runs[0] / "weights"


def test_the_other_ranks_follow_and_expect_the_version(farm: Farm, tmp_path):
    first, second = farm.urls("vllm")
    with Loop(farm, "vllm", tmp_path, own=(), is_sender=False, others=(second,)) as loop:
        stream = weights(1)
        report = loop.sync.push(stream, 9)
        assert next(stream, None) is None and not report.verified
        assert [(engine.url, engine.expected_version) for engine in loop.pool.engines] == [(second, 9)]
        assert not list(tmp_path.iterdir())
        assert any(f"{first} is out: {first} did not take version 9" in line for line in loop.pool.waiting())


def test_each_rank_loads_its_own_servers_and_asks_those_of_the_others(farm: Farm, tmp_path, monkeypatch):
    first, second = farm.urls("vllm")
    with Loop(farm, "vllm", tmp_path, own=(first,), others=(second,)) as loop:
        monkeypatch.setattr(loop.sync, "verify", lambda sent: False)  # nobody has given the second one weights
        loop.sync.push(weights(1), 7)
        assert {engine.url for engine in loop.pool.engines} == {first, second}
        assert loop.held()[0] == 7 != loop.held()[1]


def test_a_directory_that_another_machine_does_not_see_is_named(farm: Farm, tmp_path, monkeypatch):
    monkeypatch.setattr("rollout.weight_sync.disk.VISIBLE_WITHIN_S", 0.0)
    with (
        Loop(farm, "vllm", tmp_path, is_sender=False) as loop,
        pytest.raises(EngineError, match=r"version_9, written by rank 0, is not there .*set engine\.sync_dir"),
    ):
        loop.sync.push(weights(1), 9)


def test_a_sender_that_fails_leaves_nobody_waiting_and_no_half_version(farm: Farm, tmp_path):
    """Gathering a tensor is a collective of all ranks: the failed sender takes part to the end."""
    taken = []

    def watched():
        for name, tensor in weights(1):
            taken.append(name)
            yield name, tensor if len(taken) != 3 else "no tensor"

    with Loop(farm, "vllm", tmp_path / "weights") as loop, pytest.raises(AttributeError):
        loop.sync.push(watched(), 5)
    assert len(taken) == len(list(make_model(1).named_parameters()))
    assert not [path for path in (tmp_path / "weights").iterdir() if not path.name.endswith(".tmp")]


def test_weights_that_no_server_takes_stop_the_run(farm: Farm, tmp_path):
    with Loop(farm, "vllm", tmp_path / "weights") as loop:
        tensors = [(name, t[:1] if name == "model.norm.weight" else t) for name, t in weights(1)]
        with pytest.raises(EngineError, match=r"no engine took the weights of version 5.*model\.norm\.weight"):
            loop.sync.push(tensors, 5)


def test_a_server_with_other_weights_is_found_out(farm: Farm, tmp_path):
    """One server loads something else under the same version, as a stale cache of a file system would have it."""
    with Loop(farm, "vllm", tmp_path / "weights") as loop:
        engine = loop.pool.engines[1]
        load = engine.load_from_disk
        engine.load_from_disk = lambda directory, version: load(farm.models[0], version)
        with pytest.raises(DigestMismatch, match="embed_tokens"):
            loop.sync.push(weights(1), 5)
