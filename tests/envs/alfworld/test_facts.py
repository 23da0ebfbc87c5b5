"""Facts read from goals and texts."""

import json

import pytest

from envs.alfworld.engine import NativeEngine
from envs.alfworld.facts import (
    Event,
    GoalParts,
    Sighting,
    class_of,
    episode_facts,
    held_object,
    parse_admissible_receptacles,
    parse_goal,
    parse_sighting,
)
from envs.alfworld.games import list_games


@pytest.mark.parametrize(
    ("goal", "parts"),
    [
        ("put a mug in desk", GoalParts("mug", "desk")),
        ("put some mug on desk.", GoalParts("mug", "desk")),
        ("put a clean cup in fridge", GoalParts("cup", "fridge", "clean")),
        ("clean some cup and put it in fridge", GoalParts("cup", "fridge", "clean")),
        ("put a hot egg in garbagecan", GoalParts("egg", "garbagecan", "heat")),
        ("heat some egg and put it in garbagecan", GoalParts("egg", "garbagecan", "heat")),
        ("put a cool pan in countertop", GoalParts("pan", "countertop", "cool")),
        ("cool some pan and put it in countertop", GoalParts("pan", "countertop", "cool")),
        ("put two cd in safe", GoalParts("cd", "safe", count=2)),
        ("find two cd and put them in safe", GoalParts("cd", "safe", count=2)),
        ("look at book under the desklamp", GoalParts("book", lamp="desklamp")),
        ("examine the book with the desklamp", GoalParts("book", lamp="desklamp")),
        ("Put the rinsed off ladle in the drawer next to the stove", None),
    ],
)
def test_goals(goal, parts):
    assert parse_goal(goal) == parts


def test_every_generated_goal_is_understood(small_games):
    for path in list_games(str(small_games), "train") + list_games(str(small_games), "valid_unseen"):
        record = json.loads(path.with_name("traj_data.json").read_text())
        parts, parameters = parse_goal(record["turk_annotations"]["anns"][0]["task_desc"]), record["pddl_params"]
        assert parts.target == parameters["object_target"].lower()
        assert parts.destination == parameters["parent_target"].lower()
        assert parts.lamp == parameters["toggle_target"].lower()
        assert parts.count == (2 if record["task_type"] == "pick_two_obj_and_place" else 1)
        assert parts.processing == next((verb for verb in ("clean", "heat", "cool") if verb in record["task_type"]), "")


def test_sightings():
    assert parse_sighting("You arrive at shelf 12. On the shelf 12, you see nothing.") == Sighting("shelf 12", False)
    assert parse_sighting("You open the safe 1. The safe 1 is open. In it, you see a cd 1, and a vase 2.") == Sighting(
        "safe 1", False, ("cd 1", "vase 2")
    )
    assert parse_sighting("You arrive at safe 1. The safe 1 is closed.") == Sighting("safe 1", True)
    assert parse_sighting("This is a normal mug 1. In it, you see nothing.") is None
    assert parse_sighting("Nothing happens.") is None


def test_an_episode(small_games):
    for path in list_games(str(small_games), "train"):
        engine, plan = NativeEngine(), json.loads(path.read_text())["walkthrough"]
        plan.insert(1, "take everything")
        turns = [engine.load(path)] + [engine.step(command) for command in plan]
        steps = [(turn.text, command) for turn, command in zip(turns, plan, strict=False)]
        facts = episode_facts(steps, won=True)
        done = [(index, command.split()) for index, command in enumerate(plan)]
        assert facts.ineffective == (1,)
        expected = [
            (index, words[0], " ".join(words[1:3]))
            for index, words in done
            if words[0] not in ("go", "look") and index != 1
        ]
        assert [(event.index, event.kind, event.object or event.receptacle) for event in facts.events] == expected
        takes = [event for event in facts.events if event.kind == "take"]
        for take in takes:
            seen = [s for index, s in facts.sightings if index <= take.index and take.object in s.contents]
            assert seen[-1].receptacle == take.receptacle
        assert len(episode_facts(steps).events) == len(facts.events) - 1  # the last answer is not among the pairs


def test_small_parsers():
    admissible = ("examine desk 1", "examine pen 3", "go to bed 1", "go to drawer 10", "look")
    assert parse_admissible_receptacles(admissible) == ("bed 1", "drawer 10")
    assert held_object(admissible) == "pen 3" and held_object(("examine toaster 1",)) == ""
    assert class_of("sinkbasin 1") == "sinkbasin"
    assert episode_facts([], won=True).events == ()
    assert episode_facts([("x", "use desklamp 1")], won=True).events == (Event(0, "use", "desklamp 1"),)
