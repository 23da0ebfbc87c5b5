"""Faults injected into real servers: the collection completes, nothing is counted twice, the metrics say what was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from dataclasses import replace

import pytest

from envs.base import Task
from rollout.engines.base import EngineError, Sampling
from rollout.engines.local import LocalEngine
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.worker import RolloutWorker
from tests.rollout import toy_env
from tests.rollout.engines.conftest import KINDS, Farm, kill_server
from tests.rollout.tiny import make_model, make_settings, make_tokenizer

PROMPT = [5, 6, 7] * 10
VERSION = 7
TASKS = [Task("toy", index, 0, "train") for index in range(8)]
SETTINGS = PoolSettings(recovery_timeout_s=60, probe_timeout_s=10, slow_ratio=4, slow_after_s=1.0)


def sampling(seed: int, max_tokens: int = 6) -> Sampling:
    return Sampling(temperature=1.0, max_tokens=max_tokens, stop_token_ids=(), seed=seed)


class Pool:
    """A pool over the farm's two vLLM servers, and a worker on it."""

    def __init__(
        self,
        farm: Farm,
        *,
        owns: bool = False,
        request_timeout_s: float = 60.0,
        settings: PoolSettings = SETTINGS,
    ):
        self.farm = farm
        engines = [KINDS["vllm"](url, request_timeout_s=request_timeout_s) for url in farm.urls("vllm")]
        self.pool = EnginePool(engines, settings, farm.launchers["vllm"] if owns else None)
        self.pool.give_weights = self.give
        self.worker = RolloutWorker(toy_env, {}, self.pool, make_tokenizer(), run_seed=1, progress=False)

    async def give(self, engine) -> None:
        await engine.load_from_disk(self.farm.models[1], VERSION)

    async def play(self, *events, group_size: int = 4):
        """A collection, while `events` (coroutines) happen; its trajectories."""
        play = self.worker.collect(TASKS, group_size, make_settings(max_steps=8), training_step=3)
        trajectories, *_ = await asyncio.gather(play, *events)
        return trajectories

    def run(self, coroutine):
        return self.worker.run(coroutine)


@contextlib.contextmanager
def pool_on(farm: Farm, **options):
    pool = Pool(farm, **options)
    try:
        pool.run(pool.pool.update(pool.give, VERSION))
        yield pool
    finally:
        for url in farm.urls("vllm"):
            farm.inject(url, "")
        pool.run(pool.pool.close())
        pool.worker.close()


@pytest.fixture(scope="module")
def expected():
    """The same collection by the local engine: what must come out, whatever happens to the servers.

    Other weights than those a server starts with: an answer from before it was synced would show."""
    engine = LocalEngine(make_model(1), weight_version=VERSION)
    with RolloutWorker(toy_env, {}, engine, make_tokenizer(), run_seed=1, progress=False) as worker:
        return worker.collect_sync(TASKS, 4, make_settings(max_steps=8), training_step=3)


def content(trajectories):
    return [
        (t.uid, t.failure, [(s.prompt_ids, s.response_ids, s.action, s.weight_version) for s in t.steps])
        for t in trajectories
    ]


def test_two_servers_play_what_the_local_engine_plays(farm: Farm, expected):
    with pool_on(farm) as pool:
        assert content(pool.run(pool.play())) == content(expected)
        metrics = pool.worker.metrics
    assert not any(metrics[f"engine/num_faults/{kind}"] for kind in ("dead", "hanging", "slow", "garbage", "stale"))
    assert 0 < metrics["engine/prefix_cache_hit_rate"] < 1 and 0 < metrics["engine_busy_share"] <= 1


def test_sessions_stay_where_they_are_and_load_is_balanced(farm: Farm):
    with pool_on(farm) as pool:
        where: dict[str, Counter[str]] = {}
        for engine in pool.pool.engines:

            async def spy(prompt_ids, sampling, *, session, engine=engine, generate=engine.generate):
                where.setdefault(session, Counter())[engine.url] += 1
                return await generate(prompt_ids, sampling, session=session)

            engine.generate = spy

        async def session(name: str) -> None:
            for turn in range(4):
                await pool.pool.generate(PROMPT, sampling(turn), session=name)

        async def all_sessions() -> None:
            await asyncio.gather(*(session(f"episode {index}") for index in range(40)))

        pool.run(all_sessions())
    shares = [max(counts.values()) / 4 for counts in where.values()]
    load = sum((counts for counts in where.values()), Counter())
    assert sum(shares) / len(shares) > 0.8  # few turns leave their session's engine, for balance
    assert max(load.values()) <= 0.7 * 160


def test_episodes_go_on_across_an_update(farm: Farm):
    """Requests that run end under the weights they began with, the next ones have the new, and none fails."""
    with pool_on(farm) as pool:

        async def update() -> None:
            await asyncio.sleep(0.1)
            await pool.pool.pause()
            assert all(": 0 requests" in line for line in pool.pool.waiting())
            await pool.pool.update(lambda engine: engine.load_from_disk(farm.models[0], VERSION + 1), VERSION + 1)
            await pool.pool.resume()

        trajectories = pool.run(pool.play(update()))
        pool.run(pool.pool.update(pool.give, VERSION))
        assert not any(pool.worker.metrics[f"engine/num_faults/{kind}"] for kind in ("dead", "aborted", "stale"))
    versions = [[step.weight_version for step in trajectory.steps] for trajectory in trajectories]
    assert all(trajectory.failure is None for trajectory in trajectories)
    assert all(episode == sorted(episode) for episode in versions)
    assert {v for episode in versions for v in episode} == {VERSION, VERSION + 1}


@pytest.mark.parametrize("fault", ["hang", "garbage", "cut", "slow 3"])
def test_a_faulty_engine_is_taken_out_and_its_requests_go_elsewhere(farm: Farm, expected, fault: str, caplog):
    kind = {"hang": "hanging", "garbage": "garbage", "cut": "dead", "slow 3": "slow"}[fault]
    limits = {"request_timeout_s": 1.0, "settings": replace(SETTINGS, slow_after_s=60.0)} if fault == "hang" else {}
    with pool_on(farm, **limits) as pool:
        bad = farm.urls("vllm")[1]
        farm.inject(bad, fault)
        with caplog.at_level(logging.WARNING):
            trajectories = pool.run(pool.play())
        metrics = pool.worker.metrics
    assert content(trajectories) == content(expected)
    assert metrics[f"engine/num_faults/{kind}"] >= 1 and metrics["engine/num_moved_requests"] >= 1
    assert metrics["num_failed_episodes"] == metrics["num_replays"] == 0  # nothing was played twice
    assert metrics["response_tokens"] == sum(len(s.response_ids) for t in expected for s in t.steps)
    assert f"engine {bad} is taken out ({kind})" in caplog.text


def test_an_engine_that_recovers_serves_again(farm: Farm):
    with pool_on(farm) as pool:
        url = farm.urls("vllm")[0]
        farm.inject(url, "garbage")
        pool.run(pool.play())
        assert len(pool.pool.engines) == 1

        async def mended() -> None:
            farm.inject(url, "")
            while len(pool.pool.engines) < 2:
                await asyncio.sleep(0.05)

        pool.run(asyncio.wait_for(mended(), 30))
        pool.run(pool.play())
        assert pool.worker.metrics["engine/num_returns"] >= 1


def test_without_any_engine_the_run_stops_and_says_why(farm: Farm):
    settings = PoolSettings(recovery_timeout_s=1.0)
    pool = EnginePool([farm.engine("vllm", index) for index in range(2)], settings)

    async def ask() -> None:
        await asyncio.gather(*(engine.load_from_disk(farm.models[0], VERSION) for engine in pool.engines))
        pool.expect(VERSION)
        try:
            for url in farm.urls("vllm"):
                farm.inject(url, "garbage")
            with pytest.raises(EngineError, match="no engine serves, and none came back within 1 s: .*unreadable"):
                await pool.generate(PROMPT, sampling(1), session="a")
        finally:
            for url in farm.urls("vllm"):
                farm.inject(url, "")
            await pool.close()

    asyncio.run(ask())


def test_an_engine_killed_and_restarted_with_old_weights_serves_only_when_synced(farm: Farm, expected):
    """The launcher restarts it; until it is given the current weights, every answer comes from the other one.

    Another rank's pool, which neither restarts nor syncs, finds it again by its version.
    """
    answers: list[tuple[int, ...]] = []
    num_serving: list[int] = []

    async def other_rank() -> None:
        pool = EnginePool([farm.engine("vllm", index) for index in range(2)], SETTINGS)
        pool.expect(VERSION)
        try:
            for seed in range(100):
                answers.append((await pool.generate(PROMPT, sampling(seed), session=str(seed))).token_ids)
                num_serving.append(len(pool.engines))
            while len(pool.engines) < 2:
                await asyncio.sleep(0.1)
        finally:
            await pool.close()

    async def kill() -> None:
        await asyncio.sleep(0.1)
        kill_server(farm, "vllm", 0)

    with pool_on(farm, owns=True) as owner:

        async def all_of_it():
            played = await owner.play(kill(), other_rank())
            while len(owner.pool.engines) < 2:
                await asyncio.sleep(0.1)
            assert await owner.pool.engines[0].held_version() == VERSION
            return played, dict(owner.worker.metrics), await owner.pool.counters()

        trajectories, metrics, later = owner.run(asyncio.wait_for(all_of_it(), 90))
    assert content(trajectories) == content(expected)
    assert metrics["engine/num_faults/dead"] == 1
    assert metrics["engine/num_restarts"] + later["num_restarts"] == 1
    assert metrics["engine/num_returns"] + later["num_returns"] == 1
    assert 1 in num_serving and answers == asyncio.run(local_answers())


async def local_answers() -> list[tuple[int, ...]]:
    engine = LocalEngine(make_model(1))
    drawn = (engine.generate(PROMPT, sampling(seed), session="") for seed in range(100))
    return [generation.token_ids for generation in await asyncio.gather(*drawn)]
