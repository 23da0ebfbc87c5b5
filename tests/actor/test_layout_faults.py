"""All faults of a layout at once, found without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megatron_opid.actor.layout import layout_faults, vocabulary_faults
from megatron_opid.config import ActorConfig
from tests.weights.test_hf_config import QWEN3, QWEN3_MOE


def test_a_layout_that_fits() -> None:
    config = ActorConfig(tensor_parallel=4, pipeline_parallel=2, virtual_pipeline_parallel=2, sequence_parallel=True)
    assert layout_faults(config, QWEN3, world_size=16) == []
    assert vocabulary_faults(QWEN3, tokenizer_size=151669) == []


@pytest.mark.parametrize(
    ("options", "world_size", "message"),
    [
        ({"tensor_parallel": 3}, 3, "actor.tensor_parallel=3 does not divide the model's num_attention_heads=16"),
        ({"tensor_parallel": 16}, 16, "does not divide the model's num_key_value_heads=8"),
        ({"pipeline_parallel": 3}, 3, "does not divide the model's num_hidden_layers=28"),
        ({"pipeline_parallel": 4, "virtual_pipeline_parallel": 2}, 4, "= 8 does not divide"),
        ({"virtual_pipeline_parallel": 2}, 1, "needs actor.pipeline_parallel > 1"),
        ({"tensor_parallel": 2}, 3, "3 ranks cannot be divided by"),
        ({"sequence_parallel": True}, 1, "needs actor.tensor_parallel > 1"),
        ({"context_parallel": 2}, 3, "3 ranks cannot be divided by"),
        ({"expert_parallel": 2}, 2, "actor.expert_parallel=2, but the model has no experts"),
        ({"expert_tensor_parallel": 2}, 2, "actor.expert_tensor_parallel=2, but the model has no experts"),
    ],
)
def test_refusals(options: dict, world_size: int, message: str) -> None:
    faults = layout_faults(ActorConfig(**options), QWEN3, world_size)
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("options", "world_size", "message"),
    [
        ({"expert_parallel": 3}, 3, "actor.expert_parallel=3 does not divide the model's num_experts=128"),
        ({"expert_tensor_parallel": 5}, 5, "does not divide the model's moe_intermediate_size=768"),
        ({"expert_parallel": 4}, 2, "actor.expert_parallel * actor.pipeline_parallel = 4; start a multiple of 4"),
        ({"expert_parallel": 2, "expert_tensor_parallel": 2}, 4, "does not run over gloo; set actor.expert_tensor"),
        ({"tensor_parallel": 2, "expert_parallel": 2}, 2, "needs actor.sequence_parallel=true"),
        ({"tensor_parallel": 2, "sequence_parallel": True}, 2, "would leave the experts' gradients unsummed"),
    ],
)
def test_refusals_of_experts(options: dict, world_size: int, message: str) -> None:
    faults = layout_faults(ActorConfig(**options), QWEN3_MOE, world_size)
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("options", "world_size"),
    [
        ({"expert_parallel": 8, "pipeline_parallel": 4}, 32),
        ({"tensor_parallel": 4, "sequence_parallel": True, "expert_parallel": 8}, 8),
        ({"tensor_parallel": 2, "sequence_parallel": True, "expert_tensor_parallel": 2}, 2),
        ({"expert_parallel": 4, "expert_tensor_parallel": 2, "device": "cuda"}, 8),
    ],
)
def test_layouts_of_experts_that_fit(options: dict, world_size: int) -> None:
    assert layout_faults(ActorConfig(**options), QWEN3_MOE, world_size) == []


def test_every_fault_is_reported() -> None:
    config = ActorConfig(tensor_parallel=3, pipeline_parallel=5, sequence_parallel=True)
    assert len(layout_faults(config, QWEN3, world_size=7)) == 5
    assert "200000 token ids" in vocabulary_faults(QWEN3, tokenizer_size=200000)[0]


def test_a_model_that_is_not_built_is_reported_with_the_layout() -> None:
    faults = layout_faults(ActorConfig(context_parallel=2), QWEN3 | {"model_type": "mamba"}, 3)
    assert len(faults) == 2


def test_imports_neither_torch_nor_megatron() -> None:
    code = "import sys, megatron_opid.actor.layout; print([m for m in ('torch', 'megatron.core') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
