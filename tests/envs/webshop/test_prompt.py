"""Prompts and action projection."""

import pytest

from envs.base import PromptView
from envs.webshop import project_action, render_prompt
from envs.webshop.environment import observe
from envs.webshop.pages import item_page, results_page, search_page, sub_page
from tests.envs.webshop.shelves import MUG, SHIRT, goal_of

TEXT = goal_of().text
SEARCH = observe(search_page(TEXT))
RESULTS = observe(results_page(TEXT, 1, 2, [(0, SHIRT), (1, MUG)]))
ITEM = observe(item_page(TEXT, SHIRT))
FEATURES = observe(sub_page(TEXT, SHIRT, "features"))


def view(observation, *history, index: int | None = None) -> PromptView:
    pairs = tuple((before.text, action) for before, action in history)
    return PromptView(TEXT, pairs, len(pairs) if index is None else index, observation.text, observation.admissible)


def test_full_prompt_with_history():
    shown = view(ITEM, (SEARCH, "search[shirt]"), (RESULTS, "click[b01shirt01]"), index=5)
    prompt = render_prompt(shown, style="full", episode_skill="EPISODE SKILL", step_skill="STEP SKILL")
    lines = prompt.splitlines()
    assert lines[lines.index(f"Task: {TEXT}") + 1] == "EPISODE SKILL"
    assert lines[-3] == "STEP SKILL"
    assert "Actions taken so far: 5. The latest 2:\nPage 4: WebShop [SEP] Search\nAction 4: search[shirt]\n" in prompt
    assert "Page 5: Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next > [SEP] B01SHIRT01 [SEP]" in prompt
    assert "Page 6 (now): Back to Search [SEP] < Prev [SEP] color [SEP] black [SEP]" in prompt
    assert all(f"\n- {action}\n" in prompt for action in ITEM.admissible)
    assert prompt.count(TEXT) == 1  # the instruction is not repeated with every page
    assert all(tag in lines[-1] for tag in ("<think> </think>", "<action> </action>"))


def test_full_prompt_without_history():
    prompt = render_prompt(view(SEARCH), style="full")
    assert "so far" not in prompt and "Page 1 (now): WebShop [SEP] Search" in prompt
    assert "Actions possible now:\n- search[<your query>]\n" in prompt


def test_a_long_prompt_leaves_out_its_history():
    long = view(SEARCH, *[(RESULTS, "search[" + "a" * 9000 + "]")] * 3)
    prompt = render_prompt(long, style="full")
    assert "so far" not in prompt and TEXT in prompt
    assert "so far" in render_prompt(view(SEARCH, *[(RESULTS, "search[a]")] * 3), style="full")


def test_compact_prompts():
    task = "task: find me long sleeve men's shirts with color: navy blue, and size: large, below $30"
    assert render_prompt(view(SEARCH), style="compact") == f"{task}\nsearch\nact:"
    shown = view(RESULTS, (SEARCH, "search[shirt]"))
    assert render_prompt(shown, style="compact", episode_skill="look twice", step_skill="buy").splitlines() == [
        task,
        "skill: look twice",
        "search > search[shirt]",
        "page 1",
        "b01shirt01 acme cotton shirt for men $20-$30",
        "b02mug0002 steel mug $8",
        "hint: buy",
        "act:",
    ]
    shown = view(ITEM, (RESULTS, "click[b01shirt01]"), (ITEM, "click[features]"), (FEATURES, "click[< prev]"))
    assert render_prompt(shown, style="compact").splitlines()[1:] == [
        "page 1 > click[b01shirt01]",
        "item > click[features]",
        "sub > click[< prev]",
        "item acme cotton shirt for men $20-$30",
        "color: black, navy blue",
        "size: 8 | 9, large",
        "act:",
    ]
    assert render_prompt(view(FEATURES), style="compact").splitlines()[1] == "sub machine wash only made of soft cotton"


def test_skills_are_all_that_differs():
    for style in ("full", "compact"):
        with_skills = render_prompt(view(ITEM), style=style, episode_skill="EPISODE SKILL", step_skill="STEP SKILL")
        plain = [line for line in render_prompt(view(ITEM), style=style).splitlines() if line]
        assert [line for line in with_skills.splitlines() if line and "SKILL" not in line] == plain


def test_unknown_style():
    with pytest.raises(ValueError, match="env.prompt_style='terse' .* full or compact"):
        render_prompt(view(SEARCH), style="terse")


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<think>x</think><action>search[Red Shoes]</action>", "search[red shoes]", True),
        ("<think></think><action> click[< Prev] </action>", "click[< prev]", True),
        ("<action>click[buy now]</action>", "click[buy now]", False),
        ("I would like to click on buy now", "like to click on buy now"[-20:], False),  # the last 20 characters
        ("<think>买</think><action>click[x]</action>", "click[x]", False),
    ],
)
def test_projection(response, action, valid):
    assert project_action(response) == (action, valid)
