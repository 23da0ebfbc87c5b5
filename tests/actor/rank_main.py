"""A rank of the layout tests; rank 0 writes the results for pytest to compare.

Usage: python -m tests.actor.rank_main <case set> <directory of models> <results.json>, with torchrun's environment.
Imports nothing heavy at the top: saving a checkpoint spawns a process that imports this module again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(case_set: str, models: str, results: str) -> None:
    import torch.distributed as dist

    from tests.actor.rank_cases import CASE_SETS

    outcome = CASE_SETS[case_set](Path(models))
    if dist.get_rank() == 0:
        Path(results).write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
