"""What an agent in ALFWorld can know at each step: the running state behind the texts that it was shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from envs.alfworld.facts import (
    Event,
    Sighting,
    class_of,
    episode_facts,
    parse_admissible_receptacles,
    parse_answer,
    parse_sighting,
)

_UNDOES = {"heat": "cool", "cool": "heat"}


@dataclass
class Knowledge:
    """All that was seen so far.

    `contents`: what each receptacle was last seen to hold. `origin`: where each object was first seen. `searched`: the
    receptacles that were seen into, in that order. `processed`: what was done to each object. `used`: the appliance of
    each class that last did something.
    """

    receptacles: list[str] = field(default_factory=list)
    location: str = ""
    held: str = ""
    contents: dict[str, list[str]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    processed: dict[str, set[str]] = field(default_factory=dict)
    searched: list[str] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)

    def read(self, observation: str, admissible: Sequence[str]) -> None:
        """Take in what a step shows: the answer to the action before it, and where one can go."""
        self.receptacles += [r for r in parse_admissible_receptacles(admissible) if r not in self.receptacles]
        event = parse_answer(0, observation)
        if event:
            self.apply(event)
        sighting = parse_sighting(observation)
        if sighting:
            self._see(sighting)

    def apply(self, event: Event) -> None:
        """Follow one change."""
        name, receptacle = event.object, event.receptacle
        match event.kind:
            case "take":
                self.held = name
                self.origin.setdefault(name, receptacle)
                self.contents[receptacle] = [other for other in self.contents.get(receptacle, ()) if other != name]
            case "move":
                self.held = ""
                self.contents.setdefault(receptacle, []).append(name)
            case "clean" | "heat" | "cool":
                self.processed[name] = self.processed.get(name, set()) - {_UNDOES.get(event.kind)} | {event.kind}
                self.used[class_of(receptacle)] = receptacle

    def where(self, name: str) -> str:
        """The receptacle that an object was last known to be in; "" if in the hand or unknown."""
        return next((receptacle for receptacle, names in self.contents.items() if name in names), "")

    def objects(self, class_name: str) -> list[str]:
        """The objects of a class in the order in which they were first seen."""
        return [name for name in self.origin if class_of(name) == class_name]

    def places(self, class_name: str) -> list[str]:
        """The receptacles of a class, lowest number first."""
        return sorted((r for r in self.receptacles if class_of(r) == class_name), key=_number)

    def _see(self, sighting: Sighting) -> None:
        receptacle = self.location = sighting.receptacle  # only what one stands at is described
        if sighting.closed:
            return
        self.contents[receptacle] = list(sighting.contents)
        if receptacle not in self.searched:
            self.searched.append(receptacle)
        for name in sighting.contents:
            self.origin.setdefault(name, receptacle)


def replay(shown: Iterable[tuple[str, Sequence[str]]]) -> list[Knowledge]:
    """What was known when each action was chosen; one entry per shown (observation, admissible actions)."""
    knowledge, snapshots = Knowledge(), []
    for observation, admissible in shown:
        knowledge.read(observation, admissible)
        snapshots.append(deepcopy(knowledge))
    return snapshots


def at_the_end(before_last: Knowledge, steps: Sequence[tuple[str, str]], success: bool) -> Knowledge:
    """What is known after the last of the (observation, action) steps.

    The answer to the last action is not among them; a success says that it worked.
    """
    final = deepcopy(before_last)
    for event in episode_facts(steps, won=success).events:
        if event.index == len(steps) - 1:
            final.apply(event)
    return final


def _number(name: str) -> int:
    return int(name.split(" ")[-1])
