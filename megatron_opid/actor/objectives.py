"""What an update minimises, per micro-batch, as the head calls it; and the samples' terms packed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from megatron_opid.actor.samples import OnPolicySample, PolicySample
from megatron_opid.algorithm.advantages import TeacherLogprobs
from megatron_opid.algorithm.losses import PolicyLoss, PolicyTerms, aggregation_weights
from megatron_opid.algorithm.old_policy import OldPolicyRules, old_policy_terms
from megatron_opid.kernels.linear_logprob import PolicyObjective


@dataclass(frozen=True)
class OnPolicyTerms:
    """What is known of each response token before the forward pass; OnPolicySample's arrays, packed, float32 [T]."""

    weights: Tensor
    advantages: Tensor
    reference_logprobs: Tensor | None = None
    engine_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    teacher_masks: Tensor | None = None
    distillation_weights: Tensor | None = None


Terms = TypeVar("Terms", PolicyTerms, OnPolicyTerms)
TERMS_OF = {PolicySample: PolicyTerms, OnPolicySample: OnPolicyTerms}


@dataclass(frozen=True)
class RecordedPolicyObjective(PolicyObjective):
    """The policy loss of one micro-batch, which keeps the new log-probs float32 [T]."""

    logprobs: Tensor

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, rows: slice) -> PolicyLoss:
        self.logprobs[rows] = logprobs.detach()
        return super().__call__(logprobs, entropy, rows)

    def max_ratio_deviation(self) -> Tensor:
        """max_t |π_new/π_old − 1|; 0 for no tokens."""
        deviation = (self.logprobs - self.terms.old_logprobs).expm1().abs()
        return deviation.max() if len(deviation) else deviation.new_zeros(())


@dataclass(frozen=True)
class OnPolicyObjective(PolicyObjective):
    """The policy loss of one micro-batch whose old log-probs are the new ones, detached; it keeps them, float32 [T]."""

    terms: OnPolicyTerms
    rules: OldPolicyRules
    logprobs: Tensor

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, rows: slice) -> PolicyLoss:
        old = self.logprobs[rows] = logprobs.detach()
        known = _rows_of(self.terms, rows)
        teachers = [
            TeacherLogprobs(known.teacher_logprobs[:, level], known.teacher_masks[:, level], weight)
            for level, weight in enumerate(self.rules.teacher_weights)
        ]
        made = old_policy_terms(old, known.advantages, teachers, known.engine_logprobs, self.rules)
        terms = PolicyTerms(
            weights=known.weights,
            old_logprobs=old,
            advantages=made.advantages,
            reference_logprobs=known.reference_logprobs,
            correction=made.correction,
            teacher_delta=made.teacher_delta,
            distillation_weights=known.distillation_weights,
        )
        return PolicyObjective(terms, self.coefficients)(logprobs, entropy, slice(None))

    def max_ratio_deviation(self) -> Tensor:
        """0, by construction."""
        return self.logprobs.new_zeros(())


def sample_terms(samples: Sequence[PolicySample] | Sequence[OnPolicySample], aggregation: str) -> list:
    """Each sample's terms (CPU tensors), with aggregation weights over all the given samples.

    Returns: PolicyTerms or OnPolicyTerms, by the kind of samples.
    Raises: ValueError naming the term whose length is not its sample's, or that only some samples have.
    """
    lengths = torch.tensor([len(sample.sequence.response_ids) for sample in samples])
    weights = aggregation_weights(lengths, torch.ones(int(lengths.sum())), aggregation).split(lengths.tolist())
    return [_terms_of(sample, weight, samples[0]) for sample, weight in zip(samples, weights, strict=True)]


def join_terms(terms: Sequence[Terms], indices: Sequence[int], responses: Tensor) -> Terms:
    """The terms of one micro-batch's samples, concatenated, of which `responses` int64 [T] are taken, on its device."""
    joined = {}
    for item in fields(terms[0]):
        first = getattr(terms[0], item.name)
        parts = [] if first is None else [first[:0], *(getattr(terms[index], item.name) for index in indices)]
        joined[item.name] = torch.cat(parts).to(responses.device)[responses] if parts else None
    return type(terms[0])(**joined)


def _rows_of(terms: OnPolicyTerms, rows: slice) -> OnPolicyTerms:
    return OnPolicyTerms(**{name: None if value is None else value[rows] for name, value in vars(terms).items()})


def _terms_of(
    sample: PolicySample | OnPolicySample, weights: Tensor, first: PolicySample | OnPolicySample
) -> PolicyTerms | OnPolicyTerms:
    values: dict[str, Tensor | None] = {"weights": weights}
    kind = TERMS_OF[type(sample)]
    for item in fields(kind):
        if item.name == "weights":
            continue
        value, name = getattr(sample, item.name), f"{type(sample).__name__}.{item.name}"
        if (value is None) != (getattr(first, item.name) is None):
            raise ValueError(f"{name} is given for some samples only; give it for all or for none")
        if value is not None and len(value) != len(weights):
            raise ValueError(f"{name} has {len(value)} values for {len(weights)} response tokens")
        values[item.name] = None if value is None else torch.as_tensor(np.asarray(value, dtype=np.float32))
    return kind(**values)
