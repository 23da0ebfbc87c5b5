"""The ScienceWorld environment: tasks, resets and steps over a simulator in this process's Java machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from envs.base import Observation, Outcome, Start, Task, unknown_options
from envs.sciworld.java import borrow_machine, java_faults, return_machine
from envs.sciworld.simulator import Simulator, Turn
from envs.sciworld.tasks import LEVELS, Variation, list_variations, unknown_tasks

SUCCESS_SCORE = 10.0
FULL_SCORE = 100
SIMPLIFICATIONS = (
    *("easy", "teleportAction", "selfWateringFlowerPots", "openContainers", "openDoors"),
    "noElectricalAction",
)
_AMBIGUOUS = "Ambiguous request"


@dataclass(frozen=True)
class Options:
    """env.options of ScienceWorld.

    `level` chooses the splits (tasks.py). `simplification` is a comma-separated list; `easy` is all of them. `tasks`
    and `variations_per_task` make the splits smaller. `env_step_limit` counts the simulator's moves, waiting included.
    `heap_mib` bounds the Java heap, which all simulators of a process share: 320 is enough for 16 of them (measured; 32
    ran out of it).
    """

    level: str = "L0"
    simplification: str = "easy"
    env_step_limit: int = 100
    tasks: tuple[str, ...] = ()
    variations_per_task: int | None = None
    heap_mib: int = 320

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Options:
        given = {name: value for name, value in options.items() if name != "data"}
        return cls(**given | {"tasks": tuple(given.get("tasks", ()))})

    def games(self, split: str) -> tuple[Variation, ...]:
        return list_variations(self.level, split, self.tasks, self.variations_per_task)


class SciworldEnvironment:
    """Plays the games of a level. Task.index counts the split's games by task and variation, from 0; Task.seed draws
    what the simulator leaves to chance while a game runs. A machine that has died is replaced at the next reset.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._machine = borrow_machine(options.heap_mib)
        self._simulator = Simulator(self._machine)
        self._score = 0
        self._templates: tuple[str, ...] = ()

    def reset(self, task: Task) -> Start:
        """Start the task's game.

        Raises:
            ValueError: Task.index is out of range, or the split is unknown.
            JavaFault: the Java machine did not start, died or hung.
        """
        games = self._options.games(task.split)
        if not 0 <= task.index < len(games):
            raise ValueError(f"game {task.index} of {task.split!r} does not exist: it has 0 to {len(games) - 1}")
        game = games[task.index]
        if not self._machine.is_alive:
            return_machine(self._machine)
            self._machine = borrow_machine(self._options.heap_mib)
            self._simulator = Simulator(self._machine)
        turn = self._simulator.load(game, self._options.simplification, task.seed)
        self._score, self._templates = turn.score, self._simulator.templates()
        return Start(
            goal=" ".join(self._simulator.task_description().split()),
            category=game.task,
            observation=self._observation(turn),
        )

    def step(self, action: str) -> Outcome:
        """Play one action.

        The reward is the change of the task score on a scale where a whole task is 10; some tasks have a few points
        from the start. The episode ends with the task, with a negative score (a wrong focus), and above
        `env_step_limit` moves; it is won at the full score.

        Raises:
            JavaFault: the Java machine died or hung.
        """
        turn = self._simulator.step(action)
        gained, self._score = turn.score - self._score, turn.score
        return Outcome(
            observation=self._observation(turn),
            reward=SUCCESS_SCORE * gained / FULL_SCORE,
            done=turn.is_completed or turn.score < 0 or turn.num_moves > self._options.env_step_limit,
            won=turn.score == FULL_SCORE,
            info={"score": turn.score, "num_moves": turn.num_moves},
        )

    def close(self) -> None:
        return_machine(self._machine)

    def _observation(self, turn: Turn) -> Observation:
        if turn.text.startswith(_AMBIGUOUS):  # the simulator asks which of several readings is meant, by number
            numbers = (line.partition(":")[0].strip() for line in turn.text.splitlines()[1:])
            return Observation(turn.text, admissible=tuple(number for number in numbers if number.isdigit()))
        return Observation(turn.text, affordances={"templates": self._templates, "objects": self._simulator.objects()})


def option_faults(options: Mapping[str, Any]) -> list[str]:
    """See `Options`; and the extra `sciworld` must be installed."""
    known = [field.name for field in fields(Options)]
    faults = unknown_options(options, known=("data", *known))
    if faults:
        return faults
    parsed = Options.parse(options)
    if parsed.level not in LEVELS:
        faults.append(f"env.options.level={parsed.level!r} is not a level; set it to one of {', '.join(LEVELS)}")
    unknown = [name for name in parsed.simplification.split(",") if name and name not in SIMPLIFICATIONS]
    if unknown:
        faults.append(
            f"env.options.simplification={parsed.simplification!r}: {', '.join(unknown)} is not a simplification; "
            f"separate these by commas: {', '.join(SIMPLIFICATIONS)}"
        )
    for name in ("env_step_limit", "variations_per_task", "heap_mib"):
        value = getattr(parsed, name)
        if value is not None and not (isinstance(value, int) and value > 0):
            faults.append(f"env.options.{name}={value!r} is not a positive whole number")
    if unknown := unknown_tasks(parsed.tasks):
        faults.append(
            f"env.options.tasks: {', '.join(unknown)} is not in ScienceWorld; envs/sciworld/tasks.py has them"
        )
    return faults + java_faults()


def make_environment(options: Mapping[str, Any]) -> SciworldEnvironment:
    """An environment over `options`.

    Raises:
        ValueError: option_faults has something to say.
        JavaFault: Java did not start.
    """
    if faults := option_faults(options):
        raise ValueError("; ".join(faults))
    return SciworldEnvironment(Options.parse(options))


def num_tasks(split: str, options: Mapping[str, Any]) -> int:
    """The number of games of `split`.

    Raises:
        ValueError: an unknown split, or none of the chosen tasks is in it.
    """
    return len(Options.parse(options).games(split))


def success_score(won: bool) -> float:
    """The outcome score of an episode: 10 if won, else 0."""
    return SUCCESS_SCORE if won else 0.0
