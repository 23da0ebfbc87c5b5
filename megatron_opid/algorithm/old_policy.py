"""The terms of the loss that compare with the old policy, as functions of its log-probs.

Each is elementwise in the tokens, but for the whole-batch normalisation of the teacher: given the old log-probs of some
tokens it gives those tokens' terms, the same as given all. So they may be made of a whole batch before the update, or
inside it, chunk by chunk, where the update's own forward pass is the old policy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_opid.algorithm.advantages import TeacherLogprobs, teacher_advantage
from megatron_opid.algorithm.corrections import importance_correction


@dataclass(frozen=True)
class OldPolicyRules:
    """How the terms are made; algorithm.advantages and algorithm.corrections explain the values."""

    teacher_weights: tuple[float, ...] = ()
    normalize_teacher: bool = False
    teacher_clip: float | None = None
    distills: bool = False
    correction: str = "none"
    correction_low: float = 0.5
    correction_high: float = 2.0


@dataclass(frozen=True)
class OldPolicyTerms:
    """advantages [T]: outcome and skill terms; correction [T] or None; teacher_delta [T] or None: Σ_levels Δ."""

    advantages: Tensor
    correction: Tensor | None
    teacher_delta: Tensor | None


def old_policy_terms(
    old: Tensor,
    outcome: Tensor,
    teachers: Sequence[TeacherLogprobs],
    engine: Tensor | None,
    rules: OldPolicyRules,
) -> OldPolicyTerms:
    """Args: old, outcome (the advantage without the skill term), engine: float [T], the old policy's log-probs first.

    `engine`, the log-probs that the tokens were sampled with, may be None where nothing is corrected.
    """
    levels = [teacher.scores(old) for teacher in teachers]
    advantages = outcome
    if levels:
        skill = teacher_advantage(levels, normalize=rules.normalize_teacher, clip=rules.teacher_clip)
        advantages = outcome + skill
    correction = None
    if rules.correction != "none":
        correction = importance_correction(
            old, engine, mode=rules.correction, low=rules.correction_low, high=rules.correction_high
        )
    delta = sum((level.delta for level in levels), torch.zeros_like(old)) if rules.distills else None
    return OldPolicyTerms(advantages, correction, delta)
