"""The Triton kernels against plain torch: in the interpreter on a CPU, compiled where there is a GPU."""

import dataclasses

import pytest
import torch

from megatron_opid.algorithm.losses import LossCoefficients
from megatron_opid.kernels.linear_logprob import linear_logprob, linear_policy_loss
from tests.kernels.problems import exact_gradients, exact_logprobs, random_problem, random_terms, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def problem_of(columns: int, valid: int, dtype: torch.dtype):
    """Five rows with targets in the first, a middle and the last tile, and next to the padding."""
    problem = random_problem(5, 64, columns, valid, dtype=dtype, device=DEVICE)
    targets = torch.tensor([0, min(255, valid - 1), min(256, valid - 1), valid - 1, valid // 2], device=DEVICE)
    return dataclasses.replace(problem, targets=targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "valid"), [(704, 693), (256, 256), (64, 5), (4608, 4353)])
def test_values_and_gradients(columns, valid, dtype):
    problem = problem_of(columns, valid, dtype)
    options = {"backend": "triton", "chunk_tokens": 3, **problem.options}
    logprob, entropy = linear_logprob(problem.hidden, problem.weight, problem.targets, with_entropy=True, **options)
    exact = exact_logprobs(problem, problem.hidden, problem.weight)
    assert (logprob - exact[0]).abs().max() < 1e-4
    assert (entropy - exact[1]).abs().max() < 1e-4

    terms = random_terms(problem)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    for coefficient in (0.0, 0.05):
        coefficients = LossCoefficients(kl=0.1, entropy=coefficient)
        total, _ = linear_policy_loss(*inputs, problem.targets, terms, coefficients, **options)
        _, *wanted = exact_gradients(problem, terms, coefficients)
        gradients = torch.autograd.grad(total, inputs)
        for value, exact_value in zip(gradients, wanted, strict=True):
            assert relative_error(value, exact_value) < (1e-2 if dtype == torch.bfloat16 else 1e-4)
        assert torch.equal(gradients[1][valid:], torch.zeros_like(gradients[1][valid:]))


def test_certain_and_impossible_targets_stay_finite():
    """Probabilities of 1 and of exp(−200): nothing divides by zero, and 1 − p does not cancel."""
    problem = random_problem(4, 64, 320, 300, device=DEVICE)
    hidden, weight = torch.zeros_like(problem.hidden), torch.zeros_like(problem.weight)
    hidden[:, 0] = 1
    weight[7, 0], weight[280, 0] = 20.0, -200.0
    problem = dataclasses.replace(
        problem,
        hidden=hidden,
        weight=weight,
        targets=torch.tensor([7, 7, 280, 280], device=DEVICE),
        temperature=torch.tensor([1.0, 0.1, 1.0, 0.5], device=DEVICE),
    )
    logprob, _ = linear_logprob(hidden, weight, problem.targets, backend="triton", **problem.options)
    exact, _ = exact_logprobs(problem, hidden, weight)
    torch.testing.assert_close(logprob.double(), exact, rtol=1e-6, atol=1e-6)
    terms = dataclasses.replace(random_terms(problem), old_logprobs=exact.float())
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    coefficients = LossCoefficients(entropy=0.05)
    total, _ = linear_policy_loss(*inputs, problem.targets, terms, coefficients, backend="triton", **problem.options)
    _, *wanted = exact_gradients(problem, terms, coefficients)
    for value, exact_value in zip(torch.autograd.grad(total, inputs), wanted, strict=True):
        assert value.isfinite().all()
        assert relative_error(value, exact_value) < 1e-4


def test_no_rows():
    problem = random_problem(0, 64, 300, 300, device=DEVICE)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    total, _ = linear_policy_loss(
        *inputs, problem.targets, random_terms(problem), LossCoefficients(), backend="triton", **problem.options
    )
    _, d_weight = torch.autograd.grad(total, inputs)
    assert total.item() == 0 and torch.equal(d_weight, torch.zeros_like(problem.weight))
