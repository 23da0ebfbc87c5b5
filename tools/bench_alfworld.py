"""Time and memory of the native ALFWorld engine, against the official one in the same run.

    python -m tools.bench_alfworld --out docs/bench/alfworld.json

Both play the same generated games of whole rooms with the same random commands. Memory is that of a fresh process that
holds 128 native environments, each in the middle of its own game.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import psutil

from envs.alfworld.engine import Engine, NativeEngine
from envs.alfworld.environment import make_environment
from envs.alfworld.games import list_games
from envs.base import Task
from tools.make_alfworld_games import make_games

NUM_ENVIRONMENTS = 128
TARGETS = {"native_step_ms": 1.0, "native_reset_ms": 20.0, "native_128_environments_mib": 300.0}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/alfworld.json"), help="where the raw JSON goes")
    parser.add_argument("--games", type=int, default=48, help="games that the native engine plays")
    parser.add_argument("--official-games", type=int, default=6, help="of these, games that the official engine plays")
    parser.add_argument("--steps", type=int, default=20, help="random commands per game")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        make_games(Path(folder), seed=0, counts={"train": max(args.games, NUM_ENVIRONMENTS)}, difficulty=3)
        games = list_games(folder, "train")
        scripts = record_scripts(games[: args.games], args.steps)
        results = {"native": measure(NativeEngine(), scripts)}
        if args.official_games:
            from envs.alfworld.official import OfficialEngine

            spread = scripts[:: max(1, len(scripts) // args.official_games)][: args.official_games]
            results["official"] = measure(OfficialEngine(), spread)
        with multiprocessing.get_context("spawn").Pool(1) as fresh_process:
            memory = fresh_process.apply(measure_memory, (folder,))
    report = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "load_average": os.getloadavg(),
        "summary": summarize(results, memory),
        "targets": TARGETS,
        "memory_bytes": memory,
        "times_s": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0


def record_scripts(games: Sequence[Path], num_steps: int) -> list[tuple[Path, list[str]]]:
    """For each game the random admissible commands that every engine is to play."""
    rng, engine, scripts = Random(0), NativeEngine(), []
    for path in games:
        turn, commands = engine.load(path), []
        for _ in range(num_steps):
            commands.append(rng.choice(turn.admissible))
            turn = engine.step(commands[-1])
        scripts.append((path, commands))
    return scripts


def measure(engine: Engine, scripts: Sequence[tuple[Path, list[str]]]) -> dict[str, list[float]]:
    """Seconds of every reset (reading the file included) and of every step."""
    resets, steps = [], []
    for path, commands in scripts:
        resets.append(_elapsed_s(engine.load, path))
        steps += [_elapsed_s(engine.step, command) for command in commands]
    engine.close()
    return {"reset": resets, "step": steps}


def measure_memory(data: str) -> dict[str, int]:
    """Resident bytes of this process before and after it holds NUM_ENVIRONMENTS running environments."""
    process, rng = psutil.Process(), Random(0)
    before = process.memory_info().rss
    environments = [make_environment({"engine": "native", "data": data}) for _ in range(NUM_ENVIRONMENTS)]
    for index, environment in enumerate(environments):
        observation = environment.reset(Task("alfworld", index, 0, "train")).observation
        for _ in range(10):
            observation = environment.step(rng.choice(observation.admissible)).observation
    return {"num_environments": NUM_ENVIRONMENTS, "before": before, "after": process.memory_info().rss}


def summarize(results: dict[str, dict[str, list[float]]], memory: dict[str, int]) -> dict[str, Any]:
    """Medians in milliseconds, their ratios, and memory in MiB."""
    medians = {f"{name}_{what}_ms": 1e3 * median(times[what]) for name, times in results.items() for what in times}
    if "official" in results:
        for what in ("reset", "step"):
            medians[f"{what}_ratio"] = medians[f"official_{what}_ms"] / medians[f"native_{what}_ms"]
    medians["native_128_environments_mib"] = memory["after"] / 2**20
    return {name: round(value, 3) for name, value in medians.items()}


def _elapsed_s(function: Any, argument: Any) -> float:
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
