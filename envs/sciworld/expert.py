"""Solutions of games, made from the package's gold paths, and an expert that follows one; it can be made to err.

Gold paths walk through every door and look around on the way. A solution here is what matters of one: rooms are reached
by teleport where the simplifications allow it, and things have the names that the environment offers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from envs.base import PromptView
from envs.sciworld.simulator import Simulator, Turn
from envs.sciworld.tasks import Variation

_SLOTS = re.compile(
    r"(?P<verb>focus on|pick up|put down|open|close|activate|deactivate|mix|move|pour|use|connect|dunk) "
    r"(?P<first>.+?)(?: (?P<link>to|in|on) (?P<second>(?!inventory).+))?\Z"
)
_LOOKS = ("look", "examine", "wait1", "task", "inventory")
FULL_SCORE = 100


def solve(simulator: Simulator, game: Variation, simplification: str) -> tuple[str, ...]:
    """Actions that win `game`, each of them needed or harmless. Takes 0.3 to 12 s.

    Raises:
        ValueError: neither the gold path nor what was made of it wins.
    """
    simulator.load(game, simplification, 0, gold_path=True)
    gold = simulator.gold_path()
    can_teleport = "easy" in simplification or "teleportAction" in simplification
    for actions in (_shorten(simulator, game, simplification, gold) if can_teleport else (), gold):
        won = _until_won(simulator, game, simplification, actions)
        if won:
            return won
    raise ValueError(f"the gold path of {game} does not win with simplification {simplification!r}")


def _shorten(simulator: Simulator, game: Variation, simplification: str, gold: Sequence[str]) -> list[str]:
    simulator.load(game, simplification, 0)
    actions: list[str] = []
    place = held = ""
    for action in gold:
        if action.startswith("go to "):
            place = action.removeprefix("go to ")
        elif not action.startswith(("open door", *_LOOKS)):
            if place:
                actions.append(f"teleport to {place}")
                simulator.step(actions[-1])
                place = ""
            actions.append(_rename(action, simulator.objects(), held))
            simulator.step(actions[-1])
            if actions[-1].startswith("pick up "):
                held = actions[-1].removeprefix("pick up ")
    return actions


def _rename(action: str, objects: Sequence[str], held: str) -> str:
    """The action with the names that are offered; what is not in sight is what was picked up last."""
    found = _SLOTS.match(action)
    if found is None:
        return action
    first = held if held and "in inventory" in found["first"] else _offered(found["first"], objects)
    second = f" {found['link']} {_offered(found['second'], objects)}" if found["link"] else ""
    return f"{found['verb']} {first}{second}"


def _offered(name: str, objects: Sequence[str]) -> str:
    """`name`, or the offered name that shares most words with it; the shortest of several."""
    words = set(name.split())
    best = max(objects, key=lambda offered: (len(words & set(offered.split())), -len(offered)), default=name)
    return best if name not in objects and words & set(best.split()) else name


def _until_won(
    simulator: Simulator, game: Variation, simplification: str, actions: Sequence[str]
) -> tuple[str, ...] | None:
    """The actions up to the one that wins; None if none does."""
    turn: Turn = simulator.load(game, simplification, 0)
    for number, action in enumerate(actions, start=1):
        turn = simulator.step(action)
        if turn.score == FULL_SCORE:
            return tuple(actions[:number])
    return None


@dataclass(frozen=True)
class Noise:
    """How the expert errs. Per step, `random_action`: another action; per episode, `wrong_focus`: it takes the first
    best thing for what the task asks to focus on."""

    random_action: float = 0.0
    wrong_focus: float = 0.0


class Expert:
    """Follows a solution, and finds back to it after a random action. Plays one episode.

    `right` is the action that the solution has for the last view.
    """

    def __init__(self, solution: Sequence[str], seed: int = 0, noise: Noise | None = None) -> None:
        self._solution = solution
        self._rng = Random(seed)
        self._noise = noise or Noise()
        self._focuses_wrongly = self._rng.random() < self._noise.wrong_focus
        self._num_done = 0
        self._place = self._expected_place = ""
        self.right = ""

    def act(self, view: PromptView) -> str:
        """The action for `view`; views must come in order."""
        objects = [name for name in view.affordances.get("objects", ()) if name not in ("agent", "air")]
        self.right = self._next()
        action = self.right
        if objects and self._rng.random() < self._noise.random_action:
            verb = self._rng.choice(("teleport to", "look at", "pick up", "open", "go to"))
            action = f"{verb} {self._rng.choice(objects)}"
        elif objects and self._focuses_wrongly and action.startswith("focus on "):
            action = f"focus on {self._rng.choice(objects)}"
        if action.startswith(("teleport to ", "go to ")):
            self._place = action.partition(" to ")[2]
        if action == self.right:
            self._num_done += self._is_next(action)
            self._expected_place = self._place
        return action

    def _next(self) -> str:
        if self._place != self._expected_place and self._expected_place:
            return f"teleport to {self._expected_place}"
        return self._solution[self._num_done] if self._num_done < len(self._solution) else "look around"

    def _is_next(self, action: str) -> bool:
        return self._num_done < len(self._solution) and action == self._solution[self._num_done]
