"""Analyses that go on when the episodes they are of have been collected: the trainer scores meanwhile what needs no
skills."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_opid.config import Config
from rollout.trajectory import HindsightSkills, Trajectory

if TYPE_CHECKING:
    from rollout.worker import Annotator


def outlast_collection(config: Config) -> bool:
    """Whether analyses may outlast their collection: those by an endpoint that is none of the engines that sleep then.
    Episodes that are played ahead have the time of a training step anyway."""
    if config.algorithm.name != "opid" or config.skills.analyzer != "openai" or config.rollout.one_step_off:
        return False
    # Servers that ran before may be the endpoint as well.
    return not (config.engine.placement == "colocated" and config.engine.urls)


@dataclass(frozen=True)
class _Analysis:
    task: asyncio.Task[HindsightSkills | None]
    started_s: float


class Analyses:
    """Of one collection's episodes, by `analyze`; all calls but `waiting` come from one event loop."""

    def __init__(self, analyze: Annotator):
        self._analyze = analyze
        self._by_uid: dict[str, _Analysis] = {}

    async def begin(self, trajectory: Trajectory) -> None:
        """The collection's annotator, which answers at once that there are no skills.

        Raises:
            Exception: a defect of an earlier analysis, which so ends the collection; with a note.
        """
        for analysis in self._by_uid.values():
            if analysis.task.done():
                analysis.task.result()
        task = asyncio.create_task(self._noted(trajectory))
        self._by_uid[trajectory.uid] = _Analysis(task, time.monotonic())

    async def finish(self) -> dict[str, HindsightSkills]:
        """The skills, by the episode's uid, of the episodes that have some; the first error is raised as it is."""
        try:
            found = await asyncio.gather(*(analysis.task for analysis in self._by_uid.values()))
        except BaseException:
            await self.cancel()
            raise
        return {uid: skills for uid, skills in zip(self._by_uid, found, strict=True) if skills is not None}

    async def cancel(self) -> None:
        """End what goes on."""
        tasks = [analysis.task for analysis in self._by_uid.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def waiting(self) -> list[str]:
        """What is waited for, in a line; callable from any thread."""
        started_s = [analysis.started_s for analysis in list(self._by_uid.values()) if not analysis.task.done()]
        if not started_s:
            return []
        return [f"analyzer: {len(started_s)} analyses, the oldest for {time.monotonic() - min(started_s):.0f} s"]

    async def _noted(self, trajectory: Trajectory) -> HindsightSkills | None:
        try:
            return await self._analyze(trajectory)
        except Exception as error:
            error.add_note(f"while annotating episode {trajectory.uid}")
            raise
