"""An expert that plays from what an agent sees: it searches typical places first, then does what the goal asks for.

It knows the catalogue's typical homes of each class of object, and nothing of a game but its texts. For demonstrations
it can be made to err.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from envs.alfworld.facts import GoalParts, class_of, parse_goal
from envs.alfworld.knowledge import Knowledge
from envs.alfworld.layout import NUM_HOMES, ranked
from envs.alfworld.plan import right_actions, search_actions
from envs.alfworld.rooms import catalogue
from envs.base import PromptView


@dataclass(frozen=True)
class Noise:
    """How often the expert errs.

    Per step, `random_action`: any admissible command; `invalid_action`: a command that does nothing. Per episode,
    `forget_processing`: the object is delivered without being cleaned, heated or cooled, and the expert thinks it done.
    """

    random_action: float = 0.0
    invalid_action: float = 0.0
    forget_processing: float = 0.0


class Expert:
    """Plays episodes one after another; the same seed and views give the same actions."""

    def __init__(self, seed: int, noise: Noise | None = None) -> None:
        self._rng = Random(seed)
        self._noise = noise or Noise()

    def act(self, view: PromptView) -> str:
        """The command for `view`. A view of index 0 starts a new episode; views must come in order.

        Raises:
            ValueError: the goal is not one of the templated ones.
        """
        if view.index == 0:
            self._start(view)
        self._knowledge.read(view.observation, view.admissible)
        draw = self._rng.random()
        if draw < self._noise.random_action:
            return self._rng.choice(view.admissible)
        if draw < self._noise.random_action + self._noise.invalid_action:
            return self._invalid(view)
        right = right_actions(self._goal, self._knowledge, view.admissible)
        if right:
            return right[0]
        ways = search_actions(self._knowledge, view.admissible)
        return min(ways, key=self._search_cost) if ways else self._rng.choice(view.admissible)

    def _start(self, view: PromptView) -> None:
        goal = parse_goal(view.goal)
        if goal is None:
            raise ValueError(f"the expert does not understand the goal {view.goal!r}")
        forgets = self._rng.random() < self._noise.forget_processing
        self._goal: GoalParts = replace(goal, processing="") if forgets else goal
        self._knowledge = Knowledge()
        self._tie_break = self._rng.random()

    def _search_cost(self, command: str) -> tuple[bool, bool, bool, float]:
        """Likely places first, of these the ones that need no opening; the episode's own order among equals."""
        shelves, goal = catalogue(), self._goal
        wanted = goal.lamp if goal.lamp and class_of(self._knowledge.held) == goal.target else goal.target
        kinds = {_class_name(class_of(name)) for name in self._knowledge.receptacles}
        ranks = ranked(shelves, _class_name(wanted), sorted(kinds))
        likely = [kind for kind in ranks if kind.lower() != goal.destination][:NUM_HOMES]
        place = command.removeprefix("go to ").removeprefix("open ")
        kind = _class_name(class_of(place))
        order = Random(f"{self._tie_break} {place}").random()
        return kind not in ranks, kind not in likely, kind in shelves.openable, order

    def _invalid(self, view: PromptView) -> str:
        """A plausible command that is not admissible: the target is not here, or not in reach."""
        place = self._knowledge.location or self._rng.choice(self._knowledge.receptacles)
        commands = [f"take {self._goal.target} {number} from {place}" for number in (1, 2, 3)]
        return next(command for command in commands if command not in view.admissible)


def _class_name(shown: str) -> str:
    """ALFRED's spelling of a class that the game shows in lower case."""
    return _CLASS_NAMES[shown]


_CLASS_NAMES = {name.lower(): name for name in (*catalogue().homes, *catalogue().holds)}
