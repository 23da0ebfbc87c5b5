"""What a rollout costs a trainer in the same process: `python -m tools.bench_beside [--json FILE]`

One thread makes forward and backward passes of a tiny Qwen3, hundreds of short operations each, as a trainer launches
kernels; meanwhile the rollout's event loop plays episodes of native ALFWorld against a server that draws its answers
at once, so that its own work never ends. For each switch interval of the interpreter: passes per second alone and
beside the rollout, and the agent steps per second that the rollout makes meanwhile. The first interval is Python's
default, the second what the event loop sets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rollout.engines.base import Engine, Generation
from rollout.engines.commands import ServerSettings
from rollout.engines.launch import Launcher
from rollout.event_loop import SWITCH_INTERVAL_S
from tools.extras import imports_of

with imports_of("server", __name__):
    from tools import bench_rollout
    from tools.faulty_server import faulty_command

INTERVALS_S = (0.005, SWITCH_INTERVAL_S)


class Counting:
    """An engine, and how many answers it gave."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.num_answers = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, *arguments: Any, **options: Any) -> Generation:
        generation = await self._engine.generate(*arguments, **options)
        self.num_answers += 1
        return generation


class Trainer:
    """A tiny model's passes, one after another."""

    def __init__(self) -> None:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
        self._model = Qwen3ForCausalLM(Qwen3Config(vocab_size=64, num_hidden_layers=4, head_dim=32, **sizes))
        self._ids = torch.randint(0, 64, (1, 32))

    def passes_per_s(self, seconds: float) -> float:
        started_s, count = time.perf_counter(), 0
        while time.perf_counter() - started_s < seconds:
            self._model(self._ids, labels=self._ids).loss.backward()
            count += 1
        return count / (time.perf_counter() - started_s)


def measure(bench: bench_rollout.Bench, seconds: float) -> list[dict[str, float]]:
    """Alone, then beside the rollout with each interval."""
    engine, trainer = Counting(bench.pool), Trainer()
    worker = bench.worker(engine)
    worker.run(bench.load())

    async def play_on() -> None:
        while True:
            await bench.play(worker, "beside", None)

    alone = trainer.passes_per_s(seconds)
    playing = worker.loop.start(play_on())
    rows = []
    for interval_s in INTERVALS_S:
        sys.setswitchinterval(interval_s)
        trainer.passes_per_s(seconds / 4)
        before, started_s = engine.num_answers, time.perf_counter()
        beside = trainer.passes_per_s(seconds)
        steps_per_s = (engine.num_answers - before) / (time.perf_counter() - started_s)
        rows.append(
            {"interval_s": interval_s, "alone_per_s": alone, "beside_per_s": beside, "steps_per_s": steps_per_s}
        )
    playing.cancel()
    worker.run(bench.pool.close())
    worker.close()
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench_options = bench_rollout.parse_options(["--response-tokens", "32", "--batch", "128"])
    with tempfile.TemporaryDirectory(prefix="bench_beside_") as name:
        work = Path(name)
        games, model = bench_rollout.make_world(work, None)
        (work / "faults").mkdir()
        with Launcher(
            ServerSettings("vllm", model, "float32", max_batch_sequences=128, on_cpu=True),
            num_servers=1,
            gpus=(),
            directory=work / "logs",
            startup_timeout_s=300,
            make_command=partial(faulty_command, faults=work / "faults", token_ms=0.0),
        ) as launcher:
            asyncio.run(launcher.start())
            rows = measure(bench_rollout.Bench(bench_options, games, model, launcher), options.seconds)
    report = {"num_cores": os.cpu_count(), "load_average": os.getloadavg()[0], "rows": rows}
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
