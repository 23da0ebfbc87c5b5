"""Plays an ALFWorld game in pure Python, with the texts and semantics of alfworld 0.4 on textworld 1.7."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from envs.alfworld.games import GameFile, read_game
from envs.alfworld.goal import Goal
from envs.alfworld.rules import Scene, State, applicable, apply
from envs.alfworld.text import NOTHING_HAPPENS, feedback, intro


@dataclass(frozen=True)
class Turn:
    """What the game shows after a reset or a command. `score` is 1 while the goal holds, else 0."""

    text: str
    admissible: tuple[str, ...]
    score: int
    won: bool


class Engine(Protocol):
    """Loads and plays one game file at a time."""

    def load(self, path: Path) -> Turn: ...

    def step(self, command: str) -> Turn: ...

    def close(self) -> None: ...


class NativeEngine:
    """The pure-Python engine."""

    def load(self, path: Path) -> Turn:
        """Start the game at `path` (a game.tw-pddl file).

        Raises:
            ValueError: the file is torn or was made for other rules; the message names it.
        """
        return self.start(read_game(path))

    def start(self, game: GameFile) -> Turn:
        """Start a game that has been read, or generated."""
        self._scene = Scene(game.problem)
        self._state = State.of(game.problem)
        self._goal = Goal(game.problem.goal, game.problem.types)
        return self._turn(intro(self._scene, self._state, game.goal))

    def step(self, command: str) -> Turn:
        """Play one command, exactly as written but for surrounding blanks; any other text changes nothing."""
        operation = self._operations.get(command.strip())
        if operation is None:
            return Turn(NOTHING_HAPPENS, self._last.admissible, self._last.score, self._last.won)
        apply(self._state, operation)
        return self._turn(feedback(self._scene, self._state, operation))

    def close(self) -> None:
        """Nothing to release."""

    def _turn(self, text: str) -> Turn:
        self._operations = applicable(self._scene, self._state)
        won = self._goal.holds(self._state.facts)
        self._last = Turn(text, tuple(sorted(self._operations)), int(won), won)
        return self._last
