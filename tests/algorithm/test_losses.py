"""Properties of the advantages and losses that the golden batches do not reach."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_opid.algorithm.advantages import (
    TeacherScores,
    discounted_returns,
    group_advantage,
    label_ids,
    state_advantage,
    teacher_advantage,
)
from megatron_opid.algorithm.corrections import importance_correction
from megatron_opid.algorithm.losses import (
    LossCoefficients,
    PolicyTerms,
    aggregation_weights,
    clipped_policy_loss,
    kl_divergence,
    policy_loss,
)

numbers = st.floats(-3, 3, width=32)


@given(st.lists(st.tuples(numbers, st.integers(0, 3)), min_size=1, max_size=20))
def test_group_advantages_of_a_group_sum_to_zero(samples):
    scores = torch.tensor([score for score, _ in samples], dtype=torch.float64)
    groups = label_ids([group for _, group in samples])
    advantage = group_advantage(scores, groups, "mean_norm")
    for group in range(int(groups.max()) + 1):
        members = groups == group
        expected = scores[members].sum() if members.sum() == 1 else 0.0
        assert advantage[members].sum() == pytest.approx(float(expected), abs=1e-9)


def test_a_lone_sample_keeps_its_score_and_a_lone_state_has_none():
    scores, groups = torch.tensor([2.0, 1.0, 3.0]), torch.tensor([0, 1, 1])
    assert group_advantage(scores, groups, "mean_norm").tolist() == [2.0, -1.0, 1.0]
    states = torch.tensor([0, 1, 2])
    assert state_advantage(scores, groups, states, "mean_std_norm").tolist() == [0.0, 0.0, 0.0]


def test_returns_of_interleaved_trajectories():
    returns = discounted_returns(torch.tensor([1.0, 0.0, 2.0, 4.0]), torch.tensor([0, 1, 0, 1]), 0.5)
    assert returns.tolist() == [2.0, 2.0, 2.0, 4.0]


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_aggregation_over_parts_of_a_batch_adds_up(mode):
    lengths = torch.tensor([3, 1, 4])
    mask = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1])
    weights = aggregation_weights(lengths, mask, mode)
    losses = torch.arange(8.0)
    parts = sum((weights[part] * losses[part]).sum() for part in (slice(0, 3), slice(3, 4), slice(4, 8)))
    assert parts == pytest.approx(float((weights * losses).sum()))
    if mode == "token-mean":
        assert (weights * losses).sum() == pytest.approx(float(losses[mask > 0].mean()))


def test_clipping_stops_the_gradient_only_where_it_should():
    """ρ above 1 + high with A > 0, ρ below 1 − low with A < 0, and ρ above the dual clip with A < 0."""
    coefficients = LossCoefficients(clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5, 4.0])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    logprobs = ratios.log().requires_grad_()
    loss, clipped, dual = clipped_policy_loss(logprobs, torch.zeros(5), advantages, coefficients)
    loss.sum().backward()
    assert (logprobs.grad != 0).tolist() == [False, True, True, False, False]
    assert clipped.tolist() == [1, 0, 0, 1, 0]
    assert dual.tolist() == [0, 0, 0, 0, 1]


def test_on_policy_gradient_is_the_policy_gradient():
    """At ρ = 1 and without other terms, d loss / d logprob = −w · A."""
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages, weights = torch.tensor([1.0, -2.0, 0.3]), torch.tensor([0.2, 0.3, 0.5])
    result = policy_loss(logprobs, None, PolicyTerms(weights, logprobs.detach(), advantages), LossCoefficients())
    result.total.backward()
    torch.testing.assert_close(logprobs.grad, -weights * advantages)
    assert result.statistics["clip_fraction"] == 0


def test_all_terms_add_up():
    torch.manual_seed(0)
    logprobs, old, reference, advantages, delta, entropy = torch.randn(6, 5).unbind()
    weights = torch.full((5,), 0.2)
    terms = PolicyTerms(
        weights, old, advantages, reference, torch.full((5,), 0.5), teacher_delta=delta, distillation_weights=weights
    )
    coefficients = LossCoefficients(kl=0.1, entropy=0.01, distillation=0.3)
    result = policy_loss(logprobs, entropy, terms, coefficients)
    s = result.statistics
    expected = s["policy_loss"] + 0.1 * s["reference_kl"] - 0.01 * s["entropy"] + 0.3 * s["distillation_loss"]
    torch.testing.assert_close(result.total, expected)
    uncorrected = policy_loss(logprobs, entropy, PolicyTerms(weights, old, advantages), coefficients)
    torch.testing.assert_close(s["policy_loss"], uncorrected.statistics["policy_loss"] * 0.5)


def test_k3_is_clamped_and_then_has_no_gradient():
    logprobs = torch.tensor([-20.0, -1.0], requires_grad=True)
    value = kl_divergence(logprobs, torch.tensor([-1.0, -1.0]), "k3")
    value.sum().backward()
    assert value.tolist() == [10.0, 0.0]
    assert logprobs.grad.tolist() == [0.0, 0.0]


def test_teacher_levels_outside_their_mask_add_nothing():
    delta = torch.tensor([1.0, math.pi, -4.0])
    level = TeacherScores(delta, torch.tensor([1.0, 0.0, 1.0]), 0.5)
    assert teacher_advantage([level], normalize=False, clip=2.0).tolist() == [0.5, 0.0, -1.0]
    empty = TeacherScores(delta, torch.zeros(3), 0.5)
    assert teacher_advantage([empty], normalize=True, clip=None).tolist() == [0.0, 0.0, 0.0]


def test_corrections():
    old, engine = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([-2.0, 0.0, 2.0])
    assert importance_correction(old, engine, mode="none", low=0.5, high=2.0) is None
    truncated = importance_correction(old, engine, mode="truncate", low=0.5, high=2.0)
    torch.testing.assert_close(truncated, torch.tensor([2.0, 1.0, math.exp(-2)]))
    masked = importance_correction(old, engine, mode="mask", low=0.5, high=2.0)
    torch.testing.assert_close(masked, torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: group_advantage(x, torch.zeros(1, dtype=torch.int64), "std"),
        lambda x: aggregation_weights(torch.tensor([1]), x, "mean"),
        lambda x: kl_divergence(x, x, "k4"),
        lambda x: importance_correction(x, x, mode="tis", low=0.5, high=2.0),
    ],
)
def test_unknown_modes_are_refused_by_name(call):
    with pytest.raises(ValueError, match="'(std|mean|k4|tis)'"):
        call(torch.ones(1))
