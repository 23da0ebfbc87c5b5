"""Buckets that tell what they hold, broadcast one after another: who receives need not be asked for each of them.

A message is the length of a text, the text (JSON), and the bytes of a bucket; the last message is a text alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rollout.weight_sync.bucket import Bucket

# Begins to send a tensor; what it returns waits until that is done (groups.Group.broadcast).
Broadcast = Callable[[Tensor], Callable[[], None]]


class Sender:
    """Rank 0's end. A message is on its way while the next one is given: the link does not wait for what lies between
    two buckets."""

    def __init__(self, broadcast: Broadcast):
        self._broadcast = broadcast
        self._in_transit: list[tuple[Tensor, Callable[[], None]]] = []

    def send(self, bucket: Bucket) -> None:
        """Returns when the bucket before is sent."""
        told = {"names": bucket.names, "dtypes": bucket.dtypes, "shapes": bucket.shapes}
        self._send(*_text(told), bucket.data)

    def end(self, fault: str = "") -> None:
        """The last message: nothing follows, or, with a `fault`, not all that should have come. Returns when all is
        sent."""
        self._send(*_text({"fault": fault}))
        self._send()

    def _send(self, *parts: Tensor) -> None:
        started = [(part, self._broadcast(part)) for part in parts]
        for _, wait in self._in_transit:
            wait()
        self._in_transit = started


def receive(take: Callable[[Tensor], object], device: torch.device) -> Iterator[Bucket]:
    """What rank 0 sends, in memory of its own each; `take` has the next broadcast fill a tensor.

    Raises:
        RuntimeError: the sender gave up.
    """
    while True:
        length = torch.empty(1, dtype=torch.int64, device=device)
        take(length)
        text = torch.empty(int(length), dtype=torch.uint8, device=device)
        take(text)
        told = json.loads(text.cpu().numpy().tobytes())
        if "fault" in told:
            if told["fault"]:
                raise RuntimeError(told["fault"])
            return
        bucket = Bucket.of(told["names"], told["dtypes"], told["shapes"], device)
        take(bucket.buffer)
        yield bucket


def _text(told: dict) -> tuple[Tensor, Tensor]:
    """Its length and itself."""
    text = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
    return torch.tensor([len(text)]), text
