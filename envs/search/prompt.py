"""How a step is shown to an agent, how an action is read from its response, and how results are worded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from envs.base import PromptView
from envs.prompt_style import renderer

_SEARCH = re.compile(r"<search>(.*?)</search>", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_CLOSING = re.compile(r"</(?:search|answer)>", re.IGNORECASE)
# What a document must not say: it could be taken for the agent's own words, or end its frame.
_FRAME_TAGS = re.compile(r"<(/?(?:search|answer|information|think))>", re.IGNORECASE)


def render_prompt(view: PromptView, *, style: str, episode_skill: str = "", step_skill: str = "") -> str:
    """The user message of one step.

    `style` is full (for language models: role, history, response format) or compact (a few terse lines, for models
    trained from scratch on this environment). The episode skill follows the question, the step skill comes right before
    the call to act.

    Raises:
        ValueError: an unknown style.
    """
    styles = {"full": _full, "compact": _compact}
    return renderer(styles, style, "search")(view, episode_skill, step_skill)


def project_action(response: str) -> tuple[str, bool]:
    """The action in a response, and whether the response has the required form.

    The action is the first <search>...</search>, else the first <answer>...</answer>, else "", in what stands before
    the end of the first closing tag. Valid means that there is one, that the whole response has only one of the two
    kinds of tags, and none of them twice. Case does not matter in tags; <think> is not required.
    """
    end = _CLOSING.search(response)
    head = response[: end.end()] if end else response
    if match := _SEARCH.search(head):
        action = search_action(match[1].strip())
    elif match := _ANSWER.search(head):
        action = answer_action(match[1].strip())
    else:
        return "", False
    counts = {tag: response.lower().count(tag) for tag in ("<search>", "</search>", "<answer>", "</answer>")}
    has_both = counts["<search>"] + counts["</search>"] > 0 and counts["<answer>"] + counts["</answer>"] > 0
    return action, not has_both and max(counts.values()) == 1


def search_action(query: str) -> str:
    return f"<search>{query}</search>"


def answer_action(answer: str) -> str:
    return f"<answer>{answer}</answer>"


def parse_action(action: str) -> tuple[str, str]:
    """("search", query), ("answer", text) or ("", "") for anything else; the inverse of the two above."""
    for kind, pattern in (("search", _SEARCH), ("answer", _ANSWER)):
        if match := pattern.fullmatch(action):
            return kind, match[1].strip()
    return "", ""


def information(contents: Sequence[str]) -> str:
    """The observation after a search: the documents numbered from 1, as JSON between information tags.

    Tags of the dialogue inside a document lose their angle brackets, so no document can give an answer.
    """
    documents = "\n".join(f"Doc {number}: {text}" for number, text in enumerate(contents, 1))
    harmless = _FRAME_TAGS.sub(r"[\1]", documents)
    return f"<information>{json.dumps({'result': harmless})}</information>"


def documents_of(observation: str) -> list[tuple[str, str]]:
    """(title, text) of the documents in an observation; the inverse of `information`, [] for other observations."""
    match = re.fullmatch(r"<information>(.*)</information>", observation, re.DOTALL)
    if match is None:
        return []
    try:
        result = json.loads(match[1])["result"]
    except (ValueError, KeyError, TypeError):
        return []
    parts = re.split(r"(?:\A|\n)Doc \d+: ", result)[1:]
    return [(title.strip().strip('"'), text) for title, _, text in (part.partition("\n") for part in parts)]


def _turns(view: PromptView) -> list[tuple[str, str]]:
    """The (action, what it brought) pairs that the prompt shows, oldest first."""
    observations = [*(observation for observation, _ in view.history), view.observation][1:]
    return [(action, brought) for (_, action), brought in zip(view.history, observations, strict=True)]


def _full(view: PromptView, episode_skill: str, step_skill: str) -> str:
    blocks = [
        "You answer a question with the help of a search engine. Each turn you either search or answer.",
        f"Question: {view.goal}" + (f"\n{episode_skill}" if episode_skill else ""),
    ]
    if view.history:
        first = view.index - len(view.history) + 1
        lines = [f"Step {number}: {action} {brought}" for number, (action, brought) in enumerate(_turns(view), first)]
        blocks.append(f"Steps taken so far: {view.index}. The latest {len(lines)}:\n" + "\n".join(lines))
    blocks.append(
        "First reason about what is known and what is missing inside <think> </think>. Then do exactly one of these:\n"
        "- if something is missing, write a query for the search engine: <search> query </search>; what it finds will "
        "be given to you inside <information> </information>\n"
        "- if you know enough, write the answer in a few words, without explanation: <answer> answer </answer>"
    )
    if step_skill:
        blocks.append(step_skill)
    return "\n\n".join(blocks)


def _compact(view: PromptView, episode_skill: str, step_skill: str) -> str:
    lines = [f"question: {view.goal}"]
    if episode_skill:
        lines.append(f"skill: {episode_skill}")
    for action, brought in _turns(view):
        kind, words = parse_action(action)
        lines.append(f"{kind} {words}".strip() or "nothing")
        lines += [f"- {text}" for _, text in documents_of(brought)]
    if step_skill:
        lines.append(f"hint: {step_skill}")
    return "\n".join([*lines, "act:"])
