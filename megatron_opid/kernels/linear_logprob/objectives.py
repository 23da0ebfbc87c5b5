"""Losses over log-probs as `linear_token_loss` calls them: once per chunk of rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megatron_opid.algorithm.losses import LossCoefficients, PolicyLoss, PolicyTerms, policy_loss


@dataclass(frozen=True)
class PolicyObjective:
    """The OPID loss of algorithm.losses.policy_loss; `terms` hold float [T] of all rows."""

    terms: PolicyTerms
    coefficients: LossCoefficients

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, rows: slice) -> PolicyLoss:
        if entropy is not None and not self.coefficients.entropy:
            entropy = entropy.detach()
        terms = {name: None if value is None else value[rows] for name, value in vars(self.terms).items()}
        return policy_loss(logprobs, entropy, PolicyTerms(**terms), self.coefficients)


@dataclass(frozen=True)
class CrossEntropy:
    """−Σ_t w_t · log p_t; `weights` float [T]."""

    weights: Tensor

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, rows: slice) -> PolicyLoss:
        total = -(self.weights[rows] * logprobs).sum()
        return PolicyLoss(total, {"cross_entropy": total.detach()})
