"""Digests of fused and sharded layers, added up over ranks, are those of the Hugging Face tensors.

vLLM itself does not run here: `worker_layers` stand for its layers.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rollout.engines import vllm_extension
from rollout.engines.vllm_extension import WeightBook
from rollout.weight_sync.bucket import buckets
from rollout.weight_sync.digest import digest
from rollout.weight_sync.stream import Sender, batches
from tests.rollout.engines.worker_layers import FEED_FORWARD, HIDDEN, OurExperts, shard_of, whole
from tests.rollout.test_stream import recorder


def worker_of(model: nn.Module) -> WeightBook:
    worker = WeightBook()
    worker.model_runner = SimpleNamespace(get_model=lambda: model)
    worker.device = torch.device("cpu")
    worker.parallel_config = SimpleNamespace(pipeline_parallel_size=1)
    return worker


def held_digests(models: list[nn.Module], monkeypatch) -> dict[str, int]:
    """What the client adds up from the ranks' answers."""
    total: dict[str, int] = {}
    for rank, model in enumerate(models):
        monkeypatch.setattr("rollout.engines.worker_shards._is_first_rank", lambda rank=rank: rank == 0)
        for name, value in worker_of(model).opid_weight_digests().items():
            total[name] = (total.get(name, 0) + int(value)) % 2**64
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1, 2, 4])  # 4: each key-value head is on two ranks
def test_the_ranks_digests_add_up_to_those_of_the_checkpoint(size: int, dtype: torch.dtype, monkeypatch):
    tensors = whole(dtype)
    held = held_digests([shard_of(tensors, rank, size) for rank in range(size)], monkeypatch)
    assert held == {name: digest(tensor) for name, tensor in tensors.items()}


def test_one_changed_element_shows_in_its_weight_alone(monkeypatch):
    tensors = whole(torch.bfloat16)
    models = [shard_of(tensors, rank, 2) for rank in range(2)]
    models[1].model.layers[0].self_attn.qkv_proj.weight[-1, 3] += 1
    held = held_digests(models, monkeypatch)
    wrong = {name for name, tensor in tensors.items() if held[name] != digest(tensor)}
    assert wrong == {"model.layers.0.self_attn.v_proj.weight"}


def test_fused_experts_are_left_out_and_hide_no_other_weight(monkeypatch):
    tensors = whole(torch.bfloat16)
    models = [shard_of(tensors, rank, 2) for rank in range(2)]
    for model in models:
        experts = OurExperts()
        experts.w13_weight = nn.Parameter(torch.randn(4, FEED_FORWARD, HIDDEN), requires_grad=False)
        experts.w2_weight = nn.Parameter(torch.randn(4, HIDDEN, FEED_FORWARD // 2), requires_grad=False)
        experts.shared = model.model.norm.weight  # of another module, which is named later
        model.model.layers[0].mlp.experts = experts
    assert held_digests(models, monkeypatch) == {name: digest(tensor) for name, tensor in tensors.items()}


def test_the_version_dies_with_the_worker():
    worker = worker_of(shard_of(whole(torch.bfloat16), 0, 1))
    assert worker.opid_weight_version() == {"version": None}
    worker.opid_begin_update()
    worker.opid_end_update(7, in_place=False)
    assert worker.opid_weight_version() == {"version": 7}
    worker.opid_begin_update()
    assert worker.opid_weight_version() == {"version": None}


class Replay:
    """The worker's end of a group: what the trainer's rank 0 has sent, in order."""

    def __init__(self, sent: list[list[torch.Tensor]]):
        self._sent = iter(sent)
        self.targets: set[int] = set()  # addresses that were received into

    def group_start(self) -> None:
        self._operation = iter(next(self._sent))

    def group_end(self) -> None:
        assert next(self._operation, None) is None

    def broadcast(self, buffer: torch.Tensor, src: int, stream: None) -> None:
        data = next(self._operation)
        assert src == 0 and buffer.dtype == data.dtype and buffer.shape == data.shape
        self.targets.add(buffer.data_ptr())
        buffer.copy_(data)

    def is_at_its_end(self) -> bool:
        return next(self._sent, None) is None


def send(worker: WeightBook, tensors: dict[str, torch.Tensor], version: int) -> Replay:
    """All of `tensors`, 2 KiB and those that are larger at once."""
    sent: list[list[torch.Tensor]] = []
    sender = Sender(recorder(sent))
    for batch in batches(iter(tensors.items()), 2048):
        sender.send(batch)
    sender.end()
    group = Replay(sent)
    worker.weight_transfer_engine = SimpleNamespace(model_update_group=group)
    worker.opid_receive(version)
    return group


@pytest.mark.parametrize("size", [1, 2, 4])
def test_weights_taken_in_place_are_a_load_of_them_on_every_rank(size: int):
    old, new = whole(torch.bfloat16), {name: tensor + 1 for name, tensor in whole(torch.bfloat16).items()}
    for rank in range(size):
        model, expected = shard_of(old, rank, size), shard_of(new, rank, size)
        places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
        worker = worker_of(model)
        assert worker.opid_begin_update() == {"in_place": True, "version": None}
        group = send(worker, new, 3)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, expected.get_parameter(name)) and parameter.data_ptr() == places[name]
        if size == 1:  # nothing is copied
            assert set(places.values()) <= group.targets
        assert worker.opid_weight_version() == {"version": 3}


def test_weights_read_from_the_trainers_memory_are_a_load_of_them(monkeypatch):
    old, new = whole(torch.bfloat16), {name: tensor + 1 for name, tensor in whole(torch.bfloat16).items()}
    model, expected = shard_of(old, 1, 2), shard_of(new, 1, 2)
    worker = worker_of(model)
    worker.opid_begin_update()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for bucket in buckets(new.items(), 4096):
        monkeypatch.setattr(vllm_extension, "open_handle", lambda handles, device, bucket=bucket: bucket.buffer)
        worker.opid_read(bucket.names, bucket.dtypes, bucket.shapes, ["of this GPU"])
    worker.opid_end_update(3, in_place=True)
    assert all(torch.equal(parameter, expected.get_parameter(name)) for name, parameter in model.named_parameters())


def test_an_update_in_place_that_lacks_a_weight_or_brings_another_ends_it():
    tensors = whole(torch.bfloat16)
    worker = worker_of(shard_of(tensors, 0, 1))
    worker.opid_begin_update()
    with pytest.raises(RuntimeError, match="1 of 8 weights did not come, among them model.norm.weight"):
        send(worker, {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}, 1)
    assert worker.opid_weight_version() == {"version": None}
    worker.opid_begin_update()
    with pytest.raises(ValueError, match="no weight other"):
        send(worker, {"other": torch.zeros(3)}, 1)
    with pytest.raises(ValueError, match=r"model.norm.weight is \(16,\) here, \(17,\) came"):
        send(worker, {"model.norm.weight": torch.zeros(17)}, 1)


def test_what_comes_after_a_fault_is_still_received():
    """Or the other ranks, and rank 0, would wait for this one in the next broadcast."""
    tensors = whole(torch.bfloat16)
    worker = worker_of(shard_of(tensors, 0, 1))
    worker.opid_begin_update()
    with pytest.raises(ValueError, match="no weight other"):
        send(worker, {"other": torch.zeros(3), **tensors}, 1)
    assert worker.weight_transfer_engine.model_update_group.is_at_its_end()


def test_a_rank_that_has_some_of_the_layers_takes_nothing_in_place():
    worker = worker_of(shard_of(whole(torch.bfloat16), 0, 1))
    worker.parallel_config.pipeline_parallel_size = 2
    assert worker.opid_begin_update()["in_place"] is False


def test_a_model_with_other_layers_is_left_to_vllms_own_update():
    model = shard_of(whole(torch.bfloat16), 0, 1)
    model.model.layers[0].mlp.experts = OurExperts()
    model.model.layers[0].mlp.experts.w2_weight = nn.Parameter(torch.zeros(4, 2, 2), requires_grad=False)
    assert worker_of(model).opid_begin_update()["in_place"] is False
    model = shard_of(whole(torch.bfloat16), 0, 1)
    model.model.layers[0].self_attn.o_proj.quant_method = OurExperts()
    assert worker_of(model).opid_begin_update()["in_place"] is False
