"""The command that is right at a step of ALFWorld, given only what the agent can know by then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from envs.alfworld.facts import GoalParts, class_of
from envs.alfworld.knowledge import Knowledge

APPLIANCES = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}


def right_actions(goal: GoalParts, knowledge: Knowledge, admissible: Sequence[str]) -> list[str]:
    """The admissible commands that bring the goal nearer, equally good ones together; empty while search is needed."""
    if knowledge.held and class_of(knowledge.held) == goal.target:
        return _first_possible(_with_target_in_hand(goal, knowledge), admissible)
    waiting = [name for name in knowledge.objects(goal.target) if not is_delivered(goal, knowledge, name)]
    places = [knowledge.where(name) for name in waiting]
    if not waiting:
        return []
    if knowledge.held:  # the wrong object occupies the hand
        return [command for command in admissible if command.startswith(f"move {knowledge.held} to ")]
    takes = [f"take {name} from {place}" for name, place in zip(waiting, places, strict=True)]
    return _first_possible([takes, _opens(places), _goes(places)], admissible)


def search_actions(knowledge: Knowledge, admissible: Sequence[str]) -> list[str]:
    """Commands that show something new: open what is closed here, else go where nobody looked yet."""
    unseen = [place for place in sorted(knowledge.receptacles) if place not in knowledge.searched]
    return _first_possible([_opens([knowledge.location]), _goes(unseen)], admissible)


def is_delivered(goal: GoalParts, knowledge: Knowledge, name: str) -> bool:
    """Whether nothing is left to do with an object of the goal's class."""
    place = knowledge.where(name)
    is_processed = not goal.processing or goal.processing in knowledge.processed.get(name, ())
    return is_processed and place != "" and class_of(place) == goal.destination


def _with_target_in_hand(goal: GoalParts, knowledge: Knowledge) -> list[list[str]]:
    held = knowledge.held
    if goal.lamp:
        lamps = knowledge.objects(goal.lamp)
        return [[f"use {lamp}" for lamp in lamps], _goes([knowledge.where(lamp) for lamp in lamps])]
    if goal.processing and goal.processing not in knowledge.processed.get(held, ()):
        places = knowledge.places(APPLIANCES[goal.processing])
        return [[f"{goal.processing} {held} with {place}" for place in places], _goes(places)]
    places = knowledge.places(goal.destination)
    if goal.count > 1:  # all must end in the same receptacle
        filled = [
            knowledge.where(name) for name in knowledge.objects(goal.target) if is_delivered(goal, knowledge, name)
        ]
        places = filled[:1] or places
    return [[f"move {held} to {place}" for place in places], _opens(places), _goes(places)]


def _opens(places: Iterable[str]) -> list[str]:
    return [f"open {place}" for place in places]


def _goes(places: Iterable[str]) -> list[str]:
    return [f"go to {place}" for place in places]


def _first_possible(choices: Iterable[Iterable[str]], admissible: Sequence[str]) -> list[str]:
    """The first group that has admissible members, reduced to those."""
    groups = ([command for command in group if command in admissible] for group in choices)
    return next((group for group in groups if group), [])
