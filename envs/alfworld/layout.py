"""Draws a game: a goal, the room's receptacles and objects, and where everything starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from envs.alfworld.rooms import Catalogue, Room

APPLIANCES = {"clean": "SinkBasin", "heat": "Microwave", "cool": "Fridge"}
LAMP = "DeskLamp"
HOME_PROBABILITY = 0.8
NUM_HOMES = 2

# Which kinds of room a task type is played in (as ALFRED does), and how it processes its object.
TASKS = {
    "pick_and_place_simple": (("kitchen", "livingroom", "bedroom", "bathroom"), ""),
    "look_at_obj_in_light": (("livingroom", "bedroom"), ""),
    "pick_clean_then_place_in_recep": (("kitchen", "bathroom"), "clean"),
    "pick_heat_then_place_in_recep": (("kitchen",), "heat"),
    "pick_cool_then_place_in_recep": (("kitchen",), "cool"),
    "pick_two_obj_and_place": (("kitchen", "livingroom", "bedroom", "bathroom"), ""),
}


@dataclass(frozen=True)
class Level:
    """How large a game is: ranges of the number of receptacles and object classes, and instances per class at most."""

    receptacles: tuple[int, int]
    classes: tuple[int, int]
    instances: int


LEVELS = (
    Level((6, 8), (4, 6), 1),
    Level((9, 12), (6, 9), 1),
    Level((14, 18), (10, 14), 2),
    Level((99, 99), (99, 99), 3),  # the whole room, as in the official games
)


@dataclass(frozen=True)
class Goal:
    """What is to be done, in class names. `destination` is empty for a look under a lamp, `lamp` for all others."""

    task_type: str
    target: str
    destination: str = ""
    lamp: str = ""

    @property
    def processing(self) -> str:
        """clean, heat, cool or empty."""
        return TASKS[self.task_type][1]

    @property
    def count(self) -> int:
        """How many targets are needed."""
        return 2 if self.task_type == "pick_two_obj_and_place" else 1


@dataclass(frozen=True)
class Thing:
    """A receptacle or an object: ALFRED identifier (`Mug|+00.10|-01.20|+00.93`) and class."""

    identifier: str
    kind: str


@dataclass(frozen=True)
class Layout:
    """A drawn game. `locations` are where the receptacles stand; `places` maps each object to its receptacle."""

    goal: Goal
    room: Room
    receptacles: tuple[Thing, ...]
    locations: tuple[str, ...]
    places: tuple[tuple[Thing, Thing], ...]


def draw_layout(rng: Random, catalogue: Catalogue, task_type: str, rooms: Sequence[int], level: Level) -> Layout:
    """Draw a solvable game of `task_type` in one of `rooms` (numbers).

    Raises:
        ValueError: no room of `rooms` has what the task type needs.
    """
    for number in rng.sample(rooms, len(rooms)):
        room = catalogue.rooms[number]
        goals = _goals(catalogue, room, task_type)
        if goals:
            break
    else:
        raise ValueError(f"none of the rooms {list(rooms)} can host {task_type}; give it other rooms")
    goal = rng.choice(goals)
    receptacles = _draw_receptacles(rng, catalogue, room, goal, level)
    return Layout(
        goal=goal,
        room=room,
        receptacles=receptacles,
        locations=_draw_locations(rng, len(receptacles)),
        places=_draw_places(rng, catalogue, room, goal, receptacles, level),
    )


def sources(catalogue: Catalogue, room: Room, goal: Goal) -> list[str]:
    """The receptacle classes of `room` that the target may start in, most typical first; never the destination."""
    places = ranked(catalogue, goal.target, room.receptacles)
    return [place for place in places if place != goal.destination]


def ranked(catalogue: Catalogue, thing: str, receptacles: Collection[str]) -> list[str]:
    """The classes among `receptacles` that `thing` may start in: its homes first, in their order, then the others."""
    homes = [place for place in catalogue.homes[thing] if place in receptacles]
    return homes + sorted(place for place in receptacles if place not in homes and catalogue.may_hold(place, thing))


def _goals(catalogue: Catalogue, room: Room, task_type: str) -> list[Goal]:
    kinds, processing = TASKS[task_type]
    if room.kind not in kinds or (processing and APPLIANCES[processing] not in room.receptacles):
        return []
    targets = [thing for thing in room.objects if thing != LAMP]
    if task_type == "look_at_obj_in_light":
        lit = LAMP in room.objects and ranked(catalogue, LAMP, room.receptacles)
        goals = [Goal(task_type, target, lamp=LAMP) for target in targets] if lit else []
    else:
        suitable = catalogue.properties[f"{processing}able"] if processing else targets
        goals = [
            Goal(task_type, target, destination)
            for target in targets
            for destination in room.receptacles
            if target in suitable and catalogue.may_hold(destination, target)
        ]
    return [goal for goal in goals if sources(catalogue, room, goal)]


def _draw_receptacles(rng: Random, catalogue: Catalogue, room: Room, goal: Goal, level: Level) -> tuple[Thing, ...]:
    """The receptacles that the goal needs, filled up from the room to the level's number."""
    required = {goal.destination, APPLIANCES.get(goal.processing, ""), rng.choice(sources(catalogue, room, goal)[:2])}
    if goal.lamp:
        required.add(ranked(catalogue, goal.lamp, room.receptacles)[0])
    required.discard("")
    rest = [kind for kind, count in room.receptacles.items() for _ in range(count - (kind in required))]
    rng.shuffle(rest)
    num_rest = max(0, rng.randint(*level.receptacles) - len(required))
    return tuple(Thing(_identifier(rng, kind), kind) for kind in [*sorted(required), *rest[:num_rest]])


def _draw_places(
    rng: Random, catalogue: Catalogue, room: Room, goal: Goal, receptacles: Sequence[Thing], level: Level
) -> tuple[tuple[Thing, Thing], ...]:
    """Where every object starts; a class that fits nowhere is left out, and no target starts where it shall end."""
    kinds = {receptacle.kind for receptacle in receptacles}
    fixed = {goal.target, goal.lamp} - {""}
    others = [kind for kind in room.objects if kind not in fixed | {LAMP}]
    rng.shuffle(others)
    num_others = max(0, rng.randint(*level.classes) - len(fixed))
    places = []
    for kind in [*sorted(fixed), *others[:num_others]]:
        needed = goal.count if kind == goal.target else 1
        count = 1 if kind == LAMP else max(needed, rng.randint(1, level.instances))
        homes = ranked(catalogue, kind, kinds - {goal.destination} if kind == goal.target else kinds)
        if homes:
            for _ in range(count):
                places.append((Thing(_identifier(rng, kind), kind), _draw_place(rng, receptacles, homes)))
    return tuple(places)


def _draw_place(rng: Random, receptacles: Sequence[Thing], homes: Sequence[str]) -> Thing:
    """A receptacle: of one of the first two classes of `homes` with probability 0.8, else of a later one."""
    typical, unusual = homes[:NUM_HOMES], homes[NUM_HOMES:]
    chosen = unusual if unusual and rng.random() >= HOME_PROBABILITY else typical
    return rng.choice([receptacle for receptacle in receptacles if receptacle.kind in chosen])


def _draw_locations(rng: Random, count: int) -> tuple[str, ...]:
    """Distinct agent poses `loc|x|z|rotation|horizon`, in quarter metres and degrees."""
    floor = [(x, z) for x in range(-12, 13) for z in range(-12, 13)]
    return tuple(f"loc|{x}|{z}|{rng.choice((0, 90, 180, 270))}|30" for x, z in rng.sample(floor, count))


def _identifier(rng: Random, kind: str) -> str:
    """An ALFRED identifier: class and position. A basin belongs to its sink or bath."""
    position = "|".join(f"{rng.uniform(-4, 4):+06.2f}" for _ in range(3))
    basin = kind.removesuffix("Basin")
    return f"{basin}|{position}|{kind}" if basin != kind else f"{kind}|{position}"
