"""Writes a layout as the PDDL problem that ALFWorld's tools write for an ALFRED scene."""

from __future__ import annotations

from collections.abc import Iterator

from envs.alfworld.layout import Goal, Layout, Thing
from envs.alfworld.rooms import Catalogue

_ESCAPES = str.maketrans({"-": "_minus_", "|": "_bar_", "+": "_plus_", ".": "_dot_", ",": "_comma_"})
_AGENT = "agent1"
_AGENT_START = "loc|99|99|0|30"  # in the middle of the room, at no receptacle
_STATE_OF = {"clean": "isClean", "heat": "isHot", "cool": "isCool"}
# Constants that the domain's operators name, present in a room or not.
_CONSTANT_TYPES = ("KnifeType", "ButterKnifeType", "SinkBasinType", "MicrowaveType", "FridgeType")


def pddl_name(thing: Thing) -> str:
    """The thing's identifier as the engines know it: escaped, in lower case."""
    return _escape(thing.identifier).lower()


def problem_text(layout: Layout, catalogue: Catalogue) -> str:
    """The text of initial_state.pddl."""
    sections = (
        ("(:objects", _objects(layout, catalogue)),
        ("(:init", _facts(layout, catalogue)),
        ("(:goal", (_goal(layout.goal),)),
    )
    body = "\n".join(f"{head}\n" + "\n".join(f"    {line}" for line in lines) + "\n)" for head, lines in sections)
    return f"(define (problem generated)\n(:domain alfred)\n{body}\n)\n"


def _objects(layout: Layout, catalogue: Catalogue) -> Iterator[str]:
    yield f"{_AGENT} - agent"
    receptacle_types = {f"{kind}Type" for kind in catalogue.holds}
    object_types = {f"{kind}Type" for kind in catalogue.homes}
    for name in sorted(receptacle_types | {name for name in _CONSTANT_TYPES if name not in object_types}):
        yield f"{name} - rtype"
    for name in sorted(object_types):
        yield f"{name} - otype"
    for thing, _ in layout.places:
        yield f"{_escape(thing.identifier)} - object"
    for receptacle in layout.receptacles:
        yield f"{_escape(receptacle.identifier)} - receptacle"
    for location in (*layout.locations, _AGENT_START):
        yield f"{_escape(location)} - location"


def _facts(layout: Layout, catalogue: Catalogue) -> Iterator[str]:
    location_of = dict(zip(layout.receptacles, layout.locations, strict=True))
    kinds = sorted({thing.kind for thing, _ in layout.places})
    yield f"(atLocation {_AGENT} {_escape(_AGENT_START)})"
    for receptacle, location in location_of.items():
        name = _escape(receptacle.identifier)
        yield f"(receptacleType {name} {receptacle.kind}Type)"
        yield f"(receptacleAtLocation {name} {_escape(location)})"
        if receptacle.kind in catalogue.openable:
            yield f"(openable {name})"
    for holder in sorted({receptacle.kind for receptacle in layout.receptacles}):
        yield from (f"(canContain {holder}Type {kind}Type)" for kind in kinds if kind in catalogue.holds[holder])
    for thing, place in layout.places:
        yield from _object_facts(thing, catalogue)
        yield f"(inReceptacle {_escape(thing.identifier)} {_escape(place.identifier)})"
        yield f"(objectAtLocation {_escape(thing.identifier)} {_escape(location_of[place])})"


def _object_facts(thing: Thing, catalogue: Catalogue) -> Iterator[str]:
    name = _escape(thing.identifier)
    yield f"(objectType {name} {thing.kind}Type)"
    if thing.kind not in catalogue.properties["toggleable"]:
        yield f"(pickupable {name})"
    if thing.kind in catalogue.movable_receptacles:
        yield f"(isReceptacleObject {name})"
    for quality, kinds in catalogue.properties.items():
        if thing.kind in kinds:
            yield f"({quality} {name})"


def _goal(goal: Goal) -> str:
    if goal.lamp:
        lit = (
            f"(objectType ?lamp {goal.lamp}Type) (toggleable ?lamp) (isToggled ?lamp) "
            "(inReceptacle ?lamp ?r) (receptacleAtLocation ?r ?l) (atLocation ?a ?l)"
        )
        held = f"(objectType ?o {goal.target}Type) (holds ?a ?o)"
        return (
            f"(and (exists (?lamp - object ?r - receptacle ?a - agent ?l - location) (and {lit})) "
            f"(exists (?o - object ?a - agent) (and {held})))"
        )
    atoms = [_placed(goal, f"?o{number}") for number in range(goal.count)]
    if goal.count == 2:
        atoms.append("(not (= ?o0 ?o1))")
    variables = " ".join(f"?o{number} - object" for number in range(goal.count))
    return f"(exists (?r - receptacle {variables}) (and (receptacleType ?r {goal.destination}Type) {' '.join(atoms)}))"


def _placed(goal: Goal, variable: str) -> str:
    text = f"(objectType {variable} {goal.target}Type) (inReceptacle {variable} ?r)"
    return f"{text} ({_STATE_OF[goal.processing]} {variable})" if goal.processing else text


def _escape(identifier: str) -> str:
    return identifier.translate(_ESCAPES)
