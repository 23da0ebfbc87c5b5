"""Several broadcasts as one operation of NCCL, the same on both ends of a transfer: the trainer's (groups.py), and a
worker's of vLLM (vllm_extension.py) or SGLang (sglang_hooks.py)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, distributed


def broadcast_together(communicator: Any, tensors: Sequence[Tensor], stream: torch.cuda.Stream | None) -> None:
    """Begin to broadcast tensors from rank 0, in order, as one operation of `stream`, by vLLM's communicator."""
    communicator.group_start()
    try:
        for tensor in tensors:
            communicator.broadcast(tensor, src=0, stream=stream)
    finally:
        communicator.group_end()  # a group that stays open keeps everything that this thread begins later


def broadcast_coalesced(group: distributed.ProcessGroup, tensors: Sequence[Tensor]) -> None:
    """Begin to broadcast tensors from rank 0, in order, as one operation of the current stream, by torch's group.

    A single one is not coalesced: the first broadcast of a group, which makes its communicator, is such a one.
    """
    is_one = len(tensors) == 1
    device = tensors[0].device
    with nullcontext() if is_one else distributed.distributed_c10d._coalescing_manager(group=group, device=device):
        for tensor in tensors:
            distributed.broadcast(tensor, src=0, group=group)
