"""Time and memory of WebShop: readiness, steps, search at full size, and what many environments share.

    python -m tools.bench_webshop --out docs/bench/webshop.json [--full CATALOGUE_DIR]

A catalogue of 1,000 products is generated; times to readiness are those of fresh processes, imports and a first search
included, by the clock and in CPU time, which other work on the machine disturbs less. The first of them makes the
shop's cache, and whatever numba has to compile. Steps are the expert's. `--full` names a
catalogue of `tools.make_webshop_catalogue --full --products 1180000 --filler-words 100`; its cache is built if it is
not there, which takes some minutes, and the search is measured on goals' queries. 128 environments in 16 processes
then play on the largest catalogue at hand; PSS counts a page that n processes map as 1/n in each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import psutil

from envs.base import Task
from tools.demonstrations import play
from tools.extras import imports_of

with imports_of("webshop", __name__):
    from envs import webshop
    from envs.webshop.expert import Expert
    from envs.webshop.facts import parse_goal
    from envs.webshop.options import ShopOptions
    from envs.webshop.session import NUM_HITS
    from envs.webshop.shop import open_shop
    from tools.make_webshop_catalogue import main as make_catalogue

NUM_PROCESSES, ENVIRONMENTS_PER_PROCESS = 16, 8
NUM_EPISODES = 200
NUM_QUERIES = 300
TARGETS = {
    "ready_cold_s": 2.0,
    "step_ms": 2.0,
    "full_search_ms": 30.0,
    "full_index_gib": 3.0,
}
_READY = """
import json, sys, time
start = time.perf_counter(), time.process_time()
from envs import webshop
from envs.base import Task
environment = webshop.make_environment(json.loads(sys.argv[1]))
environment.reset(Task("webshop", 0, 0, "train"))
environment.step("search[cotton shirt]")
print(time.perf_counter() - start[0], time.process_time() - start[1])
"""
_HOLD = """
import json, sys
from envs import webshop
from envs.base import Task
from envs.webshop.expert import Expert
from tools.demonstrations import play
options, first, count = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
environments = [webshop.make_environment(options) for _ in range(count)]
for number, environment in enumerate(environments):
    play(environment, Task("webshop", first + number, 0, "train"), Expert(0), 15)
print("ready", flush=True)
sys.stdin.read()
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/webshop.json"), help="where the raw JSON goes")
    parser.add_argument("--full", type=Path, help="a catalogue with the full one's file names")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        small = {"data": f"{folder}/data"}
        make_catalogue(["--out", small["data"], "--products", "1000"])
        numba_cache = f"{folder}/numba"
        cold_s = ready_seconds(small, numba_cache)
        results: dict[str, Any] = {
            "ready_cold_s": cold_s,  # makes the caches
            "ready_warm_s": [ready_seconds(small, numba_cache) for _ in range(5)],
            "step_s": step_seconds(small),
        }
        largest = small
        if args.full:
            largest = {"data": str(args.full), "catalogue": "full", "goals": "human"}
            results["full"] = measure_full(largest)
        results["shared"] = measure_sharing(largest)
    report = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "load_average": os.getloadavg(),
        "summary": summarize(results),
        "targets": TARGETS,
        **results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0


def ready_seconds(options: Mapping[str, Any], numba_cache: str) -> tuple[float, float]:
    """Seconds, of the clock and of the CPU, of a fresh process from its first import to the results of a search."""
    command = [sys.executable, "-c", _READY, json.dumps(options)]
    environ = {**os.environ, "NUMBA_CACHE_DIR": numba_cache}
    clock, cpu = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout.split()
    return float(clock), float(cpu)


def step_seconds(options: Mapping[str, Any]) -> list[float]:
    """Seconds of every step of the expert's episodes."""
    environment = webshop.make_environment(options)
    seconds: list[float] = []

    class Timed:
        reset = environment.reset
        close = environment.close

        def step(self, action: str) -> Any:
            start = time.perf_counter()
            outcome = environment.step(action)
            seconds.append(time.perf_counter() - start)
            return outcome

    for index in range(NUM_EPISODES):
        play(Timed(), Task("webshop", index, 0, "train"), Expert(0), 15)
    return seconds


def measure_full(options: Mapping[str, Any]) -> dict[str, Any]:
    """Build (if need be), sizes on disk, and seconds of searches for what random goals ask for."""
    checked = ShopOptions(**options)
    started = time.perf_counter()
    shop = open_shop(checked, show_progress=True)
    opened_s = time.perf_counter() - started
    rng = Random(0)
    goals = [shop.goal("train", rng.randrange(shop.num_goals("train"))) for _ in range(NUM_QUERIES)]
    searches: dict[str, list[float]] = {"keywords": [], "whole_instruction": []}
    for goal in goals:
        for kind, query in (("keywords", parse_goal(goal.text).query), ("whole_instruction", goal.text)):
            start = time.perf_counter()
            shop.search(query, NUM_HITS)
            searches[kind].append(time.perf_counter() - start)
    sizes = {
        name: sum(file.stat().st_size for folder in checked.cache_folder.glob(f"{name}_*") for file in folder.iterdir())
        for name in ("products", "index", "goals")
    }
    return {
        "num_products": shop.num_products(),
        "num_goals": shop.num_goals("train"),
        "opened_or_built_s": opened_s,
        "bytes_on_disk": sizes,
        "rss_bytes": psutil.Process().memory_info().rss,
        "search_s": searches,
        "step_s": step_seconds(options),
    }


def measure_sharing(options: Mapping[str, Any]) -> dict[str, Any]:
    """What NUM_PROCESSES processes of ENVIRONMENTS_PER_PROCESS environments, each in mid-shop, hold together."""
    cache = str(ShopOptions(**options).cache_folder.resolve())
    with _holders(options) as processes:
        maps = [Path(f"/proc/{process.pid}/smaps").read_text() for process in processes]
    mapped = [_mapped_bytes(text, cache) for text in maps]
    return {
        "num_environments": NUM_PROCESSES * ENVIRONMENTS_PER_PROCESS,
        "num_processes": NUM_PROCESSES,
        "catalogue_rss_bytes": [rss for rss, _ in mapped],
        "catalogue_pss_bytes": [pss for _, pss in mapped],
        "total_pss_bytes": [_mapped_bytes(text, "")[1] for text in maps],
    }


@contextmanager
def _holders(options: Mapping[str, Any]) -> Iterator[list[subprocess.Popen]]:
    processes = []
    try:
        for number in range(NUM_PROCESSES):
            arguments = [json.dumps(options), str(number * ENVIRONMENTS_PER_PROCESS), str(ENVIRONMENTS_PER_PROCESS)]
            process = subprocess.Popen(
                [sys.executable, "-c", _HOLD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            processes.append(process)
            # One after another: starting all at once would measure how they fight for the cores.
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError(f"process {number} of the benchmark did not come up; run it alone to see why")
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _mapped_bytes(smaps: str, folder: str) -> tuple[int, int]:
    """(Rss, Pss) in bytes of the mappings of files below `folder`, of all mappings for ""."""
    rss = pss = 0
    inside = False
    for line in smaps.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = folder in line
        elif inside and line.startswith("Rss:"):
            rss += int(line.split()[1]) * 1024
        elif inside and line.startswith("Pss:"):
            pss += int(line.split()[1]) * 1024
    return rss, pss


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Medians and percentiles in the targets' units."""
    shared = results["shared"]
    summary = {
        "ready_cold_s": results["ready_cold_s"][0],
        "ready_cold_cpu_s": results["ready_cold_s"][1],
        "ready_warm_s": median(clock for clock, _ in results["ready_warm_s"]),
        "ready_warm_cpu_s": median(cpu for _, cpu in results["ready_warm_s"]),
        "step_ms": 1e3 * median(results["step_s"]),
        "step_p99_ms": 1e3 * quantiles(results["step_s"], n=100)[98],
        "catalogue_pss_of_all_mib": sum(shared["catalogue_pss_bytes"]) / 2**20,
        "catalogue_rss_of_one_mib": max(shared["catalogue_rss_bytes"]) / 2**20,
        "total_pss_per_process_mib": median(shared["total_pss_bytes"]) / 2**20,
    }
    if full := results.get("full"):
        for kind, seconds in full["search_s"].items():
            summary[f"full_search_{kind}_ms"] = 1e3 * median(seconds)
            summary[f"full_search_{kind}_p99_ms"] = 1e3 * quantiles(seconds, n=100)[98]
        summary["full_step_ms"] = 1e3 * median(full["step_s"])
        summary["full_index_gib"] = full["bytes_on_disk"]["index"] / 2**30
        summary["full_products_gib"] = full["bytes_on_disk"]["products"] / 2**30
    return {name: round(value, 3) for name, value in summary.items()}


if __name__ == "__main__":
    sys.exit(main())
