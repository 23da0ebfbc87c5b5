"""What a visit's texts tell: the parts of a goal, and what a page shows.

Everything here is read from goals, observations and admissible actions; nothing asks the shop. For prompts, analyzers
and experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.webshop.pages import BACK_TO_SEARCH, BUY, NEXT, PREVIOUS, SEPARATOR, SUB_PAGES

SEARCH, RESULTS, ITEM, SUB, DONE = "search", "results", "item", "sub", "done"
_BUTTONS = frozenset({BACK_TO_SEARCH, PREVIOUS, NEXT, BUY, *SUB_PAGES})
_RESULTS = re.compile(r"Page (\d+) \(Total results: (\d+)\)")
_PRICE = re.compile(r"\$([\d.]+)(?: to \$([\d.]+))?")
_UPPER_PRICE = re.compile(r", and price lower than ([\d.]+) dollars\Z")
_AFTER_TITLE = 6  # price, rating, three buttons, Buy Now
_PREFIXES = re.compile(r"\b(?:find me|i am looking for|i need|i want to buy|can you find|for me|it should be)\b")
_FILLERS = frozenset(
    ["a", "an", "and", "the", "for", "me", "that", "is", "are", "it", "should", "be", "with", "in", "of", "to"]
)
_WORD = re.compile(r"[\w&'+-]+")


@dataclass(frozen=True)
class GoalParts:
    """What a goal asks for: `request` in words, `options` by name where the goal names them, an upper price or None."""

    request: str
    options: Mapping[str, str]
    price_upper: float | None

    @property
    def query(self) -> str:
        """The request without its polite words: what one would type into the search bar."""
        words = _WORD.findall(_PREFIXES.sub(" ", self.request.lower()))
        return " ".join(word for word in words if word not in _FILLERS)


@dataclass(frozen=True)
class Hit:
    """A product on a results page; `asin` in lower case, as it is clicked. Prices in dollars."""

    asin: str
    title: str
    low: float
    high: float


@dataclass(frozen=True)
class PageFacts:
    """What a page shows. Of a results page: its number and hits; of a product's: title, prices and options."""

    kind: str
    number: int = 0
    hits: tuple[Hit, ...] = ()
    title: str = ""
    low: float = 0.0
    high: float = 0.0
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parts: tuple[str, ...] = ()


def parse_goal(text: str) -> GoalParts:
    """The parts of an instruction; one in a person's words names no options."""
    found = _UPPER_PRICE.search(text)
    request = text[: found.start()] if found else text
    price_upper = float(found[1]) if found else None
    head, separator, tail = request.rpartition(" with ")
    pairs = [pair.split(": ", 1) for pair in tail.split(", and ")]
    if separator and all(len(pair) == 2 for pair in pairs):
        return GoalParts(head, dict(pairs), price_upper)
    return GoalParts(request, {}, price_upper)


def wanted_values(goal: GoalParts, options: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The values to choose of a product's options: those that the goal names, else those whose words are in it."""
    if goal.options:
        return {name: goal.options[name] for name, values in options.items() if goal.options.get(name) in values}
    request = f" {' '.join(_WORD.findall(goal.request.lower()))} "
    wanted = {}
    for name, values in options.items():
        mentioned = [value for value in values if f" {' '.join(_WORD.findall(value))} " in request]
        if mentioned:
            wanted[name] = max(mentioned, key=len)
    return wanted


def words_of(text: str) -> frozenset[str]:
    """The words of a text in lower case, plural forms as singular ones."""
    return frozenset(word.removesuffix("s") for word in _WORD.findall(text.lower()))


def shown_parts(observation: str) -> tuple[str, ...]:
    """The parts of a page without the instruction, which every page repeats."""
    parts = observation.split(SEPARATOR)
    if "Instruction:" not in parts:
        return tuple(parts)
    start = parts.index("Instruction:")
    return (*parts[:start], *parts[start + 2 :])


def parse_page(observation: str, admissible: Sequence[str]) -> PageFacts:
    """What the page of an observation shows."""
    parts = shown_parts(observation)
    clickable = {action[len("click[") : -1] for action in admissible if action.startswith("click[")}
    if parts[0] == "WebShop":
        return PageFacts(SEARCH, parts=parts)
    if not clickable:
        return PageFacts(DONE, parts=parts)
    found = _RESULTS.fullmatch(parts[1]) if len(parts) > 1 else None
    if found:
        return PageFacts(RESULTS, number=int(found[1]), hits=_hits(parts[2:], clickable), parts=parts)
    if BUY in clickable:
        return _item(parts, clickable)
    return PageFacts(SUB, parts=parts[2:])


def _hits(parts: Sequence[str], clickable: set[str]) -> tuple[Hit, ...]:
    triples = zip(parts, parts[1:], parts[2:], strict=False)
    return tuple(
        Hit(asin.lower(), title, *_prices(price))
        for asin, title, price in triples
        if asin.lower() in clickable - _BUTTONS and price.startswith("$")
    )


def _item(parts: Sequence[str], clickable: set[str]) -> PageFacts:
    body, title, price = parts[2 : -_AFTER_TITLE - 1], parts[-_AFTER_TITLE - 1], parts[-_AFTER_TITLE]
    options: dict[str, list[str]] = {}
    name = ""
    for part in body:
        if part in clickable and name:
            options[name].append(part)
        else:
            name = part
            options[name] = []
    low, high = _prices(price.removeprefix("Price: "))
    choices = {name: tuple(values) for name, values in options.items()}
    return PageFacts(ITEM, title=title, low=low, high=high, options=choices, parts=tuple(parts))


def _prices(tag: str) -> tuple[float, float]:
    found = _PRICE.fullmatch(tag)
    if found is None:
        return 0.0, 0.0
    return float(found[1]), float(found[2] or found[1])
