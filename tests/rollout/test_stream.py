"""Batches of tensors that a sender announces and broadcasts, as a receiver takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from rollout.weight_sync import stream
from rollout.weight_sync.stream import HEADER_BYTES, Sender, batches, receive

CPU = torch.device("cpu")


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    kinds = (torch.bfloat16, torch.float32, torch.float16, torch.int64)
    return {f"layer.{i}": torch.randn(3 + i, 5).to(kinds[i % len(kinds)]) for i in range(9)} | {"scale": torch.ones(())}


def recorder(sent: list[list[Tensor]]) -> Callable[[Sequence[Tensor]], Callable[[], None]]:
    """A broadcast to nobody, which is done at once."""

    def broadcast(operation: Sequence[Tensor]) -> Callable[[], None]:
        sent.append([*operation])
        return lambda: None

    return broadcast


def replay(sent: list[list[Tensor]]) -> Callable[[Sequence[Tensor]], Callable[[], None]]:
    """What was broadcast, into the receiver's tensors."""
    operations = iter(sent)

    def take(targets: Sequence[Tensor]) -> Callable[[], None]:
        for target, data in zip(targets, next(operations), strict=True):
            assert target.dtype == data.dtype and target.shape == data.shape
            target.copy_(data)
        return lambda: None

    return take


def sent_by(parts: Iterator[dict[str, Tensor]], fault: str = "") -> list[list[Tensor]]:
    sent: list[list[Tensor]] = []
    sender = Sender(recorder(sent))
    for part in parts:
        sender.send(part)
    sender.end(fault)
    return sent


@pytest.mark.parametrize("max_bytes", [1, 100, 1 << 30])
def test_a_stream_tells_what_comes_and_when_it_ends(max_bytes: int):
    sent = sent_by(batches(iter(tensors().items()), max_bytes))
    received = {name: tensor for batch in receive(replay(sent), CPU) for name, tensor in batch.items()}
    assert list(received) == list(tensors())
    for name, tensor in tensors().items():
        assert received[name].dtype == tensor.dtype and torch.equal(received[name], tensor)


def test_nothing_at_all_is_a_stream_as_well():
    assert list(receive(replay(sent_by(iter(()))), CPU)) == []


def test_a_sender_that_gives_up_says_so_after_what_it_has_announced():
    received = receive(replay(sent_by(iter([{"a": torch.ones(3)}]), "the disk is full")), CPU)
    assert next(received)["a"].tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="the disk is full"):
        next(received)


def test_a_tensor_is_received_where_its_place_is():
    place = torch.zeros(3)
    sent = sent_by(iter([{"a": torch.ones(3), "b": torch.ones(2)}]))
    (received,) = receive(replay(sent), CPU, lambda name, dtype, shape: place if name == "a" else None)
    assert received["a"] is place and place.tolist() == [1, 1, 1] and received["b"].tolist() == [1, 1]


def test_each_header_is_sent_before_the_tensors_of_the_batch_before():
    """Who receives knows what is next before the last has come; and no more than two batches are on their way."""
    begun, ended = [], []

    def broadcast(operation: Sequence[Tensor]) -> Callable[[], None]:
        begun.append(operation)
        return lambda: ended.append(operation)

    def sizes(operations: list[Sequence[Tensor]]) -> list[int]:
        return [sum(len(tensor) for tensor in operation) for operation in operations]

    sender = Sender(broadcast)
    sender.send({"a": torch.ones(1)})
    assert sizes(begun) == [HEADER_BYTES]
    sender.send({"b": torch.ones(2)})
    assert sizes(begun) == [HEADER_BYTES, HEADER_BYTES, 4] and sizes(ended) == [HEADER_BYTES]
    sender.send({"c": torch.ones(3)})
    assert sizes(begun)[3:] == [HEADER_BYTES, 8] and sizes(ended) == [HEADER_BYTES, HEADER_BYTES, 4]
    sender.end()
    assert sizes(begun)[5:] == [HEADER_BYTES, 12] and sizes(ended) == sizes(begun)


def test_batches_copy_nothing_that_is_contiguous_and_grow():
    given = tensors()
    (batch,) = batches(iter(given.items()), 1 << 30)
    assert all(batch[name].data_ptr() == tensor.data_ptr() for name, tensor in given.items())
    (batch,) = batches(iter([("a", torch.arange(6).view(2, 3).T)]), 1)
    assert batch["a"].is_contiguous() and batch["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    same = [(str(i), torch.zeros(stream.FIRST_BATCH_BYTES // 16, dtype=torch.uint8)) for i in range(16 * 9)]
    assert [len(batch) for batch in batches(iter(same), 4 * stream.FIRST_BATCH_BYTES)] == [16, 32, 64, 32]


def test_names_that_fit_no_header_are_refused_before_anything_is_sent():
    sent: list[list[Tensor]] = []
    with pytest.raises(ValueError, match="the names of 2 tensors take .* bytes, 131072 are sent"):
        Sender(recorder(sent)).send({"a" * HEADER_BYTES: torch.ones(1), "b": torch.ones(1)})
    assert not sent
