"""The op on one rank with plain torch: values, gradients, losses and refusals."""

import dataclasses
import os

import pytest
import torch

from megatron_opid.algorithm.losses import KL_CLAMP, LossCoefficients, PolicyLoss, PolicyTerms, policy_loss
from megatron_opid.kernels.linear_logprob import (
    linear_cross_entropy,
    linear_logprob,
    linear_policy_loss,
    linear_token_loss,
)
from tests.kernels.problems import exact_gradients, exact_logprobs, random_problem, random_terms, relative_error

COEFFICIENTS = LossCoefficients(kl=0.1, entropy=0.05, distillation=0.3)


@pytest.mark.parametrize("logit_std", [0.1, 2.5, 12.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprob_and_entropy_agree_with_float64(dtype, logit_std):
    problem = random_problem(13, 32, 700, 693, dtype=dtype, logit_std=logit_std)
    logprob, entropy = linear_logprob(
        problem.hidden, problem.weight, problem.targets, with_entropy=True, chunk_tokens=5, **problem.options
    )
    exact = exact_logprobs(problem, problem.hidden, problem.weight)
    assert logprob.dtype == entropy.dtype == torch.float32
    assert (logprob - exact[0]).abs().max() < 1e-4
    assert (entropy - exact[1]).abs().max() < 1e-4


def test_difference_of_two_contexts_is_exact_where_they_agree_and_accurate_elsewhere():
    first = random_problem(8, 32, 300, 300, dtype=torch.bfloat16, logit_std=10.0)
    second = dataclasses.replace(first, hidden=first.hidden + (torch.arange(8) % 2)[:, None].bfloat16() * 0.25)
    scores = [linear_logprob(p.hidden, p.weight, p.targets, **p.options)[0] for p in (first, second)]
    exact = [exact_logprobs(p, p.hidden, p.weight)[0] for p in (first, second)]
    assert torch.equal(scores[0][::2], scores[1][::2])
    assert ((scores[1] - scores[0]) - (exact[1] - exact[0])).abs().max() < 1e-4


@pytest.mark.parametrize("mode", ["delta", "importance"])
@pytest.mark.parametrize("entropy", [0.0, 0.05])
def test_policy_loss_and_its_gradients_agree_with_float64(mode, entropy):
    problem = random_problem(13, 32, 300, 293)
    coefficients = dataclasses.replace(
        COEFFICIENTS, entropy=entropy, distillation_weight=mode, distillation_clip=1.0, clip_low=0.1
    )
    terms = random_terms(problem)
    hidden, weight = problem.hidden.requires_grad_(), problem.weight.requires_grad_()
    total, statistics = linear_policy_loss(
        hidden, weight, problem.targets, terms, coefficients, chunk_tokens=5, **problem.options
    )
    (3 * total).backward()
    exact_total, d_hidden, d_weight = exact_gradients(problem, terms, coefficients)
    assert total.item() == pytest.approx(exact_total.item(), rel=1e-5)
    assert relative_error(hidden.grad, 3 * d_hidden) < 1e-5
    assert relative_error(weight.grad, 3 * d_weight) < 1e-5
    exact = policy_loss(*exact_logprobs(problem, hidden, weight), terms, coefficients).statistics
    assert statistics.keys() == exact.keys()
    for name, value in exact.items():
        assert statistics[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


BRANCHES = {  # log ρ, advantage, reference − log-prob, teacher delta of a token that lies inside the branch
    "unclipped, A>0": (0.05, 1.0, 0.3, 0.2),
    "unclipped, A<0": (0.05, -1.0, -0.3, -0.2),
    "clipped above, A>0": (0.6, 1.0, 0.3, 0.2),
    "above the band, A<0": (0.6, -1.0, 0.3, 0.2),
    "below the band, A>0": (-0.6, 1.0, 0.3, 0.2),
    "clipped below, A<0": (-0.6, -1.0, 0.3, 0.2),
    "dual clip": (1.5, -1.0, 0.3, 0.2),
    "k3 clamped": (0.05, 1.0, 3.0, 0.2),
    "teacher clipped": (0.05, 1.0, 0.3, 2.0),
}


@pytest.mark.parametrize("mode", ["delta", "importance"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_gradient_of_every_branch_by_finite_differences(branch, mode):
    log_ratio, advantage, reference, delta = BRANCHES[branch]
    problem = random_problem(3, 4, 7, 6, dtype=torch.float64)
    logprobs, _ = exact_logprobs(problem, problem.hidden, problem.weight)
    full = torch.full_like(logprobs, 1.0)
    terms = PolicyTerms(
        weights=torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
        old_logprobs=logprobs - log_ratio,
        advantages=full * advantage,
        reference_logprobs=logprobs + reference,
        correction=full * 0.7,
        teacher_delta=full * delta,
        distillation_weights=full / 3,
    )
    coefficients = dataclasses.replace(COEFFICIENTS, distillation_weight=mode, distillation_clip=1.0)
    assert (branch == "k3 clamped") == bool((torch.tensor(reference).exp() - reference - 1) > KL_CLAMP)
    statistics = policy_loss(logprobs, None, terms, coefficients).statistics
    assert (branch == "dual clip") == bool(statistics["dual_clip_fraction"] > 0)
    assert branch.startswith("clipped") == bool(statistics["clip_fraction"] > 0)

    def loss(hidden, weight):
        return linear_policy_loss(
            hidden, weight, problem.targets, terms, coefficients, chunk_tokens=2, **problem.options
        )[0]

    assert torch.autograd.gradcheck(loss, (problem.hidden.requires_grad_(), problem.weight.requires_grad_()))


def test_recomputed_logprobs_pass_gradcheck_and_give_the_gradient_of_the_one_pass_loss():
    problem = random_problem(5, 4, 9, 8, dtype=torch.float64)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    options = {"chunk_tokens": 2, **problem.options}

    def scores(hidden, weight):
        return linear_logprob(hidden, weight, problem.targets, with_entropy=True, **options)

    assert torch.autograd.gradcheck(scores, inputs)
    terms = random_terms(problem)
    recomputed = policy_loss(*scores(*inputs), terms, COEFFICIENTS).total
    one_pass, _ = linear_policy_loss(*inputs, problem.targets, terms, COEFFICIENTS, **options)
    for a, b in zip(torch.autograd.grad(recomputed, inputs), torch.autograd.grad(one_pass, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_over_whole_sequences_differentiates_through_recomputation():
    """A sequence-level ratio couples tokens: no per-token coefficient exists before the last row is known."""
    problem = random_problem(6, 4, 9, 9)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    logprob, _ = linear_logprob(*inputs, problem.targets, chunk_tokens=4, **problem.options)
    ratio = (logprob.view(2, 3).mean(1) + 2).exp()
    exact, _ = exact_logprobs(problem, *inputs)
    exact_ratio = (exact.view(2, 3).mean(1) + 2).exp()
    gradients = torch.autograd.grad((ratio * ratio).sum(), inputs)
    for value, wanted in zip(gradients, torch.autograd.grad((exact_ratio * exact_ratio).sum(), inputs), strict=True):
        assert relative_error(value, wanted) < 1e-5


def test_cross_entropy_is_the_weighted_sum():
    problem = random_problem(7, 8, 20, 19)
    weights = torch.tensor([0.0, 1.0, 0.5, 0.0, 2.0, 1.0, 0.1])
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    total, statistics = linear_cross_entropy(*inputs, problem.targets, weights, chunk_tokens=3, **problem.options)
    exact = -(weights * exact_logprobs(problem, *inputs)[0]).sum()
    assert total.item() == statistics["cross_entropy"].item() == pytest.approx(exact.item(), rel=1e-6)
    for value, wanted in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(exact, inputs), strict=True):
        assert relative_error(value, wanted) < 1e-5


def test_scoring_and_training_see_the_same_bits_so_the_first_ratio_is_one():
    problem = random_problem(11, 32, 300, 293, dtype=torch.bfloat16)
    old, _ = linear_logprob(problem.hidden, problem.weight, problem.targets, chunk_tokens=4, **problem.options)
    seen = []

    def loss(logprobs, entropy, rows):
        seen.append((logprobs.detach() - old[rows]).exp())
        return PolicyLoss(logprobs.sum(), {})

    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    linear_token_loss(*inputs, problem.targets, loss, chunk_tokens=4, with_entropy=True, **problem.options)
    assert torch.equal(torch.cat(seen), torch.ones(11))


def test_common_logit_offset_changes_neither_values_nor_gradients():
    plain = random_problem(6, 16, 40, 37)
    offset = dataclasses.replace(
        plain,
        hidden=torch.cat([plain.hidden, torch.ones(6, 1)], 1),
        weight=torch.cat([plain.weight, torch.full((40, 1), 1e4)], 1),
    )
    for sign in (1, -1):
        shifted = dataclasses.replace(offset, weight=offset.weight * torch.tensor([1.0] * 16 + [sign]))
        logprob, entropy = linear_logprob(
            shifted.hidden, shifted.weight, shifted.targets, with_entropy=True, **shifted.options
        )
        exact = exact_logprobs(plain, plain.hidden, plain.weight)
        # A float32 logit near 10⁴ / temperature is known to 2⁻¹⁰ at best.
        assert (logprob - exact[0]).abs().max() < 4e-3
        assert (entropy - exact[1]).abs().max() < 4e-3


def test_padding_columns_get_no_gradient_and_a_target_there_has_no_probability():
    problem = random_problem(5, 8, 24, 17)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    total, _ = linear_cross_entropy(*inputs, problem.targets, torch.ones(5), **problem.options)
    total.backward()
    assert torch.equal(problem.weight.grad[17:], torch.zeros(7, 8))
    assert problem.weight.grad[:17].abs().sum(1).gt(0).all()
    outside = torch.full((5,), 17)
    logprob, _ = linear_logprob(problem.hidden.detach(), problem.weight.detach(), outside, **problem.options)
    assert logprob.isneginf().all()


def test_no_rows_give_zero_loss_and_zero_gradients():
    problem = random_problem(0, 8, 24, 17)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    logprob, entropy = linear_logprob(*inputs, problem.targets, with_entropy=True, **problem.options)
    assert logprob.shape == entropy.shape == (0,)
    total, statistics = linear_policy_loss(
        *inputs, problem.targets, random_terms(problem), COEFFICIENTS, **problem.options
    )
    d_hidden, d_weight = torch.autograd.grad(total, inputs)
    assert total.item() == 0 and d_hidden.shape == (0, 8) and torch.equal(d_weight, torch.zeros(24, 8))
    assert statistics["policy_loss"].item() == 0


def test_weight_gradient_goes_into_main_grad_over_micro_batches():
    problem = random_problem(6, 8, 24, 17, dtype=torch.bfloat16)
    hidden, weight = problem.hidden, torch.nn.Parameter(problem.weight)
    weight.main_grad = torch.ones(24, 8)
    for scale in (1.0, 0.5):
        total, _ = linear_cross_entropy(
            hidden, weight, problem.targets, torch.ones(6), accumulate_main_grad=True, **problem.options
        )
        (total * scale).backward()
    assert weight.grad_added_to_main_grad and torch.equal(weight.grad, torch.zeros_like(weight))
    exact = exact_logprobs(problem, hidden.double(), wide := weight.detach().double().requires_grad_())[0]
    (d_weight,) = torch.autograd.grad(-1.5 * exact.sum(), wide)
    assert relative_error(weight.main_grad - 1, d_weight) < 1e-5


def test_weights_are_read_at_each_call():
    """Nothing is kept between calls: an optimizer step, or a parameter gathered by a hook, is seen by the next call."""
    problem = random_problem(4, 8, 24, 24)
    args = (problem.hidden, problem.weight, problem.targets)
    before, _ = linear_logprob(*args, **problem.options)
    problem.weight.mul_(2)
    after, _ = linear_logprob(*args, **problem.options)
    exact, _ = exact_logprobs(problem, problem.hidden, problem.weight)
    assert not torch.allclose(before, after) and (after - exact).abs().max() < 1e-5


def test_frozen_head_and_frozen_body_get_no_gradient():
    problem = random_problem(4, 8, 24, 24)
    for which in (0, 1):
        inputs = [problem.hidden.clone(), problem.weight.clone()]
        inputs[which].requires_grad_()
        total, _ = linear_cross_entropy(*inputs, problem.targets, torch.ones(4), **problem.options)
        total.backward()
        assert inputs[which].grad is not None and inputs[1 - which].grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "targets"),
        ({"targets": torch.zeros(4, dtype=torch.int32)}, "int64"),
        ({"hidden": torch.zeros(4, 7)}, "hidden"),
        ({"hidden": torch.zeros(4, 8, dtype=torch.bfloat16)}, "one floating-point dtype"),
        ({"temperature": torch.ones(3)}, "temperature"),
        ({"num_valid_columns": 25}, "num_valid_columns=25"),
        ({"backend": "fast"}, "backend='fast'"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    arguments = {"hidden": torch.zeros(4, 8), "weight": torch.zeros(24, 8), "targets": torch.zeros(4).long()}
    with pytest.raises(ValueError, match=message):
        linear_logprob(**{**arguments, **change})


def test_terms_of_another_length_and_an_entropy_bonus_without_entropy_are_refused():
    problem = random_problem(4, 8, 24, 24)
    args = (problem.hidden, problem.weight, problem.targets)
    terms = random_terms(problem)
    with pytest.raises(ValueError, match="terms.advantages"):
        linear_policy_loss(*args, dataclasses.replace(terms, advantages=torch.ones(1)), COEFFICIENTS)
    with pytest.raises(ValueError, match="with_entropy=True"):
        linear_policy_loss(*args, terms, COEFFICIENTS, with_entropy=False)


def test_interpreter_is_on_where_there_is_no_gpu():
    assert torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1"
