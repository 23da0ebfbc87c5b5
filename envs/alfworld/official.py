"""The official ALFWorld engine (alfworld 0.4 on textworld 1.7) behind the interface of the native one."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from envs.alfworld.engine import Turn
from envs.base import package_fault

_PACKAGES = ("alfworld", "textworld")


def official_faults() -> list[str]:
    """Why the official engine cannot play here, each with what to do; empty if it can."""
    return [
        f"{package_fault('env.options.engine=official', package, 'alfworld')}, or set env.options.engine=native"
        for package in _PACKAGES
        if find_spec(package) is None
    ]


class OfficialEngine:
    """textworld's PddlEnv with ALFWorld's names. About a second to load a game and a tenth of a second for a step."""

    def __init__(self) -> None:
        try:
            import textworld
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
            from textworld.envs import PddlEnv
        except ImportError as error:
            raise ValueError(
                f"env.options.engine=official: alfworld cannot be used ({error}); install it again with "
                "pip install -e '.[alfworld]', or set env.options.engine=native"
            ) from error
        self._environment = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))

    def load(self, path: Path) -> Turn:
        """Start the game at `path` (a game.tw-pddl file)."""
        arguments = sys.argv
        try:
            self._environment.load(str(path))
            return self._turn(self._environment.reset())
        finally:
            sys.argv = arguments  # fast_downward's translator overwrites it

    def step(self, command: str) -> Turn:
        """Play one command."""
        return self._turn(self._environment.step(command)[0])

    def close(self) -> None:
        """End the game. The planner's library stays loaded until the process ends."""
        self._environment.close()

    def _turn(self, state) -> Turn:
        won = state["won"]
        return Turn(state.feedback, tuple(state["admissible_commands"]), int(won), won)
