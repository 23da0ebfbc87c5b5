"""What the 120 AI2-THOR rooms contain, what may be put where, and where things usually are (data/rooms.json)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "data"
_KINDS = ((1, "kitchen"), (201, "livingroom"), (301, "bedroom"), (401, "bathroom"))


@dataclass(frozen=True)
class Room:
    """One room: its kind, how many receptacles of each class it has, and which object classes occur in it."""

    number: int
    kind: str
    receptacles: Mapping[str, int]
    objects: tuple[str, ...]


@dataclass(frozen=True)
class Catalogue:
    """All classes and rooms. Class names are ALFRED's, in camel case.

    `homes`: object class to typical receptacle classes, most typical first. `holds`: receptacle class to the object
    classes that it may contain. `properties`: cleanable, heatable, coolable, toggleable, sliceable to object classes.
    """

    homes: Mapping[str, tuple[str, ...]]
    holds: Mapping[str, frozenset[str]]
    openable: frozenset[str]
    movable_receptacles: frozenset[str]
    properties: Mapping[str, frozenset[str]]
    rooms: Mapping[int, Room]

    def with_objects(self, classes: Collection[str]) -> Catalogue:
        """The same rooms with only these object classes in them.

        Raises:
            ValueError: a class that no room has.
        """
        unknown = set(classes) - {name for room in self.rooms.values() for name in room.objects}
        if unknown:
            raise ValueError(f"no room has {', '.join(sorted(unknown))}; object classes are {', '.join(self.homes)}")
        kept = {
            number: replace(room, objects=tuple(name for name in room.objects if name in classes))
            for number, room in self.rooms.items()
        }
        return replace(self, rooms=kept)

    def may_hold(self, receptacle: str, thing: str) -> bool:
        """Whether an object class may start in a receptacle class. Lamps stand where their homes say."""
        if thing in self.properties["toggleable"]:
            return receptacle in self.homes[thing]
        return thing in self.holds[receptacle]


@cache
def catalogue() -> Catalogue:
    """The shipped catalogue."""
    data = json.loads((DATA / "rooms.json").read_text())
    return Catalogue(
        homes={name: tuple(places) for name, places in data["homes"].items()},
        holds={name: frozenset(things) for name, things in data["holds"].items()},
        openable=frozenset(data["openable"]),
        movable_receptacles=frozenset(data["movable_receptacles"]),
        properties={name: frozenset(things) for name, things in data["properties"].items()},
        rooms={
            int(number): Room(int(number), _kind(int(number)), room["receptacles"], tuple(room["objects"]))
            for number, room in data["rooms"].items()
        },
    )


def _kind(number: int) -> str:
    return next(kind for first, kind in reversed(_KINDS) if number >= first)
