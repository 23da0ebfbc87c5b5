"""Terms made of some tokens are those made of all: why an update may make them inside its own forward pass."""

from __future__ import annotations

import pytest
import torch

from megatron_opid.algorithm.advantages import TeacherLogprobs
from megatron_opid.algorithm.old_policy import OldPolicyRules, old_policy_terms

RULES = OldPolicyRules((0.3, 0.2), teacher_clip=0.5, distills=True, correction="mask", correction_high=1.5)


def make(size: int) -> tuple:
    generator = torch.Generator().manual_seed(0)
    old, outcome, engine, first, second = (torch.randn(size, generator=generator) for _ in range(5))
    mask = (torch.arange(size) % 3 == 0).float()
    return old, outcome, [(first, torch.ones(size), 0.3), (second * mask, mask, 0.2)], engine


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_chunks_equal_the_whole(chunk: int) -> None:
    old, outcome, teachers, engine = make(40)
    whole = old_policy_terms(old, outcome, [TeacherLogprobs(*t) for t in teachers], engine, RULES)
    for start in range(0, 40, chunk):
        rows = slice(start, start + chunk)
        levels = [TeacherLogprobs(logprobs[rows], mask[rows], weight) for logprobs, mask, weight in teachers]
        part = old_policy_terms(old[rows], outcome[rows], levels, engine[rows], RULES)
        for name, value in vars(part).items():
            assert torch.equal(value, getattr(whole, name)[rows]), name


def test_values() -> None:
    old, outcome, teachers, engine = make(40)
    made = old_policy_terms(old, outcome, [TeacherLogprobs(*t) for t in teachers], engine, RULES)
    (first, _, _), (second, mask, _) = teachers
    expected = outcome + 0.3 * (first - old).clamp(-0.5, 0.5) + 0.2 * ((second - old) * mask).clamp(-0.5, 0.5)
    torch.testing.assert_close(made.advantages, expected)
    torch.testing.assert_close(made.teacher_delta, first - old + (second - old) * mask)
    weight = (old - engine).exp()
    torch.testing.assert_close(made.correction, weight.where((weight >= 0.5) & (weight <= 1.5), torch.zeros(())))


def test_without_teachers_or_correction() -> None:
    old, outcome, _, _ = make(5)
    made = old_policy_terms(old, outcome, [], None, OldPolicyRules())
    assert torch.equal(made.advantages, outcome)
    assert made.correction is None and made.teacher_delta is None
