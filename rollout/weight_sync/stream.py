"""Tensors that say what they are, broadcast in batches: who receives need not be asked for each of them.

On the wire are a header and a batch's tensors in turn, each header before the tensors of the batch before: who receives
knows what to receive next before the last has come, and the link does not wait. Tensors go straight from the sender's
memory into the receiver's. The last header tells the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

# Begins to broadcast tensors from rank 0; what it returns waits until that is done (groups.Group.broadcast).
Broadcast = Callable[[Sequence[Tensor]], Callable[[], object]]
# Where to receive a tensor of a name, dtype and shape; None: in new memory.
Place = Callable[[str, torch.dtype, Sequence[int]], Tensor | None]

# A text (JSON) and zeros: names, dtypes and shapes of MAX_TENSORS of usual names take half of it.
HEADER_BYTES = 1 << 17
MAX_TENSORS = 512
# The first batch is small, that the link need not wait for it; each is twice as large as the one before.
FIRST_BATCH_BYTES = 1 << 26


class Sender:
    """Rank 0's end."""

    def __init__(self, broadcast: Broadcast):
        self._broadcast = broadcast
        self._announced: list[Tensor] = []
        self._in_transit: list[tuple[Sequence[Tensor], Callable[[], object]]] = []

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Announce a batch and begin to send the one before; returns when the one before that is sent. The tensors are
        contiguous, and may not change until two more calls have returned.

        Raises:
            ValueError: the names do not fit a header.
        """
        told = {
            "names": [*tensors],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
        }
        self._send(told, [as_bytes(tensor) for tensor in tensors.values()])

    def end(self, fault: str = "") -> None:
        """Nothing follows, or, with a `fault`, not all that should have come. Returns when all is sent."""
        self._send({"fault": fault}, [])
        self._wait()

    def _send(self, told: dict, tensors: list[Tensor]) -> None:
        operations = [[_header(told)], self._announced] if self._announced else [[_header(told)]]
        self._announced = tensors
        started = [(operation, self._broadcast(operation)) for operation in operations]
        self._wait()
        self._in_transit = started

    def _wait(self) -> None:
        for _, wait in self._in_transit:
            wait()
        self._in_transit = []


def receive(
    take: Broadcast, device: torch.device, place: Place = lambda name, dtype, shape: None
) -> Iterator[dict[str, Tensor]]:
    """The batches that rank 0 sends, each as soon as its own broadcast has begun.

    Args:
        take: has the next broadcast fill tensors of `device`, after those that were begun before.
        place: for tensors of the batch to come.

    Raises:
        RuntimeError: the sender gave up.
    """
    told = _take_header(take, device)
    while "fault" not in told:
        tensors = {
            name: _memory(place, name, getattr(torch, dtype), shape, device)
            for name, dtype, shape in zip(told["names"], told["dtypes"], told["shapes"], strict=True)
        }
        header, arrived = _begin_header(take, device)
        wait = take([as_bytes(tensor) for tensor in tensors.values()])
        if device.type == "cpu":  # there is no order of a stream to rely on
            wait()
        yield tensors
        arrived()
        told = _read(header)
    if told["fault"]:
        raise RuntimeError(told["fault"])


def batches(named_tensors: Iterator[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    """The tensors themselves, contiguous, in batches for a `Sender`; one that is larger than all of them may be."""
    batch: dict[str, Tensor] = {}
    num_bytes, limit = 0, min(FIRST_BATCH_BYTES, max_bytes)
    for name, tensor in named_tensors:
        if batch and (num_bytes + tensor.nbytes > limit or len(batch) == MAX_TENSORS):
            yield batch
            batch, num_bytes, limit = {}, 0, min(2 * limit, max_bytes)
        batch[name] = tensor.detach().contiguous()
        num_bytes += tensor.nbytes
    if batch:
        yield batch


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor, uint8 [bytes]."""
    return tensor.view(-1).view(torch.uint8)


def _memory(place: Place, name: str, dtype: torch.dtype, shape: Sequence[int], device: torch.device) -> Tensor:
    own = place(name, dtype, shape)
    return own if own is not None else torch.empty(shape, dtype=dtype, device=device)


def _header(told: dict) -> Tensor:
    text = json.dumps(told).encode()
    if len(text) > HEADER_BYTES:
        raise ValueError(f"the names of {len(told['names'])} tensors take {len(text)} bytes, {HEADER_BYTES} are sent")
    return torch.frombuffer(bytearray(text.ljust(HEADER_BYTES, b"\0")), dtype=torch.uint8)


def _take_header(take: Broadcast, device: torch.device) -> dict:
    header, arrived = _begin_header(take, device)
    arrived()
    return _read(header)


def _begin_header(take: Broadcast, device: torch.device) -> tuple[Tensor, Callable[[], object]]:
    """Memory of the host that has the header once what is returned with it has waited."""
    header = torch.empty(HEADER_BYTES, dtype=torch.uint8, device=device)
    wait = take([header])
    if device.type == "cpu":
        return header, wait
    host = torch.empty(HEADER_BYTES, dtype=torch.uint8, pin_memory=True)
    host.copy_(header, non_blocking=True)  # on the current stream, which `take` uses
    return host, torch.cuda.current_stream(device).record_event().synchronize


def _read(header: Tensor) -> dict:
    return json.loads(header.numpy().tobytes().rstrip(b"\0"))
