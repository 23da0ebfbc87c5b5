"""A rank for test_launch: rank 1 fails in the way the first argument says, the others wait for it in a collective."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import torch.distributed as dist

from megatron_opid.launch import rank_main, request_flag
from megatron_opid.rendezvous import join_world


def main() -> int:
    how = sys.argv[1]
    join_world("gloo")
    stop = request_flag([signal.SIGTERM])
    if dist.get_rank() == 1:
        if how == "raise":
            raise RuntimeError("the reason of it all")
        if how == "exit":
            return 7
        if how == "kill":
            print(f"worker {subprocess.Popen(['sleep', '600']).pid}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    while how == "raise" and not stop():  # deaf to its peer's death: only the launcher can end it
        time.sleep(0.1)
    dist.barrier()
    return 0


if __name__ == "__main__":
    rank_main(main)
