"""Many steps with faults against the CPU server: `python -m tools.soak_rollout [--steps 1000] [--episodes 128] ...`

Each step pushes weights and plays a collection; every `--fault-every` steps something breaks in its middle, in turn: a
server is killed, a server freezes (SIGSTOP), an environment process is killed. A step fails the run if an episode is
missing, there twice, failed in the end, or was sampled under other weights than that step's. The resident memory of
this process, and of every server (which starts anew after a fault), is written down each step; at the end it is
compared between the second quarter of the steps and the last.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from safetensors.torch import load_file

from envs import alfworld
from envs.base import Task
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.trajectory import Trajectory
from rollout.weight_sync.disk import DiskSync
from rollout.worker import RolloutWorker
from tools import bench_rollout
from tools.bench_rollout import CLIENTS, Launcher, ServerSettings, make_world

FAULTS = ("kill a server", "freeze a server", "kill an environment process")
REQUEST_TIMEOUT_S = 20.0
MIB = 1 << 20


class Soak:
    """Servers, worker and weights of the run; `check` raises what is wrong with a step."""

    def __init__(self, options: argparse.Namespace, work: Path, launcher: Launcher, games: Path, model: Path):
        self._options, self._launcher = options, launcher
        engines = [CLIENTS[options.dialect](url, request_timeout_s=REQUEST_TIMEOUT_S) for url in launcher.urls]
        self.pool = EnginePool(engines, PoolSettings(recovery_timeout_s=300, probe_timeout_s=20), launcher)
        bench = bench_rollout.Bench(options, games, model, launcher)
        self._settings = bench.settings
        self.worker = RolloutWorker(
            alfworld,
            {"engine": "native", "data": str(games)},
            self.pool,
            bench.tokenizer,
            run_seed=0,
            num_processes=2,
            progress=False,
        )
        self._tensors = load_file(model / "model.safetensors")
        self._sync = DiskSync(
            self.pool,
            self.worker.run,
            verify_every=10,
            is_sender=True,
            directory=work / "weights",
            source=model,
            bucket_bytes=64 * MIB,
        )
        self._victims = itertools.cycle(launcher.urls)

    def step(self, step: int, fault: str | None) -> dict[str, float]:
        """Push, play, check; the step's record."""
        started_s = time.perf_counter()
        self._sync.push(self._tensors.items(), step)
        num_tasks = self._options.episodes // self._options.group
        tasks = [Task("alfworld", (step * num_tasks + i) % 64, step * num_tasks + i, "train") for i in range(num_tasks)]
        trajectories = self.worker.run(self._play(tasks, step, fault))
        self._check(trajectories, tasks, step)
        record = {name: value for name, value in self.worker.metrics.items() if "num_" in name}
        record |= {"step": step, "seconds": time.perf_counter() - started_s, "fault": fault or ""}
        record["trainer_mib"] = psutil.Process().memory_info().rss / MIB
        record["servers_mib"] = [_tree_mib(self._launcher.pid(url)) for url in self._launcher.urls]
        return record

    async def _play(self, tasks: list[Task], step: int, fault: str | None) -> list[Trajectory]:
        play = asyncio.ensure_future(
            self.worker.collect(tasks, self._options.group, self._settings, training_step=step)
        )
        if fault is not None:
            await asyncio.sleep(0.3)
            self._break(fault)
        return await play

    def _break(self, fault: str) -> None:
        if fault == "kill an environment process":
            os.kill(self.worker.environments.processes[0].pid, signal.SIGKILL)
            return
        url = next(self._victims)
        (server,) = psutil.Process(self._launcher.pid(url)).children()
        server.send_signal(signal.SIGKILL if fault == "kill a server" else signal.SIGSTOP)

    def _check(self, trajectories: list[Trajectory], tasks: list[Task], step: int) -> None:
        expected = {
            f"{step}/{task.split}/{task.index}.{task.seed}/{member}"
            for task in tasks
            for member in range(self._options.group)
        }
        counts = Counter(trajectory.uid for trajectory in trajectories)
        faults = {
            "missing": sorted(expected - set(counts)),
            "unknown": sorted(set(counts) - expected),
            "doubled": sorted(uid for uid, count in counts.items() if count > 1),
            "failed": sorted(f"{t.uid}: {t.failure}" for t in trajectories if t.failure is not None),
            "of other weights": sorted(t.uid for t in trajectories if {s.weight_version for s in t.steps} != {step}),
        }
        found = {name: values for name, values in faults.items() if values}
        if found:
            raise RuntimeError(f"step {step}: {found}")

    def close(self) -> None:
        self.worker.run(self.pool.close())
        self.worker.close()


def drift(values: list[float]) -> float:
    """The median of the last quarter over that of the second, minus 1."""
    quarter = max(1, len(values) // 4)
    return statistics.median(values[-quarter:]) / statistics.median(values[quarter : 2 * quarter]) - 1


def main(arguments: list[str] | None = None) -> int:
    """Run, print progress, write the record of every step."""
    options = _options(arguments)
    deadline_s = time.monotonic() + 60 * options.minutes
    records: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="soak_rollout_") as name:
        work = Path(name)
        games, model = make_world(work, None)
        settings = ServerSettings(options.dialect, model, "float32", on_cpu=True)
        with Launcher(
            settings, num_servers=options.servers, gpus=(), directory=work / "logs", startup_timeout_s=300
        ) as launcher:
            asyncio.run(launcher.start())
            soak = Soak(options, work, launcher, games, model)
            try:
                for step in range(options.steps):
                    number, is_due = divmod(step, options.fault_every)
                    fault = FAULTS[(number - 1) % len(FAULTS)] if step and is_due == 0 else None
                    records.append(soak.step(step, fault))
                    if fault or step % 20 == 0:
                        print(json.dumps(records[-1]), flush=True)
                    if time.monotonic() > deadline_s:
                        break
            finally:
                soak.close()
    report = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "num_steps": len(records),
        "num_episodes": options.episodes * len(records),
        "num_faults_injected": sum(bool(record["fault"]) for record in records),
        "trainer_memory_drift": drift([record["trainer_mib"] for record in records]),
        "records": records,
    }
    print(json.dumps({key: value for key, value in report.items() if key != "records"}, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _tree_mib(pid: int) -> float:
    try:
        parent = psutil.Process(pid)
        return sum(process.memory_info().rss for process in parent.children(recursive=True)) / MIB
    except psutil.NoSuchProcess:
        return 0.0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after the step in progress by then")
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--max-steps", type=int, default=4)
    parser.add_argument("--history", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--response-tokens", type=int, default=8)
    parser.add_argument("--fault-every", type=int, default=20)
    parser.add_argument("--dialect", choices=list(CLIENTS), default="vllm")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
