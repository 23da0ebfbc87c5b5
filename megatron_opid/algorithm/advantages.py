"""Advantages of OPID and its neighbours, as pure functions of flat tensors.

n samples (one sample = one agent step), T response tokens in all, packed: the tokens of sample i are
`lengths[:i].sum() : lengths[:i + 1].sum()`. Group, trajectory and state identifiers are int64 [n] labels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-6


@dataclass(frozen=True)
class TeacherScores:
    """One skill level's teacher.

    `delta` [T] = log π(y | prompt + skill) − log π_old(y | prompt); `mask` [T] is 1 where the level scored the token,
    and the delta counts only there; `weight` is the level's weight in the advantage.
    """

    delta: Tensor
    mask: Tensor
    weight: float


@dataclass(frozen=True)
class TeacherLogprobs:
    """What a skill level's teacher gave to each token, [T]: log π(y | prompt + skill), 0 where `mask` is 0."""

    logprobs: Tensor
    mask: Tensor
    weight: float

    def scores(self, old: Tensor) -> TeacherScores:
        """Against the log-probs of the plain prompt, [T]."""
        return TeacherScores((self.logprobs - old) * self.mask, self.mask, self.weight)


def label_ids(labels: Sequence[Hashable]) -> Tensor:
    """Number equal labels alike, in order of first appearance: int64 [len(labels)]."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels], dtype=torch.int64)


def per_token(values: Tensor, lengths: Tensor) -> Tensor:
    """Repeat each sample's value over its response tokens: [n] -> [T]."""
    return torch.repeat_interleave(values, lengths)


def discounted_returns(rewards: Tensor, trajectories: Tensor, gamma: float) -> Tensor:
    """Return of each step: R_i = r_i + gamma · R_{i+1} within its trajectory (samples of one trajectory in step order).

    Args: rewards float [n], trajectories int64 [n]. Returns: float [n].
    """
    returns = torch.zeros_like(rewards)
    running: dict[int, float] = {}
    for index in range(len(rewards) - 1, -1, -1):
        trajectory = int(trajectories[index])
        running[trajectory] = float(rewards[index]) + gamma * running.get(trajectory, 0.0)
        returns[index] = running[trajectory]
    return returns


def group_advantage(scores: Tensor, groups: Tensor, mode: str) -> Tensor:
    """Group-relative outcome: A_i = s_i − mean(s of i's group), over the unbiased std + 1e-6 in mode `mean_std_norm`.

    The mean runs over samples, so a long episode counts once per step. A group of one sample has mean 0 and std 1.
    Args: scores float [n], groups int64 [n]. Returns: float [n].
    """
    count, mean, std = _group_statistics(scores, groups)
    alone = count == 1
    mean = torch.where(alone, torch.zeros_like(mean), mean)
    return _normalize(scores, mean[groups], std[groups], mode)


def state_advantage(returns: Tensor, groups: Tensor, states: Tensor, mode: str) -> Tensor:
    """GiGPO's state term (arXiv 2505.10978): the return against samples of the same group with the same observation.

    A sample whose state occurs once has advantage 0. Args: returns float [n], groups and states int64 [n].
    """
    pairs = torch.stack([groups, states], dim=1)
    _, state_groups = torch.unique(pairs, dim=0, return_inverse=True)
    _, mean, std = _group_statistics(returns, state_groups)
    return _normalize(returns, mean[state_groups], std[state_groups], mode)


def teacher_advantage(levels: Sequence[TeacherScores], *, normalize: bool, clip: float | None) -> Tensor:
    """The skill term: Σ_levels w · clip(norm(delta · mask)), detached, [T].

    `normalize` standardises a level's deltas over its masked tokens of the whole batch (biased std + 1e-6); `clip`
    then bounds them to ±clip.
    """
    total = torch.zeros_like(levels[0].delta)
    for level in levels:
        delta = (level.delta * level.mask).detach()
        if normalize and level.mask.sum() > 0:
            delta = _standardize(delta, level.mask)
        if clip is not None:
            delta = delta.clamp(-clip, clip)
        total += level.weight * delta
    return total


def _group_statistics(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, unbiased std) of each group; the std of a group of one is 1."""
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    zeros = torch.zeros(num_groups, dtype=values.dtype)
    count = zeros.index_add(0, groups, torch.ones_like(values))
    mean = zeros.index_add(0, groups, values) / count
    squares = zeros.index_add(0, groups, (values - mean[groups]).square())
    std = torch.where(count > 1, (squares / (count - 1).clamp(min=1)).sqrt(), torch.ones_like(count))
    return count, mean, std


def _normalize(values: Tensor, mean: Tensor, std: Tensor, mode: str) -> Tensor:
    if mode == "mean_norm":
        return values - mean
    if mode == "mean_std_norm":
        return (values - mean) / (std + EPSILON)
    raise ValueError(f"algorithm.advantage_mode={mode!r}; set mean_norm or mean_std_norm")


def _standardize(delta: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum()
    mean = (delta * mask).sum() / count
    std = (((delta - mean) * mask).square().sum() / count).sqrt()
    return (delta - mean) / (std + EPSILON) * mask
