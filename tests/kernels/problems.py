"""Small heads with known answers: the tests' inputs, and the whole computation in float64 to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_opid.algorithm.losses import LossCoefficients, PolicyTerms, policy_loss


@dataclass(frozen=True)
class Problem:
    """hidden [T, H], weight [V, H], targets [T] below `valid`, temperature [T]; columns from `valid` on are padding."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    temperature: Tensor
    valid: int

    @property
    def options(self) -> dict:
        return {"temperature": self.temperature, "num_valid_columns": self.valid}


def random_problem(
    rows: int,
    hidden_size: int,
    columns: int,
    valid: int,
    *,
    dtype: torch.dtype = torch.float32,
    logit_std: float = 2.5,
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=generator) * logit_std / hidden_size**0.5
    weight = torch.randn(columns, hidden_size, generator=generator)
    weight[valid:] = 50.0  # a padding column that leaked into a sum would be seen
    targets = torch.randint(0, valid, (rows,), generator=generator)
    temperature = torch.rand(rows, generator=generator) + 0.5
    return Problem(
        hidden.to(device, dtype), weight.to(device, dtype), targets.to(device), temperature.to(device), valid
    )


def exact_logprobs(problem: Problem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies in float64 by log_softmax over all logits, differentiable."""
    logits = hidden.double() @ weight.double()[: problem.valid].t() / problem.temperature.double()[:, None]
    log_probs = logits.log_softmax(-1)
    return log_probs.gather(1, problem.targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)


def exact_gradients(problem: Problem, terms: PolicyTerms, coefficients: LossCoefficients) -> tuple[Tensor, ...]:
    """Loss, d hidden and d weight in float64."""
    hidden = problem.hidden.double().requires_grad_()
    weight = problem.weight.double().requires_grad_()
    logprobs, entropy = exact_logprobs(problem, hidden, weight)
    total = policy_loss(logprobs, entropy, terms, coefficients).total
    return total.detach(), *torch.autograd.grad(total, (hidden, weight))


def random_terms(problem: Problem, *, seed: int = 1) -> PolicyTerms:
    """Every term present, old log-probs around the true ones."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(problem.targets)
    logprobs, _ = exact_logprobs(problem, problem.hidden.detach(), problem.weight.detach())

    def normal() -> Tensor:
        return torch.randn(rows, generator=generator).to(problem.hidden.device)

    return PolicyTerms(
        weights=normal().abs() / max(rows, 1),
        old_logprobs=logprobs.float() + 0.3 * normal(),
        advantages=normal(),
        reference_logprobs=logprobs.float() + 0.5 * normal(),
        correction=normal().abs(),
        teacher_delta=normal(),
        distillation_weights=normal().abs() / max(rows, 1),
    )


def relative_error(value: Tensor, exact: Tensor) -> float:
    return ((value.double() - exact.double()).norm() / exact.double().norm()).item()
