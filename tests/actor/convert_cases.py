"""Cases of tools.convert with real actors, run by every rank in the process group of the layout tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_opid.actor.samples import PolicySample, TokenSequence
from tests.actor.layouts import LAYOUTS
from tests.actor.tiny_actors import COEFFICIENTS, actor_of, score_policy
from tests.actor.tiny_models import make_sequences
from tools.model_source import open_model

SAVED = {2: (("vpp2", "qwen3_tied"), ("tp2_sp_ep2", "qwen3_moe")), 4: (("ep2_pp2", "qwen3_moe_mixed"),)}
LOADED = (("tp2_sp_ep2", "qwen3_moe"), ("pp2", "qwen2_untied"), ("tp2_sp", "qwen3_tied"))


def convert_cases(models: Path, num_ranks: int) -> dict[str, Any]:
    for layout, model in SAVED[num_ranks]:
        save_case(models, layout, model)
    if num_ranks == 4:
        return {}
    loaded = {f"converted/{layout}/{model}": converted_case(models, layout, model) for layout, model in LOADED}
    return {"load_weights": load_weights_case(models), **loaded}


def save_case(models: Path, layout: str, model: str) -> None:
    """After an update: a checkpoint and a Hugging Face export of the same weights."""
    with actor_of(models, model, **LAYOUTS[layout].options) as actor:
        actor.update(samples(), COEFFICIENTS)
        actor.save(models / "saved" / layout, 1, {})
        actor.save_hf(models / "saved" / f"{layout}_hf")


def converted_case(models: Path, layout: str, model: str) -> list[list[float]]:
    """Scores of an actor that starts from what tools.convert made."""
    with actor_of(models, model, weights=str(models / "converted" / model), **LAYOUTS[layout].options) as actor:
        return [score.tolist() for score in score_policy(actor, make_sequences(11))]


def load_weights_case(models: Path) -> dict[str, Any]:
    """An actor of other weights takes a checkpoint without optimizer; an update that moves nothing keeps it."""
    still = {"learning_rate": 1e-12, "weight_decay": 0.0}
    other = open_model(models / "qwen3_untied_other").weights
    with actor_of(models, "qwen3_untied", precision="bf16", optimizer=still) as actor:
        trainer_state = actor.load(models / "converted" / "qwen3_untied_other")
        grad_norm = actor.update(samples(), COEFFICIENTS).statistics["grad_norm"]
        equal = [torch.equal(tensor, other.get(name).bfloat16()) for name, tensor in actor.export()]
    return {"trainer_state": trainer_state, "is_other": all(equal), "grad_norm": grad_norm}


def samples() -> list[PolicySample]:
    return [sample(sequence) for sequence in make_sequences(11)]


def sample(sequence: TokenSequence) -> PolicySample:
    num_tokens = len(sequence.response_ids)
    return PolicySample(
        sequence,
        old_logprobs=np.full(num_tokens, -5.5),
        advantages=np.ones(num_tokens),
        reference_logprobs=np.full(num_tokens, -5.5),
        teacher_delta=np.zeros(num_tokens),
        distillation_weights=np.full(num_tokens, 0.01),
    )
