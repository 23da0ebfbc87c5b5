"""A rank for test_launch: says that it runs, waits for a signal, needs `argv[2]` seconds more, and leaves a marker."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from megatron_opid.launch import rank_main, request_flag
from megatron_opid.rendezvous import join_world


def main() -> int:
    directory, rank = Path(sys.argv[1]), os.environ["RANK"]
    stop = request_flag([signal.SIGTERM, signal.SIGINT])
    join_world("gloo")
    (directory / f"running_{rank}").write_text(str(os.getpid()))
    while not stop():
        time.sleep(0.05)
    time.sleep(float(sys.argv[2]))
    (directory / f"done_{rank}").touch()
    return 128 + stop()


if __name__ == "__main__":
    rank_main(main)
