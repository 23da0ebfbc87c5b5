"""What the ranks of the GPU tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.actor.layouts import LAYOUTS
from tests.actor.old_logprob_cases import reuse_case, weights_digest
from tests.actor.rank_cases import layout_case, make_samples, resume_case, train
from tests.actor.tiny_actors import actor_of

GPU = {"device": "cuda"}
# Megatron's local layers, which fp32 takes, would have the experts one by one; only Transformer Engine's are checked.
ONE_GPU_CASES = [
    (precision, model)
    for precision in ("fp32", "bf16")
    for model in ("qwen3_tied", "qwen2_untied", "qwen3_moe")
    if (precision, model) != ("fp32", "qwen3_moe")
]
TWO_GPU_LAYOUTS = ("tp2", "tp2_sp", "pp2", "vpp2", "dp2", "dp2_overlap", "cp2", "ep2", "tp2_sp_ep2")
TWO_GPU_CASES = [
    (precision, name, model)
    for precision, model in ONE_GPU_CASES
    for name in TWO_GPU_LAYOUTS
    if model in LAYOUTS[name].models
]


def one_gpu(models: Path) -> dict[str, Any]:
    cases = {
        f"{precision}/one/{model}": layout_case(models, model, GPU | {"precision": precision})
        for precision, model in ONE_GPU_CASES
    }
    bf16 = GPU | {"precision": "bf16"}
    options = {
        "fused_off": {"fused_kernels": False},
        "fp8_current": {"fp8": "current"},
        "fp8_delayed": {"fp8": "delayed"},
        "recompute_mlp": {"recompute": "mlp"},
        "recompute_block": {"recompute": "full", "recompute_layers": 2},
    }
    cases |= {name: updates(models, bf16 | values) for name, values in options.items()}
    return cases | {
        "plain": updates(models, bf16),
        "offload": updates(models, bf16, offload_fraction=1.0),
        "half_offload": updates(models, bf16, offload_fraction=0.5),
        "reuse": reuse_case(models, bf16),
        "resume_async": resume_case(models, models / "resume_gpu", bf16, bf16, waits=False),
    }


def deterministic(models: Path) -> dict[str, Any]:
    """In a process of its own, whose libraries have read no other environment."""
    return {"runs": [updates(models, GPU | {"precision": "bf16", "deterministic": True}) for _ in range(2)]}


def updates(models: Path, options: dict[str, Any], **optimizer: Any) -> dict[str, Any]:
    """Four updates and the weights after them."""
    with actor_of(models, "qwen3_tied", optimizer=optimizer, **options) as actor:
        return {"updates": train(actor, make_samples(actor), 4), "weights": weights_digest(actor)}


def two_gpus(models: Path) -> dict[str, Any]:
    return {
        f"{precision}/{name}/{model}": layout_case(
            models, model, GPU | LAYOUTS[name].options | {"precision": precision}
        )
        for precision, name, model in TWO_GPU_CASES
    }


CASE_SETS = {"one_gpu": one_gpu, "two_gpus": two_gpus, "deterministic": deterministic}
