"""Compares the algorithm with golden values, of which tests/data has a file:

    python -m tools.check_golden tests/data/golden_advantages_and_losses.json

Prints the largest absolute error of each quantity over all batches of each file; exits 1 if one is above 1e-5, 2 if a
file cannot be read. Where the published code divides zero by zero (a sample without a masked token under
seq-mean-token-mean) it has no value, and that comparison is counted as undefined.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_opid.algorithm.advantages import (
    TeacherScores,
    discounted_returns,
    group_advantage,
    label_ids,
    per_token,
    state_advantage,
    teacher_advantage,
)
from megatron_opid.algorithm.losses import (
    LossCoefficients,
    PolicyTerms,
    aggregation_weights,
    distillation_loss,
    kl_divergence,
    policy_loss,
)

TOLERANCE = 1e-5
MODES = ("mean_norm", "mean_std_norm")
AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")
POLICY_ADVANTAGE = "opid_advantage/mean_norm/normalize=False/clip=None"


def quantities(batch: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every quantity of one golden batch by its name, computed by megatron_opid.algorithm, flat."""
    computed = dict(_advantages(batch))
    yield from computed.items()
    yield from _losses(batch, computed[POLICY_ADVANTAGE])


def _advantages(batch: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    lengths = torch.tensor(batch["lengths"])
    groups, trajectories, states = (label_ids(batch[key]) for key in ("groups", "trajectories", "states"))
    returns = discounted_returns(torch.tensor(batch["rewards"]), trajectories, 0.95)
    state_weight = 0.3 if batch["seed"] % 2 else 0.0
    levels = [_level(batch, "episode", 0.25), _level(batch, "step", 0.5)]
    yield "returns", returns
    for mode in MODES:
        group = per_token(group_advantage(torch.tensor(batch["scores"]), groups, mode), lengths)
        state = per_token(state_advantage(returns, groups, states, mode), lengths)
        yield f"group_advantage/{mode}", group
        yield f"state_advantage/{mode}", state
        yield f"gigpo_advantage/{mode}", group + state
        for normalize in (False, True):
            for clip in (None, 0.5):
                teacher = teacher_advantage(levels, normalize=normalize, clip=clip)
                suffix = f"{mode}/normalize={normalize}/clip={clip}"
                yield f"teacher_advantage/{suffix}", teacher
                yield f"opid_advantage/{suffix}", group + state_weight * state + teacher


def _losses(batch: dict[str, Any], advantages: Tensor) -> Iterator[tuple[str, Tensor]]:
    lengths = torch.tensor(batch["lengths"])
    old, new, reference = (_flat(batch, key) for key in ("old_logprobs", "new_logprobs", "ref_logprobs"))
    ones = torch.ones_like(old)
    token_mean = aggregation_weights(lengths, ones, "token-mean")
    episode = _level(batch, "episode", 1.0)
    coefficients = LossCoefficients(clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    for aggregation in AGGREGATIONS:
        weights = aggregation_weights(lengths, ones, aggregation)
        loss = policy_loss(new, None, PolicyTerms(weights, old, advantages), coefficients).total
        # The published code reports its clip statistics as token means, whatever the loss's aggregation.
        counts = policy_loss(new, None, PolicyTerms(token_mean, old, advantages), coefficients).statistics
        names = ("clip_fraction", "approximate_kl", "dual_clip_fraction")
        yield f"policy_loss/{aggregation}", torch.stack([loss, *(counts[name] for name in names)])
        for weight in ("delta", "importance"):
            for clip in (None, 0.3):
                per_token_loss = distillation_loss(new, old, episode.delta, weight=weight, clip=clip)
                masked = aggregation_weights(lengths, episode.mask, aggregation)
                yield f"opd_loss/{aggregation}/{weight}/clip={clip}", (masked * per_token_loss).sum()
        for estimator in ("k1", "k2", "k3"):
            yield f"kl_loss/{aggregation}/{estimator}", (weights * kl_divergence(new, reference, estimator)).sum()
    leaf = new.clone().requires_grad_()
    terms = PolicyTerms(token_mean, old, advantages, reference_logprobs=reference)
    coefficients = LossCoefficients(clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl=0.01)
    policy_loss(leaf, None, terms, coefficients).total.backward()
    yield "grad_logprobs/policy+0.01*k3/token-mean", leaf.grad


def _flat(batch: dict[str, Any], key: str) -> Tensor:
    return torch.tensor([value for sample in batch[key] for value in sample])


def _level(batch: dict[str, Any], name: str, weight: float) -> TeacherScores:
    delta = _flat(batch, f"{name}_teacher_logprobs") - _flat(batch, "old_logprobs")
    mask = per_token(torch.tensor(batch[f"{name}_mask"]), torch.tensor(batch["lengths"]))
    return TeacherScores(delta, mask, weight)


def _expected(value: Any) -> Tensor:
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = [number for sample in value for number in sample]
    return torch.tensor(value, dtype=torch.float32)


def check_file(path: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Largest error and number of undefined comparisons of each quantity over the file's batches.

    Raises:
        KeyError: the file names a quantity that the algorithm does not compute.
    """
    errors: dict[str, float] = defaultdict(float)
    undefined: dict[str, int] = defaultdict(int)
    for batch in json.loads(path.read_text()):
        computed = dict(quantities(batch))
        for name, value in batch["expected"].items():
            expected = _expected(value)
            if expected.isnan().all():
                undefined[name] += 1
                errors[name] += 0.0
                continue
            error = (computed[name] - expected).abs().max().item()
            errors[name] = max(errors[name], math.inf if math.isnan(error) else error)
    return dict(errors), dict(undefined)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 if every error is within 1e-5, 2 if a file cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    worst = 0.0
    for path in parser.parse_args(arguments).files:
        try:
            errors, undefined = check_file(path)
        except (OSError, json.JSONDecodeError) as error:
            print(f"check_golden: {path} cannot be read: {error}", file=sys.stderr)
            return 2
        print(f"{path}")
        for name, error in errors.items():
            note = f"  ({undefined[name]} undefined in the published code)" if name in undefined else ""
            print(f"  {error:9.2e}  {'ok  ' if error <= TOLERANCE else 'FAIL'}  {name}{note}")
        worst = max([worst, *errors.values()])
    print(f"largest error {worst:.2e}, tolerance {TOLERANCE:.0e}: {'ok' if worst <= TOLERANCE else 'FAILED'}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
