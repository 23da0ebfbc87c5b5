"""Plays many episodes at once and hands finished ones to an annotator while the others go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from envs.base import EnvironmentPackage, Task
from rollout.agent_loop import EpisodeSettings, play_episode
from rollout.engines.base import Engine
from rollout.environments import EnvironmentPool, InlineEnvironments
from rollout.event_loop import EventLoop
from rollout.metrics import Tally, cost, summarize
from rollout.process_environments import ProcessEnvironments
from rollout.seeds import episode_seed
from rollout.trajectory import HindsightSkills, Trajectory, with_skills

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Between lines on progress where they go into a file: a collection that takes less leaves none.
LINE_EVERY_S = 30.0

Annotator = Callable[[Trajectory], Awaitable[HindsightSkills | None]]


class RolloutWorker:
    """Environments, an engine and a tokenizer, kept from one collection to the next.

    Use as a context manager, or call `close`.

    Args:
        package: the environment's package.
        options: its section of the config; must pickle when `num_processes` > 0.
        run_seed: with the training step, task, member and turn it seeds every request.
        num_processes: processes that host environments; 0 keeps them in this one, where equal seeds and a local engine
            give bitwise equal trajectories.
        max_concurrent_episodes: further episodes wait; also bounds the number of environments.
        environment_timeout_s: for one reset or step in a process; the process is killed when it is over.
        progress: show a progress bar; where standard error is no terminal, a line every half minute.
    """

    def __init__(
        self,
        package: EnvironmentPackage,
        options: Mapping[str, Any],
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        run_seed: int,
        num_processes: int = 0,
        max_concurrent_episodes: int = 256,
        environment_timeout_s: float = 120.0,
        progress: bool = True,
    ):
        self.metrics: dict[str, float] = {}  # of the last collection
        self._package = package
        self._engine = engine
        self._tokenizer = tokenizer
        self._run_seed = run_seed
        self._max_concurrent_episodes = max_concurrent_episodes
        self._progress = progress
        self.environments = _environments(package, options, num_processes, environment_timeout_s)
        self.loop = EventLoop()

    def __enter__(self) -> RolloutWorker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs, then the environments' processes."""
        self.loop.cancel()
        self.run(self._close_environments())
        self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run any coroutine (a collection, the engine's pause, ...) to its end on the worker's event loop."""
        return self.loop.run(coroutine)

    def collect_sync(self, *arguments: Any, **options: Any) -> list[Trajectory]:
        """`collect`, for callers without an event loop."""
        return self.run(self.collect(*arguments, **options))

    async def collect(
        self,
        tasks: Sequence[Task],
        group_size: int,
        settings: EpisodeSettings,
        *,
        training_step: int,
        annotator: Annotator | None = None,
        label: str = "rollout",
    ) -> list[Trajectory]:
        """Play `group_size` episodes of every task; trajectories in order of tasks, then members.

        A failed episode is played once more in a fresh environment; one that fails twice is returned with `failure` set
        and is not annotated. `metrics` describes the collection afterwards. `training_step` enters the seeds; `label`
        names the progress bar.

        Raises:
            ValueError: a task is given twice, which would make its groups one.
            TokenMismatch: a sample is not what the engine saw and sampled.
            Exception: whatever the annotator raised, with a note that names the episode. Failures that an annotator
                expects, of a remote service for example, are its own to turn into None.
        """
        if len(set(tasks)) < len(tasks):
            raise ValueError("a task is given twice in one collection; raise group_size for more episodes of a task")
        tally = Tally()
        num_restarts_before = self.environments.num_restarts
        busy_before_s = self._engine.busy_s
        slots = asyncio.Semaphore(self._max_concurrent_episodes)
        with _Progress(label, len(tasks) * group_size, self._progress) as progress:

            async def play(task: Task, member: int) -> Trajectory:
                group = f"{training_step}/{task.split}/{task.index}.{task.seed}"
                async with slots:
                    trajectory = await self._play_twice(task, member, group, settings, training_step, tally)
                tally.last_episode_end_s = time.perf_counter()
                progress.add(trajectory)
                return await _annotate(trajectory, annotator)

            trajectories = await _gather(play(task, member) for task in tasks for member in range(group_size))
        annotated_s = time.perf_counter()
        self.metrics = summarize(trajectories)
        self.metrics |= cost(tally, self.metrics["response_tokens"], self._engine.busy_s - busy_before_s)
        self.metrics |= {f"engine/{name}": value for name, value in (await self._engine.counters()).items()}
        if annotator is not None:
            self.metrics["annotator_exposed_s"] = annotated_s - tally.last_episode_end_s
        self.metrics["num_environment_restarts"] = self.environments.num_restarts - num_restarts_before
        return trajectories

    async def _close_environments(self) -> None:
        self.environments.close()  # on the loop that reads what they answer

    async def _play_twice(
        self, task: Task, member: int, group: str, settings: EpisodeSettings, training_step: int, tally: Tally
    ) -> Trajectory:
        """The episode, played again if it failed: with the same seed, so that a fault does not change the sample."""
        seed = episode_seed(self._run_seed, training_step, task, member)
        uid = f"{group}/{member}"
        trajectory = await self._play(task, settings, uid, group, seed)
        if trajectory.failure is not None:
            logger.warning("episode %s failed and is played again: %s", uid, trajectory.failure)
            tally.count_failure(trajectory.failure)
            tally.num_replays += 1
            trajectory = await self._play(task, settings, uid, group, seed)
            if trajectory.failure is not None:
                tally.count_failure(trajectory.failure)
        return trajectory

    async def _play(self, task: Task, settings: EpisodeSettings, uid: str, group: str, seed: int) -> Trajectory:
        environment = self.environments.borrow()
        healthy = False
        try:
            trajectory = await play_episode(
                task,
                environment,
                self._package,
                self._engine,
                self._tokenizer,
                settings,
                uid=uid,
                group=group,
                seed=seed,
            )
            healthy = trajectory.failure is None
        finally:
            if healthy:
                self.environments.release(environment)
            else:
                self.environments.discard(environment)
        return trajectory


async def _annotate(trajectory: Trajectory, annotator: Annotator | None) -> Trajectory:
    if annotator is None or trajectory.failure is not None:
        return trajectory
    try:
        return with_skills(trajectory, await annotator(trajectory))
    except Exception as error:
        if not hasattr(error, "__notes__"):  # it may be an earlier episode's
            error.add_note(f"while annotating episode {trajectory.uid}")
        raise


async def _gather(coroutines: Iterator[Coroutine[Any, Any, Trajectory]]) -> list[Trajectory]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _environments(
    package: EnvironmentPackage, options: Mapping[str, Any], num_processes: int, timeout_s: float
) -> EnvironmentPool:
    if num_processes == 0:
        return InlineEnvironments(package, options)
    if not isinstance(package, ModuleType):
        raise ValueError("env.num_processes > 0 needs an environment package that a process can import by name")
    return ProcessEnvironments(package.__name__, options, num_processes, timeout_s)


class _Progress(contextlib.AbstractContextManager):
    """Episodes done, success so far and response tokens per second: a bar on a terminal, now and then a line
    elsewhere."""

    def __init__(self, label: str, num_episodes: int, shown: bool):
        self._shown, self._label, self._num_episodes = shown, label, num_episodes
        has_bar = shown and sys.stderr.isatty()
        self._bar = tqdm(total=num_episodes, desc=label, unit="episode", disable=not has_bar, file=sys.stderr)
        self._started_s = self._told_s = time.perf_counter()
        self._num_done = self._num_played = self._num_won = self._num_tokens = 0

    def add(self, trajectory: Trajectory) -> None:
        self._num_played += trajectory.failure is None
        self._num_won += trajectory.success
        self._num_tokens += sum(len(step.response_ids) for step in trajectory.steps)
        now_s = time.perf_counter()
        success = self._num_won / self._num_played if self._num_played else 0.0
        text = f"success {success:.0%}, {self._num_tokens / (now_s - self._started_s):.0f} tok/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        self._num_done += 1
        if self._shown and self._bar.disable and now_s - self._told_s >= LINE_EVERY_S:
            self._told_s = now_s
            print(f"{self._label}: {self._num_done}/{self._num_episodes} episodes, {text}", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
