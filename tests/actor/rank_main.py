"""A rank of the layout tests; rank 0 writes the results for pytest to compare.

Usage: python -m tests.actor.rank_main <case set> <directory of models> <results.json>, with torchrun's environment.
Imports nothing heavy at the top: saving a checkpoint spawns a process that imports this module again.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path


def main(case_set: str, models: str, results: str) -> None:
    import torch.distributed as dist

    from tests.actor import gpu_cases, rank_cases

    # One world for all cases: an actor that finds torch.distributed running leaves it running.
    backend = "cpu:gloo,cuda:nccl" if case_set in gpu_cases.CASE_SETS else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=120))
    outcome = (rank_cases.CASE_SETS | gpu_cases.CASE_SETS)[case_set](Path(models))
    if dist.get_rank() == 0:
        Path(results).write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
