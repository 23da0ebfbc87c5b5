"""An expert that plays from what an agent sees: it searches typical places first, then does what the goal asks for.

It knows the catalogue's typical homes of each class of object, and nothing of a game but its texts. For demonstrations
it can be made to err.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from envs.alfworld.facts import (
    class_of,
    parse_admissible_receptacles,
    parse_answer,
    parse_goal,
    parse_sighting,
)
from envs.alfworld.layout import APPLIANCES, NUM_HOMES, ranked
from envs.alfworld.rooms import catalogue
from envs.base import PromptView


@dataclass(frozen=True)
class Noise:
    """How often the expert errs.

    Per step, `random_action`: any admissible command; `invalid_action`: a command that does nothing. Per episode,
    `forget_processing`: the object is first delivered without being cleaned, heated or cooled.
    """

    random_action: float = 0.0
    invalid_action: float = 0.0
    forget_processing: float = 0.0


@dataclass
class _Memory:
    """What the expert has seen in this episode, by name."""

    receptacles: tuple[str, ...]
    order: dict[str, float]
    forgets: bool
    at: str = ""
    held: str = ""
    place_of: dict[str, str] = field(default_factory=dict)
    searched: set[str] = field(default_factory=set)
    processed: set[str] = field(default_factory=set)
    destination: str = ""


class Expert:
    """Plays episodes one after another; the same seed and views give the same actions."""

    def __init__(self, seed: int, noise: Noise | None = None) -> None:
        self._rng = Random(seed)
        self._noise = noise or Noise()

    def act(self, view: PromptView) -> str:
        """The command for `view`. A view of index 0 starts a new episode; views must come in order.

        Raises:
            ValueError: the goal is not one of the templated ones.
        """
        if view.index == 0:
            self._start(view)
        self._observe(view.observation)
        draw = self._rng.random()
        if draw < self._noise.random_action:
            return self._rng.choice(view.admissible)
        if draw < self._noise.random_action + self._noise.invalid_action:
            return self._invalid(view)
        wanted = next((command for command in self._wanted() if command in view.admissible), None)
        return wanted or self._rng.choice(view.admissible)

    def _start(self, view: PromptView) -> None:
        goal = parse_goal(view.goal)
        if goal is None:
            raise ValueError(f"the expert does not understand the goal {view.goal!r}")
        self._goal = goal
        receptacles = parse_admissible_receptacles(view.admissible)
        self._memory = _Memory(
            receptacles=receptacles,
            order={name: self._rng.random() for name in receptacles},
            forgets=self._rng.random() < self._noise.forget_processing,
        )

    def _observe(self, observation: str) -> None:
        memory = self._memory
        sighting = parse_sighting(observation)
        if observation.startswith("You arrive at ") and sighting:
            memory.at = sighting.receptacle
        if sighting and not sighting.closed:
            memory.searched.add(sighting.receptacle)
            memory.place_of.update(dict.fromkeys(sighting.contents, sighting.receptacle))
        event = parse_answer(0, observation)
        if event is None:
            return
        if event.kind == "take":
            memory.held = event.object
            memory.place_of.pop(event.object, None)
        elif event.kind == "move":
            memory.held = ""
            memory.place_of[event.object] = event.receptacle
            if class_of(event.object) == self._goal.target:
                memory.destination = event.receptacle
                memory.forgets = False
        elif event.kind == self._goal.processing:
            memory.processed.add(event.object)
        elif event.kind in APPLIANCES and event.kind != "clean":  # heating undoes cooling and the reverse
            memory.processed.discard(event.object)

    def _wanted(self) -> Iterator[str]:
        """Commands in order of preference; the first admissible one is right."""
        goal, memory = self._goal, self._memory
        if memory.held and class_of(memory.held) != goal.target:
            yield from self._put_away()
        elif memory.held:
            yield from self._finish()
        else:
            yield from self._fetch()

    def _fetch(self) -> Iterator[str]:
        """Take a target that is still to be delivered, or look for one."""
        goal, memory = self._goal, self._memory
        for name, place in memory.place_of.items():
            if class_of(name) == goal.target and not self._delivered(name):
                yield f"take {name} from {place}"
                yield from _reach(place)
        yield from self._search(goal.target)

    def _finish(self) -> Iterator[str]:
        """Process the held target and bring it where it belongs."""
        goal, memory = self._goal, self._memory
        if goal.lamp:
            lamps = [name for name in memory.place_of if class_of(name) == goal.lamp]
            for lamp in lamps:
                yield f"use {lamp}"
                yield from _reach(memory.place_of[lamp])
            yield from self._search(goal.lamp)
        elif goal.processing and memory.held not in memory.processed and not memory.forgets:
            for appliance in self._of_class(APPLIANCES[goal.processing].lower()):
                yield f"{goal.processing} {memory.held} with {appliance}"
                yield f"go to {appliance}"
        else:
            places = self._of_class(goal.destination)
            if goal.count > 1 and memory.destination in places:  # both must end in the same one
                places = [memory.destination]
            yield from self._deliver(places)

    def _deliver(self, places: list[str]) -> Iterator[str]:
        for place in sorted(places, key=lambda name: name != self._memory.at):
            yield f"move {self._memory.held} to {place}"
            yield from _reach(place)

    def _put_away(self) -> Iterator[str]:
        """Free the hands of something taken by mistake."""
        kind = _class_name(class_of(self._memory.held))
        fitting = [name for name in self._memory.receptacles if kind in catalogue().holds[_class_name(class_of(name))]]
        yield from self._deliver(fitting)

    def _search(self, wanted: str) -> Iterator[str]:
        """Look into receptacles not yet seen, likely and easily seen ones first."""
        memory, shelves = self._memory, catalogue()
        classes = {_class_name(class_of(name)) for name in memory.receptacles}
        ranks = ranked(shelves, _class_name(wanted), sorted(classes))
        likely = [kind for kind in ranks if kind.lower() != self._goal.destination][:NUM_HOMES]

        def cost(name: str) -> tuple[bool, bool, bool, float]:
            kind = _class_name(class_of(name))
            return kind not in ranks, kind not in likely, kind in shelves.openable, memory.order[name]

        if memory.at and memory.at not in memory.searched:
            yield f"open {memory.at}"
        for name in sorted((name for name in memory.receptacles if name not in memory.searched), key=cost):
            yield from _reach(name)

    def _delivered(self, name: str) -> bool:
        is_processed = not self._goal.processing or name in self._memory.processed
        return is_processed and class_of(self._memory.place_of[name]) == self._goal.destination

    def _of_class(self, kind: str) -> list[str]:
        return [name for name in self._memory.receptacles if class_of(name) == kind]

    def _invalid(self, view: PromptView) -> str:
        """A plausible command that is not admissible: the target is not here, or not in reach."""
        place = self._memory.at or self._rng.choice(self._memory.receptacles)
        commands = [f"take {self._goal.target} {number} from {place}" for number in (1, 2, 3)]
        return next(command for command in commands if command not in view.admissible)


def _reach(place: str) -> Iterator[str]:
    """Open the place if the agent stands before it, else go there."""
    yield f"open {place}"
    yield f"go to {place}"


def _class_name(shown: str) -> str:
    """ALFRED's spelling of a class that the game shows in lower case."""
    return _CLASS_NAMES[shown]


_CLASS_NAMES = {name.lower(): name for name in (*catalogue().homes, *catalogue().holds)}
