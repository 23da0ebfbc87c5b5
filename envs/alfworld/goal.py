"""Decides whether a PDDL goal holds: and, or, not, imply, =, exists, forall over typed variables and atoms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from envs.alfworld.problem import Fact, Formula, typed_names

Facts = Mapping[str, Collection[Fact]]
Binding = dict[str, str]


class Goal:
    """A goal formula over the objects of one problem."""

    def __init__(self, formula: Formula, types: Mapping[str, str]) -> None:
        self._formula = formula
        self._types = types
        self._objects: dict[str, list[str]] = defaultdict(list)
        for name, kind in types.items():
            self._objects[kind].append(name)

    def holds(self, facts: Facts) -> bool:
        """Whether the goal is true of `facts` (argument tuples by predicate; an absent predicate has none)."""
        return self._holds(self._formula, {}, facts)

    def _holds(self, formula: Formula, binding: Binding, facts: Facts) -> bool:
        """`formula` under a `binding` of all its free variables."""
        operator, *parts = formula
        if operator == "and":
            return all(self._holds(part, binding, facts) for part in parts)
        if operator == "or":
            return any(self._holds(part, binding, facts) for part in parts)
        if operator == "not":
            return not self._holds(parts[0], binding, facts)
        if operator == "imply":
            return not self._holds(parts[0], binding, facts) or self._holds(parts[1], binding, facts)
        if operator == "exists":
            return self._exists(*_flatten(formula, binding.keys()), binding, facts)
        if operator == "forall":
            return not self._exists(dict(typed_names(parts[0])), [("not", parts[1])], binding, facts)
        arguments = tuple(binding.get(part, part) for part in parts)
        if operator == "=":
            return arguments[0] == arguments[1]
        return arguments in facts.get(operator, ())

    def _exists(self, variables: Binding, conjuncts: list[Formula], binding: Binding, facts: Facts) -> bool:
        """Backtracking join: bind `variables` (name to type) by matching the most constrained atom first."""
        binding = {name: value for name, value in binding.items() if name not in variables}
        return self._join(variables, conjuncts, binding, facts)

    def _join(self, variables: Binding, conjuncts: list[Formula], binding: Binding, facts: Facts) -> bool:
        open_names = variables.keys() - binding.keys()
        if not open_names:
            return all(self._holds(part, binding, facts) for part in conjuncts)
        atoms = []
        for part in conjuncts:
            if part[0] in _OPERATORS:
                continue
            if not open_names.isdisjoint(part[1:]):
                atoms.append(part)
            elif not self._holds(part, binding, facts):
                return False
        if not atoms:
            name = min(open_names)
            values = self._objects[variables[name]]
            return any(self._join(variables, conjuncts, {**binding, name: value}, facts) for value in values)
        atom = min(atoms, key=lambda part: (len(open_names.intersection(part[1:])), len(facts.get(part[0], ()))))
        rest = [part for part in conjuncts if part is not atom]
        for arguments in facts.get(atom[0], ()):
            matched = self._match(atom[1:], arguments, variables, binding)
            if matched is not None and self._join(variables, rest, matched, facts):
                return True
        return False

    def _match(self, pattern: Fact, arguments: Fact, variables: Binding, binding: Binding) -> Binding | None:
        """`binding` extended so that `pattern` equals `arguments`, or None."""
        matched = binding
        for name, value in zip(pattern, arguments, strict=True):
            known = matched.get(name) if name.startswith("?") else name
            if known is None:
                if self._types.get(value) != variables.get(name):
                    return None
                matched = {**matched, name: value}
            elif known != value:
                return None
        return matched


_OPERATORS = frozenset({"and", "or", "not", "imply", "exists", "forall", "="})


def _flatten(formula: Formula, used: Collection[str]) -> tuple[Binding, list[Formula]]:
    """The variables and conjuncts of nested `exists` and `and`; a scope that would reuse a name stays nested."""
    if formula[0] == "exists":
        variables, parts = dict(typed_names(formula[1])), formula[2:]
    elif formula[0] == "and":
        variables, parts = {}, formula[1:]
    else:
        return {}, [formula]
    conjuncts: list[Formula] = []
    for part in parts:
        names = variables.keys() | used
        inner, inner_conjuncts = _flatten(part, names)
        if names.isdisjoint(inner):
            variables |= inner
            conjuncts += inner_conjuncts
        else:
            conjuncts.append(part)
    return variables, conjuncts
