"""Rules on hand-made episodes in the game's own texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envs.base import Task
from megatron_opid.config import SkillsConfig
from megatron_opid.skills.alfworld_rules import alfworld_skills
from megatron_opid.skills.analyzer import make_analyzer
from rollout.trajectory import Trajectory
from tests.skills.episodes import make_step

ROOM = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
    "a cabinet 2, a cabinet 1, a desk 1, a fridge 1, a shelf 2, a shelf 1, and a sinkbasin 1."
)
PLACES = ("cabinet 1", "cabinet 2", "desk 1", "fridge 1", "shelf 1", "shelf 2", "sinkbasin 1")
NOTHING = "Nothing happens."


def episode(goal: str, *turns: tuple[str, str, str], success: bool = False) -> Trajectory:
    """`turns`: (observation, other admissible commands joined by |, action). Going anywhere is always admissible."""
    steps = tuple(
        make_step(observation, action, admissible=[f"go to {place}" for place in PLACES] + commands.split("|"))
        for observation, commands, action in turns
    )
    task = Task("alfworld", 0, 0, "train")
    return Trajectory(task, "u", "g", goal, "", steps, success, 10.0 * success)


def won_clean(goal: str = "put a clean mug in shelf") -> Trajectory:
    return episode(
        goal,
        (ROOM, "", "go to desk 1"),
        ("You arrive at desk 1. On the desk 1, you see a pen 1, and a pen 2.", "examine desk 1", "go to cabinet 2"),
        ("You arrive at cabinet 2. The cabinet 2 is closed.", "open cabinet 2", "open cabinet 2"),
        (
            "You open the cabinet 2. The cabinet 2 is open. In it, you see a mug 1.",
            "take mug 1 from cabinet 2",
            "take mug 1 from cabinet 2",
        ),
        ("You pick up the mug 1 from the cabinet 2.", "move mug 1 to cabinet 2", "go to sinkbasin 1"),
        (
            "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.",
            "clean mug 1 with sinkbasin 1|move mug 1 to sinkbasin 1",
            "clean mug 1 with sinkbasin 1",
        ),
        ("You clean the mug 1 using the sinkbasin 1.", "clean mug 1 with sinkbasin 1", "go to shelf 2"),
        ("You arrive at shelf 2. On the shelf 2, you see nothing.", "move mug 1 to shelf 2", "move mug 1 to shelf 2"),
        success=True,
    )


@pytest.mark.parametrize("goal", ["put a clean mug in shelf", "clean some mug and put it in shelf."])
def test_a_win_gives_its_workflow(goal: str):
    skills = alfworld_skills(won_clean(goal), True, 5)
    assert skills.episode == ("find mug . then clean mug 1 with sinkbasin 1 . then move mug 1 to shelf 2 .")
    assert skills.steps == {
        3: "now take mug 1 from cabinet 2 .",
        5: "now clean mug 1 with sinkbasin 1 .",
        7: "now move mug 1 to shelf 2 .",
    }


def test_class_names_for_what_was_never_seen():
    lost = episode(
        "put a hot mug in shelf",
        (ROOM, "", "go to desk 1"),
        ("You arrive at desk 1. On the desk 1, you see a pen 1.", "", "go to cabinet 1"),
        ("You arrive at cabinet 1. The cabinet 1 is closed.", "open cabinet 1", "go to shelf 1"),
        ("You arrive at shelf 1. On the shelf 1, you see a cup 1.", "", "go to desk 1"),
    )
    skills = alfworld_skills(lost, False, 5)
    assert skills.episode == ("find mug . then heat mug with microwave . then move mug to shelf 1 .")
    assert skills.steps == {}  # searching in another order is no mistake


def test_each_mistake_names_the_command_that_was_right_with_what_was_known():
    desk = "You arrive at desk 1. On the desk 1, you see a mug 1, and a pen 1."
    lost = episode(
        "put a cool mug in shelf",
        (ROOM, "", "take mug 1 from desk 1"),  # 0 impossible, and nothing is known yet: search
        (NOTHING, "", "go to desk 1"),
        (
            desk,
            "take mug 1 from desk 1|take pen 1 from desk 1",
            "take pen 1 from desk 1",
        ),  # 2 target visible, not taken
        (
            "You pick up the pen 1 from the desk 1.",
            "move pen 1 to desk 1",
            "go to shelf 1",
        ),  # 3 the wrong thing in hand
        (
            "You arrive at shelf 1. On the shelf 1, you see nothing.",
            "move pen 1 to shelf 1",
            "move pen 1 to shelf 1",
        ),
        ("You move the pen 1 to the shelf 1.", "", "go to desk 1"),
        (
            "You arrive at desk 1. On the desk 1, you see a mug 1.",
            "take mug 1 from desk 1",
            "take mug 1 from desk 1",
        ),
        ("You pick up the mug 1 from the desk 1.", "move mug 1 to desk 1", "go to shelf 1"),  # 7 processing forgotten
        ("You arrive at shelf 1. On the shelf 1, you see a pen 1.", "move mug 1 to shelf 1", "go to fridge 1"),
        ("You arrive at fridge 1. The fridge 1 is closed.", "cool mug 1 with fridge 1", "cool mug 1 with fridge 1"),
        ("You cool the mug 1 using the fridge 1.", "open fridge 1", "go to cabinet 1"),  # 10 the wrong place
    )
    skills = alfworld_skills(lost, False, 9)
    assert skills.episode == "find mug . then cool mug 1 with fridge 1 . then move mug 1 to shelf 1 ."
    assert skills.steps == {
        0: "now go to cabinet 1 .",
        2: "now take mug 1 from desk 1 .",
        3: "now move pen 1 to desk 1 .",
        7: "now go to fridge 1 .",
        10: "now go to shelf 1 .",
    }
    assert list(alfworld_skills(lost, False, 2).steps) == [2, 3]  # missed chances go first
    assert alfworld_skills(lost, False, 0).steps == {}


def test_a_loop_does_not_take_all_step_skills():
    closed = "You arrive at cabinet 1. The cabinet 1 is closed."
    opened = "You open the cabinet 1. The cabinet 1 is open. In it, you see a mug 1."
    lost = episode(
        "put a mug in shelf",
        (closed, "open cabinet 1", "take mug 1 from cabinet 1"),
        *[(NOTHING, "open cabinet 1", "take mug 1 from cabinet 1")] * 8,
        (NOTHING, "open cabinet 1", "open cabinet 1"),
        (opened, "take mug 1 from cabinet 1", "look"),
    )
    assert alfworld_skills(lost, False, 3).steps == {
        0: "now open cabinet 1 .",
        1: "now open cabinet 1 .",
        10: "now take mug 1 from cabinet 1 .",
    }


def test_two_objects():
    turns = [(ROOM, "", "go to desk 1")]
    for number, on_shelf in ((1, "nothing"), (2, "a pen 1")):
        turns += [
            (
                f"You arrive at desk 1. On the desk 1, you see a pen {number}.",
                f"take pen {number} from desk 1",
                f"take pen {number} from desk 1",
            ),
            (f"You pick up the pen {number} from the desk 1.", f"move pen {number} to desk 1", "go to shelf 1"),
            (
                f"You arrive at shelf 1. On the shelf 1, you see {on_shelf}.",
                f"move pen {number} to shelf 1",
                f"move pen {number} to shelf 1",
            ),
            (f"You move the pen {number} to the shelf 1.", "", "go to desk 1"),
        ]
    won = episode("find two pen and put them in shelf", *turns[:-1], success=True)
    both = "find pen . then move pen 1 to shelf 1 . then move pen 2 to shelf 1 ."
    assert alfworld_skills(won, True, 5).episode == both
    half = replace(won, steps=won.steps[:5], success=False)
    assert alfworld_skills(half, False, 5).episode == (
        "find pen . then move pen 1 to shelf 1 . then move pen to shelf 1 ."
    )


def test_lamp():
    won = episode(
        "look at pen under the desklamp",
        (ROOM, "", "go to shelf 1"),
        ("You arrive at shelf 1. On the shelf 1, you see a desklamp 1.", "use desklamp 1", "go to desk 1"),
        ("You arrive at desk 1. On the desk 1, you see a pen 1.", "take pen 1 from desk 1", "take pen 1 from desk 1"),
        ("You pick up the pen 1 from the desk 1.", "move pen 1 to desk 1", "go to shelf 1"),
        ("You arrive at shelf 1. On the shelf 1, you see a desklamp 1.", "use desklamp 1", "use desklamp 1"),
        success=True,
    )
    skills = alfworld_skills(won, True, 5)
    assert skills.episode == "find pen . then use desklamp 1 ."
    assert skills.steps == {2: "now take pen 1 from desk 1 .", 4: "now use desklamp 1 ."}


def test_malformed_answers_are_critical_even_if_the_command_was_good():
    won = won_clean()
    steps = tuple(replace(step, valid=index != 1) for index, step in enumerate(won.steps))
    assert alfworld_skills(replace(won, steps=steps), True, 9).steps[1] == "now go to cabinet 2 ."


async def test_what_the_rules_do_not_understand_is_counted():
    analyzer = make_analyzer(SkillsConfig(analyzer="rules"), "alfworld", seed=0, max_prompt_tokens=1)
    assert await analyzer.analyze(won_clean()) is not None
    assert await analyzer.analyze(won_clean("tidy up my kitchen, please")) is None
    counters = analyzer.counters()
    assert (counters["analyses"], counters["failures_rules"], counters["failures"]) == (2, 1, 1)
