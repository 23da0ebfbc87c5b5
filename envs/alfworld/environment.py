"""The ALFWorld environment: tasks, resets and steps over the native or the official engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.alfworld.engine import Engine, NativeEngine
from envs.alfworld.games import TASK_PREFIX, list_games, task_type
from envs.alfworld.official import OfficialEngine, official_faults
from envs.base import Observation, Outcome, Start, Task, unknown_options

SUCCESS_SCORE = 10.0
NATIVE = "native"
OFFICIAL = "official"
_ENGINES = {NATIVE: NativeEngine, OFFICIAL: OfficialEngine}


class AlfworldEnvironment:
    """Plays the games under `data`. Task.index counts the split's games in path order, from 0."""

    def __init__(self, engine: Engine, data: str) -> None:
        self._engine = engine
        self._data = data

    def reset(self, task: Task) -> Start:
        """Start the task's game. Task.seed has no effect: a game is fully described by its file.

        Raises:
            ValueError: Task.index is out of range, or the split or the game file is missing or torn; the message names
                the path.
        """
        games = list_games(self._data, task.split)
        if not 0 <= task.index < len(games):
            raise ValueError(
                f"game {task.index} of {task.split!r} does not exist: {self._data} has 0 to {len(games) - 1}"
            )
        path = games[task.index]
        turn = self._engine.load(path)
        return Start(
            goal=turn.text.rpartition(TASK_PREFIX)[2].removesuffix("."),
            category=task_type(path),
            observation=Observation(turn.text, turn.admissible),
        )

    def step(self, action: str) -> Outcome:
        """Play one command. The episode is done when it is won; `reward` is 10 on the winning step, else 0."""
        turn = self._engine.step(action)
        return Outcome(
            observation=Observation(turn.text, turn.admissible),
            reward=success_score(turn.won),
            done=turn.won,
            won=turn.won,
            info={"score": turn.score},
        )

    def close(self) -> None:
        self._engine.close()


def option_faults(options: Mapping[str, Any]) -> list[str]:
    """`engine` must be native (the default) or official, which needs packages, `data` the folder of the games."""
    faults = unknown_options(options, known=("data", "engine"))
    name = options.get("engine", NATIVE)
    if name not in _ENGINES:
        faults.append(f"env.options.engine={name!r} is not an ALFWorld engine; set it to one of {', '.join(_ENGINES)}")
    return faults + (official_faults() if name == OFFICIAL else [])


def make_environment(options: Mapping[str, Any]) -> AlfworldEnvironment:
    """An environment over `options`.

    Raises:
        ValueError: option_faults has something to say, there is no `data`, or the official engine is not installed.
    """
    faults = option_faults(options)
    if "data" not in options:
        faults.append('the folder of the games is not given; set env.data, here {"data": "DIR"}')
    if faults:
        raise ValueError("; ".join(faults))
    return AlfworldEnvironment(_ENGINES[options.get("engine", NATIVE)](), options["data"])


def num_tasks(split: str, options: Mapping[str, Any]) -> int:
    """The number of playable games of `split`.

    Raises:
        ValueError: the split is missing or empty; the message names the folder.
    """
    return len(list_games(options["data"], split))


def success_score(won: bool) -> float:
    """The outcome score of an episode: 10 if won, else 0."""
    return SUCCESS_SCORE if won else 0.0
