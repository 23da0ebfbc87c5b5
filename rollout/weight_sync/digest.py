"""A cheap checksum of a tensor's bytes, the same on every device: both ends of a weight transfer compute it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 22
_INTEGER_VIEW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class DigestMismatch(RuntimeError):
    """A weight that an engine holds is not the weight that was sent."""


def digest(tensor: Tensor) -> int:
    """64-bit checksum of a tensor's shape, dtype and bits.

    sum_i w_i x_i mod 2^64, with x the elements' bits as integers and w_i an odd number mixed from the position i: any
    single changed element changes the sum, and so does an exchange of unequal ones (up to chance). It guards against
    faults, not against an attacker.
    """
    flat = tensor.detach().contiguous().view(-1)
    total = header(tensor.dtype, tuple(tensor.shape))
    for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
        chunk = flat[start : start + _CHUNK_ELEMENTS]
        total += weighted_sum(chunk, torch.arange(start, start + chunk.numel(), device=flat.device))
    return total % 2**64


def weighted_sum(elements: Tensor, positions: Tensor) -> int:
    """What `elements` [n] at `positions` int64 [n] of a flattened tensor add to its digest, before the modulus."""
    bits = elements.contiguous().view(_INTEGER_VIEW[elements.element_size()]).to(torch.int64)
    return int((bits * _weights(positions)).sum())


def header(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """What a tensor's dtype and shape add to its digest."""
    text = f"{dtype}{tuple(shape)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def compare(sent: Mapping[str, int], held: Mapping[str, int]) -> None:
    """Raise DigestMismatch naming the first weight whose digest at the engine is not the one that was sent."""
    wrong = [name for name, value in sent.items() if held.get(name) != value]
    if wrong:
        raise DigestMismatch(
            f"weight {wrong[0]!r} ({len(wrong)} of {len(sent)} in all) differs at the engine from what was sent: "
            "the transfer or the loading is at fault; this run's rollouts cannot be trusted"
        )


def _weights(index: Tensor) -> Tensor:
    """Odd 64-bit numbers, one per position (multiply, fold the high bits, multiply: splitmix64's pattern)."""
    mixed = (index + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 31)) * -0x40A7B892E31B1A47
    return (mixed ^ (mixed >> 29)) | 1
