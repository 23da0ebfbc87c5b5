"""What an agent sees, and how its response is read."""

from __future__ import annotations

import json

import pytest

from envs.base import PromptView
from envs.search.answers import is_exact_match, normalize
from envs.search.prompt import documents_of, information, parse_action, project_action, render_prompt


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<think>hm</think> <search> who is x </search>", "<search>who is x</search>", True),
        ("<search>who is x</search>", "<search>who is x</search>", True),
        ("<ANSWER>x</Answer> and more", "<answer>x</answer>", True),
        ("<search>a\nb</search>", "<search>a\nb</search>", True),
        ("no tags", "", False),
        ("", "", False),
        ("<search>open", "", False),
        ("</search>", "", False),
        ("<search>a</search><search>b</search>", "<search>a</search>", False),
        ("<search>a</search> <answer>b</answer>", "<search>a</search>", False),
        ("<answer>b</answer> <search>a</search>", "<answer>b</answer>", False),
        ("<answer>b</answer> </answer>", "<answer>b</answer>", False),
        ("<search>a</search> then <answer>", "<search>a</search>", False),
    ],
)
def test_projection(response: str, action: str, valid: bool) -> None:
    assert project_action(response) == (action, valid)


def test_actions_are_read_back() -> None:
    assert parse_action("<search>x y</search>") == ("search", "x y")
    assert parse_action("<answer>x <b></answer>") == ("answer", "x <b>")
    for other in ("", "x", "x <search>y</search>", "<search>y</search> x"):
        assert parse_action(other) == ("", "")


def test_information_is_the_published_form() -> None:
    text = information(['"Paris"\nIs a "city".', '"Rome"\nToo.'])
    assert text.startswith("<information>") and text.endswith("</information>")
    inner = text.removeprefix("<information>").removesuffix("</information>")
    assert json.loads(inner) == {"result": 'Doc 1: "Paris"\nIs a "city".\nDoc 2: "Rome"\nToo.'}
    assert documents_of(text) == [("Paris", 'Is a "city".'), ("Rome", "Too.")]
    assert documents_of(information([])) == documents_of("") == documents_of("<information>{</information>") == []


def test_full_prompt_with_and_without_history() -> None:
    first = render_prompt(
        PromptView("Who?", (), 0, "Who?", ()), style="full", episode_skill="EPISODE", step_skill="STEP"
    )
    assert "Question: Who?\nEPISODE\n" in first and first.endswith("STEP") and "Steps taken" not in first
    history = (("<information>1</information>", "<search>b</search>"), ("", "<search>c</search>"))
    text = render_prompt(PromptView("Who?", history, 3, "<information>3</information>", ()), style="full")
    # Each step is shown with what it brought, numbered from the start of the episode.
    assert "Step 2: <search>b</search> \nStep 3: <search>c</search> <information>3</information>" in text
    assert "Steps taken so far: 3. The latest 2:" in text


def test_compact_prompt() -> None:
    history = (("Who?", "<search>a</search>"), (information(['"A"\nA is b.']), ""))
    view = PromptView("Who?", history, 2, "", ())
    assert render_prompt(view, style="compact", episode_skill="E", step_skill="S").splitlines() == [
        "question: Who?", "skill: E", "search a", "- A is b.", "nothing", "hint: S", "act:",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="full or compact"):
        render_prompt(view, style="terse")


def test_exact_match() -> None:
    assert normalize("The  U.S.A., an Apple!") == "usa apple"
    assert is_exact_match("the beatles", ["Queen", "Beatles"])
    assert not is_exact_match("theatre", ["atre"])
    assert not is_exact_match("", ["x"])
