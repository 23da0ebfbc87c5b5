"""Losses per response token, as pure functions of the sampled token's log-prob and constants known before the update.

Aggregation is a weight per token (`aggregation_weights`) that is computed once for a whole update, so the loss is a
plain sum Σ_t w_t · l_t: any split over micro-batches and data-parallel ranks gives the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KL_CLAMP = 10.0


@dataclass(frozen=True)
class LossCoefficients:
    """Constants of the policy loss. `distillation` is the coefficient of the auxiliary loss of `distillation_loss`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    kl: float = 0.0
    entropy: float = 0.0
    distillation: float = 0.0
    distillation_weight: str = "delta"
    distillation_clip: float | None = None


@dataclass(frozen=True)
class PolicyTerms:
    """What the loss knows of each response token, float32 [T] each.

    weights: aggregation weight; old_logprobs, advantages: constants of the update; reference_logprobs: for the KL term;
    correction: importance weight of trainer over engine (algorithm/corrections.py); teacher_delta and
    distillation_weights: the auxiliary distillation loss, its own aggregation weights included. None: term absent.
    """

    weights: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    reference_logprobs: Tensor | None = None
    correction: Tensor | None = None
    teacher_delta: Tensor | None = None
    distillation_weights: Tensor | None = None


@dataclass(frozen=True)
class PolicyLoss:
    """Σ-aggregated pieces: `total` is what is differentiated; `statistics` are weighted sums, additive over ranks."""

    total: Tensor
    statistics: dict[str, Tensor]


def aggregation_weights(lengths: Tensor, mask: Tensor, mode: str) -> Tensor:
    """The weight of each token, [T], so that Σ_t w_t·l_t is the aggregated loss over all given samples.

    token-mean: mask/Σmask · seq-mean-token-sum: mask/n · seq-mean-token-mean: mask/(n·Σ of the sample's mask).
    Args: lengths int64 [n], mask float [T].
    """
    if mode == "token-mean":
        return mask / mask.sum()
    if mode == "seq-mean-token-sum":
        return mask / len(lengths)
    if mode == "seq-mean-token-mean":
        sample = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        tokens = torch.zeros(len(lengths), dtype=mask.dtype).index_add(0, sample, mask)
        return mask / (len(lengths) * tokens.clamp(min=1))[sample]
    raise ValueError(f"algorithm.aggregation={mode!r}; set token-mean, seq-mean-token-sum or seq-mean-token-mean")


def clipped_policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, c: LossCoefficients) -> tuple[Tensor, ...]:
    """PPO's clipped loss with dual clip (arXiv 1912.09729), per token [T].

    ρ = exp(logprob − old); l = max(−A·ρ, −A·clip(ρ, 1−low, 1+high)); where A < 0: min(l, −A·dual_clip).
    Returns: loss, and the indicators (clipped, dual-clipped) as floats.
    """
    ratio = (logprobs - old).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - c.clip_low, 1 + c.clip_high)
    loss = torch.maximum(unclipped, clipped)
    bound = -advantages * c.dual_clip
    negative = advantages < 0
    dual = negative & (loss > bound)
    return (
        torch.where(negative, torch.minimum(loss, bound), loss),
        (clipped > unclipped).to(loss.dtype),
        dual.to(loss.dtype),
    )


def kl_divergence(logprobs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Schulman's estimators of KL(policy ‖ reference) at the sampled token, [T]; k3 is clamped to ±10.

    k1 = log p − log q · k2 = (log p − log q)²/2 · k3 = q/p − 1 − log(q/p).
    """
    difference = reference - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return (difference.exp() - difference - 1).clamp(-KL_CLAMP, KL_CLAMP)
    raise ValueError(f"kl estimator {estimator!r}; use k1, k2 or k3")


def distillation_loss(
    logprobs: Tensor, old: Tensor, teacher_delta: Tensor, *, weight: str, clip: float | None
) -> Tensor:
    """The auxiliary loss per token [T]: `delta` −clip(Δ)·log p; `importance` −clip(Δ·ρ) with ρ = exp(log p − old)."""
    if weight == "delta":
        return -_clip(teacher_delta, clip) * logprobs
    if weight == "importance":
        return -_clip(teacher_delta * (logprobs - old).exp(), clip)
    raise ValueError(f"algorithm.distillation_weight={weight!r}; set delta or importance")


def policy_loss(logprobs: Tensor, entropy: Tensor | None, terms: PolicyTerms, c: LossCoefficients) -> PolicyLoss:
    """The whole OPID loss over the given tokens: policy + kl·k3 − entropy·H + distillation, each a weighted sum.

    Args: logprobs [T] (differentiable), entropy [T] or None. `statistics` holds the weighted sums of each term and of
    the clip indicators, approximate KL and (log p − old), detached.
    """
    policy, clipped, dual = clipped_policy_loss(logprobs, terms.old_logprobs, terms.advantages, c)
    if terms.correction is not None:
        policy = policy * terms.correction
    weights = terms.weights
    statistics = {
        "policy_loss": (weights * policy).sum(),
        "clip_fraction": (weights * clipped).sum(),
        "dual_clip_fraction": (weights * dual).sum(),
        "approximate_kl": (weights * (terms.old_logprobs - logprobs)).sum(),
    }
    total = statistics["policy_loss"]
    if terms.reference_logprobs is not None:
        statistics["reference_kl"] = (weights * kl_divergence(logprobs, terms.reference_logprobs, "k3")).sum()
        total = total + c.kl * statistics["reference_kl"]
    if entropy is not None:
        statistics["entropy"] = (weights * entropy).sum()
        total = total - c.entropy * statistics["entropy"]
    if terms.teacher_delta is not None and terms.distillation_weights is not None and c.distillation:
        per_token = distillation_loss(
            logprobs,
            terms.old_logprobs,
            terms.teacher_delta,
            weight=c.distillation_weight,
            clip=c.distillation_clip,
        )
        statistics["distillation_loss"] = (terms.distillation_weights * per_token).sum()
        total = total + c.distillation * statistics["distillation_loss"]
    return PolicyLoss(total, {name: value.detach() for name, value in statistics.items()})


def _clip(values: Tensor, bound: float | None) -> Tensor:
    return values if bound is None else values.clamp(-bound, bound)
