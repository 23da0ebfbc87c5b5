"""Buckets hold every tensor once, in order, within their size, and are the bytes that both servers unpack."""

from __future__ import annotations

import torch

from rollout.weight_sync.bucket import buckets, new_memory


def tensors():
    torch.manual_seed(0)
    shapes = [(4, 8), (3,), (16, 16), (1,), (5, 5), (64, 64), (2, 2)]
    dtypes = [torch.bfloat16, torch.float32]
    return [(f"w{i}", torch.randn(shape).to(dtypes[i % 2])) for i, shape in enumerate(shapes)]


def test_what_is_unpacked_is_what_was_packed():
    packed = list(buckets(tensors(), 1024))
    assert len(packed) > 2
    assert all(len(bucket.data) <= 1024 or len(bucket.names) == 1 for bucket in packed)
    unpacked = [pair for bucket in packed for pair in bucket.tensors()]
    for (name, tensor), (other_name, other) in zip(tensors(), unpacked, strict=True):
        assert name == other_name and tensor.dtype == other.dtype and torch.equal(tensor, other)


def test_a_bucket_is_a_copy_at_once():
    """The stream may reuse its memory for the next tensor."""
    storage = torch.zeros(4)

    def reusing():
        for value in range(3):
            yield f"w{value}", storage.fill_(float(value))

    (bucket,) = buckets(reusing(), 1024)
    assert [float(tensor[0]) for _, tensor in bucket.tensors()] == [0.0, 1.0, 2.0]


def test_memory_is_asked_for_once_per_bucket():
    asked = []

    def allocate(num_bytes, device):
        asked.append(num_bytes)
        return new_memory(num_bytes, device)

    packed = list(buckets(tensors(), 1024, allocate))
    assert len(asked) == len(packed) and max(asked) == tensors()[5][1].nbytes
