"""Tensors that say what they are, broadcast one after another: who receives need not be asked for each of them.

A message is the length of a text, the text (JSON), and tensors, each straight from the sender's memory into the
receiver's; the last message is a text alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

# Begins to send tensors; what it returns waits until that is done (groups.Group.broadcast).
Broadcast = Callable[[Sequence[Tensor]], Callable[[], None]]

# Where to receive a tensor of a name, dtype and shape; None: in new memory.
Place = Callable[[str, torch.dtype, Sequence[int]], Tensor | None]


class Sender:
    """Rank 0's end. A message is on its way while the next one is given: the link does not wait for what lies between
    the two."""

    def __init__(self, broadcast: Broadcast):
        self._broadcast = broadcast
        self._in_transit: tuple[list[Tensor], Callable[[], None]] | None = None

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Returns when the message before is sent; the tensors, which are contiguous, may not change before the next
        one is given."""
        told = {
            "names": [*tensors],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
        }
        self._send(told, [*tensors.values()])

    def end(self, fault: str = "") -> None:
        """The last message: nothing follows, or, with a `fault`, not all that should have come. Returns when all is
        sent."""
        self._send({"fault": fault}, [])
        self._wait()

    def _send(self, told: dict, tensors: list[Tensor]) -> None:
        text = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        parts = [torch.tensor([len(text)]), text, *map(as_bytes, tensors)]
        started = [self._broadcast([part]) for part in parts[:2]]
        if tensors:
            started.append(self._broadcast(parts[2:]))
        self._wait()
        self._in_transit = parts, started[-1]

    def _wait(self) -> None:
        if self._in_transit is not None:
            _, wait = self._in_transit
            wait()


def receive(
    take: Callable[[Sequence[Tensor]], object],
    device: torch.device,
    place: Place = lambda name, dtype, shape: None,
) -> Iterator[dict[str, Tensor]]:
    """What rank 0 sends; `take` has the next broadcast fill tensors.

    Raises:
        RuntimeError: the sender gave up.
    """
    while True:
        length = torch.empty(1, dtype=torch.int64, device=device)
        take([length])
        text = torch.empty(int(length), dtype=torch.uint8, device=device)
        take([text])
        told = json.loads(text.cpu().numpy().tobytes())
        if "fault" in told:
            if told["fault"]:
                raise RuntimeError(told["fault"])
            return
        tensors = {}
        for name, dtype_name, shape in zip(told["names"], told["dtypes"], told["shapes"], strict=True):
            dtype = getattr(torch, dtype_name)
            own = place(name, dtype, shape)
            tensors[name] = own if own is not None else torch.empty(shape, dtype=dtype, device=device)
        take([*map(as_bytes, tensors.values())])
        yield tensors


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor, uint8 [bytes]."""
    return tensor.view(-1).view(torch.uint8)
