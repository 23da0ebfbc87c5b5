"""Splits: the published sizes, and the simulator's own division."""

import pytest

from envs import sciworld
from envs.sciworld.tasks import LEVELS, NUM_VARIATIONS, TASK_NAMES, list_variations, official_sets

PUBLISHED_SIZES = {"L0": (3322, 1661), "L1": (3322, 1684), "L2": (2242, 549)}


@pytest.mark.parametrize("level", LEVELS)
def test_sizes_are_the_published_ones_and_no_game_is_in_both_splits(level):
    train, test = list_variations(level, "train"), list_variations(level, "test")
    assert (len(train), len(test)) == PUBLISHED_SIZES[level]
    assert not set(train) & set(test)
    assert "use-thermometer" not in {game.task for game in train + test}


def test_levels_differ_in_what_they_test():
    tasks = {level: {game.task for game in list_variations(level, "test")} for level in LEVELS}
    assert len(tasks["L0"]) == len(tasks["L1"]) == 29 and len(tasks["L2"]) == 10
    assert not tasks["L2"] & {game.task for game in list_variations("L2", "train")}
    assert not set(list_variations("L0", "test")) & set(list_variations("L1", "test"))


def test_options_make_splits_smaller():
    options = {"tasks": ["boil", "melt"], "variations_per_task": 3}
    assert sciworld.num_tasks("train", options) == sciworld.num_tasks("test", options) == 6
    with pytest.raises(ValueError, match=r"none of env.options.tasks=\['use-thermometer'\] is in the train split"):
        sciworld.num_tasks("train", {"tasks": ["use-thermometer"]})
    with pytest.raises(ValueError, match="'valid_seen' is not a split .* train, test"):
        sciworld.num_tasks("valid_seen", {})


def test_the_table_is_the_simulators(machine):
    interface = machine.new_interface()
    assert tuple(interface.getTaskNames()) == TASK_NAMES
    assert {task: interface.getTaskMaxVariations(task) for task in TASK_NAMES} == NUM_VARIATIONS
    for task in ("boil", "chemistry-mix", "identify-life-stages-1", "identify-life-stages-2"):
        interface.load(task, 0, "easy", False)
        sets = official_sets(task)
        ours = [list(part) for part in (sets.train, sets.dev, sets.test)]
        variations = (interface.getVariationsTrain(), interface.getVariationsDev(), interface.getVariationsTest())
        assert ours == [list(part) for part in variations], task
