"""One training step of a cluster as a discrete-event simulation: where it waits, from measured and planned figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import simpy

from tools.queueing import Servers


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of single events. `worker_step_s`: CPU of the worker process for one agent step."""

    worker_step_s: float
    record_encode_s: float  # one step of a trajectory written for the other ranks
    record_decode_s: float  # and read again
    record_bytes: float
    environment_step_s: float
    turn_s: float  # an engine's answer, mean
    turn_sigma: float  # of its logarithm
    analysis_s: float
    analysis_sigma: float
    plain_score_s: float  # of the scoring, what needs no skills
    trainer_s: float  # scoring and updates
    model_bytes: float
    host_bytes_per_s: float  # gloo between hosts, one rank
    nic_bytes_per_s: float
    disk_write_bytes_per_s: float  # one writer
    disk_read_bytes_per_s: float  # one reader
    disk_total_bytes_per_s: float  # all readers of the file system


@dataclass(frozen=True)
class Cluster:
    """Sizes. Episodes are dealt evenly to `num_workers` rollout processes; every rank reads all records."""

    num_gpus: int
    num_engines: int
    num_episodes: int
    max_steps: int
    mean_steps: float
    num_workers: int
    environment_processes: int  # of each worker
    analyzer_concurrency: int  # that the endpoint serves at once, 0: no analyzer
    max_concurrent_episodes: int  # of each worker
    sync: str  # disk, nccl or ipc


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, and shares of the rollout that its servers were busy."""

    play_s: float  # until the last episode has ended
    ideal_play_s: float  # the same episodes without waiting for worker or environments
    analyzer_s: float  # from the last episode to the last analysis, less what is scored meanwhile
    exchange_s: float
    trainer_s: float
    sync_s: float
    worker_busy: float
    environment_busy: float
    analyzer_busy: float

    @property
    def total_s(self) -> float:
        return self.play_s + self.analyzer_s + self.exchange_s + self.trainer_s + self.sync_s

    @property
    def waste_s(self) -> dict[str, float]:
        """What each part adds to a step that would only play and train."""
        return {
            "rollout process": self.play_s - self.ideal_play_s,
            "analyzer": self.analyzer_s,
            "exchange of records": self.exchange_s,
            "weight sync": self.sync_s,
        }

    @property
    def limit(self) -> str:
        """The part that adds most, if it adds a tenth of playing and training."""
        name, seconds = max(self.waste_s.items(), key=lambda item: item[1])
        return name if seconds > 0.1 * (self.ideal_play_s + self.trainer_s) else "playing and training"


def simulate_step(cluster: Cluster, costs: Costs, seed: int = 0) -> StepTime:
    """One step. The same seed gives the same episodes and latencies, whatever the sizes of the servers."""
    environment = simpy.Environment()
    analyzer = Servers(environment, cluster.analyzer_concurrency) if cluster.analyzer_concurrency else None
    workers = [_Worker(environment, cluster, costs) for _ in range(cluster.num_workers)]
    ends: list[float] = []
    ideal: list[float] = []
    for number in range(cluster.num_episodes):
        rng = Random(seed * 1_000_003 + number)
        turns = [_lognormal(rng, costs.turn_s, costs.turn_sigma) for _ in range(_num_steps(rng, cluster))]
        analysis_s = _lognormal(rng, costs.analysis_s, costs.analysis_sigma)
        ideal.append(sum(turns) + len(turns) * (costs.worker_step_s + costs.environment_step_s))
        worker = workers[number % cluster.num_workers]
        environment.process(_episode(worker, turns, costs, analyzer, analysis_s, ends))
    environment.run()
    play_s = max(ends)
    return StepTime(
        play_s=play_s,
        ideal_play_s=max(ideal),
        analyzer_s=max(0.0, environment.now - play_s - costs.plain_score_s),
        exchange_s=exchange_s(cluster, costs),
        trainer_s=costs.trainer_s,
        sync_s=sync_s(cluster, costs),
        worker_busy=max(worker.cpu.busy_s for worker in workers) / play_s,
        environment_busy=max(w.environments.busy_s for w in workers) / play_s / cluster.environment_processes,
        analyzer_busy=analyzer.busy_s / environment.now / cluster.analyzer_concurrency if analyzer else 0.0,
    )


def exchange_s(cluster: Cluster, costs: Costs) -> float:
    """Every worker writes its own records, every rank receives and reads all of them."""
    steps = cluster.num_episodes * cluster.mean_steps
    encode = steps / cluster.num_workers * costs.record_encode_s
    send = steps * costs.record_bytes / costs.host_bytes_per_s if cluster.num_gpus > 1 else 0.0
    return encode + send + steps * costs.record_decode_s


def sync_s(cluster: Cluster, costs: Costs) -> float:
    """New weights in every engine.

    disk: written once, then read by all engines, each at its own rate until the file system's is reached. nccl: one
    ring from one sender, so its network card alone decides. ipc: a copy inside each node.
    """
    if cluster.sync == "nccl":
        return costs.model_bytes / costs.nic_bytes_per_s
    if cluster.sync == "ipc":
        return costs.model_bytes / (8 * costs.nic_bytes_per_s)
    rate = min(costs.disk_read_bytes_per_s, costs.disk_total_bytes_per_s / cluster.num_engines)
    return costs.model_bytes / costs.disk_write_bytes_per_s + costs.model_bytes / rate


class _Worker:
    def __init__(self, environment: simpy.Environment, cluster: Cluster, costs: Costs):
        self.environment = environment
        self.cpu = Servers(environment, 1)
        self.environments = Servers(environment, cluster.environment_processes)
        self.slots = simpy.Resource(environment, cluster.max_concurrent_episodes)


def _episode(
    worker: _Worker, turns: list[float], costs: Costs, analyzer: Servers | None, analysis_s: float, ends: list[float]
) -> Iterator[simpy.Event]:
    with worker.slots.request() as slot:
        yield slot
        for turn_s in turns:
            yield worker.cpu.serve(costs.worker_step_s)
            yield worker.environment.timeout(turn_s)
            yield worker.environments.serve(costs.environment_step_s)
    ends.append(worker.environment.now)
    if analyzer is not None:
        yield analyzer.serve(analysis_s)


def _num_steps(rng: Random, cluster: Cluster) -> int:
    """Uniform around the mean, cut at the longest: some episodes always take all steps."""
    spread = cluster.mean_steps - 1
    return max(1, min(cluster.max_steps, round(rng.uniform(cluster.mean_steps - spread, cluster.mean_steps + spread))))


def _lognormal(rng: Random, mean: float, sigma: float) -> float:
    return rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma) if mean > 0 else 0.0
