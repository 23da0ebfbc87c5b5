"""Buckets hold every tensor once, in order, within their size, and are the bytes that both servers unpack."""

from __future__ import annotations

import pytest
import torch

from rollout.weight_sync.bucket import batches, buckets, new_memory
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
    operations = iter(sent)

    def take(tensors):
        for tensor, data in zip(tensors, next(operations), strict=True):
            assert tensor.dtype == data.dtype and tensor.shape == data.shape
            tensor.copy_(data)

    return take


def test_batches_are_as_large_as_buckets_and_copy_nothing():
    packed, plain = list(buckets(tensors(), 1024)), list(batches(tensors(), 1024))
    assert [bucket.names for bucket in packed] == [[*batch] for batch in plain]
    given = tensors()
    (batch,) = batches(given, 1 << 30)
    assert all(batch[name].data_ptr() == tensor.data_ptr() for name, tensor in given)
    (batch,) = batches([("a", torch.arange(6).view(2, 3).T)], 1)
    assert batch["a"].is_contiguous() and batch["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_stream_tells_what_comes_and_when_it_ends():
    sent = []
    sender = Sender(recorder(sent))
    for batch in batches(tensors(), 1024):
        sender.send(batch)
    sender.end()
    received = [pair for batch in receive(replay(sent), torch.device("cpu")) for pair in batch.items()]
    for (name, tensor), (other_name, other) in zip(tensors(), received, strict=True):
        assert name == other_name and tensor.dtype == other.dtype and torch.equal(tensor, other)


def test_a_tensor_is_received_where_its_place_is():
    sent, place = [], torch.zeros(3)
    sender = Sender(recorder(sent))
    sender.send({"a": torch.ones(3), "b": torch.ones(2)})
    sender.end()
    (received,) = receive(replay(sent), torch.device("cpu"), lambda name, dtype, shape: place if name == "a" else None)
    assert received["a"] is place and place.tolist() == [1, 1, 1] and received["b"].tolist() == [1, 1]


def test_a_sender_that_gives_up_says_so():
    sent = []
    Sender(recorder(sent)).end("the disk is full")
    with pytest.raises(RuntimeError, match="the disk is full"):
        list(receive(replay(sent), torch.device("cpu")))


def test_one_message_is_in_transit_while_the_next_is_given():
    """And all are sent at the end: what was given may not change before."""
    begun, ended = [], []

    def broadcast(tensors):
        begun.append(tensors)
        return lambda: ended.append(tensors)

    sender = Sender(broadcast)
    sender.send({"a": torch.ones(3)})
    assert len(begun) == 3 and not ended
    sender.send({"b": torch.zeros(5)})
    assert len(begun) == 6 and ended == [begun[2]]
    sender.end()
    assert ended == [begun[2], begun[5], begun[7]] and len(begun) == 8
