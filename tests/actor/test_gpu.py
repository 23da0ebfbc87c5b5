"""The actor on GPUs: transformers' numbers, one GPU's on two, the same bits again, and what only a GPU can.

pytest -m gpu tests/actor/test_gpu.py            (one GPU)
pytest -m multi_gpu tests/actor/test_gpu.py      (two)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.actor.conftest import launch
from tests.actor.gpu_cases import ONE_GPU_CASES, TWO_GPU_CASES
from tests.actor.layouts import TEMPERATURE
from tests.actor.tiny_models import make_sequences, transformers_logprobs

pytestmark = pytest.mark.timeout(600)
LOGPROB_ERROR = {"fp32": 1e-4, "bf16": 0.15}
RELATIVE_ERROR = {"fp32": 1e-5, "bf16": 2e-2}
# The old log-probs are the update's own bits under Transformer Engine; torch's layers, which fp32 takes, were seen to
# differ by 1e-6 between a pass with gradients and one without.
RATIO_ERROR = {"fp32": 1e-5, "bf16": 0.0}


@pytest.fixture(scope="module")
def one_gpu(models: Path) -> dict[str, Any]:
    return launch("one_gpu", 1, models)


@pytest.fixture(scope="module")
def two_gpus(models: Path) -> dict[str, Any]:
    return launch("two_gpus", 2, models)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "model"), ONE_GPU_CASES)
def test_logprobs_equal_transformers(precision: str, model: str, one_gpu: dict[str, Any], models: Path) -> None:
    result = one_gpu[f"{precision}/one/{model}"]
    reference = AutoModelForCausalLM.from_pretrained(models / model, dtype=torch.float32)
    for sequence, scores in zip(make_sequences(11), result["scores"], strict=True):
        expected = transformers_logprobs(reference, sequence, TEMPERATURE).detach()
        np.testing.assert_allclose(scores, expected, rtol=0, atol=LOGPROB_ERROR[precision])
    assert result["export_is_bitwise"] and result["reference_is_bitwise"]
    assert result["updates"][0]["max_ratio_deviation"] <= RATIO_ERROR[precision]


@pytest.mark.gpu
def test_reuse_learns_what_recompute_learns(one_gpu: dict[str, Any]) -> None:
    """The old log-probs are the same bits; what is made of them on the CPU and on the GPU differs by exp's rounding."""
    recompute, reuse = one_gpu["reuse"]["recompute"], one_gpu["reuse"]["reuse"]
    assert reuse["logprobs"] == recompute["logprobs"]
    for name in ("loss", "grad_norm"):
        assert reuse["statistics"][name] == pytest.approx(recompute["statistics"][name], rel=1e-5), name


@pytest.mark.gpu
def test_the_same_bits_again(models: Path) -> None:
    first, second = launch("deterministic", 1, models)["runs"]
    assert first == second


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["recompute_mlp", "recompute_block", "offload", "half_offload"])
def test_options_do_not_change_the_updates(name: str, one_gpu: dict[str, Any]) -> None:
    for update, expected in zip(one_gpu[name]["updates"], one_gpu["plain"]["updates"], strict=True):
        for field in ("loss", "grad_norm", "entropy"):
            assert update[field] == pytest.approx(expected[field], rel=2e-2), field


@pytest.mark.gpu
def test_fused_kernels_round_otherwise_only(one_gpu: dict[str, Any]) -> None:
    """The first update; later ones are of weights that Adam's first steps, signs in essence, have moved apart."""
    update, expected = one_gpu["fused_off"]["updates"][0], one_gpu["plain"]["updates"][0]
    for field in ("loss", "grad_norm", "entropy"):
        assert update[field] == pytest.approx(expected[field], rel=2e-2), field


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp8_current", "fp8_delayed"])
def test_fp8_follows_bf16(name: str, one_gpu: dict[str, Any]) -> None:
    update, expected = one_gpu[name]["updates"][0], one_gpu["plain"]["updates"][0]
    assert update["entropy"] == pytest.approx(expected["entropy"], rel=0.05)
    assert update["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.25)


@pytest.mark.gpu
def test_a_checkpoint_in_the_background_resumes_exactly(one_gpu: dict[str, Any]) -> None:
    result = one_gpu["resume_async"]
    assert not result["published_at_once"]
    assert result["continued"] == result["uninterrupted"]
    assert result["max_weight_difference"] == 0.0


@pytest.mark.multi_gpu
@pytest.mark.parametrize(("precision", "name", "model"), TWO_GPU_CASES)
def test_two_gpus_equal_one(
    precision: str, name: str, model: str, one_gpu: dict[str, Any], two_gpus: dict[str, Any]
) -> None:
    update = two_gpus[f"{precision}/{name}/{model}"]["updates"][0]
    expected = one_gpu[f"{precision}/one/{model}"]["updates"][0]
    assert update["max_ratio_deviation"] <= RATIO_ERROR[precision]
    for field in ("loss", "grad_norm", "entropy"):
        assert update[field] == pytest.approx(expected[field], rel=RELATIVE_ERROR[precision], abs=1e-4), field
