"""Reads the PDDL problem of an ALFRED game: its objects, its initial facts and its goal.

The domain itself (14 operators) is fixed and built into `rules`; only problems vary.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Fact = tuple[str, ...]
Formula = tuple[Any, ...]

PREDICATES = frozenset(
    {
        "atlocation",
        "receptacleatlocation",
        "objectatlocation",
        "openable",
        "opened",
        "inreceptacle",
        "isreceptacleobject",
        "inreceptacleobject",
        "isreceptacleobjectfull",
        "wasinreceptacle",
        "checked",
        "examined",
        "receptacletype",
        "cancontain",
        "objecttype",
        "holds",
        "holdsany",
        "holdsanyreceptacleobject",
        "full",
        "isclean",
        "cleanable",
        "ishot",
        "heatable",
        "iscool",
        "coolable",
        "pickupable",
        "moveable",
        "toggleable",
        "ison",
        "istoggled",
        "sliceable",
        "issliced",
    }
)


@dataclass(frozen=True)
class Problem:
    """A parsed problem. All names are lower case, as PDDL is case-insensitive.

    `types` maps an object to its type; `facts` maps a predicate to the argument tuples that hold at the start.
    """

    types: Mapping[str, str]
    facts: Mapping[str, frozenset[Fact]]
    goal: Formula


def parse_problem(text: str) -> Problem:
    """Parse the text of a `(define (problem ...) ...)`.

    Raises:
        ValueError: unbalanced parentheses, a missing section, or a predicate that the ALFRED domain does not have.
    """
    sections = {part[0]: part[1:] for part in _parse_list(text)[1:]}
    missing = [name for name in (":objects", ":init", ":goal") if name not in sections]
    if missing:
        raise ValueError(f"the problem has no section {', '.join(missing)}")
    return Problem(
        types=dict(typed_names(sections[":objects"])),
        facts=_facts(sections[":init"]),
        goal=sections[":goal"][0],
    )


def typed_names(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The (name, type) pairs of a PDDL typed list such as `a b - object c - location`."""
    pending: list[str] = []
    words = iter(names)
    for word in words:
        if word == "-":
            kind = next(words)
            yield from ((name, kind) for name in pending)
            pending = []
        else:
            pending.append(word)
    yield from ((name, "object") for name in pending)


def _facts(init: Iterable[Formula]) -> dict[str, frozenset[Fact]]:
    facts: dict[str, set[Fact]] = defaultdict(set)
    for predicate, *arguments in init:
        if predicate == "=":  # costs and distances play no part in the text game
            continue
        if predicate not in PREDICATES:
            raise ValueError(f"the ALFRED domain has no predicate {predicate!r}")
        facts[predicate].add(tuple(arguments))
    return {predicate: frozenset(arguments) for predicate, arguments in facts.items()}


def _parse_list(text: str) -> Formula:
    """The nested tuples of the one s-expression in `text`."""
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text).lower()):
        if token == "(":
            stack.append([])
        elif token == ")":
            closed = tuple(stack.pop())
            if not stack:
                raise ValueError("the problem closes a parenthesis too many")
            stack[-1].append(closed)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError("the problem ends before its last parenthesis is closed")
    return stack[0][0]
