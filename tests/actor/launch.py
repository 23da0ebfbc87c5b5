"""Start a module on several ranks over gloo on this machine and wait for all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rollout.engines.launch import free_ports

REPOSITORY = Path(__file__).parents[2]
STACKS_S = 10  # to write them and end


def start(
    module: str, num_ranks: int, *arguments: str, log_dir: Path, environment: Mapping[str, str] | None = None
) -> list[subprocess.Popen]:
    """One process per rank with torchrun's environment, and `environment`; rank r writes to `log_dir`/rank_r.log."""
    (port,) = free_ports(1, "127.0.0.1")
    processes = []
    for rank in range(num_ranks):
        of_rank = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONFAULTHANDLER": "1",
        }
        with (log_dir / f"rank_{rank}.log").open("w") as log:
            command = [sys.executable, "-m", module, *arguments]
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env=os.environ | of_rank | (environment or {}),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def wait(processes: list[subprocess.Popen], timeout_s: float, log_dir: Path) -> None:
    """Raises RuntimeError with the first failing rank's log as soon as one fails (the others are killed), or with every
    rank's stack where they do not end in time.
    """
    deadline = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes):
            failed = [rank for rank, process in enumerate(processes) if process.poll()]
            if failed:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"not done in {timeout_s:.0f} s\n{_stacks(processes, log_dir)}")
            time.sleep(0.1)
    finally:
        still_running = [process for process in processes if process.poll() is None]
        for process in still_running:
            process.kill()
            process.wait()
    failed = [rank for rank, process in enumerate(processes) if process.returncode]
    if failed:
        first = min(failed, key=lambda rank: processes[rank].returncode == -9)
        log = (log_dir / f"rank_{first}.log").read_text()[-6000:]
        raise RuntimeError(f"rank {first} of {len(processes)} ended with {processes[first].returncode}:\n{log}")


def _stacks(processes: list[subprocess.Popen], log_dir: Path) -> str:
    """Have each rank write where it is, as Python's fault handler does at SIGABRT; the ends of their logs."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGABRT)
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STACKS_S)
    logs = {rank: (log_dir / f"rank_{rank}.log").read_text()[-4000:] for rank in range(len(processes))}
    return "\n".join(f"--- rank {rank}:\n{log}" for rank, log in logs.items())
