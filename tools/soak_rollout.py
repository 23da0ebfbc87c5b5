"""Many steps with faults against the CPU server: `python -m tools.soak_rollout [--steps 1000] [--episodes 128] ...`

Each step pushes weights from disk and plays a collection of native ALFWorld, its environments in two processes. Every
`--fault-every` steps something breaks in its middle, in turn: a server is killed, frozen (SIGSTOP), answers garbage or
cuts its answers short; an environment process is killed. A step ends the soak if an episode is missing, there twice,
failed in the end, or was sampled under other weights than that step's. A step with a fault is played again without one,
and must give the same episodes, token for token.

What is under test is the client, the pool, the sync and the worker: with `--token-ms` (the default, 0) the servers load
and digest weights but draw their answers by seed instead of computing them (tools/faulty_server.py). The resident
memory of this process, of the server and of the environment process that no fault meets is written down each step.

A soak that was stopped goes on at its next step when it is started again with the same `--records`; each start is a
part of its own, since its processes are new.
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
from functools import partial
from pathlib import Path

import psutil
from safetensors.torch import load_file

from envs import alfworld
from envs.base import Task
from rollout.engines.commands import ServerSettings
from rollout.engines.launch import Launcher
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.trajectory import Trajectory
from rollout.weight_sync.disk import DiskSync
from rollout.worker import RolloutWorker
from tools.extras import imports_of

with imports_of("server", __name__):
    from tools import bench_rollout
    from tools.bench_rollout import CLIENTS, make_world
    from tools.faulty_server import faulty_command, inject

KILL_SERVER, FREEZE_SERVER, KILL_ENVIRONMENT = "kill a server", "freeze a server", "kill an environment process"
ANSWERS = {"a server answers garbage": "garbage", "a server cuts its answers": "cut"}
FAULTS = (KILL_SERVER, KILL_ENVIRONMENT, FREEZE_SERVER, *ANSWERS)
FAULT_AFTER_S = 0.2
PROCESSES = ("trainer", "server", "environments")
MIB = 1 << 20


class Soak:
    """Servers, worker and weights; the last server and the last environment process meet no fault."""

    def __init__(self, options: argparse.Namespace, work: Path, launcher: Launcher, games: Path, model: Path):
        self._options, self._launcher, self._faults = options, launcher, work / "faults"
        engines = [CLIENTS[options.dialect](url, request_timeout_s=options.request_timeout_s) for url in launcher.urls]
        self._pool = EnginePool(engines, PoolSettings(recovery_timeout_s=300, probe_timeout_s=20), launcher)
        bench = bench_rollout.Bench(options, games, model, launcher)
        self._settings = bench.settings
        self._worker = RolloutWorker(
            alfworld,
            {"engine": "native", "data": str(games)},
            self._pool,
            bench.tokenizer,
            run_seed=0,
            num_processes=2,
            progress=False,
        )
        self._tensors = load_file(model / "model.safetensors")
        self._sync = DiskSync(
            self._pool,
            self._worker.run,
            verify_every=10,
            is_sender=True,
            directory=work / "weights",
            source=model,
            bucket_bytes=64 * MIB,
        )
        self._victims = itertools.cycle(launcher.urls[:-1])

    def step(self, step: int, fault: str | None) -> dict:
        """Push, play, check; the step's record."""
        started_s = time.perf_counter()
        self._sync.push(self._tensors.items(), step)
        num_tasks = self._options.episodes // self._options.group
        tasks = [Task("alfworld", (step * num_tasks + i) % 64, step * num_tasks + i, "train") for i in range(num_tasks)]
        played = self._worker.run(self._play(tasks, step, fault))
        events = self._events()
        self._check(played, tasks, step)
        if fault is not None:
            for url in self._launcher.urls:
                inject(self._faults, url, "")
            if _content(self._worker.run(self._play(tasks, step, None))) != _content(played):
                raise RuntimeError(f"step {step}: with the fault ({fault}) other episodes came out than without")
            events.update(self._events())
        memory = {"trainer": os.getpid(), "environments": self._worker.environments.processes[-1].pid}
        (server,) = psutil.Process(self._launcher.pid(self._launcher.urls[-1])).children()
        return {
            "step": step,
            "fault": fault or "",
            "seconds": time.perf_counter() - started_s,
            "num_episodes": len(played),
            "response_tokens": sum(len(s.response_ids) for trajectory in played for s in trajectory.steps),
            "events": {name: count for name, count in events.items() if count},
            "mib": {name: psutil.Process(pid).memory_info().rss / MIB for name, pid in memory.items()}
            | {"server": server.memory_info().rss / MIB},
        }

    def close(self) -> None:
        self._worker.run(self._pool.close())
        self._worker.close()

    async def _play(self, tasks: list[Task], step: int, fault: str | None) -> list[Trajectory]:
        group_size, settings = self._options.group, self._settings
        play = asyncio.ensure_future(self._worker.collect(tasks, group_size, settings, training_step=step))
        if fault is not None:
            await asyncio.sleep(FAULT_AFTER_S)
            self._break(fault)
        return await play

    def _break(self, fault: str) -> None:
        if fault == KILL_ENVIRONMENT:
            os.kill(self._worker.environments.processes[0].pid, signal.SIGKILL)
            return
        url = next(self._victims)
        if fault in ANSWERS:
            inject(self._faults, url, ANSWERS[fault])
            return
        (server,) = psutil.Process(self._launcher.pid(url)).children()
        server.send_signal(signal.SIGKILL if fault == KILL_SERVER else signal.SIGSTOP)

    def _events(self) -> Counter[str]:
        """Of the last collection, and of what recovered since."""
        names = ("engine/num_", "num_failures/", "num_replays", "num_environment_restarts")
        return Counter({name: value for name, value in self._worker.metrics.items() if name.startswith(names)})

    def _check(self, trajectories: list[Trajectory], tasks: list[Task], step: int) -> None:
        expected = {
            f"{step}/{task.split}/{task.index}.{task.seed}/{member}"
            for task in tasks
            for member in range(self._options.group)
        }
        counts = Counter(trajectory.uid for trajectory in trajectories)
        tokens = sum(len(s.response_ids) for trajectory in trajectories for s in trajectory.steps)
        faults = {
            "missing": sorted(expected - set(counts)),
            "unknown": sorted(set(counts) - expected),
            "doubled": sorted(uid for uid, count in counts.items() if count > 1),
            "failed": sorted(f"{t.uid}: {t.failure}" for t in trajectories if t.failure is not None),
            "of other weights": sorted(t.uid for t in trajectories if {s.weight_version for s in t.steps} != {step}),
            "tokens miscounted": [tokens] if tokens != self._worker.metrics["response_tokens"] else [],
        }
        found = {name: values for name, values in faults.items() if values}
        if found:
            raise RuntimeError(f"step {step}: {found}")


def drift(values: list[float]) -> float | None:
    """The median of the last tenth over that of the fourth tenth, minus 1; None for fewer than 10 steps.

    Before that the trainer fills its cache of encoded lines (rollout/line_encoder.py: 32,768 lines, about 20 MB, at a
    hundred new ones a step).
    """
    tenth = len(values) // 10
    if not tenth:
        return None
    return statistics.median(values[-tenth:]) / statistics.median(values[3 * tenth : 4 * tenth]) - 1


def summarize(records: list[dict]) -> dict:
    """Totals of all parts; the drift of memory of each part."""
    parts = {part: list(group) for part, group in itertools.groupby(records, lambda record: record["part"])}
    events: Counter[str] = Counter()
    for record in records:
        events.update(record["events"])
    return {
        "num_steps": len(records),
        "num_episodes": sum(record["num_episodes"] for record in records),
        "response_tokens": sum(record["response_tokens"] for record in records),
        "hours": sum(record["seconds"] for record in records) / 3600,
        "num_injected": dict(Counter(record["fault"] for record in records if record["fault"])),
        "events": dict(sorted(events.items())),
        "parts": [
            {
                "num_steps": len(part),
                "memory_drift": {name: drift([record["mib"][name] for record in part]) for name in PROCESSES},
                "mib_every_20_steps": {name: [r["mib"][name] for r in part[::20]] for name in PROCESSES},
                "last_mib": part[-1]["mib"],
            }
            for part in parts.values()
        ],
    }


def run(options: argparse.Namespace, records: list[dict]) -> None:
    """Play from the step after `records`; each record is appended to the file at once."""
    deadline_s = time.monotonic() + 60 * options.minutes
    part = records[-1]["part"] + 1 if records else 0
    with tempfile.TemporaryDirectory(prefix="soak_rollout_") as name:
        work = Path(name)
        (work / "faults").mkdir()
        games, model = make_world(work, None)
        launcher = Launcher(
            ServerSettings(options.dialect, model, "float32", on_cpu=True),
            num_servers=options.servers,
            gpus=(),
            directory=work / "logs",
            startup_timeout_s=600,
            make_command=partial(faulty_command, faults=work / "faults", token_ms=options.token_ms),
        )
        with launcher, options.records.open("a", encoding="utf-8") as file:
            asyncio.run(launcher.start())
            soak = Soak(options, work, launcher, games, model)
            try:
                for step in range(len(records), options.steps):
                    number, remainder = divmod(step, options.fault_every)
                    fault = FAULTS[(number - 1) % len(FAULTS)] if step and remainder == 0 else None
                    records.append({"part": part, **soak.step(step, fault)})
                    file.write(json.dumps(records[-1]) + "\n")
                    file.flush()
                    if step % 10 == 0:
                        print(json.dumps(records[-1]), flush=True)
                    if time.monotonic() > deadline_s:
                        break
            finally:
                soak.close()


def main(arguments: list[str] | None = None) -> int:
    """Run, print progress, write the report."""
    options = _options(arguments)
    options.records.parent.mkdir(parents=True, exist_ok=True)
    options.records.touch()
    records = [json.loads(line) for line in options.records.read_text().splitlines()]
    run(options, records)
    summary = summarize(records)
    print(json.dumps(summary, indent=1))
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items() if key not in ("json", "records")}
        kept = [record for record in records if record["fault"] or record["events"]]
        report = {"options": settings, "num_cores": os.cpu_count(), "summary": summary, "records": kept}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _content(trajectories: list[Trajectory]) -> list:
    return [(t.uid, t.score, [(s.prompt_ids, s.response_ids, s.action) for s in t.steps]) for t in trajectories]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    records = "JSONL, a line per step; a soak goes on from it"
    parser.add_argument("--records", type=Path, default=Path("runs/soak_rollout.jsonl"), help=records)
    parser.add_argument("--json", type=Path, help="the report")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after the step in progress by then")
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--max-steps", type=int, default=2)
    parser.add_argument("--history", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--response-tokens", type=int, default=8)
    parser.add_argument("--stop-tokens", type=int, default=0)
    parser.add_argument("--fault-every", type=int, default=20)
    parser.add_argument("--request-timeout-s", type=float, default=20.0, help="a frozen server is noticed after it")
    parser.add_argument("--token-ms", type=float, default=0.0, help="negative: the model decodes")
    parser.add_argument("--dialect", choices=list(CLIENTS), default="vllm")
    parser.add_argument("--servers", type=int, default=3)
    options = parser.parse_args(arguments)
    options.token_ms = None if options.token_ms < 0 else options.token_ms
    return options


if __name__ == "__main__":
    raise SystemExit(main())
