"""Seeds that depend on what a request is, not on when it runs."""

from __future__ import annotations

import hashlib

from envs.base import Task


def stable_seed(*parts: int | str) -> int:
    """A 63-bit number that is the same on every machine and in every process (Python's own hash is not)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def episode_seed(run_seed: int, training_step: int, task: Task, member: int) -> int:
    """The seed of one episode; its turns derive theirs from it."""
    return stable_seed(run_seed, training_step, task.env, task.split, task.index, task.seed, member)
