"""An expert that answers generated questions from what it has read; for demonstrations it can be made to err."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from envs.base import PromptView
from envs.search.facts import Fact, parse_question
from envs.search.plan import ANSWER, SEARCH, facts_of, next_action
from envs.search.prompt import answer_action, search_action


@dataclass(frozen=True)
class Noise:
    """How often the expert errs.

    Per step, `careless_query`: it searches for anything that it has read of. Per episode, `hasty_answer`: as soon as it
    has read something it answers with any value in it.
    """

    careless_query: float = 0.0
    hasty_answer: float = 0.0


class Expert:
    """Plays episodes one after another; the same seed and views give the same actions."""

    def __init__(self, seed: int, noise: Noise | None = None) -> None:
        self._rng = Random(seed)
        self._noise = noise or Noise()

    def act(self, view: PromptView) -> str:
        """The action for `view`. A view of index 0 starts a new episode; views must come in order.

        Raises:
            ValueError: the question is not one of the generated ones.
        """
        if view.index == 0:
            self._chain = parse_question(view.goal)
            if self._chain is None:
                raise ValueError(f"no expert for {view.goal!r}: it only knows questions of prepare_search_qa generated")
            self._known: list[Fact] = []
            self._is_hasty = self._rng.random() < self._noise.hasty_answer
        self._known += facts_of(view.observation)
        kind, words = next_action(self._chain, self._known)
        if self._known and self._is_hasty:
            kind, words = ANSWER, self._rng.choice(self._known).object
        elif self._rng.random() < self._noise.careless_query:
            names = sorted({name for fact in self._known for name in (fact.subject, fact.object)})
            kind, words = SEARCH, self._rng.choice(names or view.goal.rstrip("?").split())
        return search_action(words) if kind == SEARCH else answer_action(words)
