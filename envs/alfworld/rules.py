"""The 14 operators of the ALFRED domain: which apply in a state, and what each does to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from envs.alfworld.names import display_names
from envs.alfworld.problem import Fact, Problem

AGENT = "agent1"
KNIVES = frozenset({"knifetype", "butterknifetype"})
APPLIANCES = {"clean": "sinkbasintype", "heat": "microwavetype", "cool": "fridgetype"}
SUITABLE = {"clean": "cleanable", "heat": "heatable", "cool": "coolable"}
CHANGING = (
    "atlocation",
    "holds",
    "holdsany",
    "opened",
    "inreceptacle",
    "objectatlocation",
    "isclean",
    "ishot",
    "iscool",
    "istoggled",
    "ison",
    "issliced",
)


@dataclass(frozen=True)
class Operation:
    """One operator with its arguments (identifiers of the problem); `tool` is the knife of a slice."""

    operator: str
    receptacle: str = ""
    object: str = ""
    tool: str = ""
    location: str = ""


class Scene:
    """What never changes in a game: names, receptacles and where they stand, kinds of objects, what fits where."""

    def __init__(self, problem: Problem) -> None:
        self.facts = problem.facts
        self.names = display_names(problem.facts)
        self.receptacles = sorted(problem.facts.get("receptacleatlocation", ()))
        self.receptacles_at: dict[str, list[str]] = defaultdict(list)
        for receptacle, location in self.receptacles:
            self.receptacles_at[location].append(receptacle)
        self.go_to = [
            (f"go to {self.names[receptacle]}", Operation("go", receptacle, location=location))
            for receptacle, location in self.receptacles
        ]

    def true(self, predicate: str, *arguments: str) -> bool:
        """Whether a fact that no operator changes holds."""
        return arguments in self.facts.get(predicate, ())

    def fits(self, receptacle: str, thing: str) -> bool:
        """Whether some type of `receptacle` may hold some type of `thing`."""
        holders = [kind for owner, kind in self.facts.get("receptacletype", ()) if owner == receptacle]
        kinds = [kind for owner, kind in self.facts.get("objecttype", ()) if owner == thing]
        return any(self.true("cancontain", holder, kind) for holder in holders for kind in kinds)


@dataclass
class State:
    """What operators change: the facts that hold, and `taken`, the (object, receptacle) pairs that ceased to hold.

    The text game lists an object beside a receptacle that it was once taken from; hence `taken`.
    """

    facts: dict[str, set[Fact]]
    taken: set[Fact] = field(default_factory=set)

    @classmethod
    def of(cls, problem: Problem) -> State:
        """The initial state; unchanging facts are shared with `problem`, not copied.

        Raises:
            ValueError: not exactly one agent stands somewhere.
        """
        if [agent for agent, _ in problem.facts.get("atlocation", ())] != [AGENT]:
            raise ValueError(f"the problem must place the one agent, {AGENT}, at one location")
        return cls({**problem.facts, **{name: set(problem.facts.get(name, ())) for name in CHANGING}})

    @property
    def location(self) -> str:
        """Where the agent stands."""
        return next(place for _, place in self.facts["atlocation"])

    @property
    def held(self) -> list[str]:
        """What the agent holds."""
        return sorted(thing for _, thing in self.facts["holds"])

    def true(self, predicate: str, *arguments: str) -> bool:
        """Whether a fact holds now."""
        return arguments in self.facts.get(predicate, ())

    def contents(self, receptacle: str) -> list[str]:
        """The objects in `receptacle`, in the order in which the game lists them."""
        return sorted(thing for thing, where in self.facts["inreceptacle"] if where == receptacle)


def applicable(scene: Scene, state: State) -> dict[str, Operation]:
    """The operations that apply now, by command. Commands name their arguments uniquely, so none is lost."""
    here = state.location
    operations = {command: move for command, move in scene.go_to if move.location != here}
    for command in ("look", "inventory", "help"):
        operations[command] = Operation(command)
    for receptacle in scene.receptacles_at.get(here, ()):
        operations.update(_at_receptacle(scene, state, receptacle))
    # Only a held object can be examined: the domain also says "or in view", but a stray comma voids that clause.
    for thing in state.held:
        operations[f"examine {scene.names[thing]}"] = Operation("examine_object", object=thing)
        operations.update(_slicing(scene, state, thing))
    return operations


def _at_receptacle(scene: Scene, state: State, receptacle: str) -> Iterator[tuple[str, Operation]]:
    """What can be done with a receptacle that the agent stands at, and with what is in it."""
    names, name = scene.names, scene.names[receptacle]
    openable, opened = scene.true("openable", receptacle), state.true("opened", receptacle)
    yield f"examine {name}", Operation("examine_receptacle", receptacle)
    if openable:
        command = "close" if opened else "open"
        yield f"{command} {name}", Operation(command, receptacle)
    accessible = opened or not openable
    for thing in state.contents(receptacle):
        if scene.true("toggleable", thing):
            yield f"use {names[thing]}", Operation("use", receptacle, thing)
        if accessible and not state.facts["holdsany"] and scene.true("pickupable", thing):
            yield f"take {names[thing]} from {name}", Operation("take", receptacle, thing)
    for thing in state.held:
        if accessible and scene.fits(receptacle, thing):
            yield f"move {names[thing]} to {name}", Operation("move", receptacle, thing)
        for verb, appliance in APPLIANCES.items():
            if scene.true("receptacletype", receptacle, appliance) and scene.true(SUITABLE[verb], thing):
                yield f"{verb} {names[thing]} with {name}", Operation(verb, receptacle, thing)


def _slicing(scene: Scene, state: State, tool: str) -> Iterator[tuple[str, Operation]]:
    """What the held `tool` can slice here; the domain does not ask whether it lies in a closed receptacle."""
    if any(scene.true("objecttype", tool, kind) for kind in KNIVES):
        for thing, place in state.facts["objectatlocation"]:
            if place == state.location and scene.true("sliceable", thing):
                command = f"slice {scene.names[thing]} with {scene.names[tool]}"
                yield command, Operation("slice", object=thing, tool=tool)


def apply(state: State, operation: Operation) -> None:
    """Change `state` by an operation that applies in it."""
    facts, thing, receptacle = state.facts, operation.object, operation.receptacle
    match operation.operator:
        case "go":
            facts["atlocation"] = {(AGENT, operation.location)}
        case "open":
            facts["opened"].add((receptacle,))
        case "close":
            facts["opened"].discard((receptacle,))
        case "take":
            facts["inreceptacle"].discard((thing, receptacle))
            facts["objectatlocation"].discard((thing, state.location))
            facts["holds"].add((AGENT, thing))
            facts["holdsany"].add((AGENT,))
            state.taken.add((thing, receptacle))
        case "move":
            facts["inreceptacle"].add((thing, receptacle))
            facts["objectatlocation"].add((thing, state.location))
            facts["holds"].discard((AGENT, thing))
            facts["holdsany"].discard((AGENT,))
            state.taken.discard((thing, receptacle))
        case "clean":
            facts["isclean"].add((thing,))
        case "heat":
            facts["ishot"].add((thing,))
            facts["iscool"].discard((thing,))
        case "cool":
            facts["iscool"].add((thing,))
            facts["ishot"].discard((thing,))
        case "use":
            facts["ison"] ^= {(thing,)}
            facts["istoggled"].add((thing,))
        case "slice":
            facts["issliced"].add((thing,))
