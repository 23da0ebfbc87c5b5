"""Prompts and action projection."""

import pytest

from envs.alfworld import project_action, render_prompt
from envs.base import PromptView

INTRO = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a "
    "desk 1, and a drawer 1.\n\nYour task is to: put two pen in desk."
)
VIEW = PromptView(
    goal="put two pen in desk",
    history=(
        ("You arrive at drawer 1. The drawer 1 is closed.", "open drawer 1"),
        (
            "You open the drawer 1. The drawer 1 is open. In it, you see a book 2, and a pen 1.",
            "take pen 1 from drawer 1",
        ),
    ),
    index=7,
    observation="You pick up the pen 1 from the drawer 1.",
    admissible=("close drawer 1", "examine drawer 1", "examine pen 1", "go to desk 1", "help", "inventory", "look"),
)


def test_full_prompt():
    prompt = render_prompt(VIEW, style="full", episode_skill="EPISODE SKILL", step_skill="STEP SKILL")
    lines = prompt.splitlines()
    assert lines[lines.index("Task: put two pen in desk") + 1] == "EPISODE SKILL"
    assert lines[-3] == "STEP SKILL"
    assert "Observation 6: You arrive at drawer 1. The drawer 1 is closed.\nAction 6: open drawer 1" in prompt
    assert "Action 7: take pen 1 from drawer 1" in prompt
    assert "Observation 8 (now): You pick up the pen 1 from the drawer 1." in prompt
    assert "- close drawer 1\n" in prompt and "- inventory\n" in prompt and "- help" not in prompt
    assert all(tag in lines[-1] for tag in ("<think> </think>", "<action> </action>"))


def test_skills_are_all_that_differs():
    for style in ("full", "compact"):
        with_skills = render_prompt(VIEW, style=style, episode_skill="EPISODE SKILL", step_skill="STEP SKILL")
        plain = [line for line in render_prompt(VIEW, style=style).splitlines() if line]
        assert [line for line in with_skills.splitlines() if line and "SKILL" not in line] == plain


def test_compact_prompt():
    assert render_prompt(VIEW, style="compact", episode_skill="find pens", step_skill="go to desk 1").splitlines() == [
        "task: put two pen in desk",
        "skill: find pens",
        "drawer 1: closed > open drawer 1",
        "drawer 1: book 2, pen 1 > take pen 1 from drawer 1",
        "pick up pen 1 from drawer 1",
        "holding: pen 1",
        "close drawer 1, go to desk 1",
        "hint: go to desk 1",
        "act:",
    ]


def test_first_observation_is_shown_without_banner_and_task_sentence():
    view = PromptView("put two pen in desk", (), 0, INTRO, ("go to desk 1", "go to drawer 1"))
    full, compact = render_prompt(view, style="full"), render_prompt(view, style="compact")
    assert "Observation 1 (now): You are in the middle of a room." in full
    assert "TextWorld" not in full and "Your task is to" not in full and "so far" not in full
    assert compact == "task: put two pen in desk\nstart\ngo to desk 1, drawer 1\nact:"


def test_unknown_style():
    with pytest.raises(ValueError, match="env.prompt_style='terse' .* full or compact"):
        render_prompt(VIEW, style="terse")


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<think>x</think><action>go to desk 1</action>", "go to desk 1", True),
        ("<action> Go To Desk 1\n</action> and <think></think>", "go to desk 1", True),
        ("<think></think><ACTION>look</ACTION>", "look", True),
        ("<Think>x</Think><action>look</action>", "look", False),  # think tags count in lower case only
        ("<action>look</action>", "look", False),
        ("<think>x<action>look</action>", "look", False),
        ("<think>x</think><action>a</action><action>b</action>", "a", True),
        ("<think>x</think></action><action>look", "", True),
        ("<think>x</think><action>fly to the moon</action>", "fly to the moon", True),
        ("<think>看</think><action>look</action>", "look", False),
        ("<think></think>I would rather GO TO THE DESK with number 1", "r go to the desk with number 1", False),
        ("look", "look", False),
        ("", "", False),
        ("<think></think><action>look", "<think></think><action>look", False),
    ],
)
def test_projection(response, action, valid):
    assert project_action(response) == (action, valid)
