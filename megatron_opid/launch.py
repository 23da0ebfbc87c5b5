"""Starting the ranks of one machine: an entry point checks its configuration once, then runs itself under torchrun.

Under an external launcher (torchrun, srun: RANK is set) the process is a rank already and just runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from megatron_opid.config import Config, ConfigError, load

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

EXIT_BAD_INPUT = 2
# What gloo and NCCL say on a rank whose peer has died.
PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
HANDLED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def entry_point(
    module: str,
    run: Callable[[Config], int],
    arguments: Sequence[str],
    *,
    find_faults: Callable[[Config, int], list[str]],
) -> int:
    """Run `run(config)` on every rank and return the exit code of the first rank that ended badly, else 0.

    What `find_faults(config, world_size)` finds, before any process group exists, is printed once, all of it; the exit
    code is then 2.
    """
    is_rank = "RANK" in os.environ
    try:
        config = load(arguments)
        if int(os.environ.get("RANK", "0")) == 0:
            faults = find_faults(config, int(os.environ["WORLD_SIZE"]) if is_rank else config.run.num_processes)
            if faults:
                raise ConfigError(faults)
    except ConfigError as error:
        print(f"{module}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    if is_rank:
        return run(config)
    return start_ranks(module, arguments, config.run.num_processes, shutdown_grace_s=config.run.shutdown_grace_s)


def start_ranks(module: str, arguments: Sequence[str], num_processes: int, *, shutdown_grace_s: int) -> int:
    """Run `python -m module arguments` as `num_processes` ranks of this machine, by torch's elastic agent.

    When one rank ends badly, the others are asked to stop, killed after `shutdown_grace_s`, and that first rank's error
    is printed last. SIGTERM and SIGUSR1 reach every rank. Returns: the first failing rank's exit code, or 0.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Spinning OpenMP threads of one rank would take the core of the other.
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"{module}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.5,
        signals_to_handle=HANDLED_SIGNALS,
        shutdown_timeout=shutdown_grace_s,
    )
    try:
        elastic_launch(launch, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: (_is_consequence(item[1]), item[1].timestamp))
        print(f"\nrank {rank} ended first, exit code {failure.exitcode}:\n{_message(failure)}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        print(f"stopped by {error.sigval.name}; the same command resumes from the last checkpoint", file=sys.stderr)
        return 128 + error.sigval
    return 0


def rank_main(main: Callable[[], int]) -> None:
    """Run a rank's `main`, leaving its traceback where the launcher finds it, and exit with its code."""
    from torch.distributed.elastic.multiprocessing.errors import record

    sys.exit(record(main)())


def request_flag(signals: Sequence[signal.Signals]) -> Callable[[], int]:
    """Catch `signals`; returns a function that gives the number of the one received, or 0."""
    received = 0

    def catch(number: int, _frame: object) -> None:
        nonlocal received
        received = number

    for number in signals:
        signal.signal(number, catch)
    return lambda: received


def _is_consequence(failure: ProcessFailure) -> bool:
    """Whether the rank only ended because another one had: asked to by the launcher, or its peer was gone."""
    return failure.exitcode == -signal.SIGTERM or any(text in _message(failure) for text in PEER_IS_GONE)


def _message(failure: ProcessFailure) -> str:
    if isinstance(failure.message, dict):
        extra = failure.message.get("extraInfo", {})
        return extra.get("py_callstack") or failure.message.get("message", "")
    return failure.message
