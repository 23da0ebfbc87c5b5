"""Buckets that tell what they hold, broadcast one after another: who receives need not be asked for each of them.

A message is the length of a text, the text (JSON), and the bytes of a bucket; the last message is a text alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rollout.weight_sync.bucket import Bucket

# Sends a tensor from rank 0; on the other ranks, receives into it.
Broadcast = Callable[[Tensor], None]


def send_bucket(broadcast: Broadcast, bucket: Bucket) -> None:
    """From rank 0; returns when the other ranks have the bytes."""
    _send_text(broadcast, {"names": bucket.names, "dtypes": bucket.dtypes, "shapes": bucket.shapes})
    broadcast(bucket.data)


def send_end(broadcast: Broadcast, fault: str = "") -> None:
    """The last message: nothing follows, or, with a `fault`, not all that should have come."""
    _send_text(broadcast, {"fault": fault})


def receive(broadcast: Broadcast, device: torch.device) -> Iterator[Bucket]:
    """What rank 0 sends, in memory of its own each.

    Raises:
        RuntimeError: the sender gave up.
    """
    while True:
        length = torch.empty(1, dtype=torch.int64, device=device)
        broadcast(length)
        text = torch.empty(int(length), dtype=torch.uint8, device=device)
        broadcast(text)
        told = json.loads(bytes(text.tolist()))
        if "fault" in told:
            if told["fault"]:
                raise RuntimeError(told["fault"])
            return
        bucket = Bucket.of(told["names"], told["dtypes"], told["shapes"], device)
        broadcast(bucket.buffer)
        yield bucket


def _send_text(broadcast: Broadcast, told: dict) -> None:
    text = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
    broadcast(torch.tensor([len(text)]))
    broadcast(text)
