"""Trains an agent: `python -m megatron_opid.train experiment=NAME group.key=value ...`, or under torchrun or srun.

The same command resumes a run from its last checkpoint. The loop itself is in loop.py: importing it is slow, so the
configuration is checked first.
"""

from __future__ import annotations

import sys

from megatron_opid.config import Config
from megatron_opid.launch import entry_point, rank_main
from megatron_opid.preflight import training_faults


def run(config: Config) -> int:
    """One rank of the run."""
    from megatron_opid.loop import train

    return train(config)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return entry_point("megatron_opid.train", run, arguments or sys.argv[1:], find_faults=training_faults)


if __name__ == "__main__":
    rank_main(main)
