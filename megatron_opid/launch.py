"""Starting the ranks of one machine: an entry point checks its configuration once, then runs itself once per rank.

Under an external launcher (torchrun, slurm.node: RANK is set) the process is a rank already and just runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_opid.config import CONFIG_DIR, Config, ConfigError, load
from megatron_opid.ranks import (
    ERROR_FILE,
    PEER_IS_GONE,
    RENDEZVOUS_FILE,
    Machine,
    RankEnd,
    error_file,
    signal_ranks,
    start_rank,
    wait_for_ranks,
    write_error,
)

EXIT_BAD_INPUT = 2
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def entry_point(
    module: str,
    run: Callable[[Config], int],
    arguments: Sequence[str],
    *,
    find_faults: Callable[[Config, int], list[str]],
) -> int:
    """Run `run(config)` on every rank and return the exit code of the first rank that ended badly, else 0.

    What `find_faults(config, world_size)` finds, before any process group exists, is printed once, all of it; the exit
    code is then 2, on every rank: one that went on would wait for the others.
    """
    is_rank = "RANK" in os.environ
    if {"-h", "--help"}.intersection(arguments):
        print(f"{sys.modules['__main__'].__doc__}\n{_usage(module)}")
        return 0
    try:
        if not is_rank and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            raise ConfigError(
                [
                    "srun starts several processes and none knows its rank; use slurm/train.sbatch, or set RANK, "
                    "LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT from Slurm's variables"
                ]
            )
        config = load(arguments)
        faults = find_faults(config, int(os.environ["WORLD_SIZE"]) if is_rank else config.run.num_processes)
        if faults:
            raise ConfigError(faults)
    except ConfigError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{module}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    if is_rank:
        return run(config)
    print(f"{module}: starting {config.run.num_processes} ranks, run.dir={config.run.dir}", file=sys.stderr, flush=True)
    return start_ranks(
        module,
        arguments,
        config.run.num_processes,
        shutdown_grace_s=config.run.shutdown_grace_s,
        signal_grace_s=config.run.signal_grace_s,
    )


def _usage(module: str) -> str:
    experiments = ", ".join(sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml")))
    return (
        f"python -m {module} [experiment=NAME] [GROUP.KEY=VALUE ...]\n\n"
        f"experiments: {experiments}\n"
        "keys: the fields of megatron_opid/config.py, each with its default; configs/experiment/ has examples"
    )


def start_ranks(
    module: str, arguments: Sequence[str], num_processes: int, *, shutdown_grace_s: int, signal_grace_s: int
) -> int:
    """Run `python -m module arguments` as `num_processes` ranks, all of them on this machine: `run_ranks`."""
    with tempfile.TemporaryDirectory(prefix="megatron_opid_") as name:
        rendezvous = {
            RENDEZVOUS_FILE: str(Path(name) / "rendezvous"),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        }
        machine = Machine(num_processes, num_processes, Path(name), rendezvous)
        return run_ranks(module, arguments, machine, shutdown_grace_s=shutdown_grace_s, signal_grace_s=signal_grace_s)


def run_ranks(
    module: str, arguments: Sequence[str], machine: Machine, *, shutdown_grace_s: int, signal_grace_s: int
) -> int:
    """Run `python -m module arguments` as the ranks of `machine`, which never outlive this process.

    When one rank ends badly, the others are sent SIGTERM, killed after `shutdown_grace_s`, and that first rank's error
    is printed last. The first of SIGTERM, SIGINT, SIGHUP and SIGUSR1 is sent on to every rank; what still runs
    `signal_grace_s` later is killed. Returns: 0, the first failing rank's exit code, or 128 + the signal's number.
    """
    ranks: list[subprocess.Popen] = []
    with _catch(FORWARDED) as caught:
        try:
            for local_rank in range(machine.num_ranks):
                ranks.append(start_rank(module, arguments, local_rank, machine))
            ends = wait_for_ranks(
                ranks,
                caught,
                first_rank=machine.first_rank,
                shutdown_grace_s=shutdown_grace_s,
                signal_grace_s=signal_grace_s,
            )
        finally:
            signal_ranks(ranks, signal.SIGKILL)
        return _conclude(ends, caught, machine.directory)


def rank_main(main: Callable[[], int]) -> None:
    """Run a rank's `main`, leaving its traceback where the launcher finds it, and exit with its code."""
    try:
        code = main()
    except KeyboardInterrupt:  # before there is a step that could be finished
        code = 128 + signal.SIGINT
    except Exception:
        if ERROR_FILE in os.environ:
            write_error(Path(os.environ[ERROR_FILE]), traceback.format_exc())
        raise
    sys.exit(code)


def request_flag(signals: Sequence[signal.Signals]) -> Callable[[], int]:
    """Catch `signals`; returns a function that gives the number of the one received, or 0."""
    received = 0

    def catch(number: int, _frame: object) -> None:
        nonlocal received
        received = number

    for number in signals:
        signal.signal(number, catch)
    return lambda: received


@contextmanager
def _catch(signals: Sequence[signal.Signals]) -> Iterator[list[int]]:
    """The numbers of the `signals` received meanwhile. What is ignored (nohup) stays ignored."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in signals if signal.getsignal(number) != signal.SIG_IGN}

    def catch(number: int, _frame: object) -> None:
        caught.append(number)
        if caught == [signal.SIGINT]:
            os.write(sys.stderr.fileno(), b"\nstopping after the step in progress; Ctrl-C again stops at once\n")

    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(ends: Sequence[RankEnd], caught: Sequence[int], directory: Path) -> int:
    """Print why the ranks ended, unless all is well; the exit code for it."""
    failed = [end for end in ends if end.code != 0 and not end.obeyed]
    for end in failed:
        write_error(error_file(directory, end.rank), f"{_how(end)}; it left no traceback\n")
    errors = {end.rank: error_file(directory, end.rank).read_text(encoding="utf-8") for end in failed}
    culprits = [end for end in failed if not any(text in errors[end.rank] for text in PEER_IS_GONE)]
    if caught and not culprits and any(end.code != 0 for end in ends):
        name = signal.Signals(caught[0]).name
        print(f"stopped by {name}; the same command resumes from the last checkpoint", file=sys.stderr)
        return 128 + caught[0]
    for end in (culprits or failed)[:1]:
        print(f"\nrank {end.rank} ended first, {_how(end)}:\n{errors[end.rank]}", file=sys.stderr)
        return end.code if end.code > 0 else 128 - end.code
    return 0


def _how(end: RankEnd) -> str:
    return f"exit code {end.code}" if end.code > 0 else f"killed by {signal.Signals(-end.code).name}"
