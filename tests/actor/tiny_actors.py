"""Actors of the tiny models, and their scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_opid.actor.actor import Actor
from megatron_opid.actor.samples import ScoreRequest, TokenSequence
from megatron_opid.algorithm.losses import LossCoefficients
from megatron_opid.config import ActorConfig, OptimizerConfig
from tests.actor.layouts import TEMPERATURE

COEFFICIENTS = LossCoefficients(kl=0.01, entropy=0.01, distillation=0.1)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, schedule="cosine", warmup_steps=2)


@contextmanager
def actor_of(models: Path, model: str, *, optimizer: dict[str, Any] | None = None, **options: Any) -> Iterator[Actor]:
    options = {"device": "cpu", "precision": "fp32", "tokens_per_micro_batch": 80} | options
    actor = Actor(
        ActorConfig(model=str(models / model), **options),
        replace(OPTIMIZER, **(optimizer or {})),
        num_training_steps=10,
        temperature=TEMPERATURE,
        with_reference=True,
        timeout_s=120,
    )
    try:
        yield actor
    finally:
        actor.close()


def score_policy(actor: Actor, sequences: list[TokenSequence]) -> list[np.ndarray]:
    return actor.score([ScoreRequest(sequence) for sequence in sequences])
