"""Trajectories on disk: JSON lines, gzipped where the name ends in .gz."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rollout.trajectory import Trajectory, from_json, to_json


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Write a file whole or not at all: a crash leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    text = "".join(to_json(trajectory) + "\n" for trajectory in trajectories).encode(errors="backslashreplace")
    with partial.open("wb") as file:
        file.write(gzip.compress(text, compresslevel=6, mtime=0) if path.name.endswith(".gz") else text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """The trajectories of a file, in order.

    Raises:
        ValueError: a line is not a trajectory; the message names file and line.
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                trajectory = from_json(line)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number} is not a trajectory: {type(error).__name__}: {error}") from error
            yield trajectory
