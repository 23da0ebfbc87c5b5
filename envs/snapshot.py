"""Saves and restores an episode of any environment: an episode is its task and its actions, so restoring plays them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from envs.base import Environment, Outcome, Start, Task


class SnapshotMismatch(RuntimeError):
    """The replayed actions led elsewhere: other data, options or version of the environment."""


@dataclass(frozen=True)
class Snapshot:
    """`digest` is that of everything the environment answered on the way."""

    task: Task
    actions: tuple[str, ...]
    digest: str


def play(environment: Environment, task: Task, actions: Sequence[str]) -> tuple[Start, tuple[Outcome, ...]]:
    """Reset to `task` and play `actions`."""
    start = environment.reset(task)
    return start, tuple(environment.step(action) for action in actions)


def save(task: Task, actions: Sequence[str], start: Start, outcomes: Sequence[Outcome]) -> Snapshot:
    """The snapshot of an episode in progress from what it was played with and what it answered."""
    answers = json.dumps([asdict(start), *map(asdict, outcomes)], sort_keys=True)
    return Snapshot(task, tuple(actions), hashlib.sha256(answers.encode()).hexdigest())


def restore(environment: Environment, snapshot: Snapshot) -> tuple[Start, tuple[Outcome, ...]]:
    """Bring `environment` to the snapshot's state; what it answered on the way.

    Raises:
        SnapshotMismatch: an answer is not what it was when the snapshot was taken.
    """
    start, outcomes = play(environment, snapshot.task, snapshot.actions)
    replayed = save(snapshot.task, snapshot.actions, start, outcomes)
    if replayed != snapshot:
        raise SnapshotMismatch(
            f"{snapshot.task} after {len(snapshot.actions)} actions is not what was saved "
            f"(digest {replayed.digest[:12]}, saved {snapshot.digest[:12]}); "
            "restore with the data, options and version that it was saved with"
        )
    return start, outcomes
