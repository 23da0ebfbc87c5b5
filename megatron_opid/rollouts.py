"""The trainer's side of the rollout: each rank plays its share of the tasks, and every rank gets all trajectories."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from envs.base import Task
from envs.base import load as load_environment
from megatron_opid.actor.parallel import resolve_device
from megatron_opid.config import Config, resolve_model
from megatron_opid.engines import make_launcher, make_pool, make_sync
from megatron_opid.exchange import all_gather_text
from megatron_opid.skills.analyzer import Analyzer, make_analyzer
from megatron_opid.skills.routing import is_scheduled
from rollout.agent_loop import EpisodeSettings
from rollout.engines.base import Engine
from rollout.engines.launch import Launcher
from rollout.engines.local import LocalEngine
from rollout.metrics import summarize
from rollout.trajectory import HindsightSkills, Trajectory, from_json, to_json
from rollout.worker import RolloutWorker

# How the ranks' own figures become one: what is not named here is added up.
LARGEST = ("seconds", "annotator_exposed_s", "latency_p95_s")
AVERAGED = ("engine_busy_share", "engine/prefix_cache_hit_rate", "latency_mean_s")
# Every rank sees the same servers: one that died is not as many faults as there are ranks.
SEEN_BY_ALL = ("engine/num_faults/", "engine/num_returns", "engine/num_restarts", "engine/seconds_out")


class Rollout:
    """Engine, environments and analyzer of one rank. Use as a context manager.

    `metrics` and `analyzer_metrics` describe the last collection over all ranks.
    """

    def __init__(self, config: Config, *, rank: int, num_ranks: int) -> None:
        directory = resolve_model(config.actor.model)
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.metrics: dict[str, float] = {}
        self.analyzer_metrics: dict[str, float] = {}
        self._config = config
        self._rank, self._num_ranks = rank, num_ranks
        self._gives_memory_back = config.engine.name != "local" and config.engine.placement == "colocated"
        self._launcher: Launcher | None = None
        self._engine = self._make_engine(directory)
        self._vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]
        self._analyzer = self._make_analyzer() if config.algorithm.name == "opid" else None
        self._worker = RolloutWorker(
            load_environment(config.env.name),
            config.env.package_options,
            self._engine,
            self.tokenizer,
            run_seed=config.run.seed,
            num_processes=config.env.num_processes,
            progress=None if rank == 0 else False,
        )
        self._sync = make_sync(config, self._engine, self._worker.run, rank=rank)

    def collect(self, tasks: Sequence[Task], step: int) -> tuple[Trajectory, ...]:
        """The training episodes of `step`, skills attached; in order of tasks, then members of the group."""

        async def annotate(trajectory: Trajectory) -> HindsightSkills | None:
            if not is_scheduled(trajectory, step, self._config.skills):
                return None
            return await self._analyzer.analyze(trajectory)

        annotator = annotate if self._analyzer is not None else None
        rollout = self._config.rollout
        trajectories = self._play(tasks, rollout.group_size, rollout.temperature, step, annotator, "rollout")
        self._refuse_missing_skills()
        if self._gives_memory_back:
            if self._rank == 0:
                self._worker.run(self._engine.sleep())
            all_gather_text("")  # the other ranks need the memory, too
        return trajectories

    def validate(self, tasks: Sequence[Task]) -> tuple[Trajectory, ...]:
        """One episode of each task at the validation temperature, with the same seeds at every call."""
        return self._play(tasks, 1, self._config.rollout.validation_temperature, 0, None, "validation")

    def push(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give the engine the weights of `version` (the number of training steps done)."""
        self._sync.push(named_tensors, version)
        all_gather_text("")  # no rank may ask a server before all of them have the weights

    def waiting(self) -> list[str]:
        """What episodes wait for at the moment, a line each; callable from any thread."""
        return [*self._engine.waiting(), *self._worker.environments.waiting()]

    def close(self) -> None:
        """Stop environments, analyzer, engine, and the servers that this rank has started."""
        with ExitStack() as stack:
            if self._launcher is not None:
                stack.callback(self._launcher.close)
            stack.callback(self._worker.close)
            stack.callback(lambda: self._worker.run(self._engine.close()))
            if self._analyzer is not None:
                self._worker.run(self._analyzer.close())

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _play(self, tasks, group_size, temperature, step, annotator, label) -> tuple[Trajectory, ...]:
        mine = tasks[self._rank :: self._num_ranks]
        played = self._worker.collect_sync(
            mine, group_size, self._settings(temperature), training_step=step, annotator=annotator, label=label
        )
        analyzer = self._analyzer.counters() if self._analyzer is not None else {}
        message = json.dumps([self._worker.metrics, analyzer, [to_json(trajectory) for trajectory in played]])
        # In a thread: while this rank waits for the others, its event loop mends engines that they wait for.
        parts = [json.loads(text) for text in self._worker.run(asyncio.to_thread(all_gather_text, message))]
        trajectories = _in_task_order([[from_json(line) for line in part[2]] for part in parts], len(tasks), group_size)
        self.metrics = _combine([part[0] for part in parts]) | summarize(trajectories)
        self.analyzer_metrics = _combine([part[1] for part in parts])
        return trajectories

    def _make_engine(self, directory: Path) -> Engine:
        config = self._config
        if config.engine.name == "local":
            return LocalEngine.from_pretrained(
                directory,
                device=str(resolve_device(config.actor.device)),
                dtype=torch.float32 if config.actor.precision == "fp32" else torch.bfloat16,
                max_batch_sequences=config.engine.max_batch_sequences,
            )
        urls = config.engine.urls
        if not urls and self._rank == 0:
            self._launcher = make_launcher(config, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            try:
                asyncio.run(self._launcher.start())
            except BaseException:
                self._launcher.close()
                raise
            urls = self._launcher.urls
        urls = tuple(json.loads(all_gather_text(json.dumps(urls))[0]))
        return make_pool(config, urls, self._launcher)

    def _refuse_missing_skills(self) -> None:
        """Training without the skills that were asked for would silently be another method."""
        counts = self.analyzer_metrics
        # Rules that find nothing to say of an episode are no outage.
        failures = counts.get("failures", 0) - counts.get("failures_rules", 0)
        analyses = counts.get("analyses", 0)
        if failures > self._config.skills.max_failed_share * analyses:
            causes = {name: count for name, count in counts.items() if "failures_" in name and count}
            raise RuntimeError(
                f"{failures:.0f} of {analyses:.0f} skill analyses of this step failed ({causes}), above "
                f"skills.max_failed_share={self._config.skills.max_failed_share}; nothing was trained on them: restore "
                "the analyzer and start the same command again, or set skills.max_failed_share=1 to go on"
            )

    def _make_analyzer(self) -> Analyzer | None:
        skills = self._config.skills
        # Replayed steps of a resumed run find their answers in the cache: the same skills, paid for once.
        cache_dir = skills.cache_dir or str(Path(self._config.run.dir) / "analyzer_cache")
        return make_analyzer(
            replace(skills, cache_dir=cache_dir),
            self._config.env.name,
            seed=self._config.run.seed,
            max_prompt_tokens=skills.max_prompt_tokens,
            engine=self._engine,
            tokenizer=self.tokenizer,
        )

    def _settings(self, temperature: float) -> EpisodeSettings:
        env, rollout = self._config.env, self._config.rollout
        return EpisodeSettings(
            max_steps=env.max_steps,
            history_length=env.history_length,
            prompt_style=env.prompt_style,
            max_prompt_tokens=rollout.max_prompt_tokens,
            max_response_tokens=rollout.max_response_tokens,
            temperature=temperature,
            top_p=rollout.top_p,
            stop_token_ids=(self.tokenizer.eos_token_id,),
            vocab_size=self._vocab_size,
        )


def _in_task_order(shares: Sequence[Sequence[Trajectory]], num_tasks: int, group_size: int) -> tuple[Trajectory, ...]:
    """Undo the deal: rank r played tasks r, r + ranks, r + 2·ranks, ..."""
    ordered: list[Trajectory] = []
    for task in range(num_tasks):
        turn, rank = divmod(task, len(shares))
        ordered += shares[rank][turn * group_size : (turn + 1) * group_size]
    return tuple(ordered)


def _combine(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    combined: dict[str, float] = {}
    for name in {name: None for part in parts for name in part}:
        values = [part[name] for part in parts if name in part]
        if name in LARGEST or name.startswith(SEEN_BY_ALL):
            combined[name] = max(values)
        elif name in AVERAGED:
            combined[name] = sum(values) / len(values)
        else:
            combined[name] = sum(values)
    return combined
