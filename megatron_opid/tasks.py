"""Which games each training step plays: a stateless draw, so that a resumed run continues the same sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.base import Task


@dataclass(frozen=True)
class TaskSchedule:
    """Draws `tasks_per_step` of the split's `num_tasks` games per step, each epoch a fresh permutation by seed."""

    env: str
    split: str
    num_tasks: int
    tasks_per_step: int
    seed: int

    def draw(self, step: int) -> tuple[Task, ...]:
        """The tasks of training step `step` (from 0); the same step always draws the same tasks."""
        positions = range(step * self.tasks_per_step, (step + 1) * self.tasks_per_step)
        return tuple(Task(self.env, self._game(position), self.seed + position, self.split) for position in positions)

    def _game(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_tasks)
        return int(np.random.default_rng((self.seed, epoch)).permutation(self.num_tasks)[offset])


def validation_tasks(env: str, split: str, num_tasks: int, count: int) -> tuple[Task, ...]:
    """`count` games spread evenly over the split (they are sorted by type), or all: each validation plays the same."""
    count = min(count, num_tasks)
    indices = [position * num_tasks // count for position in range(count)]
    return tuple(Task(env, index, index, split) for index in indices)
