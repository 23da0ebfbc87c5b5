"""Stands for megatron_opid.train and sft where a job's life is tested, not its learning: no torch, a step takes 0.2 s.

As in training, the ranks take each step together and stop together. Each appends (step, attempt) to run.dir/steps_RANK
and keeps its next step in run.dir/checkpoint_RANK when it is told to stop. What a test puts into run.dir: `finish`, the
number of steps; `crash` makes rank 1 fail at step 2, and rank 0 deaf to everything; `peer_is_gone` makes rank 0 fail as
gloo does whose peer has died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_opid.launch import rank_main, request_flag

STEP_S = 0.2
POLL_S = 0.02


@dataclass(frozen=True)
class Attempt:
    """What the ranks of one attempt say to each other, in files of the run directory."""

    run_dir: Path
    name: str
    rank: int
    num_ranks: int

    def report(self, num_steps: int) -> None:
        """This rank has done `num_steps` steps."""
        _write(self._done(self.rank), str(num_steps))

    def wait_for_peers(self, num_steps: int) -> None:
        """Return when every rank has done `num_steps` steps."""
        for path in map(self._done, range(self.num_ranks)):
            while not path.exists() or int(path.read_text()) < num_steps:
                time.sleep(POLL_S)

    def agreed_stop(self, step: int, received: int) -> tuple[int, int] | None:
        """(steps to do, signal) once a rank has received one. No rank is more than one step ahead of another."""
        path = self.run_dir / f"stop_{self.name}"
        if received and not path.exists():
            _write(path, f"{step + 2} {received}", overwrites=False)
        if not path.exists():
            return None
        num_steps, number = path.read_text().split()
        return int(num_steps), int(number)

    def _done(self, rank: int) -> Path:
        return self.run_dir / f"done_{self.name}_{rank}"


def main() -> int:
    values = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    run_dir, rank = Path(values["run.dir"]), int(os.environ["RANK"])
    run_dir.mkdir(parents=True, exist_ok=True)
    number = os.environ.get("SLURM_RESTART_COUNT", "0")
    attempt = Attempt(run_dir, f"{os.environ['SLURM_JOB_ID']}_{number}", rank, int(os.environ["WORLD_SIZE"]))
    checkpoint, finish = run_dir / f"checkpoint_{rank}", run_dir / "finish"
    crashes = (run_dir / "crash").exists()
    stop = request_flag([signal.SIGTERM, signal.SIGUSR1])
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    attempt.report(step)
    while not finish.exists() or step < int(finish.read_text()):
        attempt.wait_for_peers(step)
        time.sleep(STEP_S)
        if crashes and step == 2:
            if rank == 1:
                raise RuntimeError("the reason of it all")
            while True:
                time.sleep(1)
        if rank == 0 and (run_dir / "peer_is_gone").exists():
            raise RuntimeError("Connection closed by peer [127.0.1.2]:40000")
        with (run_dir / f"steps_{rank}").open("a") as steps:
            steps.write(f"{step} {number}\n")
        agreed = attempt.agreed_stop(step, stop())
        step += 1
        attempt.report(step)
        if agreed and step >= agreed[0]:
            checkpoint.write_text(str(step))
            return 128 + agreed[1]
    return 0


def _write(path: Path, text: str, *, overwrites: bool = True) -> None:
    partial = path.with_name(f"{path.name}.of_{os.environ['RANK']}")
    partial.write_text(text)
    if overwrites:
        partial.replace(path)
    else:
        with contextlib.suppress(FileExistsError):  # the first word counts
            path.hardlink_to(partial)


if __name__ == "__main__":
    rank_main(main)
