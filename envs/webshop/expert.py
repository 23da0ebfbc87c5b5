"""A shopper that plays from what an agent sees; for demonstrations it can be made to err."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from envs.base import PromptView
from envs.webshop.facts import ITEM, RESULTS, SEARCH, PageFacts, parse_goal, parse_page
from envs.webshop.pages import BUY
from envs.webshop.plan import Visit, missing_values, right_actions


@dataclass(frozen=True)
class Noise:
    """How often the shopper errs.

    Per step: `random_action`, any click of the page or a search of one word; `invalid_action`, an action that does
    nothing; `careless_choice`, any product of a results page. Per option: `forget_option`, it is never chosen.
    """

    random_action: float = 0.0
    invalid_action: float = 0.0
    careless_choice: float = 0.0
    forget_option: float = 0.0


class Expert:
    """Plays episodes one after another; the same seed and views give the same actions."""

    def __init__(self, seed: int, noise: Noise | None = None) -> None:
        self._rng = Random(seed)
        self._noise = noise or Noise()

    def act(self, view: PromptView) -> str:
        """The action for `view`. A view of index 0 starts a new episode; views must come in order."""
        if view.index == 0:
            self._goal, self._visit, self._before = parse_goal(view.goal), Visit(), ""
            self._forgotten: dict[str, bool] = {}
        page = parse_page(view.observation, view.admissible)
        self._visit.read(page, self._before, self._goal)
        self._before = self._choose(page, view)
        return self._before

    def _choose(self, page: PageFacts, view: PromptView) -> str:
        draw = self._rng.random()
        if draw < self._noise.random_action:
            return self._random(page, view)
        if draw < self._noise.random_action + self._noise.invalid_action:
            return f"click[{self._rng.choice(self._goal.query.split() or [BUY])}]"
        if page.kind == RESULTS and page.hits and self._rng.random() < self._noise.careless_choice:
            return f"click[{self._rng.choice(page.hits).asin}]"
        right = right_actions(self._goal, self._visit, page)
        if page.kind == ITEM and (missing := missing_values(self._goal, self._visit, page)):
            forgotten = {f"click[{value}]" for name, value in missing.items() if self._forgets(name)}
            right = right if not forgotten.issuperset(right) else [f"click[{BUY}]"]
            right = [action for action in right if action not in forgotten]
        return right[0]

    def _forgets(self, name: str) -> bool:
        """Whether this episode leaves out an option; decided when it first comes up."""
        if name not in self._forgotten:
            self._forgotten[name] = self._rng.random() < self._noise.forget_option
        return self._forgotten[name]

    def _random(self, page: PageFacts, view: PromptView) -> str:
        if page.kind == SEARCH:
            return f"search[{self._rng.choice(self._goal.query.split() or [view.goal])}]"
        return self._rng.choice(view.admissible)
