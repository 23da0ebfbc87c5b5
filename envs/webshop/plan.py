"""The action that is right at a step of WebShop, given only what the agent can know by then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from envs.webshop.facts import (
    ITEM,
    RESULTS,
    SEARCH,
    GoalParts,
    Hit,
    PageFacts,
    parse_page,
    wanted_values,
    words_of,
)
from envs.webshop.pages import BACK_TO_SEARCH, BUY, NEXT, PREVIOUS

MAX_PAGES = 2  # results pages that are worth reading; then another search is better
MAX_REJECTED = 4  # products looked at in vain, after which the next one has to do


@dataclass
class Visit:
    """What was seen and done so far.

    `item` is the product whose page one is on, "" elsewhere; `chosen` its options chosen so far. `seen` are all
    products of results pages, `rejected` those whose page showed that they do not fit.
    """

    item: str = ""
    chosen: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Hit] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)

    def read(self, page: PageFacts, action_before: str, goal: GoalParts) -> None:
        """Take in a page and the action that led to it."""
        clicked = argument_of(action_before, "click")
        if page.kind in (SEARCH, RESULTS):
            self.item, self.chosen = "", {}
            self.seen |= {hit.asin: hit for hit in page.hits}
        elif page.kind == ITEM:
            if clicked in self.seen and not self.item:
                self.item, self.chosen = clicked, {}
            self.chosen |= {name: clicked for name, values in page.options.items() if clicked in values}
            if not fits(goal, page) and self.item not in self.rejected:
                self.rejected.append(self.item)


def argument_of(action: str, name: str) -> str:
    """The text in the brackets of `name[...]`, or "" for another action."""
    return action[len(name) + 1 : -1] if action.startswith(f"{name}[") and action.endswith("]") else ""


def fits(goal: GoalParts, page: PageFacts) -> bool:
    """Whether a product's page offers all options that the goal names, at a price that may be low enough."""
    has_options = len(wanted_values(goal, page.options)) >= len(goal.options)
    return has_options and (goal.price_upper is None or page.low <= goal.price_upper)


def right_actions(goal: GoalParts, visit: Visit, page: PageFacts) -> list[str]:
    """The actions that bring the purchase nearer, equally good ones together."""
    match page.kind:
        case "search":
            return [f"search[{goal.query}]"]
        case "results":
            best = best_hits(goal, page.hits, visit.rejected)
            if best:
                return [f"click[{hit.asin}]" for hit in best]
            return [f"click[{NEXT if page.number < MAX_PAGES and page.hits else BACK_TO_SEARCH}]"]
        case "item":
            if visit.item in visit.rejected and len(visit.rejected) <= MAX_REJECTED:
                return [f"click[{PREVIOUS}]"]
            missing = missing_values(goal, visit, page)
            return [f"click[{value}]" for value in missing.values()] or [f"click[{BUY}]"]
        case "sub":
            return [f"click[{PREVIOUS}]"]
    return []


def missing_values(goal: GoalParts, visit: Visit, page: PageFacts) -> dict[str, str]:
    """The options of the present product that are still to be chosen: name -> value."""
    wanted = wanted_values(goal, page.options)
    return {name: value for name, value in wanted.items() if visit.chosen.get(name) != value}


def best_hits(goal: GoalParts, hits: Iterable[Hit], rejected: Sequence[str] = ()) -> list[Hit]:
    """The affordable products whose titles have most of the query's words; of these the ones surely affordable."""
    upper = float("inf") if goal.price_upper is None else goal.price_upper
    wanted = words_of(goal.query)
    possible = [hit for hit in hits if hit.asin not in rejected and hit.low <= upper]
    if not possible:
        return []

    def merit(hit: Hit) -> tuple[int, bool]:
        return len(words_of(hit.title) & wanted), hit.high <= upper

    best = max(map(merit, possible))
    return [hit for hit in possible if merit(hit) == best]


def replay(goal: GoalParts, steps: Iterable[tuple[str, Sequence[str], str]]) -> list[tuple[Visit, PageFacts]]:
    """What was known, and what the page showed, when each action was chosen; `steps` are (observation, admissible
    actions, action)."""
    visit, before, snapshots = Visit(), "", []
    for observation, admissible, action in steps:
        page = parse_page(observation, admissible)
        visit.read(page, before, goal)
        snapshots.append((deepcopy(visit), page))
        before = action
    return snapshots
