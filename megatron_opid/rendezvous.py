"""How the ranks of a run find each other."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist

from megatron_opid.ranks import RENDEZVOUS_FILE


def join_world(backend: str, *, timeout: timedelta | None = None) -> None:
    """Start torch.distributed, once in a process; `timeout` bounds every collective (torch's default without it).

    The ranks of `launch.start_ranks` meet in a file, those of torchrun or srun at MASTER_ADDR and MASTER_PORT. A
    process without RANK becomes a world of one.
    """
    if "RANK" not in os.environ:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        return
    dist.init_process_group(
        backend,
        timeout=timeout,
        init_method=f"file://{os.environ[RENDEZVOUS_FILE]}" if RENDEZVOUS_FILE in os.environ else "env://",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
