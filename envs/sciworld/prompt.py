"""How a step is shown to an agent, and how an action is read from its response."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from envs.base import PromptView
from envs.projection import project_tagged_action
from envs.prompt_style import renderer
from envs.sciworld.facts import entered, read_room

_FALLBACK_CHARACTERS = 30
_NEVER_NAMED = ("agent", "air")
_FILLER = re.compile(r"\b(?:You|the|an?) ")
# What the simulator's templates leave unsaid.
_WORDINGS = {
    "go OBJ": "go to OBJ",
    "teleport OBJ": "teleport to OBJ",
    "wait": "wait (for 10 moves)",
    "wait1": "wait1 (for 1 move)",
    "task": "task (read the task again)",
}


def render_prompt(view: PromptView, *, style: str, episode_skill: str = "", step_skill: str = "") -> str:
    """The user message of one step.

    `style` is full (for language models: role, history, templates of actions, names of objects, response format) or
    compact (a few terse lines, for models trained from scratch on this environment). The episode skill follows the task
    line, the step skill comes right before the call to act.

    Raises:
        ValueError: an unknown style.
    """
    styles = {"full": _full, "compact": _compact}
    return renderer(styles, style, "ScienceWorld")(view, episode_skill, step_skill)


def project_action(response: str) -> tuple[str, bool]:
    """The action in a response and whether the response has the required form; see `project_tagged_action`."""
    return project_tagged_action(response, _FALLBACK_CHARACTERS)


def _full(view: PromptView, episode_skill: str, step_skill: str) -> str:
    blocks = [
        "You carry out science experiments in a simulated house with its surroundings, through a text interface. Each "
        "turn you choose one action. Some tasks end at once, without success, if you focus on the wrong thing.",
        f"Task: {view.goal}" + (f"\n{episode_skill}" if episode_skill else ""),
    ]
    if view.history:
        first = view.index - len(view.history) + 1
        lines = [
            f"Observation {number}: {observation.strip()}\nAction {number}: {action}"
            for number, (observation, action) in enumerate(view.history, first)
        ]
        blocks.append(f"Actions taken so far: {view.index}. The latest {len(lines)}:\n" + "\n".join(lines))
    blocks += [f"Observation {view.index + 1} (now): {view.observation.strip()}", _choices(view)]
    if step_skill:
        blocks.append(step_skill)
    blocks.append(
        "First reason about the state of the task and what to do next inside <think> </think>. Then give exactly one "
        "action inside <action> </action>."
    )
    return "\n\n".join(blocks)


def _choices(view: PromptView) -> str:
    if view.admissible:
        return "Answer with the number of what you mean: " + ", ".join(view.admissible)
    templates = "\n".join(f"- {_WORDINGS.get(template, template)}" for template in _kind(view.affordances, "templates"))
    objects = ", ".join(_kind(view.affordances, "objects"))
    return (
        f"Forms of actions, where OBJ stands for the name of an object:\n{templates}\n\n"
        f"Names of objects here: {objects}\nExample: <action>open door to kitchen</action>"
    )


def _compact(view: PromptView, episode_skill: str, step_skill: str) -> str:
    lines = [f"task: {view.goal.removeprefix('Your task is to ')}"]
    if episode_skill:
        lines.append(f"skill: {episode_skill}")
    lines += [f"{terse(observation)} > {action}" for observation, action in view.history]
    lines.append(terse(view.observation))
    names = view.admissible or _kind(view.affordances, "objects")
    lines.append("names: " + ", ".join(name for name in names if name not in _NEVER_NAMED))
    if step_skill:
        lines.append(f"hint: {step_skill}")
    return "\n".join([*lines, "act:"])


def terse(observation: str) -> str:
    """The observation in a few words, such as `kitchen: chair, lighter; exits hallway, outside`."""
    room = read_room(observation)
    if room is not None:
        return f"{room.name}: {', '.join(room.items)}; exits {', '.join(room.exits)}".lower()
    place = entered(observation)
    if place:
        return f"at {place}".lower()
    return " ".join(_FILLER.sub("", observation).split()).rstrip(".").lower()


def _kind(affordances: Mapping[str, Sequence[str]], kind: str) -> Sequence[str]:
    return affordances.get(kind, ())
