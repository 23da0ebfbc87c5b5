"""The sentences of the text game, as ALFWorld 0.4 writes them (alfred.twl2; MIT licence, see data/NOTICE)."""

from __future__ import annotations

from collections.abc import Sequence

from envs.alfworld.games import TASK_PREFIX
from envs.alfworld.rules import Operation, Scene, State

BANNER = "-= Welcome to TextWorld, ALFRED! =-"
NOTHING_HAPPENS = "Nothing happens."

_HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


def intro(scene: Scene, state: State, goal: str) -> str:
    """The first observation."""
    if scene.receptacles_at.get(state.location):
        view = _facing(scene, state)
    else:
        view = _middle_of_room([f"a {scene.names[receptacle]}" for receptacle, _ in scene.receptacles])
    return f"{BANNER}\n\n{view}\n\n{TASK_PREFIX}{goal}."


def feedback(scene: Scene, state: State, operation: Operation) -> str:
    """What the game answers to `operation`; `state` is the one after it."""
    thing, receptacle, tool = (
        scene.names.get(name) for name in (operation.object, operation.receptacle, operation.tool)
    )
    match operation.operator:
        case "go":
            return f"You arrive at {receptacle}. {_receptacle(scene, state, operation.receptacle)}"
        case "open":
            return f"You open the {receptacle}. {_receptacle(scene, state, operation.receptacle)}"
        case "close":
            return f"You close the {receptacle}."
        case "take":
            return f"You pick up the {thing} from the {receptacle}."
        case "move":
            return f"You move the {thing} to the {receptacle}."
        case "clean" | "heat" | "cool":
            return f"You {operation.operator} the {thing} using the {receptacle}."
        case "use":  # the game knows "was ever switched", so it never says that a lamp goes off
            return f"You turn on the {thing}."
        case "slice":
            return f"You sliced the {thing} with the {tool}."
        case "examine_receptacle":
            return _receptacle(scene, state, operation.receptacle)
        case "examine_object":
            return _object(scene, state, operation.object)
        case "inventory":
            return _inventory(scene, state)
        case "look":
            return _facing(scene, state) if scene.receptacles_at.get(state.location) else _middle_of_room([])
        case "help":
            return _HELP
    raise ValueError(f"unknown operator {operation.operator!r}")


def _facing(scene: Scene, state: State) -> str:
    receptacles = scene.receptacles_at[state.location]
    beside = [
        f"a {scene.names[thing]}"
        for thing, place in sorted(state.facts["objectatlocation"])
        for receptacle in receptacles
        if place == state.location and (thing, receptacle) in state.taken
    ]
    faced = _listing([scene.names[receptacle] for receptacle in receptacles])
    return f"You are facing the {faced}. Next to it, you see {_listing(beside)}."


def _middle_of_room(receptacles: Sequence[str]) -> str:
    return f"You are in the middle of a room. Looking quickly around you, you see {_listing(receptacles)}."


def _receptacle(scene: Scene, state: State, receptacle: str) -> str:
    name = scene.names[receptacle]
    contents = _listing([f"a {scene.names[thing]}" for thing in state.contents(receptacle)])
    if not scene.true("openable", receptacle):
        return f"On the {name}, you see {contents}."
    if state.true("opened", receptacle):
        return f"The {name} is open. In it, you see {contents}."
    return f"The {name} is closed."


def _object(scene: Scene, state: State, thing: str) -> str:
    name = scene.names[thing]
    if scene.true("isreceptacleobject", thing):
        inner = sorted(inner for inner, outer in scene.facts.get("inreceptacleobject", ()) if outer == thing)
        return f"This is a normal {name}. In it, you see {_listing([f'a {scene.names[item]}' for item in inner])}."
    condition = _condition(state, thing)
    if condition:
        return f"This is a {condition} {name}."
    if scene.true("toggleable", thing) and state.true("istoggled", thing):
        return f"This {name} is on."
    return f"There's nothing special about {name}."


def _condition(state: State, thing: str) -> str:
    """Such as `hot and clean sliced`. A merely cool object is called cold."""
    clean, hot, cool, sliced = (state.true(name, thing) for name in ("isclean", "ishot", "iscool", "issliced"))
    heat = "hot" if hot else "cool" if cool else ""
    if heat == "cool" and not clean and not sliced:
        return "cold"
    treatment = " and ".join(word for word in (heat, "clean" if clean else "") if word)
    return f"{treatment} sliced".strip() if sliced else treatment


def _inventory(scene: Scene, state: State) -> str:
    if not state.facts["holdsany"]:
        return "You are not carrying anything."
    return f"You are carrying: {_listing([f'a {scene.names[thing]}' for thing in state.held])}."


def _listing(items: Sequence[str]) -> str:
    if len(items) < 2:
        return items[0] if items else "nothing"
    return f"{', '.join(items[:-1])}, and {items[-1]}"
