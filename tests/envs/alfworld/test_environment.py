"""The package as the rollout uses it."""

import json
import sys

import pytest

from envs.alfworld.games import list_games
from envs.base import Task, load

NATIVE = "native"


def test_a_task_names_one_game(small_games):
    package, options = load("alfworld"), {"engine": NATIVE, "data": str(small_games)}
    environment = package.make_environment(options)
    assert package.num_tasks("train", options) == package.num_tasks("valid_unseen", options) == 12
    starts = [environment.reset(Task("alfworld", index, 0, "train")) for index in range(12)]
    assert environment.reset(Task("alfworld", 5, 99, "train")) == starts[5]  # the seed has no effect
    assert len({start.category for start in starts}) == 6
    assert all(start.observation.text.endswith(f"Your task is to: {start.goal}.") for start in starts)


@pytest.mark.parametrize("index", [-1, 12])
def test_a_game_out_of_range_is_refused(small_games, index):
    environment = load("alfworld").make_environment({"engine": NATIVE, "data": str(small_games)})
    with pytest.raises(ValueError, match=f"game {index} of 'train' .* 0 to 11"):
        environment.reset(Task("alfworld", index, 0, "train"))


@pytest.mark.parametrize("engine", [NATIVE, "official"])
def test_playing_the_walkthrough_wins(small_games, engine):
    if engine == "official":
        pytest.importorskip("alfworld", reason="needs the extra alfworld")
    package = load("alfworld")
    environment = package.make_environment({"engine": engine, "data": str(small_games)})
    environment.reset(Task("alfworld", 3, 0, "train"))
    plan = json.loads(list_games(str(small_games), "train")[3].read_text())["walkthrough"]
    outcomes = [environment.step(action) for action in plan]
    assert (
        [outcome.done for outcome in outcomes]
        == [outcome.won for outcome in outcomes]
        == [False] * (len(plan) - 1) + [True]
    )
    assert [outcome.reward for outcome in outcomes] == [0.0] * (len(plan) - 1) + [package.success_score(True)]
    assert outcomes[-1].info == {"score": 1}
    environment.close()


def test_the_official_engine_is_refused_where_a_package_of_it_is_missing(small_games, monkeypatch):
    package, options = load("alfworld"), {"engine": "official", "data": str(small_games)}
    monkeypatch.setitem(sys.modules, "alfworld", None)
    (fault,) = [fault for fault in package.option_faults(options) if "package alfworld" in fault]
    assert "env.options.engine=official needs" in fault and "pip install -e '.[alfworld]', or set" in fault
    assert package.option_faults(options | {"engine": NATIVE}) == []
    with pytest.raises(ValueError, match="package alfworld"):
        package.make_environment(options)


def test_unknown_engine(small_games):
    with pytest.raises(ValueError, match="env.options.engine='unity' .* native, official"):
        load("alfworld").make_environment({"engine": "unity", "data": str(small_games)})
