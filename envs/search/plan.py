"""The steps that lead to the answer of a generated question, given only what the agent can know by then."""

from __future__ import annotations

from collections.abc import Iterable

from envs.search.facts import Chain, Fact, read_facts
from envs.search.prompt import documents_of

SEARCH, ANSWER = "search", "answer"


def facts_of(observation: str) -> list[Fact]:
    """What the documents in an observation state."""
    return [fact for _, text in documents_of(observation) for fact in read_facts(text)]


def plan(chain: Chain, known: Iterable[Fact]) -> list[tuple[str, str]]:
    """("search", thing) for all that has to be looked up, in order, then ("answer", value), as far as facts are known:
    where one is missing, the search that should show it is the last."""
    objects = {(fact.subject, fact.relation): fact.object for fact in known}
    here, steps = chain.subject, []
    for relation in chain.relations:
        steps.append((SEARCH, here))
        if (here, relation) not in objects:
            return steps
        here = objects[here, relation]
    return [*steps, (ANSWER, here)]


def next_action(chain: Chain, known: Iterable[Fact]) -> tuple[str, str]:
    """The step of the plan that comes next: the search for the first missing fact, or the answer."""
    return plan(chain, known)[-1]
