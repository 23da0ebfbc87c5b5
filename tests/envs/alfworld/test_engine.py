"""The native engine on its own: texts of a whole game, and what commands may and may not change."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.alfworld.engine import NativeEngine
from envs.alfworld.games import GAME_NAME, list_games

PROBLEM = """(define (problem kitchen)
(:domain alfred)
(:objects agent1 - agent
    MugType PotatoType KnifeType ButterKnifeType - otype
    FridgeType CabinetType SinkBasinType CounterTopType MicrowaveType - rtype
    Mug_bar_1 Mug_bar_2 Potato_bar_1 Knife_bar_1 - object
    Fridge_bar_1 Cabinet_bar_1 Sink_bar_1_bar_SinkBasin CounterTop_bar_1 - receptacle
    loc_bar_0 loc_bar_1 loc_bar_2 loc_bar_3 loc_bar_4 - location)
(:init
    (atLocation agent1 loc_bar_0) ; in the middle
    (receptacleType Fridge_bar_1 FridgeType) (receptacleAtLocation Fridge_bar_1 loc_bar_1) (openable Fridge_bar_1)
    (receptacleType Cabinet_bar_1 CabinetType) (receptacleAtLocation Cabinet_bar_1 loc_bar_2) (openable Cabinet_bar_1)
    (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType) (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_bar_3)
    (receptacleType CounterTop_bar_1 CounterTopType) (receptacleAtLocation CounterTop_bar_1 loc_bar_4)
    (canContain CabinetType MugType) (canContain FridgeType PotatoType) (canContain CounterTopType PotatoType)
    (canContain CounterTopType KnifeType)
    (objectType Mug_bar_1 MugType) (objectType Mug_bar_2 MugType) (isReceptacleObject Mug_bar_1)
    (pickupable Mug_bar_1) (pickupable Mug_bar_2) (cleanable Mug_bar_2)
    (objectType Potato_bar_1 PotatoType) (pickupable Potato_bar_1) (cleanable Potato_bar_1) (coolable Potato_bar_1)
    (sliceable Potato_bar_1) (objectType Knife_bar_1 KnifeType) (pickupable Knife_bar_1)
    (inReceptacle Mug_bar_1 Fridge_bar_1) (objectAtLocation Mug_bar_1 loc_bar_1)
    (inReceptacle Mug_bar_2 CounterTop_bar_1) (objectAtLocation Mug_bar_2 loc_bar_4)
    (inReceptacle Potato_bar_1 CounterTop_bar_1) (objectAtLocation Potato_bar_1 loc_bar_4)
    (inReceptacle Knife_bar_1 CounterTop_bar_1) (objectAtLocation Knife_bar_1 loc_bar_4)
    (= (total-cost) 0))
(:goal (exists (?r - receptacle ?o - object) (and (inReceptacle ?o ?r) (objectType ?o PotatoType) (isCool ?o)
    (receptacleType ?r FridgeType)))))
"""
GRAMMAR = """"rhs": "Your task is to: cool some \\"potato\\" and put it in fridge."
"move {o} to {r}" You move the {o.name} to the {r.name}. You arrive at {r.name}."""
GO = tuple(f"go to {name} 1" for name in ("cabinet", "countertop", "fridge", "sinkbasin"))
ALWAYS = ("help", "inventory", "look")

# test_differential plays this against the official engine.
TRANSCRIPT = [
    ("look", "You are in the middle of a room. Looking quickly around you, you see nothing."),
    ("inventory", "You are not carrying anything."),
    (
        "go to countertop 1",
        "You arrive at countertop 1. On the countertop 1, you see a knife 1, a mug 1, and a potato 1.",
    ),
    ("go to countertop 1", "Nothing happens."),
    ("take knife 1 from countertop 1", "You pick up the knife 1 from the countertop 1."),
    ("take potato 1 from countertop 1", "Nothing happens."),
    ("slice potato 1 with knife 1", "You sliced the potato 1 with the knife 1."),
    ("examine knife 1", "There's nothing special about knife 1."),
    ("move knife 1 to countertop 1", "You move the knife 1 to the countertop 1."),
    ("take potato 1 from countertop 1", "You pick up the potato 1 from the countertop 1."),
    ("examine potato 1", "This is a sliced potato 1."),
    ("inventory", "You are carrying: a potato 1."),
    ("go to sinkbasin 1", "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing."),
    ("clean potato 1 with sinkbasin 1", "You clean the potato 1 using the sinkbasin 1."),
    ("examine potato 1", "This is a clean sliced potato 1."),
    ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
    ("cool potato 1 with fridge 1", "You cool the potato 1 using the fridge 1."),
    ("examine potato 1", "This is a cool and clean sliced potato 1."),
    ("move potato 1 to fridge 1", "Nothing happens."),
    ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see a mug 2."),
    ("look", "You are facing the fridge 1. Next to it, you see nothing."),
    ("move potato 1 to fridge 1", "You move the potato 1 to the fridge 1."),
]


@pytest.fixture
def kitchen(tmp_path):
    path = tmp_path / GAME_NAME
    path.write_text(json.dumps({"pddl_domain": "", "grammar": GRAMMAR, "pddl_problem": PROBLEM, "solvable": True}))
    return path


def test_transcript(kitchen):
    engine = NativeEngine()
    start = engine.load(kitchen)
    assert start.text == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a "
        "cabinet 1, a countertop 1, a fridge 1, and a sinkbasin 1.\n\n"
        'Your task is to: cool some "potato" and put it in fridge.'
    )
    assert start.admissible == (*GO, *ALWAYS)
    for command, answer in TRANSCRIPT:
        assert not engine.step("").won
        assert engine.step(command).text == answer, command
    end = engine.step("inventory")
    assert end.won and end.score == 1


def test_admissible_commands_at_a_receptacle(kitchen):
    engine = NativeEngine()
    engine.load(kitchen)
    engine.step("go to countertop 1")
    held = engine.step("take potato 1 from countertop 1").admissible
    assert held == (
        "examine countertop 1",
        "examine potato 1",
        *(command for command in GO if "countertop" not in command),
        *ALWAYS,
        "move potato 1 to countertop 1",
    )


@pytest.fixture(scope="module")
def engines(small_games):
    """Two engines, so that one can play what the other did."""
    return NativeEngine(), NativeEngine(), list_games(str(small_games), "train")


def snapshot(engine: NativeEngine) -> Mapping:
    """The engine's whole state, by value."""
    return {name: frozenset(facts) for name, facts in engine._state.facts.items()} | {"taken": set(engine._state.taken)}


commands = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(
            ["look ", "LOOK", "take mug 1", "go to", "open open", "use desklamp 1", "\x00", "go to fridge 1"]
        ),
        st.integers(min_value=0, max_value=200),  # an index into the admissible commands
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(game=st.integers(min_value=0, max_value=11), script=commands)
def test_any_commands_are_survived_and_repeatable(engines, game, script):
    first, second, games = engines
    turn = first.load(games[game])
    assert turn == second.load(games[game])
    for item in script:
        command = turn.admissible[item % len(turn.admissible)] if isinstance(item, int) else item
        before, admissible = snapshot(first), turn.admissible
        turn = first.step(command)
        assert turn == second.step(command)
        assert list(turn.admissible) == sorted(set(turn.admissible))
        if command.strip() not in admissible:
            assert turn.text == "Nothing happens." and turn.admissible == admissible and snapshot(first) == before
