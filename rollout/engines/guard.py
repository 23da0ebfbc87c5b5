"""Runs a server and sees that nothing of it outlives its parent: `python -m rollout.engines.guard PARENT COMMAND...`

A server has children of its own, which a signal to the server alone would leave behind. When the parent is gone, or at
a signal, the guard stops the server with SIGTERM, kills what is left of its process group after a grace, and ends with
its code. It looks for the parent itself: the kernel's death signal is of the thread that started a process, and servers
are restarted by threads that end before the trainer. The guard's own thread lasts: should someone kill the guard alone,
the kernel sends the server SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from functools import partial

KILL_NOW = signal.SIGINT  # to the guard: without a grace
GRACE_S = 20.0
POLL_S = 0.1
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def main(arguments: list[str]) -> int:
    """`arguments`: the parent's process id, then the command."""
    parent, *command = arguments
    asked: list[int] = []
    for number in (signal.SIGTERM, KILL_NOW):
        signal.signal(number, lambda received, _frame: asked.append(received))
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(_end_with, os.getpid()),
    )
    try:
        while server.poll() is None and not asked and os.getppid() == int(parent):
            time.sleep(POLL_S)
        if server.poll() is None and KILL_NOW not in asked:
            server.terminate()
            deadline_s = time.monotonic() + GRACE_S
            while server.poll() is None and KILL_NOW not in asked and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    code = server.wait()
    return code if code >= 0 else 128 - code


def _end_with(parent: int) -> None:
    """In the server, before it is one."""
    if LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0 or os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
