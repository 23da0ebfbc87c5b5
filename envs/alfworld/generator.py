"""Makes games in ALFWorld's format from drawn layouts, each proven by playing its own plan."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from envs.alfworld.engine import NativeEngine
from envs.alfworld.games import GAME_NAME, GameFile
from envs.alfworld.layout import APPLIANCES, Goal, Layout, Level, Thing, draw_layout
from envs.alfworld.names import display_names
from envs.alfworld.problem import Problem, parse_problem
from envs.alfworld.problem_text import pddl_name, problem_text
from envs.alfworld.rooms import DATA, Catalogue, catalogue

_GOAL_TEXTS = {
    "pick_and_place_simple": ("put a {target} in {destination}", "put some {target} on {destination}"),
    "look_at_obj_in_light": ("look at {target} under the {lamp}", "examine the {target} with the {lamp}"),
    "pick_clean_then_place_in_recep": (
        "put a clean {target} in {destination}",
        "clean some {target} and put it in {destination}",
    ),
    "pick_heat_then_place_in_recep": (
        "put a hot {target} in {destination}",
        "heat some {target} and put it in {destination}",
    ),
    "pick_cool_then_place_in_recep": (
        "put a cool {target} in {destination}",
        "cool some {target} and put it in {destination}",
    ),
    "pick_two_obj_and_place": ("put two {target} in {destination}", "find two {target} and put them in {destination}"),
}


@dataclass(frozen=True)
class GeneratedGame:
    """A game that its `plan` was seen to win. `signature` is equal for games that play alike."""

    layout: Layout
    goal: str
    problem_text: str
    plan: tuple[str, ...]
    signature: tuple[Any, ...]


def generate_game(rng: Random, shelves: Catalogue, task_type: str, rooms: Sequence[int], level: Level) -> GeneratedGame:
    """Draw one game and prove it: the plan is played in the native engine and wins with its last command only.

    Raises:
        ValueError: no room of `rooms` can host the task type.
        AssertionError: the plan does not win; a fault of this module.
    """
    layout = draw_layout(rng, shelves, task_type, rooms, level)
    goal = _goal_text(rng, layout.goal)
    text = problem_text(layout, catalogue())
    problem = parse_problem(text)
    names = display_names(problem.facts)
    plan = tuple(_plan(layout, names))
    if not _wins(problem, goal, plan):
        raise AssertionError(f"the plan {plan} does not win the generated game {text}")
    shown = frozenset((names[pddl_name(thing)], names[pddl_name(place)]) for thing, place in layout.places)
    return GeneratedGame(layout, goal, text, plan, (goal, layout.room.number, shown))


def write_game(folder: Path, game: GeneratedGame, trial: str) -> Path:
    """Write the three files of a game under `folder` (a split) in the official layout; returns the game file's path."""
    goal, room = game.layout.goal, game.layout.room
    path = folder / f"{goal.task_type}-{goal.target}-None-{goal.destination or goal.lamp}-{room.number}" / trial
    path.mkdir(parents=True)
    (path / "traj_data.json").write_text(json.dumps(_trajectory_data(game, trial)))
    (path / "initial_state.pddl").write_text(game.problem_text)
    data = {
        "pddl_domain": _shipped("alfred.pddl"),
        "grammar": _shipped("alfred.twl2").replace("UNKNOWN GOAL", game.goal),
        "pddl_problem": game.problem_text,
        "solvable": True,
        "walkthrough": game.plan,
    }
    (path / GAME_NAME).write_text(json.dumps(data))
    return path / GAME_NAME


def _goal_text(rng: Random, goal: Goal) -> str:
    text = rng.choice(_GOAL_TEXTS[goal.task_type])
    return text.format(target=goal.target.lower(), destination=goal.destination.lower(), lamp=goal.lamp.lower())


def _plan(layout: Layout, names: Mapping[str, str]) -> Iterator[str]:
    """Commands that win: fetch each target, process it, bring it to the destination or to the lamp."""
    goal, walker = layout.goal, _Walker(names)
    destination = next((item for item in layout.receptacles if item.kind == goal.destination), None)
    targets = [(thing, place) for thing, place in layout.places if thing.kind == goal.target][: goal.count]
    for thing, place in targets:
        name = names[pddl_name(thing)]
        yield from walker.reach(place)
        yield f"take {name} from {walker.name(place)}"
        if goal.processing:
            appliance = next(item for item in layout.receptacles if item.kind == APPLIANCES[goal.processing])
            yield from walker.go(appliance)
            yield f"{goal.processing} {name} with {walker.name(appliance)}"
        if destination:
            yield from walker.reach(destination)
            yield f"move {name} to {walker.name(destination)}"
    if goal.lamp:
        lamp, place = next(item for item in layout.places if item[0].kind == goal.lamp)
        yield from walker.go(place)
        yield f"use {names[pddl_name(lamp)]}"


class _Walker:
    """Where the plan's agent stands and what it has opened."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._at = ""
        self._opened: set[str] = set()

    def name(self, receptacle: Thing) -> str:
        return self._names[pddl_name(receptacle)]

    def go(self, receptacle: Thing) -> Iterator[str]:
        """Stand at the receptacle."""
        name = self.name(receptacle)
        if self._at != name:
            self._at = name
            yield f"go to {name}"

    def reach(self, receptacle: Thing) -> Iterator[str]:
        """Stand at the receptacle, open."""
        yield from self.go(receptacle)
        name = self.name(receptacle)
        if receptacle.kind in catalogue().openable and name not in self._opened:
            self._opened.add(name)
            yield f"open {name}"


def _wins(problem: Problem, goal: str, plan: Sequence[str]) -> bool:
    engine = NativeEngine()
    turns = [engine.start(GameFile(problem, goal)), *(engine.step(command) for command in plan)]
    return [turn.won for turn in turns] == [False] * len(plan) + [True]


def _trajectory_data(game: GeneratedGame, trial: str) -> dict[str, Any]:
    """What ALFWorld reads of ALFRED's record of a demonstration."""
    goal, room = game.layout.goal, game.layout.room
    return {
        "task_id": trial,
        "task_type": goal.task_type,
        "pddl_params": {
            "object_target": goal.target,
            "parent_target": goal.destination,
            "toggle_target": goal.lamp,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{room.number}", "scene_num": room.number},
        "turk_annotations": {"anns": [{"task_desc": game.goal, "high_descs": [], "votes": []}]},
        "plan": {"high_pddl": [], "low_actions": []},
        "images": [],
    }


@cache
def _shipped(name: str) -> str:
    return (DATA / name).read_text()
