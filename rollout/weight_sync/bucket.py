"""Tensors packed into one flat byte tensor: what vLLM calls packed and SGLang a flattened bucket, the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Gives memory for a bucket, uint8 [at least the asked number of bytes], on a device.
Allocate = Callable[[int, torch.device], Tensor]


@dataclass
class Bucket:
    """Whole tensors in order. `buffer` uint8 [capacity]; `sizes` in bytes; `dtypes` as in "bfloat16"."""

    buffer: Tensor
    names: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @classmethod
    def over(
        cls, buffer: Tensor, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]
    ) -> Bucket:
        """What a sender has put into `buffer`, by its account."""
        return cls(buffer, list(names), list(dtypes), [list(shape) for shape in shapes], sizes_of(dtypes, shapes))

    @classmethod
    def of(
        cls, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], device: torch.device
    ) -> Bucket:
        """Memory on `device` for what a sender tells of."""
        return cls.over(new_memory(sum(sizes_of(dtypes, shapes)), device), names, dtypes, shapes)

    @property
    def data(self) -> Tensor:
        """The packed bytes, uint8 [sum(sizes)]."""
        return self.buffer[: sum(self.sizes)]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Views of what is packed; copies where a dtype's alignment wants them."""
        parts = self.data.split(self.sizes)
        for name, dtype_name, shape, part in zip(self.names, self.dtypes, self.shapes, parts, strict=True):
            dtype = getattr(torch, dtype_name)
            aligned = part if part.storage_offset() % dtype.itemsize == 0 else part.clone()
            yield name, aligned.view(dtype).view(shape)

    def has_room_for(self, tensor: Tensor) -> bool:
        return sum(self.sizes) + tensor.nbytes <= len(self.buffer)

    def add(self, name: str, tensor: Tensor) -> None:
        start = sum(self.sizes)
        self.buffer[start : start + tensor.nbytes].copy_(tensor.detach().contiguous().view(-1).view(torch.uint8))
        self.names.append(name)
        self.dtypes.append(str(tensor.dtype).removeprefix("torch."))
        self.shapes.append(list(tensor.shape))
        self.sizes.append(tensor.nbytes)


def new_memory(num_bytes: int, device: torch.device) -> Tensor:
    """Memory of its own for each bucket: one may be sent while the next is filled."""
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


def buckets(
    named_tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int, allocate: Allocate = new_memory
) -> Iterator[Bucket]:
    """Copy a stream into buckets of at most `bucket_bytes`; a tensor above that gets a larger one of its own."""
    bucket: Bucket | None = None
    for name, tensor in named_tensors:
        if bucket is not None and not bucket.has_room_for(tensor):
            yield bucket
            bucket = None
        if bucket is None:
            bucket = Bucket(allocate(max(bucket_bytes, tensor.nbytes), tensor.device))
        bucket.add(name, tensor)
    if bucket is not None:
        yield bucket


def sizes_of(dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> list[int]:
    """Bytes of tensors."""
    return [math.prod(shape) * getattr(torch, dtype).itemsize for dtype, shape in zip(dtypes, shapes, strict=True)]
