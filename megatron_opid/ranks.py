"""The rank processes of one machine: started, watched, signalled. Needs the standard library only."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

from rollout.end_with_parent import end_with_parent

# Set for the ranks: the file in which they meet, and the one for the traceback of what ends this rank.
RENDEZVOUS_FILE = "MEGATRON_OPID_RENDEZVOUS"
ERROR_FILE = "MEGATRON_OPID_ERROR_FILE"
# What gloo and NCCL say on a rank whose peer has died.
PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
POLL_S = 0.1
# A rank's peers may end before it does; asked to stop at once, it could not end with its own exit code.
SETTLE_S = 1.0


@dataclass(frozen=True)
class Machine:
    """One machine's share of a job: ranks `first_rank` to `first_rank + num_ranks - 1` of `world_size`.

    `environment` is what its ranks get besides the caller's own: how all of them meet. They leave their tracebacks in
    `directory`, and each its output in `directory`/rank_N.log where `with_logs` (the job's rank 0 on the screen, too).
    """

    num_ranks: int
    world_size: int
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    first_rank: int = 0
    with_logs: bool = False


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended: its exit code (-n: by signal n), and whether a signal that the launcher got or sent asked."""

    rank: int
    code: int
    obeyed: bool


def error_file(directory: Path, rank: int) -> Path:
    """Where a rank leaves the traceback of the exception that ended it."""
    return directory / f"error_of_rank_{rank}.txt"


def write_error(path: Path, text: str) -> None:
    """Write why a rank ended, with the time and the machine in the first line, unless that is there already."""
    if not path.exists():
        stamp = f"{datetime.now(UTC).isoformat()} on {os.uname().nodename}"
        partial = path.with_name(path.name + ".partial")
        partial.write_text(f"{stamp}\n{text}", encoding="utf-8")
        partial.replace(path)


def start_rank(module: str, arguments: Sequence[str], local_rank: int, machine: Machine) -> subprocess.Popen:
    """`python -m module arguments` as one rank of the machine; it dies with the caller.

    A session of its own: what a terminal or `timeout` sends to a whole process group comes once, from the launcher, and
    not to the workers of a rank that has a step to finish.
    """
    rank = machine.first_rank + local_rank
    # Spinning OpenMP threads of one rank would take the core of the other; every rank's bars for loading a model would
    # run through one another.
    threads = max(1, len(os.sched_getaffinity(0)) // machine.num_ranks)
    defaults = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(machine.world_size),
        "LOCAL_WORLD_SIZE": str(machine.num_ranks),
        ERROR_FILE: str(error_file(machine.directory, rank)),
    }
    with _output(machine, rank) as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=defaults | os.environ | machine.environment | place,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )


def wait_for_ranks(
    ranks: Sequence[subprocess.Popen],
    caught: Sequence[int],
    *,
    first_rank: int,
    shutdown_grace_s: int,
    signal_grace_s: int,
) -> list[RankEnd]:
    """Wait until every rank has ended; how they did, in that order.

    The first signal to stand in `caught` is sent on to all, and SIGKILL `signal_grace_s` later, or at the second
    SIGINT. Where a rank ends
    badly, the others get SIGTERM, and SIGKILL `shutdown_grace_s` later.
    """
    ends: dict[int, RankEnd] = {}
    due_s: dict[int, float] = {}
    sent: set[int] = set()
    gone: set[int] = set()
    while len(ends) < len(ranks):
        time.sleep(POLL_S)
        for rank in sorted(gone - ends.keys()):
            code = ranks[rank - first_rank].returncode
            if code != 0:
                _end_workers(ranks[rank - first_rank])
            signals = sent.union(caught)
            ends[rank] = RankEnd(rank, code, obeyed=-code in signals or code - 128 in signals)
        # A scheduler may signal ranks and launcher both, in any order: a rank is judged a round after its end.
        gone.update(rank for rank, process in enumerate(ranks, start=first_rank) if process.poll() is not None)
        now_s = time.monotonic()
        if caught:
            due_s.setdefault(caught[0], now_s)
            due_s.setdefault(signal.SIGKILL, now_s + signal_grace_s)
        if caught.count(signal.SIGINT) > 1:  # Ctrl-C twice
            due_s[signal.SIGKILL] = now_s
        # A rank that a signal killed (code < 0), even one sent on, will not do its part of the others' step.
        if any(end.code < 0 or (end.code > 0 and not end.obeyed) for end in ends.values()):
            due_s.setdefault(signal.SIGTERM, now_s + SETTLE_S)
            kill_s = now_s + SETTLE_S + shutdown_grace_s
            due_s[signal.SIGKILL] = min(due_s.get(signal.SIGKILL, math.inf), kill_s)
        for number in [number for number, at_s in due_s.items() if now_s >= at_s and number not in sent]:
            signal_ranks(ranks, number)
            sent.add(number)
    return list(ends.values())


@contextmanager
def _output(machine: Machine, rank: int) -> Iterator[IO[bytes] | None]:
    """Where a rank's output goes; None is where the caller's own goes."""
    if not machine.with_logs:
        yield None
        return
    path = machine.directory / f"rank_{rank}.log"
    if rank > 0:
        with path.open("ab") as file:
            yield file
        return
    tee = subprocess.Popen(
        ["tee", "-a", str(path)], stdin=subprocess.PIPE, start_new_session=True, preexec_fn=_ignore_stops
    )
    with tee.stdin as pipe:
        yield pipe


def _ignore_stops() -> None:
    """What a scheduler sends to every process of a step must not close the pipe of a rank that has a step to finish."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end_workers(rank: subprocess.Popen) -> None:
    """Of a rank that has ended badly: one that writes a checkpoint would wait for it forever, with its memory."""
    with suppress(ProcessLookupError):  # there are none
        os.killpg(rank.pid, signal.SIGKILL)


def signal_ranks(ranks: Sequence[subprocess.Popen], number: int) -> None:
    """Send a signal to the ranks that still run; SIGKILL to their workers, too."""
    for process in ranks:
        if process.poll() is not None:
            continue
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
            process.wait()
        else:
            process.send_signal(number)
