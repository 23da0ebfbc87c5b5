"""The trainer's side of the rollout: each rank plays its share of the tasks, and every rank gets all trajectories."""

from __future__ import annotations

import json
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from envs.base import Task
from envs.base import load as load_environment
from megatron_opid.actor.parallel import resolve_device
from megatron_opid.analyses import Analyses, outlast_collection
from megatron_opid.collected import Annotations, Collected, join_annotations, join_shares
from megatron_opid.config import Config, resolve_model
from megatron_opid.engines import make_pool, make_sync
from megatron_opid.exchange import all_gather_text
from megatron_opid.servers import Place, start_servers
from megatron_opid.skills.analyzer import Analyzer, make_analyzer
from megatron_opid.skills.routing import is_scheduled
from rollout.agent_loop import EpisodeSettings
from rollout.end_tokens import end_token_ids
from rollout.engines.base import Engine, EngineError
from rollout.engines.launch import Launcher
from rollout.engines.local import LocalEngine
from rollout.trajectory import HindsightSkills, Trajectory, with_skills
from rollout.worker import RolloutWorker

if TYPE_CHECKING:
    from rollout.engines.http import HttpEngine


class Rollout:
    """Engine, environments and analyzer of one rank. Use as a context manager.

    `metrics` and `analyzer_metrics` describe the last collection over all ranks. Episodes of a later step may be played
    in the background (`start`) while this thread trains; every collective is this thread's. `annotates_later`: what
    `collect` returns has no skills before `annotate`.
    """

    def __init__(self, config: Config, *, rank: int, num_ranks: int) -> None:
        directory = resolve_model(config.actor.model)
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.metrics: dict[str, float] = {}
        self.analyzer_metrics: dict[str, float] = {}
        self._config = config
        self._rank, self._num_ranks = rank, num_ranks
        self._gives_memory_back = config.engine.name != "local" and config.engine.placement == "colocated"
        self.annotates_later = outlast_collection(config)
        self._analyses: Analyses | None = None  # of the last collection, until `annotate`
        self._launcher: Launcher | None = None
        place = Place.of(rank, num_ranks)
        self._engine = self._make_engine(directory, place)
        self._end_token_ids = end_token_ids(self.tokenizer, directory)
        self._vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]
        self._analyzer = self._make_analyzer() if config.algorithm.name == "opid" else None
        self._worker = RolloutWorker(
            load_environment(config.env.name),
            config.env.package_options,
            self._engine,
            self.tokenizer,
            run_seed=config.run.seed,
            num_processes=config.env.num_processes,
            environment_timeout_s=config.env.timeout_s,
            progress=rank == 0,
        )
        if (device := resolve_device(config.actor.device)).type == "cuda":
            self._worker.run(_use(device))  # CUDA's current device is each thread's own
        self._sync = make_sync(config, self._engine, self._worker.run, place, all_gather_text)
        self._started: tuple[int, int, Future[list[Trajectory]]] | None = None  # step, number of tasks, episodes
        self._ahead: Collected | None = None  # what was started, once it is there

    def collect(self, tasks: Sequence[Task], step: int) -> tuple[Trajectory, ...]:
        """The training episodes of `step`, in order of tasks, then members of the group; with their skills unless it
        `annotates_later`.

        They are played now, unless they were `start`ed before.
        """
        self.finish()
        collected, self._ahead = self._ahead, None
        if collected is None:
            played = self._worker.run(self._training_episodes(tasks, step))
            collected = self._gather(played, step, len(tasks), self._config.rollout.group_size)
            self._refuse_missing_skills(collected.analyzer_metrics)
        if collected.step != step:
            raise RuntimeError(f"the episodes played ahead are of step {collected.step}, asked for are step {step}'s")
        self.metrics, self.analyzer_metrics = collected.metrics, collected.analyzer_metrics
        if self._gives_memory_back:
            self._worker.run(self._engine.sleep())
            all_gather_text("")  # the other ranks need the memory, too
        return collected.trajectories

    def annotate(self, trajectories: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
        """What `collect` returned, skills attached; waits for the analyses, if any go on."""
        if self._analyses is None:
            return tuple(trajectories)
        started_s = time.perf_counter()
        skills = self._worker.run(self._analyses.finish())
        self._analyses = None
        waited = {"annotator_exposed_s": time.perf_counter() - started_s}
        share = Annotations(waited, self._analyzer.counters(), skills).to_json()
        joined = join_annotations(list(map(Annotations.from_json, all_gather_text(share))))
        self.metrics, self.analyzer_metrics = {**self.metrics, **joined.metrics}, joined.analyzer_metrics
        self._refuse_missing_skills(self.analyzer_metrics)
        return tuple(with_skills(trajectory, joined.skills.get(trajectory.uid)) for trajectory in trajectories)

    def start(self, tasks: Sequence[Task], step: int) -> None:
        """Begin to play the training episodes of `step` in the background, under the weights of now."""
        self._started = step, len(tasks), self._worker.loop.start(self._training_episodes(tasks, step))

    def finish(self) -> None:
        """Wait for the episodes that were started, if any."""
        if self._started is None:
            return
        (step, num_tasks, episodes), self._started = self._started, None
        self._ahead = self._gather(episodes.result(), step, num_tasks, self._config.rollout.group_size)
        # Before a checkpoint can keep them.
        self._refuse_missing_skills(self._ahead.analyzer_metrics)

    def settle(self) -> None:
        """Have what may not see new weights end: what was started, or only its requests (`rollout.across_updates`)."""
        if self._config.rollout.across_updates == "finish":
            self.finish()
        self._worker.run(self._engine.pause())
        all_gather_text("")  # the other ranks' requests, too

    def validate(self, tasks: Sequence[Task]) -> tuple[Trajectory, ...]:
        """One episode of each task at the validation temperature, with the same seeds at every call.

        What was started ends before.
        """
        self.finish()
        settings = self._settings(self._config.rollout.validation_temperature)
        played = self._worker.collect_sync(self._mine(tasks), 1, settings, training_step=0, label="validation")
        collected = self._gather(played, 0, len(tasks), 1)
        self.metrics, self.analyzer_metrics = collected.metrics, collected.analyzer_metrics
        return collected.trajectories

    def load(self) -> None:
        """Have servers sample with the weights that lie in `actor.model`: where nobody trains, instead of `push`.

        Raises:
            EngineError: no server took them.
        """
        if self._config.engine.name == "local":
            return
        directory = resolve_model(self._config.actor.model).absolute()

        async def give(engine: HttpEngine) -> None:
            await engine.load_from_disk(directory, 0)

        self._engine.give_weights = give  # to servers that are restarted, too
        if not self._worker.run(self._engine.update(give, 0)):
            raise EngineError(f"no server loaded {directory}: {'; '.join(self._engine.waiting())}")

    def push(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give the engine the weights of `version` (the number of training steps done). `settle` before."""
        self._sync.push(named_tensors, version)
        all_gather_text("")  # no rank may ask a server before rank 0 has compared what they hold
        self._worker.run(self._engine.resume())

    def state(self) -> str:
        """What a checkpoint keeps: the episodes played ahead, which no later weights could play again; else empty.

        What was started ends before.
        """
        self.finish()
        return "" if self._ahead is None else self._ahead.to_json()

    def restore(self, state: str) -> None:
        """Go on with the episodes that a checkpoint kept."""
        self._ahead = Collected.from_json(state) if state else None

    def waiting(self) -> list[str]:
        """What episodes wait for at the moment, a line each; callable from any thread."""
        analyses = self._analyses
        return [
            *self._engine.waiting(),
            *self._worker.environments.waiting(),
            *([] if analyses is None else analyses.waiting()),
        ]

    def close(self) -> None:
        """Stop environments, analyzer, engine, and the servers that this rank has started."""
        with ExitStack() as stack:
            if self._launcher is not None:
                stack.callback(self._launcher.close)
            stack.callback(self._worker.close)
            stack.callback(lambda: self._worker.run(self._engine.close()))
            self._worker.loop.cancel()
            stack.callback(self._sync.close)
            if self._analyzer is not None:
                stack.callback(lambda: self._worker.run(self._analyzer.close()))
            if self._analyses is not None:
                self._worker.run(self._analyses.cancel())

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _mine(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return tasks[self._rank :: self._num_ranks]

    def _training_episodes(self, tasks: Sequence[Task], step: int) -> Coroutine[Any, Any, list[Trajectory]]:
        """This rank's training episodes of `step`; with their skills unless it `annotates_later`."""

        async def annotate(trajectory: Trajectory) -> HindsightSkills | None:
            if not is_scheduled(trajectory, step, self._config.skills):
                return None
            return await self._analyzer.analyze(trajectory)

        annotator = annotate if self._analyzer is not None else None
        if self.annotates_later:
            self._analyses = Analyses(annotate)
            annotator = self._analyses.begin
        rollout = self._config.rollout
        return self._worker.collect(
            self._mine(tasks),
            rollout.group_size,
            self._settings(rollout.temperature),
            training_step=step,
            annotator=annotator,
        )

    def _gather(self, played: Sequence[Trajectory], step: int, num_tasks: int, group_size: int) -> Collected:
        """This rank's episodes and those of the others."""
        counts = self._analyzer is not None and not self.annotates_later
        analyzer = self._analyzer.counters() if counts else {}
        share = Collected(step, self._worker.metrics, analyzer, tuple(played)).to_json()
        shares = map(Collected.from_json, all_gather_text(share))
        return join_shares(list(shares), num_tasks, group_size)

    def _make_engine(self, directory: Path, place: Place) -> Engine:
        config = self._config
        if config.engine.name == "local":
            return LocalEngine.from_pretrained(
                directory,
                device=str(resolve_device(config.actor.device)),
                dtype=torch.float32 if config.actor.precision == "fp32" else torch.bfloat16,
                max_batch_sequences=config.engine.max_batch_sequences,
            )
        urls = config.engine.urls
        if not urls:
            self._launcher, urls = start_servers(config, place, all_gather_text)
        return make_pool(config, urls, self._launcher, rank=self._rank)

    def _refuse_missing_skills(self, counts: Mapping[str, float]) -> None:
        """Training without the skills that were asked for would silently be another method."""
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
            stop_token_ids=self._end_token_ids,
            vocab_size=self._vocab_size,
        )


async def _use(device: torch.device) -> None:
    torch.cuda.set_device(device)
