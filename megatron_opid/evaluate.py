"""How good a model is: `python -m megatron_opid.evaluate experiment=NAME actor.model=DIR [--split S] [--watch] ...`

Plays all games of the split, or `--games` of them spread evenly over it, once each at the validation temperature and
prints success per task type with its 95% confidence interval; `--watch` plays one game on the terminal instead. Other
arguments are configuration overrides. The model samples as in training: with `engine.name` vllm or sglang on servers,
`engine.num_servers` of `engine.tensor_parallel` GPUs each or as many as this machine has room for; with local in this
process, by transformers on one GPU or the CPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from envs.base import Task
from envs.base import load as load_environment
from megatron_opid.config import Config, ConfigError, load
from megatron_opid.engines import engine_faults
from megatron_opid.launch import EXIT_BAD_INPUT
from megatron_opid.preflight import evaluation_faults
from megatron_opid.report.statistics import wilson_interval
from megatron_opid.servers import visible_gpus
from megatron_opid.tasks import validation_tasks
from rollout.engines.base import EngineError
from rollout.trajectory import Trajectory

# Of a run that only plays: its own servers have the GPUs, which no trainer needs.
PLAYS_ONLY = (
    "algorithm.name=grpo",
    "run.num_processes=1",
    "engine.placement=colocated",
    "engine.sync=auto",
)


@dataclass(frozen=True)
class SuccessRate:
    """Successes over episodes; `low` and `high` bound the 95% Wilson interval."""

    num_episodes: int
    num_won: int

    @property
    def rate(self) -> float:
        return self.num_won / self.num_episodes

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.rate, self.num_episodes)


def success_rates(trajectories: Sequence[Trajectory]) -> dict[str, SuccessRate]:
    """By category, then "all"; episodes that failed by a fault do not count."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for trajectory in trajectories:
        if trajectory.failure is None:
            for name in (trajectory.category, "all"):
                counts[name][0] += 1
                counts[name][1] += trajectory.success
    ordered = sorted(counts, key=lambda name: (name == "all", name))
    return {name: SuccessRate(*counts[name]) for name in ordered}


def table(rates: dict[str, SuccessRate]) -> str:
    """The rates as lines of text."""
    width = max(map(len, rates), default=0)
    return "\n".join(
        f"{name:{width}}  {r.rate:6.1%}  [{r.interval[0]:.1%}, {r.interval[1]:.1%}]  {r.num_won}/{r.num_episodes}"
        for name, r in rates.items()
    )


def play(config: Config, tasks: Sequence[Task]) -> tuple[Trajectory, ...]:
    """One episode of each task at the validation temperature."""
    from megatron_opid.rollouts import Rollout

    with Rollout(config, rank=0, num_ranks=1) as rollout:
        rollout.load()
        return rollout.validate(tasks)


def evaluation_config(overrides: Sequence[str]) -> Config:
    """The configuration for playing only, with as many servers as this machine's GPUs have room for.

    Raises:
        ConfigError: a value is wrong.
    """
    config = load([*overrides, *PLAYS_ONLY])
    if config.engine.name == "local" or config.engine.cpu_servers:
        return config
    room = len(visible_gpus()) // config.engine.tensor_parallel
    return load([*overrides, *PLAYS_ONLY, f"engine.num_servers={max(1, min(config.engine.num_servers, room))}"])


def parse_options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the configuration's overrides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--split", help="default: env.validation_split")
    parser.add_argument("--games", type=int, help="default: all")
    parser.add_argument(
        "--watch",
        type=int,
        nargs="?",
        const=0,
        metavar="GAME",
        help="play this game (from 0) on the terminal",
    )
    parser.add_argument("--json", type=Path, help="also write the rates and every episode's outcome to this file")
    return parser.parse_known_args(arguments)


def option_faults(options: argparse.Namespace, config: Config) -> list[str]:
    """Why these games cannot be played and written down; what a Slurm log-in node can check."""
    faults = []
    if options.games is not None and options.games < 1:
        faults.append(f"--games {options.games}: set 1 or more, or leave it out for all")
    if options.json and not (options.json.parent.is_dir() and not options.json.is_dir()):
        faults.append(f"--json {options.json} is no file in a folder that is there")
    return [*faults, *evaluation_faults(config, _split(options, config), options.watch, options.games)]


def unused(overrides: Sequence[str]) -> list[str]:
    """Those that an evaluation overrides: by PLAYS_ONLY, and a run's folder."""
    keys = {"run.dir", *(setting.partition("=")[0] for setting in PLAYS_ONLY)}
    given = {setting: setting.lstrip("+") for setting in overrides}
    return [setting for setting, bare in given.items() if bare.partition("=")[0] in keys and bare not in PLAYS_ONLY]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options, overrides = parse_options(arguments)
    if ignored := unused(overrides):
        print(f"megatron_opid.evaluate: not used here: {' '.join(ignored)}", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the servers are stopped
    try:
        with _log_directory() as directory:
            return _run(options, [*overrides, f"run.dir={directory}"])
    except KeyboardInterrupt:
        print("megatron_opid.evaluate: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except EngineError as error:  # a server that does not start, for one
        print(f"megatron_opid.evaluate: {error}", file=sys.stderr)
        return 1


@contextmanager
def _log_directory() -> Iterator[Path]:
    """The folder of the servers' logs, apart from the trained run's; after an error they stay, as they say more."""
    directory = Path(tempfile.mkdtemp(prefix="evaluate_"))
    try:
        yield directory
    except Exception:
        with suppress(OSError):  # there are logs in it
            directory.rmdir()
        raise
    except BaseException:  # interrupted
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)


def _split(options: argparse.Namespace, config: Config) -> str:
    return options.split or config.env.validation_split


def _run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    try:
        config = evaluation_config(overrides)
        faults = option_faults(options, config)
        faults += [] if config.engine.urls else engine_faults(config, 1)  # those are refused, and not to be asked
        if faults:
            raise ConfigError(faults)
    except ConfigError as error:
        print(f"megatron_opid.evaluate: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    if options.watch is not None:
        return _watch(config, Task(config.env.name, options.watch, 0, _split(options, config)))
    return _evaluate(config, options)


def _evaluate(config: Config, options: argparse.Namespace) -> int:
    split = _split(options, config)
    num_games = load_environment(config.env.name).num_tasks(split, config.env.package_options)
    tasks = validation_tasks(config.env.name, split, num_games, options.games or num_games)
    engine = config.engine
    means = "transformers" if engine.name == "local" else f"{engine.name}, servers: {engine.num_servers}"
    print(f"{len(tasks)} games of {split}, by {means}", file=sys.stderr)
    trajectories = play(config, tasks)
    rates = success_rates(trajectories)
    print(f"{config.actor.model} on {split}:\n{table(rates)}")
    if options.json:
        outcomes = {t.uid: t.success for t in trajectories if t.failure is None}
        summary = {name: {**asdict(rate), "interval": rate.interval} for name, rate in rates.items()}
        options.json.write_text(json.dumps({"split": split, "rates": summary, "outcomes": outcomes}, indent=1) + "\n")
    failures = [t.failure for t in trajectories if t.failure is not None]
    if failures:
        print(f"{len(failures)} of {len(tasks)} games were not played: {failures[0]}", file=sys.stderr)
    return 1 if failures else 0


def _watch(config: Config, task: Task) -> int:
    from rollout.replay import show

    for trajectory in play(config, [task]):
        print("\n".join(show(trajectory, None, coloured=sys.stdout.isatty())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
