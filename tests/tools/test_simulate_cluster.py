"""The simulation: queues with known answers, a step whose parts add up, and where each limit shows."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import simpy

from tools.cluster_model import Cluster, Costs, exchange_s, simulate_step, sync_s
from tools.queueing import Servers
from tools.simulate_cluster import main

CLUSTER = Cluster(
    num_gpus=16,
    num_engines=8,
    num_episodes=64,
    max_steps=10,
    mean_steps=6.0,
    num_workers=8,
    environment_processes=4,
    analyzer_concurrency=0,
    max_concurrent_episodes=1000,
    sync="nccl",
)
COSTS = Costs(
    worker_step_s=0.0,
    record_encode_s=1e-4,
    record_decode_s=1e-4,
    record_bytes=6000.0,
    environment_step_s=0.0,
    turn_s=2.0,
    turn_sigma=0.0,
    analysis_s=20.0,
    analysis_sigma=0.0,
    plain_score_s=0.0,
    trainer_s=30.0,
    model_bytes=16e9,
    host_bytes_per_s=1e9,
    nic_bytes_per_s=40e9,
    disk_write_bytes_per_s=2e9,
    disk_read_bytes_per_s=2e9,
    disk_total_bytes_per_s=20e9,
)


def run_queue(count: int, arrivals: list[float], service_s: list[float]) -> Servers:
    """Serve customers that come at `arrivals`."""
    environment = simpy.Environment()
    servers = Servers(environment, count)

    def customer(arrival_s: float, needs_s: float):
        yield environment.timeout(arrival_s)
        yield servers.serve(needs_s)

    for arrival_s, needs_s in zip(arrivals, service_s, strict=True):
        environment.process(customer(arrival_s, needs_s))
    environment.run()
    servers.end_s = environment.now
    return servers


def test_a_single_server_serves_one_after_the_other():
    servers = run_queue(1, [0.0] * 5, [2.0] * 5)
    assert servers.end_s == 10.0
    assert servers.mean_wait_s == (0 + 2 + 4 + 6 + 8) / 5
    assert run_queue(5, [0.0] * 5, [2.0] * 5).mean_wait_s == 0.0
    assert run_queue(2, [0.0] * 4, [2.0] * 4).end_s == 4.0


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_mean_wait_of_a_single_server_is_pollaczek_khinchine(load):
    """Poisson arrivals at rate λ: wait = λ E[S²] / (2 (1 − ρ)), for constant and for exponential service."""
    rng, arrivals, now = Random(1), [], 0.0
    for _ in range(20_000):
        now += rng.expovariate(load)
        arrivals.append(now)
    constant = run_queue(1, arrivals, [1.0] * len(arrivals)).mean_wait_s
    exponential = run_queue(1, arrivals, [rng.expovariate(1.0) for _ in arrivals]).mean_wait_s
    assert constant == pytest.approx(load / (2 * (1 - load)), rel=0.1)
    assert exponential == pytest.approx(load / (1 - load), rel=0.15)


def test_without_costs_an_episode_is_its_turns():
    time = simulate_step(CLUSTER, COSTS)
    assert time.play_s == time.ideal_play_s
    assert time.play_s % COSTS.turn_s == 0
    assert time.analyzer_s == 0.0
    assert time.total_s == pytest.approx(time.play_s + 30.0 + 0.4 + exchange_s(CLUSTER, COSTS))
    assert time.limit == "playing and training"


def test_one_process_for_all_is_the_limit_and_one_a_rank_is_not():
    costs = replace(COSTS, worker_step_s=0.02)
    many = replace(CLUSTER, num_episodes=1024)
    one = simulate_step(replace(many, num_workers=1), costs)
    spread = simulate_step(replace(many, num_workers=64), costs)
    # A single server: at least all of its work, one step after the other.
    assert one.play_s >= 0.9 * many.num_episodes * many.mean_steps * 0.02
    assert one.worker_busy > 0.95
    assert one.limit == "rollout process"
    assert spread.play_s < 1.1 * spread.ideal_play_s


def test_analyses_wait_for_a_small_endpoint():
    cluster = replace(CLUSTER, analyzer_concurrency=4)
    time = simulate_step(cluster, COSTS)
    assert time.play_s + time.analyzer_s >= 64 / 4 * 20.0
    assert time.limit == "analyzer"
    assert simulate_step(replace(cluster, analyzer_concurrency=64), COSTS).analyzer_s == pytest.approx(20.0)


@pytest.mark.parametrize(("plain_score_s", "analyzer_s"), [(5.0, 15.0), (25.0, 0.0)])
def test_what_needs_no_skills_is_scored_while_the_analyzer_works(plain_score_s: float, analyzer_s: float):
    cluster, costs = replace(CLUSTER, analyzer_concurrency=64), replace(COSTS, plain_score_s=plain_score_s)
    time, waited = simulate_step(cluster, costs), simulate_step(cluster, COSTS)
    assert time.analyzer_s == pytest.approx(analyzer_s)
    assert waited.total_s - time.total_s == pytest.approx(20.0 - analyzer_s)


def test_disk_sync_grows_with_engines_and_nccl_does_not():
    few, many = replace(CLUSTER, sync="disk", num_engines=4), replace(CLUSTER, sync="disk", num_engines=100)
    assert sync_s(few, COSTS) == 8.0 + 8.0
    assert sync_s(many, COSTS) == 8.0 + 100 * 16e9 / 20e9
    assert sync_s(replace(CLUSTER, num_engines=100), COSTS) == 16e9 / 40e9


def test_every_rank_reads_every_record():
    once, twice = CLUSTER, replace(CLUSTER, num_episodes=2 * CLUSTER.num_episodes, num_workers=16, num_gpus=32)
    assert exchange_s(twice, COSTS) > 1.8 * exchange_s(once, COSTS)


def test_the_same_seed_gives_the_same_step():
    costs = replace(COSTS, turn_sigma=0.5, analysis_sigma=0.5)
    assert simulate_step(CLUSTER, costs, seed=3) == simulate_step(CLUSTER, costs, seed=3)
    assert simulate_step(CLUSTER, costs, seed=3) != simulate_step(CLUSTER, costs, seed=4)


def test_the_command_line_writes_every_step_and_the_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["experiment=alfworld_qwen3_8b_2nodes", "--gpus", "16", "32"]
    assert main([*words, "--json", str(tmp_path / "steps.json"), "--plot", str(tmp_path / "steps.svg")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 * 2
    report = json.loads((tmp_path / "steps.json").read_text())
    assert [row["num_episodes"] for row in report["steps"]] == 3 * [128, 256]
    assert (tmp_path / "steps.svg").read_text().startswith("<?xml")
    assert main([*words, "--worker", "yesterday"]) == 2
    assert "--worker yesterday was not measured" in capsys.readouterr().err
