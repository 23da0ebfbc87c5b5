"""Saving and restoring, over an environment of the tests (each real one has its own test)."""

import pytest

from envs.base import Task
from envs.snapshot import SnapshotMismatch, play, restore, save
from tests.rollout import toy_env

TASK = Task("toy", 2, 0, "train")


def test_restored_is_where_it_was():
    actions = ["right", "left", "right"]
    start, outcomes = play(toy_env.make_environment({}), TASK, actions)
    snapshot = save(TASK, actions, start, outcomes)
    environment = toy_env.make_environment({})
    assert restore(environment, snapshot) == (start, outcomes)
    assert environment.step("right").observation.text == "you are at 2"


def test_another_episode_is_refused():
    start, outcomes = play(toy_env.make_environment({}), TASK, ["right"])
    other = save(Task("toy", 1, 0, "train"), ["right"], start, outcomes)
    with pytest.raises(SnapshotMismatch, match="after 1 actions is not what was saved"):
        restore(toy_env.make_environment({}), other)
