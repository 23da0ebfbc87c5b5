"""Stands for megatron_opid.train where a job's life is tested, not its learning: no torch, a step takes 0.3 s.

Each rank appends (step, attempt) to run.dir/steps_RANK and keeps its next step in run.dir/checkpoint_RANK when it is
told to stop. A file run.dir/crash makes rank 1 fail at step 2, and rank 0 deaf to everything; run.dir/peer_is_gone
makes rank 0 fail as gloo does whose peer has died.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from megatron_opid.launch import rank_main, request_flag

STEP_S = 0.3


def main() -> int:
    values = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    run_dir, rank = Path(values["run.dir"]), int(os.environ["RANK"])
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = run_dir / f"checkpoint_{rank}"
    crashes = (run_dir / "crash").exists()
    stop = request_flag([signal.SIGTERM, signal.SIGUSR1])
    for step in range(int(checkpoint.read_text()) if checkpoint.exists() else 0, int(values["run.num_steps"])):
        time.sleep(STEP_S)
        if crashes and step == 2:
            if rank == 1:
                raise RuntimeError("the reason of it all")
            while True:
                time.sleep(1)
        if rank == 0 and (run_dir / "peer_is_gone").exists():
            raise RuntimeError("Connection closed by peer [127.0.1.2]:40000")
        with (run_dir / f"steps_{rank}").open("a") as steps:
            steps.write(f"{step} {os.environ.get('SLURM_RESTART_COUNT', '0')}\n")
        if stop():
            checkpoint.write_text(str(step + 1))
            return 128 + stop()
    return 0


if __name__ == "__main__":
    rank_main(main)
