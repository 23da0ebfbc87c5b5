"""What every environment offers: tasks, a text interface, and how its step is shown to an agent.

An environment package (`envs.alfworld`, ...) is a module with the members of `EnvironmentPackage`; `load` finds it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Task:
    """What to play. Every episode of the same Task plays the same game, so episodes of one Task form a group."""

    env: str
    index: int
    seed: int
    split: str


@dataclass(frozen=True)
class Observation:
    """What the agent may see now: the environment's text and the actions that it would accept.

    An entry of `admissible` may have a place for free text, as `search[<your query>]` (is_admissible).
    Where the actions are too many to list, `admissible` is empty and `affordances` holds what they are made of, by kind
    (ScienceWorld: action templates and the names of objects).
    """

    text: str
    admissible: tuple[str, ...] = ()
    affordances: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """The result of a reset. `goal` is the task in words, `category` the task type that success is reported by."""

    goal: str
    category: str
    observation: Observation


@dataclass(frozen=True)
class Outcome:
    """The result of one action. `reward` is this step's own; `won` is meaningful once `done`.

    `info` are the environment's own numbers of the episode so far; the last step's are averaged into the metrics.
    """

    observation: Observation
    reward: float
    done: bool
    won: bool
    info: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptView:
    """All that one prompt shows. `history` holds the last (observation, action) pairs before step `index` (0-based)."""

    goal: str
    history: tuple[tuple[str, str], ...]
    index: int
    observation: str
    admissible: tuple[str, ...]
    affordances: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Environment(Protocol):
    """One running game. Not thread-safe; lives in one process and is reused for many tasks."""

    def reset(self, task: Task) -> Start: ...

    def step(self, action: str) -> Outcome: ...

    def close(self) -> None: ...


class ServiceFault(RuntimeError):
    """What an environment stands on, a server or a process, does not answer; the game could go on with another one."""


class EnvironmentPackage(Protocol):
    """The members of an environment's module.

    `options` are the environment's own settings: `data` (where its files lie) and those of the config's `env.options`.
    A package whose calls may wait for something also has `timeout_faults(options, timeout_s)`: what is wrong where an
    environment's process is killed after `timeout_s` in one call.
    """

    def option_faults(self, options: Mapping[str, Any]) -> list[str]:
        """What is wrong with `options`, each with its value and what to set; empty if an environment can be made."""
        ...

    def make_environment(self, options: Mapping[str, Any]) -> Environment: ...

    def num_tasks(self, split: str, options: Mapping[str, Any]) -> int: ...

    def render_prompt(self, view: PromptView, *, style: str, episode_skill: str = "", step_skill: str = "") -> str: ...

    def project_action(self, response: str) -> tuple[str, bool]: ...

    def success_score(self, won: bool) -> float: ...


def is_admissible(action: str, admissible: Sequence[str]) -> bool:
    """Whether `action` is one of those offered; in `search[<your query>]` any text may stand for what is in <>."""
    if action in admissible:
        return True
    openings = (re.split(r"<[^<>]+>", offered, maxsplit=1) for offered in admissible if "<" in offered)
    return any(
        len(ends) == 2
        and action.startswith(ends[0])
        and action.endswith(ends[1])
        and len(action) > len(ends[0]) + len(ends[1])
        for ends in openings
    )


def unknown_options(options: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """A fault for every option that the package does not have."""
    return [
        f"env.options.{name} is not an option of this environment; it has {', '.join(sorted(known))}"
        for name in options
        if name not in known
    ]


def package_fault(what: str, package: str, extra: str) -> str:
    """What to say where `what` needs a package that is not installed, one of an extra of pyproject.toml."""
    return f"{what} needs the package {package}; install it with pip install -e '.[{extra}]'"


def load(name: str) -> EnvironmentPackage:
    """The package of environment `name`.

    Raises:
        ValueError: no environment has that name, or it needs packages that are not installed.
        ModuleNotFoundError: the package imports a module of ours that is not there.
    """
    try:
        return importlib.import_module(f"envs.{name}")
    except ModuleNotFoundError as error:
        if f"envs.{name}.".startswith(f"{error.name}."):
            known = sorted(path.parent.name for path in Path(__file__).parent.glob("*/environment.py"))
            fault = f"env.name={name!r} is not an environment; set it to one of {', '.join(known)}"
        elif (error.name or "").startswith("envs."):
            raise  # a defect of ours
        else:
            fault = package_fault(f"env.name={name}", error.name, name)
        raise ValueError(fault) from error
