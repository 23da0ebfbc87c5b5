"""What an update minimises, per micro-batch, as the head calls it; and the samples' terms packed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from megatron_opid.actor.samples import PolicySample
from megatron_opid.algorithm.losses import PolicyLoss, PolicyTerms, aggregation_weights
from megatron_opid.kernels.linear_logprob import PolicyObjective


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


def policy_terms(samples: Sequence[PolicySample], aggregation: str) -> list[PolicyTerms]:
    """Each sample's terms (CPU tensors), with aggregation weights over all the given samples.

    Raises: ValueError naming the term whose length is not its sample's, or that only some samples have.
    """
    lengths = torch.tensor([len(sample.sequence.response_ids) for sample in samples])
    weights = aggregation_weights(lengths, torch.ones(int(lengths.sum())), aggregation).split(lengths.tolist())
    return [_terms_of(sample, weight, samples[0]) for sample, weight in zip(samples, weights, strict=True)]


def join_terms(terms: Sequence[PolicyTerms], indices: Sequence[int], device: torch.device) -> PolicyTerms:
    """The terms of one micro-batch's samples, concatenated, on the device; no samples make empty tensors."""
    joined = {}
    for item in fields(PolicyTerms):
        present = getattr(terms[0], item.name) is not None
        parts = [torch.zeros(0), *(getattr(terms[index], item.name) for index in indices)] if present else None
        joined[item.name] = torch.cat(parts).to(device) if present else None
    return PolicyTerms(**joined)


def _terms_of(sample: PolicySample, weights: Tensor, first: PolicySample) -> PolicyTerms:
    values: dict[str, Tensor | None] = {"weights": weights}
    for item in fields(PolicyTerms):
        if item.name == "weights":
            continue
        value = getattr(sample, item.name)
        if (value is None) != (getattr(first, item.name) is None):
            raise ValueError(f"PolicySample.{item.name} is given for some samples only; give it for all or for none")
        if value is not None and len(value) != len(weights):
            raise ValueError(f"PolicySample.{item.name} has {len(value)} values for {len(weights)} response tokens")
        values[item.name] = None if value is None else torch.as_tensor(np.asarray(value, dtype=np.float32))
    return PolicyTerms(**values)
