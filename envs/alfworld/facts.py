"""What an episode's texts tell: the goal's parts, where things were seen, and what was done to them.

Everything here is read from goals, observations and actions; nothing asks the simulator. For analyzers and experts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from envs.alfworld.rooms import catalogue
from envs.alfworld.text import NOTHING_HAPPENS

_NAME = r"[a-z]+ \d+"
_GOALS = (
    (re.compile(r"put (?:a|some) (?P<target>\w+) (?:in|on) (?P<destination>\w+)"), ""),
    (re.compile(r"put a clean (?P<target>\w+) (?:in|on) (?P<destination>\w+)"), "clean"),
    (re.compile(r"clean some (?P<target>\w+) and put it (?:in|on) (?P<destination>\w+)"), "clean"),
    (re.compile(r"put a hot (?P<target>\w+) (?:in|on) (?P<destination>\w+)"), "heat"),
    (re.compile(r"heat some (?P<target>\w+) and put it (?:in|on) (?P<destination>\w+)"), "heat"),
    (re.compile(r"put a cool (?P<target>\w+) (?:in|on) (?P<destination>\w+)"), "cool"),
    (re.compile(r"cool some (?P<target>\w+) and put it (?:in|on) (?P<destination>\w+)"), "cool"),
    (re.compile(r"put two (?P<target>\w+) (?:in|on) (?P<destination>\w+)"), "two"),
    (re.compile(r"find two (?P<target>\w+) and put them (?:in|on) (?P<destination>\w+)"), "two"),
    (re.compile(r"look at (?P<target>\w+) under the (?P<lamp>\w+)"), "look"),
    (re.compile(r"examine the (?P<target>\w+) with the (?P<lamp>\w+)"), "look"),
)


@dataclass(frozen=True)
class GoalParts:
    """What a goal asks for, in class names such as `mug` and `shelf`.

    `processing` is clean, heat, cool or empty; `destination` is empty and `lamp` set when the object is to be looked at
    under a lamp; `count` objects of class `target` are needed.
    """

    target: str
    destination: str = ""
    processing: str = ""
    lamp: str = ""
    count: int = 1


@dataclass(frozen=True)
class Sighting:
    """What an observation says about one receptacle: closed, or holding `contents` (object names)."""

    receptacle: str
    closed: bool
    contents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """A change that action number `index` (0-based) made.

    `kind` is take, move, open, close, clean, heat, cool, use or slice; the others are names, or empty.
    """

    index: int
    kind: str
    object: str = ""
    receptacle: str = ""


@dataclass(frozen=True)
class EpisodeFacts:
    """What an episode showed.

    `sightings` pairs each sighting with the index of the step at which the agent read it (the step's own observation).
    `ineffective` are the steps whose action was answered by "Nothing happens.".
    """

    sightings: tuple[tuple[int, Sighting], ...]
    events: tuple[Event, ...]
    ineffective: tuple[int, ...]


def parse_goal(goal: str) -> GoalParts | None:
    """The parts of a templated goal, or None for one in free words (a person's annotation)."""
    for pattern, kind in _GOALS:
        found = pattern.fullmatch(goal.strip().rstrip(".").lower())
        if found:
            names = found.groupdict()
            return GoalParts(
                target=names["target"],
                destination=names.get("destination", ""),
                processing=kind if kind in ("clean", "heat", "cool") else "",
                lamp=names.get("lamp", ""),
                count=2 if kind == "two" else 1,
            )
    return None


def class_of(name: str) -> str:
    """The class of a named thing: `mug` for `mug 1`."""
    return name.rsplit(" ", 1)[0]


def parse_sighting(observation: str) -> Sighting | None:
    """What the observation says about a receptacle's contents, or None if it says nothing of the kind."""
    found = re.search(rf"(?:On the ({_NAME}), you see|The ({_NAME}) is open\. In it, you see) ([^.]*)\.", observation)
    if found:
        return Sighting(found[1] or found[2], closed=False, contents=_names(found[3]))
    found = re.search(rf"The ({_NAME}) is closed\.", observation)
    return Sighting(found[1], closed=True) if found else None


def parse_admissible_receptacles(admissible: Sequence[str]) -> tuple[str, ...]:
    """The receptacles that the agent can go to now."""
    return tuple(action.removeprefix("go to ") for action in admissible if action.startswith("go to "))


def held_object(admissible: Sequence[str]) -> str:
    """The object that the agent holds, or empty: of all objects, the game offers to examine only that one."""
    examined = (action.removeprefix("examine ") for action in admissible if action.startswith("examine "))
    return next((name for name in examined if class_of(name) not in _RECEPTACLE_CLASSES), "")


_RECEPTACLE_CLASSES = frozenset({"toaster", "paintinghanger", *(name.lower() for name in catalogue().holds)})

_ANSWERS = (
    ("take", re.compile(rf"You pick up the (?P<object>{_NAME}) from the (?P<receptacle>{_NAME})\.")),
    ("move", re.compile(rf"You move the (?P<object>{_NAME}) to the (?P<receptacle>{_NAME})\.")),
    ("open", re.compile(rf"You open the (?P<receptacle>{_NAME})\.")),
    ("close", re.compile(rf"You close the (?P<receptacle>{_NAME})\.")),
    ("clean", re.compile(rf"You clean the (?P<object>{_NAME}) using the (?P<receptacle>{_NAME})\.")),
    ("heat", re.compile(rf"You heat the (?P<object>{_NAME}) using the (?P<receptacle>{_NAME})\.")),
    ("cool", re.compile(rf"You cool the (?P<object>{_NAME}) using the (?P<receptacle>{_NAME})\.")),
    ("use", re.compile(rf"You turn on the (?P<object>{_NAME})\.")),
    ("slice", re.compile(rf"You sliced the (?P<object>{_NAME}) with the {_NAME}\.")),
)
_COMMANDS = (
    ("take", re.compile(rf"take (?P<object>{_NAME}) from (?P<receptacle>{_NAME})")),
    ("move", re.compile(rf"move (?P<object>{_NAME}) to (?P<receptacle>{_NAME})")),
    ("use", re.compile(rf"use (?P<object>{_NAME})")),
)


def parse_answer(index: int, answer: str) -> Event | None:
    """The event that the game's `answer` to action number `index` reports, or None."""
    return _first_match(index, answer, _ANSWERS)


def episode_facts(steps: Sequence[tuple[str, str]], *, won: bool = False) -> EpisodeFacts:
    """The facts of an episode given as (observation, action) pairs, the observation being the one acted upon.

    The answer to the last action is not among the pairs: a `won` episode's last action is known to have worked.
    """
    sightings = [(index, parse_sighting(observation)) for index, (observation, _) in enumerate(steps)]
    events = [parse_answer(index, observation) for index, (observation, _) in enumerate(steps[1:])]
    if won and steps:
        events.append(_first_match(len(steps) - 1, steps[-1][1].strip(), _COMMANDS))
    return EpisodeFacts(
        sightings=tuple((index, seen) for index, seen in sightings if seen),
        events=tuple(event for event in events if event),
        ineffective=tuple(i for i, (observation, _) in enumerate(steps[1:]) if observation.strip() == NOTHING_HAPPENS),
    )


def _first_match(index: int, text: str, patterns: Sequence[tuple[str, re.Pattern[str]]]) -> Event | None:
    for kind, pattern in patterns:
        found = pattern.match(text)
        if found:
            names = found.groupdict()
            return Event(index, kind, names.get("object", ""), names.get("receptacle", ""))
    return None


def _names(listing: str) -> tuple[str, ...]:
    return tuple(re.findall(_NAME, listing))
