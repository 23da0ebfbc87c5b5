"""The report's statistics against values known from elsewhere."""

from __future__ import annotations

import pytest

from megatron_opid.report.statistics import mean_and_deviation, running_mean, wilson_interval


def test_running_mean_uses_what_there_is_at_the_start():
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert running_mean([], 3) == []


def test_wilson_interval_known_values():
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_interval_refuses_no_trials():
    with pytest.raises(ValueError, match="num_trials=0"):
        wilson_interval(0.5, 0)


def test_mean_and_deviation():
    assert mean_and_deviation([2.0]) == (2.0, 0.0)
    assert mean_and_deviation([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.0))
