"""How a page is shown to an agent, and how an action is read from its response."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from envs.base import PromptView
from envs.projection import project_tagged_action
from envs.prompt_style import renderer
from envs.webshop.facts import ITEM, SEARCH, SUB, PageFacts, parse_page, shown_parts
from envs.webshop.pages import SEPARATOR

MAX_CHARACTERS = 20_000  # a longer prompt leaves out its history
_FALLBACK_CHARACTERS = 20
_TITLE_WORDS = 8  # of a title in the compact style
_SUB_PAGE_WORDS = 24
_UPPER_PRICE = re.compile(r", and price lower than ([\d.]+?)(?:\.00)? dollars\Z")


def render_prompt(view: PromptView, *, style: str, episode_skill: str = "", step_skill: str = "") -> str:
    """The user message of one step.

    `style` is full (for language models: role, history, the page, what can be done, response format) or compact (a few
    terse lines with shortened titles, for models trained from scratch on this environment). The episode skill follows
    the task, the step skill comes right before the call to act.

    Raises:
        ValueError: an unknown style.
    """
    styles = {"full": _full, "compact": _compact}
    return renderer(styles, style, "WebShop")(view, episode_skill, step_skill)


def project_action(response: str) -> tuple[str, bool]:
    """The action in a response and whether the response has the required form; see `project_tagged_action`."""
    return project_tagged_action(response, _FALLBACK_CHARACTERS)


def _full(view: PromptView, episode_skill: str, step_skill: str) -> str:
    prompt = _with_history(view, view.history, episode_skill, step_skill)
    return prompt if len(prompt) <= MAX_CHARACTERS else _with_history(view, (), episode_skill, step_skill)


def _with_history(view: PromptView, history: Sequence[tuple[str, str]], episode_skill: str, step_skill: str) -> str:
    blocks = [
        "You shop in a web store through a text interface. Find a product that fits the task, choose the options that "
        "it asks for, and buy it. Parts of a page are separated by [SEP].",
        f"Task: {view.goal}" + (f"\n{episode_skill}" if episode_skill else ""),
    ]
    if history:
        lines = [
            f"Page {number}: {_page_text(observation)}\nAction {number}: {action}"
            for number, (observation, action) in enumerate(history, view.index - len(history) + 1)
        ]
        blocks.append(f"Actions taken so far: {view.index}. The latest {len(history)}:\n" + "\n".join(lines))
    blocks.append(f"Page {view.index + 1} (now): {_page_text(view.observation)}")
    blocks.append("Actions possible now:\n" + "\n".join(f"- {action}" for action in view.admissible))
    if step_skill:
        blocks.append(step_skill)
    blocks.append(
        "First reason about the task and the page inside <think> </think>. Then give exactly one of the possible "
        "actions inside <action> </action>, for a search with your own words in the brackets."
    )
    return "\n\n".join(blocks)


def _page_text(observation: str) -> str:
    return SEPARATOR.join(shown_parts(observation))


def _compact(view: PromptView, episode_skill: str, step_skill: str) -> str:
    lines = ["task: " + _UPPER_PRICE.sub(r", below $\1", view.goal.lower())]
    if episode_skill:
        lines.append(f"skill: {episode_skill}")
    lines += [f"{_page_name(observation)} > {action}" for observation, action in view.history]
    lines += _page_lines(parse_page(view.observation, view.admissible))
    if step_skill:
        lines.append(f"hint: {step_skill}")
    return "\n".join([*lines, "act:"])


def _page_name(observation: str) -> str:
    """What a page of the history was: its kind is all that a later step needs of it."""
    parts = shown_parts(observation)
    if parts[0] == "WebShop":
        return SEARCH
    if parts[1:2] and parts[1].startswith("Page "):
        return " ".join(parts[1].lower().split()[:2])
    return ITEM if parts[-1] == "Buy Now" else SUB


def _page_lines(page: PageFacts) -> list[str]:
    match page.kind:
        case "results":
            hits = [f"{hit.asin} {_shortened(hit.title)} {_dollars(hit.low, hit.high)}" for hit in page.hits]
            return [f"page {page.number}", *hits]
        case "item":
            options = [f"{name}: {', '.join(values)}" for name, values in page.options.items()]
            return [f"{ITEM} {_shortened(page.title)} {_dollars(page.low, page.high)}", *options]
        case "sub":
            return [" ".join([SUB, *" ".join(page.parts).lower().split()[:_SUB_PAGE_WORDS]])]
    return [page.kind]


def _shortened(title: str) -> str:
    return " ".join(title.lower().split()[:_TITLE_WORDS])


def _dollars(low: float, high: float) -> str:
    """Prices rounded up to whole dollars."""
    numbers = dict.fromkeys((math.ceil(low), math.ceil(high)))
    return "-".join(f"${number}" for number in numbers)
