"""How many agent steps one rollout worker process can drive: native ALFWorld, a real tokenizer, an instant engine.

    python -m tools.bench_rollout_worker --tokenizer DIR_OR_JSON --against REV --json docs/bench/rollout_worker.json

The engine answers at once with one of a few responses of about 120 tokens, so what is left is the worker: prompt, chat
template, tokens, environment, checks, records. Every figure is CPU seconds of the worker's process, which a loaded
machine changes less than wall clock. `--against REV` runs the packages `rollout` and `envs` of that commit in turn with
the present ones. Each measurement is a process of its own. `--tokenizer` is a Hugging Face directory or tokenizer.json;
without one a small vocabulary is trained on the games' own text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEASURE = Path(__file__).with_name("rollout_worker_measurement.py")
SETTINGS = {
    "environments inline": {"num_processes": 0, "concurrency": 256},
    "environments in 2 processes": {"num_processes": 2, "concurrency": 256},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every setting `--repeats` times with each version in turn; print and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="a Hugging Face tokenizer: its directory or tokenizer.json")
    parser.add_argument("--against", metavar="REV", help="a commit whose packages are measured as well")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=12, help="steps of an episode")
    parser.add_argument("--profile", action="store_true", help="print where the first setting's time goes, and stop")
    parser.add_argument("--json", type=Path, help="write the raw numbers here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        games = Path(folder) / "games"
        _run([sys.executable, "-m", "tools.make_alfworld_games", "--out", str(games), "--train", "64",
              "--valid-seen", "1", "--valid-unseen", "1", "--difficulty", "3"], ROOT)  # fmt: skip
        request = {"games": str(games), "tokenizer": str(options.tokenizer or ""), "turns": options.turns}
        if options.profile:
            first = next(iter(SETTINGS.values()))
            print(_run([sys.executable, str(MEASURE), json.dumps(request | first | {"profile": True})], ROOT))
            return 0
        versions = {"now": ROOT}
        if options.against:
            versions = {options.against: _extract(options.against, Path(folder) / "before"), "now": ROOT}
        rows = measure(request, versions, options.repeats)
    report = {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "load_average": os.getloadavg(),
        "tokenizer": str(options.tokenizer or "trained on the games' text"),
        "turns": options.turns,
        "measurements": rows,
        "summary": summarize(rows),
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0


def measure(request: dict[str, Any], versions: dict[str, Path], repeats: int) -> list[dict[str, Any]]:
    """One row per repeat, setting and version; versions alternate, so that a change of load meets both."""
    rows = []
    for repeat in range(repeats):
        for setting, values in SETTINGS.items():
            for version, path in versions.items():
                answer = _run([sys.executable, str(MEASURE), json.dumps(request | values)], path)
                rows.append({"repeat": repeat, "setting": setting, "version": version, **json.loads(answer)})
    return rows


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians of each setting and version."""
    keys = list(dict.fromkeys((row["setting"], row["version"]) for row in rows))
    summary = []
    for setting, version in keys:
        chosen = [row for row in rows if (row["setting"], row["version"]) == (setting, version)]
        cpu_ms = median(_per_step_ms(row, "cpu_s") for row in chosen)
        summary.append(
            {
                "setting": setting,
                "version": version,
                "cpu_ms_per_step": round(cpu_ms, 3),
                "steps_per_cpu_s": round(1e3 / cpu_ms),
                "steps_per_s": round(median(row["num_steps"] / row["wall_s"] for row in chosen)),
                "record_encode_ms_per_step": round(median(_per_step_ms(row, "record_encode_s") for row in chosen), 4),
                "record_decode_ms_per_step": round(median(_per_step_ms(row, "record_decode_s") for row in chosen), 4),
                "record_bytes_per_step": round(chosen[0]["record_bytes"] / chosen[0]["num_steps"]),
                "prompt_tokens_mean": round(chosen[0]["prompt_tokens"] / chosen[0]["num_steps"]),
                "response_tokens_mean": round(chosen[0]["response_tokens"] / chosen[0]["num_steps"]),
            }
        )
    return summary


def _per_step_ms(row: dict[str, Any], name: str) -> float:
    return 1e3 * row[name] / row["num_steps"]


def _extract(revision: str, folder: Path) -> Path:
    folder.mkdir()
    archive = subprocess.run(["git", "archive", revision, "rollout", "envs"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def _run(command: Sequence[str], path: Path) -> str:
    """The command's output, with the packages under `path` found first."""
    environment = {**os.environ, "PYTHONPATH": str(path), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=path, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed with exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
