"""A rank of the layout tests; rank 0 writes the results for pytest to compare, as far as they are there.

Usage: python -m tests.actor.rank_main <case set> <directory of models> <results.json>, with torchrun's environment.
Imports nothing heavy at the top: saving a checkpoint spawns a process that imports this module again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

TIMEOUT_S = 120


def main(case_set: str, models: str, results: str) -> None:
    import torch.distributed as dist
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    from tests.actor import gpu_cases, rank_cases

    P2PCommunicator._communicate_shapes = _refuse
    # One world for all cases: an actor that finds torch.distributed running leaves it running.
    backend = "cpu:gloo,cuda:nccl" if case_set in gpu_cases.CASE_SETS else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
    cases: Iterable[tuple[str, Any]]
    if case_set in gpu_cases.CASE_SETS:
        cases = gpu_cases.CASE_SETS[case_set](Path(models))
    else:
        cases = rank_cases.CASE_SETS[case_set](Path(models)).items()
    outcome: dict[str, Any] = {}
    for name, result in cases:
        outcome[name] = result
        if dist.get_rank() == 0:
            write(Path(results), outcome)
    dist.barrier()
    dist.destroy_process_group()


def _refuse(*_: Any) -> None:
    raise AssertionError("Megatron told shapes itself, waiting for the device; ours is megatron_opid/actor/pipeline.py")


def write(path: Path, outcome: dict[str, Any]) -> None:
    """Whole or not at all: the process may be killed."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(outcome))
    temporary.replace(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
