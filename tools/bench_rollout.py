"""How well a rollout uses its engines: `python -m tools.bench_rollout [--episodes 128] [--max-steps 30] [--json FILE]`

Plays the same episodes of native ALFWorld against servers in three ways, `--rounds` times each in turn, so that the
machine's own wandering shows: as training does it, each episode going on by itself; in lock step, no episode's next
turn before every episode's last one is answered; each by itself, but no request waiting for others
(rollout/engines/arrivals.py). Then once as training does it with an analyzer endpoint that takes `--analyzer-s` per
episode, all of which the rollout waits for (training scores meanwhile what needs no skills). Ratios are of medians.
Without `--model` a tiny one with random weights is made and served by our CPU server; `--gpus 1 --model DIR` serves a
real one with vLLM or SGLang. With `--token-ms` the CPU server computes nothing: each response takes that long per
token, however many are sampled at once, as on a GPU that is bound by reading its weights. Its length is drawn evenly
from 1 to `--response-tokens`, or with `--mean-tokens` exponentially and cut there. Lock step waits for the longest
answer of each turn, free episodes end with the longest sum of an episode's answers; `ceiling_over_lock_step` is the
ratio of the two, all there is to win where the server samples for all episodes at once and nothing else takes time;
what is measured is how close it comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from envs import alfworld
from envs.base import PromptView, Task
from megatron_opid.servers import visible_gpus
from megatron_opid.skills.chat_analyzer import ChatAnalyzer
from megatron_opid.skills.endpoint import Endpoint
from megatron_opid.skills.openai_analyzer import EndpointModel
from rollout.agent_loop import EpisodeSettings
from rollout.engines.base import Engine, Generation, Sampling
from rollout.engines.commands import ServerSettings, server_command
from rollout.engines.http import HttpEngine
from rollout.engines.launch import Launcher
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.engines.prometheus import counter_total
from rollout.engines.sglang import SglangEngine
from rollout.engines.vllm import VllmEngine
from rollout.trajectory import Trajectory
from rollout.worker import RolloutWorker
from tools import make_alfworld_games, make_tiny_model
from tools.extras import imports_of

with imports_of("server", __name__):
    from tools.faulty_server import faulty_command
    from tools.slow_endpoint import MODEL, slow_endpoint

NUM_WARM_UP_STEPS = 3
CLIENTS = {"vllm": VllmEngine, "sglang": SglangEngine}


class LockStep:
    """An Engine that answers nobody before every episode that still plays has asked."""

    def __init__(self, engine: Engine, num_episodes: int):
        self._engine = engine
        self._num_playing = num_episodes
        self._num_waiting = 0
        self._turn = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Generation:
        generation = await self._engine.generate(prompt_ids, sampling, session=session)
        self._num_waiting += 1
        turn = self._turn
        self._release()
        await turn.wait()
        return generation

    def leave(self) -> None:
        """An episode has ended."""
        self._num_playing -= 1
        self._release()

    def _release(self) -> None:
        if self._num_waiting == self._num_playing:
            self._num_waiting = 0
            self._turn.set()
            self._turn = asyncio.Event()


def make_world(work: Path, model: Path | None) -> tuple[Path, Path]:
    """Games, and a model directory: the given one, or a tiny one with random weights."""
    games = work / "games"
    counts = ["--train", "64", "--valid-seen", "1", "--valid-unseen", "1"]
    make_alfworld_games.main(["--out", str(games), *counts, "--difficulty", "1"])
    if model is None:
        model = work / "model"
        _tiny_model(games, work / "texts.jsonl", model)
    return games, model


def server_counters(urls: Sequence[str]) -> dict[str, float]:
    """Busy seconds and sampled tokens, added up over our CPU servers; other servers tell no busy seconds."""
    import httpx

    pages = [httpx.get(f"{url}/metrics", trust_env=False).text for url in urls]
    return {
        "busy_s": sum(counter_total(page, "rollout:busy_seconds_total") for page in pages),
        "tokens": sum(counter_total(page, "vllm:generation_tokens_total") for page in pages),
    }


@asynccontextmanager
async def slow_analyzer(latency_s: float) -> AsyncIterator[ChatAnalyzer]:
    """The project's analyzer on an endpoint that takes `latency_s`."""
    async with slow_endpoint(latency_s) as url:
        endpoint = Endpoint(url, MODEL, "none")
        model = EndpointModel(endpoint, concurrency=128, timeout_s=120, max_completion_tokens=64)
        analyzer = ChatAnalyzer(model, 5, 1.0)
        try:
            yield analyzer
        finally:
            await analyzer.close()


def ceiling_over_lock_step(trajectories: Sequence[Trajectory]) -> float:
    """The tokens of every turn's longest answer over those of the longest episode: the ratio of the two ways' times
    where a token takes the same time however many are sampled at once, and nothing else takes any."""
    lengths = [[len(step.response_ids) for step in trajectory.steps] for trajectory in trajectories]
    locked = sum(max(turn) for turn in zip_longest(*lengths, fillvalue=0))
    longest = max(map(sum, lengths), default=0)
    return locked / longest if longest else math.nan


class Bench:
    """Servers that hold the model, a worker on them, and the ways to play."""

    def __init__(self, options: argparse.Namespace, games: Path, model: Path, launcher: Launcher):
        self._options, self._model, self._urls = options, model, launcher.urls
        self._version = 0
        engines: list[HttpEngine] = [CLIENTS[options.dialect](url) for url in launcher.urls]
        self.pool = EnginePool(engines, PoolSettings(), launcher)
        self.pool_at_once = EnginePool(engines, PoolSettings(arrival_share=0.0), own=())
        self.tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        self._package_options = {"engine": "native", "data": str(games)}
        self._tasks = [Task("alfworld", i, 0, "train") for i in range(options.episodes // options.group)]
        vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
        self.settings = EpisodeSettings(
            max_steps=options.max_steps,
            history_length=options.history,
            prompt_style="compact",
            max_prompt_tokens=options.prompt_tokens,
            max_response_tokens=options.response_tokens,
            temperature=1.0,
            stop_token_ids=(self.tokenizer.eos_token_id, *range(vocab_size - options.stop_tokens, vocab_size)),
            vocab_size=vocab_size,
        )

    async def close(self) -> None:
        await self.pool_at_once.halt()
        await self.pool.close()

    async def load(self) -> None:
        """The same weights by another version."""
        version, self._version = self._version, self._version + 1
        await self.pool.update(lambda engine: engine.load_from_disk(self._model, version), version)
        self.pool_at_once.expect(version)

    async def warm_up(self, worker: RolloutWorker) -> None:
        """A few turns: servers compile kernels at their first requests."""
        settings = replace(self.settings, max_steps=min(NUM_WARM_UP_STEPS, self.settings.max_steps))
        await worker.collect(self._tasks, self._options.group, settings, training_step=0, label="warm up")
        await self.pool_at_once.counters()  # what the cache has counted so far is not of a way

    async def play(
        self, worker: RolloutWorker, label: str, annotator: Callable[[Trajectory], Awaitable[Any]] | None = None
    ) -> dict[str, float]:
        """One collection: its figures. The weights have a new version, which finds nothing in the cache."""
        await self.load()
        before, started_s = server_counters(self._urls), time.perf_counter()
        trajectories = await worker.collect(
            self._tasks, self._options.group, self.settings, training_step=0, annotator=annotator, label=label
        )
        seconds = time.perf_counter() - started_s
        after = server_counters(self._urls)
        names = (
            "prompt_tokens_mean",
            "response_tokens",
            "response_tokens_per_s",
            "engine_busy_share",
            "num_failed_episodes",
            "num_steps",
        )
        figures = {name: worker.metrics[name] for name in names}
        figures["seconds"] = seconds
        figures["annotator_exposed_s"] = worker.metrics.get("annotator_exposed_s", 0.0)
        figures["prefix_cache_hit_rate"] = worker.metrics.get("engine/prefix_cache_hit_rate", 0.0)
        figures["ceiling_over_lock_step"] = ceiling_over_lock_step(trajectories)
        figures["server_compute_share"] = (after["busy_s"] - before["busy_s"]) / seconds / len(self._urls)
        print(label, json.dumps(figures), flush=True)  # a limit on time may end what follows
        return figures

    def worker(self, engine: Engine) -> RolloutWorker:
        return RolloutWorker(alfworld, self._package_options, engine, self.tokenizer, run_seed=0, progress=None)


def run(bench: Bench, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """The collections by their way, on one event loop."""
    worker, at_once = bench.worker(bench.pool), bench.worker(bench.pool_at_once)
    locked = [LockStep(bench.pool_at_once, options.episodes) for _ in range(options.rounds)]
    locked_workers = [bench.worker(engine) for engine in locked]

    async def play_in_lock_step(number: int) -> dict[str, float]:
        async def leave(trajectory: Trajectory) -> None:
            locked[number].leave()

        return await bench.play(locked_workers[number], "lock step", leave)

    async def everything() -> dict[str, list[dict[str, float]]]:
        figures: dict[str, list[dict[str, float]]] = defaultdict(list)
        await bench.load()
        await bench.warm_up(worker)
        for number in range(options.rounds):
            figures["free"].append(await bench.play(worker, "free"))
            figures["lock_step"].append(await play_in_lock_step(number))
            figures["at_once"].append(await bench.play(at_once, "at once"))
        async with slow_analyzer(options.analyzer_s) as analyzer:
            figures["analyzed"].append(await bench.play(worker, "analyzed", analyzer.analyze))
        await bench.close()
        return figures

    try:
        return worker.run(everything())
    finally:
        for each in (worker, at_once, *locked_workers):
            each.close()


def main(arguments: list[str] | None = None) -> int:
    """Play, print and write the figures."""
    options = parse_options(arguments)
    with tempfile.TemporaryDirectory(prefix="bench_rollout_") as name:
        work = Path(name)
        games, model = make_world(work, options.model)
        settings = ServerSettings(
            options.dialect,
            model.absolute(),
            options.dtype,
            max_model_tokens=options.prompt_tokens + options.response_tokens,
            max_batch_sequences=options.batch,
            gpu_memory_utilization=options.gpu_memory_utilization,
            on_cpu=not options.gpus,
        )
        (work / "faults").mkdir()  # of the simulated server; none is injected
        drawn = {"token_ms": options.token_ms, "mean_tokens": options.mean_tokens}
        simulated = partial(faulty_command, faults=work / "faults", **drawn)
        with Launcher(
            settings,
            num_servers=options.servers,
            gpus=visible_gpus()[: options.gpus],
            directory=work / "logs",
            startup_timeout_s=900,
            make_command=server_command if options.token_ms is None else simulated,
        ) as launcher:
            asyncio.run(launcher.start())
            figures = run(Bench(options, games, model, launcher), options)
            report(figures, options)  # servers may take long to end, and a limit on time would take the figures
    return 0


def report(figures: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Print the figures and what follows from them, and write both where `--json` says."""
    median = {
        way: {name: statistics.median(play[name] for play in plays) for name in plays[0]}
        for way, plays in figures.items()
    }
    free, locked, analyzed = median["free"], median["lock_step"], median["analyzed"]
    summary = {
        "engine_busy_share": free["engine_busy_share"],
        "tokens_per_s_over_lock_step": free["response_tokens_per_s"] / locked["response_tokens_per_s"],
        "tokens_per_s_at_once_over_lock_step": median["at_once"]["response_tokens_per_s"]
        / locked["response_tokens_per_s"],
        "ceiling_over_lock_step": free["ceiling_over_lock_step"],
        "exposed_analyzer_share": analyzed["annotator_exposed_s"] / analyzed["seconds"],
    }
    document = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "machine": platform.processor() or platform.machine(),
        "num_cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "figures": figures,
        "summary": summary,
    }
    print(json.dumps({"figures": figures, "summary": summary}, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def _tiny_model(games: Path, texts: Path, out: Path) -> None:
    """Texts of the games for the tokenizer, then the model."""
    environment = alfworld.make_environment({"engine": "native", "data": str(games)})
    with texts.open("w", encoding="utf-8") as file:
        for index in range(64):
            start = environment.reset(Task("alfworld", index, 0, "train"))
            view = PromptView(start.goal, (), 0, start.observation.text, start.observation.admissible)
            prompt = alfworld.render_prompt(view, style="compact")
            file.write(json.dumps({"messages": [{"role": "user", "content": prompt}]}) + "\n")
    sizes = ["--vocabulary-size", "600", "--layers", "2", "--max-positions", "2048"]
    make_tiny_model.main(["--texts", str(texts), "--out", str(out), *sizes])


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--max-steps", type=int, default=30)
    parser.add_argument("--history", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--response-tokens", type=int, default=32)
    parser.add_argument("--stop-tokens", type=int, default=0, help="so many more ids end a response")
    parser.add_argument("--dialect", choices=list(CLIENTS), default="vllm")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="0: our CPU server")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--token-ms", type=float, help="CPU server: draw answers, this long per token")
    parser.add_argument("--mean-tokens", type=float, help="with --token-ms: of drawn answers before the cut")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--analyzer-s", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.gpus > len(visible_gpus()):
        parser.error(f"--gpus {options.gpus}: {len(visible_gpus())} are visible")
    if options.mean_tokens is not None and (options.token_ms is None or options.mean_tokens <= 0):
        parser.error(f"--mean-tokens {options.mean_tokens} is above 0 and goes with --token-ms")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
