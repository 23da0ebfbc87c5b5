"""Text between ranks. JSON, never pickle: nothing that came over a network is unpickled."""

from __future__ import annotations

import torch
import torch.distributed as dist


def all_gather_text(text: str) -> list[str]:
    """Every rank's text, in rank order, on every rank; over the CPU back end of the default group."""
    if not dist.is_initialized():
        return [text]
    data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
    size = torch.tensor([len(text.encode())])
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    longest = max(1, max(int(s) for s in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = data[:longest]
    gathered = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return [part[: int(s)].numpy().tobytes().decode() for part, s in zip(gathered, sizes, strict=True)]


def any_rank(number: int) -> int:
    """The largest of the ranks' numbers, on every rank: how all ranks agree to stop when one of them was told to."""
    if not dist.is_initialized():
        return number
    value = torch.tensor([number])
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)
