"""Finds and reads game files in ALFWorld's layout: json_2.1.1/<split>/<task>/<trial>/game.tw-pddl."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.alfworld.problem import Problem, parse_problem

LAYOUT = "json_2.1.1"
GAME_NAME = "game.tw-pddl"
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_NO_GAMES = (
    f"set env.data to the folder that contains {LAYOUT} (ALFWorld's download, or the output of python -m "
    "tools.make_alfworld_games)"
)
TASK_PREFIX = "Your task is to: "
_TASK_SENTENCE = re.compile(rf'"({TASK_PREFIX}(?:[^"\\]|\\.)*)"')
# Sentences that tell the grammar of alfworld 0.4 from that of older releases, which play by other commands.
_GRAMMAR_MARKS = ('"move {o} to {r}"', "You move the {o.name} to the {r.name}.", "You arrive at {r.name}.")


@dataclass(frozen=True)
class GameFile:
    """A parsed game: its problem and its goal in words, without the closing full stop."""

    problem: Problem
    goal: str


@lru_cache(maxsize=16)
def list_games(data: str, split: str) -> tuple[Path, ...]:
    """The playable games of a split, sorted by path: those that AlfredTWEnv collects.

    A game counts if its folder has traj_data.json with one of the six task types and game.tw-pddl marked solvable, and
    its path names no movable receptacle and no sliced object.

    Raises:
        ValueError: the folder is missing, holds no playable game, or holds a torn file; the message names it.
    """
    if not data:
        raise ValueError(f"env.data is empty; set it to the folder that contains {LAYOUT}")
    root = Path(os.path.expandvars(data)).expanduser() / LAYOUT / split
    if not root.is_dir():
        splits = ", ".join(_splits(root.parent))
        raise ValueError(
            f"there is no folder {root}; " + (f"set the split to one of {splits}" if splits else _NO_GAMES)
        )
    games = sorted(path.with_name(GAME_NAME) for path in root.rglob("traj_data.json") if _is_playable(path, root))
    if not games:
        raise ValueError(f"{root} holds no playable game (a {GAME_NAME} marked solvable beside a traj_data.json)")
    return tuple(games)


def _splits(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def task_type(path: Path) -> str:
    """The task type of the game at `path`, one of TASK_TYPES."""
    return _read_json(path.with_name("traj_data.json"))["task_type"]


def read_game(path: Path) -> GameFile:
    """Read and parse a game.tw-pddl file.

    Raises:
        ValueError: the file is missing or torn, or was written for other rules; the message names it.
    """
    data = _read_json(path)
    try:
        grammar = data["grammar"]
        if not all(mark in grammar for mark in _GRAMMAR_MARKS):
            raise ValueError("its grammar is not that of alfworld 0.4; download the games again with alfworld 0.4.2")
        return GameFile(parse_problem(data["pddl_problem"]), _goal_text(grammar))
    except KeyError as error:
        raise ValueError(f"the game file {path} has no key {error}; generate or download it again") from error
    except (ValueError, IndexError) as error:
        raise ValueError(f"the game file {path} cannot be played: {error}") from error


def _is_playable(traj_data: Path, root: Path) -> bool:
    name = str(traj_data.parent.relative_to(root))
    game = traj_data.with_name(GAME_NAME)
    if "movable" in name or "Sliced" in name or not game.exists():
        return False
    return _read_json(traj_data).get("task_type") in TASK_TYPES and bool(_read_json(game).get("solvable"))


def _goal_text(grammar: str) -> str:
    found = _TASK_SENTENCE.search(grammar)
    if found is None:
        raise ValueError("its grammar states no task")
    sentence = json.loads(f'"{found.group(1)}"')
    return sentence.removeprefix(TASK_PREFIX).removesuffix(".")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check env.data") from error
    except ValueError as error:
        raise ValueError(f"{path} is torn or not JSON ({error}); generate or download it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} does not hold a JSON object; generate or download it again")
    return data
