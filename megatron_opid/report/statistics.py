"""The statistics that the report draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z_95 = 1.959964  # two-sided 95% quantile of the normal distribution


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each position, of fewer at the start."""
    spans = (values[max(0, end - window) : end] for end in range(1, len(values) + 1))
    return [sum(span) / len(span) for span in spans]


def wilson_interval(rate: float, num_trials: int) -> tuple[float, float]:
    """95% confidence interval of a success rate over `num_trials` independent trials (Wilson's score interval).

    Raises:
        ValueError: no trials.
    """
    if num_trials < 1:
        raise ValueError(f"num_trials={num_trials}: an interval needs at least 1 trial")
    shrink = 1 + _Z_95**2 / num_trials
    centre = (rate + _Z_95**2 / (2 * num_trials)) / shrink
    half = _Z_95 * math.sqrt(rate * (1 - rate) / num_trials + _Z_95**2 / (4 * num_trials**2)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation; the deviation of one value is 0."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
