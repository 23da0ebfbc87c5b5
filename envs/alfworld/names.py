"""The names that the text game shows for the identifiers of a problem, such as `mug 1` for `mug_bar_...`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from envs.alfworld.problem import Fact

_SEPARATOR = "_bar_"  # '|' as written in PDDL


def display_names(facts: Mapping[str, Iterable[Fact]]) -> dict[str, str]:
    """Identifier to display name, for every instance that `facts` mention.

    Instances of a class are numbered so that the last in sorted order is number 1, as ALFWorld does. A sink's or bath's
    basin is a class of its own although its identifier starts with the class it belongs to.
    """
    identifiers = sorted({argument for group in facts.values() for fact in group for argument in fact})
    instances = [(identifier, _class_name(identifier)) for identifier in identifiers if _SEPARATOR in identifier]
    remaining = Counter(name for _, name in instances)
    names = {}
    for identifier, name in instances:
        names[identifier] = f"{name} {remaining[name]}"
        remaining[name] -= 1
    return names


def _class_name(identifier: str) -> str:
    name = identifier.split(_SEPARATOR, 1)[0]
    for escape, character in (("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
        name = name.replace(escape, character)
    return f"{name}basin" if "basin" in identifier else name
