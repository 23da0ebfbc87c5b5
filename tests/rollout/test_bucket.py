"""Buckets hold every tensor once, in order, within their size, and are the bytes that both servers unpack."""

from __future__ import annotations

import pytest
import torch

from rollout.weight_sync.bucket import buckets, new_memory
from rollout.weight_sync.stream import Sender, receive


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


def recorder(sent):
    """A broadcast to nobody, which is done at once."""

    def broadcast(data):
        sent.append(data)
        return lambda: None

    return broadcast


def replay(sent):
    """What was broadcast, into the receiver's tensors."""
    messages = iter(sent)

    def broadcast(buffer):
        data = next(messages)
        assert buffer.dtype == data.dtype and buffer.shape == data.shape
        buffer.copy_(data)

    return broadcast


def test_a_stream_tells_what_comes_and_when_it_ends():
    sent = []
    sender = Sender(recorder(sent))
    for bucket in buckets(tensors(), 1024):
        sender.send(bucket)
    sender.end()
    received = [pair for bucket in receive(replay(sent), torch.device("cpu")) for pair in bucket.tensors()]
    for (name, tensor), (other_name, other) in zip(tensors(), received, strict=True):
        assert name == other_name and tensor.dtype == other.dtype and torch.equal(tensor, other)


def test_a_sender_that_gives_up_says_so():
    sent = []
    Sender(recorder(sent)).end("the disk is full")
    with pytest.raises(RuntimeError, match="the disk is full"):
        list(receive(replay(sent), torch.device("cpu")))


def test_one_bucket_is_in_transit_while_the_next_is_given():
    """And all are sent at the end: what was given may not change before."""
    begun, ended = [], []

    def broadcast(data):
        begun.append(data)
        return lambda: ended.append(data)

    sender = Sender(broadcast)
    first, second = list(buckets([("a", torch.ones(3)), ("b", torch.zeros(5))], 1))
    sender.send(first)
    assert len(begun) == 3 and not ended
    sender.send(second)
    assert len(begun) == 6 and ended[2].data_ptr() == first.data.data_ptr() and len(ended) == 3
    sender.end()
    assert len(begun) == len(ended) == 8
