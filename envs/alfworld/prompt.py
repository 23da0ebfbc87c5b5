"""How a step is shown to an agent, and how an action is read from its response."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.alfworld.facts import held_object
from envs.alfworld.games import TASK_PREFIX
from envs.alfworld.text import BANNER
from envs.base import PromptView
from envs.projection import project_tagged_action
from envs.prompt_style import renderer

_TASK_SENTENCE = re.compile(rf"\n\n{TASK_PREFIX}.*\Z", re.DOTALL)
_FALLBACK_CHARACTERS = 30
# Of no use to a small model: they tell nothing that the prompt does not show.
_COMPACT_OMITS = ("help", "inventory", "look", "examine")


def render_prompt(view: PromptView, *, style: str, episode_skill: str = "", step_skill: str = "") -> str:
    """The user message of one step.

    `style` is full (for language models: role, history, admissible actions, response format) or compact (a few terse
    lines, for models trained from scratch on this environment). The episode skill follows the task line, the step skill
    comes right before the call to act.

    Raises:
        ValueError: an unknown style.
    """
    styles = {"full": _full, "compact": _compact}
    return renderer(styles, style, "ALFWorld")(view, episode_skill, step_skill)


def project_action(response: str) -> tuple[str, bool]:
    """The action in a response and whether the response has the required form; see `project_tagged_action`."""
    return project_tagged_action(response, _FALLBACK_CHARACTERS)


def _full(view: PromptView, episode_skill: str, step_skill: str) -> str:
    blocks = [
        "You control a household robot through a text interface. Each turn you choose one action.",
        f"Task: {view.goal}" + (f"\n{episode_skill}" if episode_skill else ""),
    ]
    if view.history:
        first = view.index - len(view.history) + 1
        lines = [
            f"Observation {number}: {_plain(observation)}\nAction {number}: {action}"
            for number, (observation, action) in enumerate(view.history, first)
        ]
        blocks.append(f"Actions taken so far: {view.index}. The latest {len(lines)}:\n" + "\n".join(lines))
    blocks.append(f"Observation {view.index + 1} (now): {_plain(view.observation)}")
    actions = "\n".join(f"- {action}" for action in view.admissible if action != "help")
    blocks.append(f"Actions possible now:\n{actions}")
    if step_skill:
        blocks.append(step_skill)
    blocks.append(
        "First reason about the state of the task and what to do next inside <think> </think>. Then give exactly one "
        "of the possible actions, word for word, inside <action> </action>."
    )
    return "\n\n".join(blocks)


def _compact(view: PromptView, episode_skill: str, step_skill: str) -> str:
    lines = [f"task: {view.goal}"]
    if episode_skill:
        lines.append(f"skill: {episode_skill}")
    lines += [f"{_terse(observation)} > {action}" for observation, action in view.history]
    lines.append(_terse(view.observation))
    held = held_object(view.admissible)
    if held:
        lines.append(f"holding: {held}")
    lines.append(_terse_actions(view.admissible))
    if step_skill:
        lines.append(f"hint: {step_skill}")
    return "\n".join([*lines, "act:"])


def _terse_actions(admissible: Sequence[str]) -> str:
    """The actions, the places to go to under one verb: `open fridge 1, go to bed 1, desk 1`."""
    useful = [action for action in admissible if action.split()[0] not in _COMPACT_OMITS]
    places = [action.removeprefix("go to ") for action in useful if action.startswith("go to ")]
    others = [action for action in useful if not action.startswith("go to ")]
    return ", ".join(others + (["go to " + ", ".join(places)] if places else []))


def _plain(observation: str) -> str:
    """The observation without the first one's banner and task sentence, which the prompt shows elsewhere."""
    return _TASK_SENTENCE.sub("", observation.removeprefix(BANNER)).strip()


_TERSE_FORMS = (
    (re.compile(r"You are in the middle of a room\..*", re.DOTALL), "start"),
    (re.compile(r"Available commands:.*", re.DOTALL), "help"),
    (re.compile(r"You arrive at [^.]*\. "), ""),
    (re.compile(r"You open the [^.]*\. "), ""),
    (re.compile(r"The ([^.]*) is open\. In it, you see ([^.]*)\."), r"\1: \2"),
    (re.compile(r"On the ([^,.]*), you see ([^.]*)\."), r"\1: \2"),
    (re.compile(r"The ([^.]*) is closed\."), r"\1: closed"),
    (re.compile(r"\b(?:and )?a (?=\w+ \d)"), ""),
    (re.compile(r"You | the(?= )|\.\Z"), ""),
)


def _terse(observation: str) -> str:
    """The observation in a few words, such as `cabinet 1: mug 2, plate 1`."""
    text = _plain(observation)
    for pattern, replacement in _TERSE_FORMS:
        text = pattern.sub(replacement, text)
    return text.lower()
