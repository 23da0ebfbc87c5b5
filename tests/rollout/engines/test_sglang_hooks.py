"""What our hooks do around the methods of SGLang's ModelRunner, for which objects with its attributes stand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rollout.engines import sglang_hooks
from rollout.engines.sglang_hooks import check_weights, update_weights
from rollout.engines.sglang_names import DIGESTS, LAYOUT, STREAM
from rollout.weight_sync.digest import digest
from rollout.weight_sync.stream import batches
from tests.rollout.engines.worker_layers import OurExperts, shard_of, whole
from tests.rollout.test_stream import replay, sent_by

GROUP = "megatron_opid_1"


def runner_of(model: nn.Module, **attributes: object) -> SimpleNamespace:
    sizes = {"tp_size": 1, "pp_size": 1, "dp_size": 1, "attn_cp_size": 1}
    settings = SimpleNamespace(speculative_algorithm=None)
    return SimpleNamespace(**sizes | {"model": model, "server_args": settings, "_model_update_group": {}} | attributes)


def send(
    runner: SimpleNamespace, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, fault: str = ""
) -> tuple[bool, str]:
    """The hook's answer to a stream of 2 KiB and those tensors that are larger at once."""
    runner._model_update_group[GROUP] = replay(sent_by(batches(iter(tensors.items()), 2048), fault))
    monkeypatch.setattr(sglang_hooks, "broadcast_coalesced", lambda group, tensors: group(tensors))
    return update_weights(never, runner, [], [], [], GROUP, STREAM)


def never(*arguments: object) -> None:
    raise AssertionError("SGLang's own method was called")


@pytest.mark.parametrize("size", [1, 2])
def test_a_stream_is_a_load_of_the_weights_again_and_again(size: int, monkeypatch: pytest.MonkeyPatch):
    first = whole(torch.bfloat16)
    monkeypatch.setattr(sglang_hooks, "_on_all_ranks", lambda runner, fault: [fault] * size)
    for rank in range(size):
        runner = runner_of(shard_of(first, rank, size))
        for step in (1, 2):
            new = {name: tensor + step for name, tensor in first.items()}
            assert send(runner, new, monkeypatch) == (True, "All weights were taken in place.")
            expected = shard_of(new, rank, size)
            for name, parameter in runner.model.named_parameters():
                assert torch.equal(parameter, expected.get_parameter(name))


def test_a_fault_is_an_answer(monkeypatch: pytest.MonkeyPatch):
    tensors = whole(torch.bfloat16)
    runner = runner_of(shard_of(tensors, 0, 1))
    lacking = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    for sent, fault, told in (
        (lacking, "", "rank 0: RuntimeError: 1 of 8 weights did not come, among them model.norm.weight"),
        ({"other": torch.zeros(3), **tensors}, "", "rank 0: ValueError: this model has no weight other"),
        (tensors, "gathering failed", "rank 0: RuntimeError: gathering failed"),
    ):
        assert send(runner, sent, monkeypatch, fault) == (False, told)
    assert send(runner, tensors, monkeypatch)[0]
    assert update_weights(never, runner, [], [], [], "another", STREAM) == (False, "rank 0: KeyError: 'another'")


def test_the_answer_names_every_rank_that_failed(monkeypatch: pytest.MonkeyPatch):
    def gather(gathered: list[torch.Tensor], own: torch.Tensor, group: str) -> None:
        assert group == "the ranks' own, over gloo"
        gathered[0].zero_()
        gathered[1].copy_(own)
        gathered[2].fill_(ord("é".encode()[:1]))  # as a text that was cut may end

    tp_group = SimpleNamespace(cpu_group="the ranks' own, over gloo")
    runner = runner_of(shard_of(whole(torch.bfloat16), 0, 1), tp_size=3, tp_group=tp_group)
    monkeypatch.setattr(sglang_hooks.distributed, "all_gather", gather)
    is_taken, told = update_weights(never, runner, [], [], [], GROUP, STREAM)
    assert not is_taken and told.startswith(f"rank 1: KeyError: '{GROUP}'; rank 2: \N{REPLACEMENT CHARACTER}")


def test_what_is_not_ours_is_left_to_sglang():
    runner = runner_of(nn.Linear(1, 1))
    arguments = (["a"], ["bfloat16"], [[1]], GROUP, "flattened_bucket")
    assert update_weights(lambda *given: given, runner, *arguments) == (runner, *arguments)
    assert check_weights(lambda runner, action: {"did": action}, runner, action="checksum") == {"did": "checksum"}


def test_a_ranks_digests_are_those_of_the_checkpoint_where_it_is_the_only_one():
    tensors = whole(torch.bfloat16)
    answer = check_weights(never, runner_of(shard_of(tensors, 0, 1)), action=DIGESTS)
    assert answer["checksums"] == {name: str(digest(tensor)) for name, tensor in tensors.items()}
    assert answer["per_gpu_checksum"] == ""  # SGLang's front end encodes it


def test_weights_come_in_place_where_all_layers_are_plain_and_ranks_those_of_tensor_parallelism():
    def in_place(model: nn.Module, **attributes: object) -> bool:
        return check_weights(never, runner_of(model, **attributes), action=LAYOUT)["in_place"]

    model = shard_of(whole(torch.bfloat16), 0, 1)
    assert in_place(model)
    assert not any(in_place(model, **{size: 2}) for size in ("pp_size", "dp_size", "attn_cp_size"))
    assert not in_place(model, server_args=SimpleNamespace(speculative_algorithm="EAGLE"))
    model.model.layers[0].mlp.experts = OurExperts()
    model.model.layers[0].mlp.experts.w2_weight = nn.Parameter(torch.zeros(4, 2, 2), requires_grad=False)
    assert not in_place(model)
