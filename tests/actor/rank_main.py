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

    from tests.actor.rank_cases import CASE_SETS

    # One world for all cases: an actor that finds torch.distributed running leaves it running.
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    outcome = CASE_SETS[case_set](Path(models))
    if dist.get_rank() == 0:
        Path(results).write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
