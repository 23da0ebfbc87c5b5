"""vLLM's NCCL communicator, on both ends of a transfer: the trainer's (groups.py), a worker's (vllm_extension.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def broadcast_together(communicator: Any, tensors: Sequence[Tensor], stream: torch.cuda.Stream | None) -> None:
    """Begin to broadcast tensors from rank 0, in order, as one operation of `stream`."""
    communicator.group_start()
    try:
        for tensor in tensors:
            communicator.broadcast(tensor, src=0, stream=stream)
    finally:
        communicator.group_end()  # a group that stays open keeps everything that this thread begins later
