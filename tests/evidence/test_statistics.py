"""Intervals against textbook formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from companion.evidence import statistics as s

VALUES = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=12)


def naive(values, confidence):
    n = len(values)
    mean = sum(values) / n
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = stats.t.ppf(1 - (1 - confidence) / 2, n - 1) * sd / math.sqrt(n)
    return mean, mean - half, mean + half, n, sd


@pytest.mark.parametrize("n", [2, 3, 5, 10, 37])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_intervals_match_the_naive_formula(n, confidence):
    values = np.random.default_rng(n).normal(3, 2, n).tolist()
    assert s.t_interval(values, confidence) == pytest.approx(naive(values, confidence), rel=1e-12)


def test_interval_matches_a_printed_table():
    # t(0.975, 4) = 2.776 in every table; the sd of 1..5 is sqrt(2.5)
    actual = s.t_interval([1, 2, 3, 4, 5], 0.95)
    assert actual.high - actual.mean == pytest.approx(2.776 * math.sqrt(2.5 / 5), abs=1e-3)


@pytest.mark.parametrize("value", [0.1, -3.7, 0.0, 1e-9])
def test_equal_values_give_a_point_exactly(value):
    actual = s.t_interval([value] * 3, 0.95)  # sum([0.1] * 3) / 3 is above 0.1
    assert (actual.mean, actual.low, actual.high, actual.sd) == (value, value, value, 0)


@settings(deadline=None)
@given(VALUES, st.floats(0.1, 10), st.floats(-50, 50))
def test_intervals_follow_shift_and_scale(values, scale, shift):
    moved = [scale * v + shift for v in values]
    before, after = s.t_interval(values, 0.95), s.t_interval(moved, 0.95)
    for name in ("mean", "low", "high"):
        expected = scale * getattr(before, name) + shift
        assert getattr(after, name) == pytest.approx(expected, rel=1e-9, abs=1e-7)
    assert after.sd == pytest.approx(scale * before.sd, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(VALUES)
def test_more_confidence_is_wider(values):
    narrow, wide = s.t_interval(values, 0.9), s.t_interval(values, 0.99)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_intervals_cover_as_promised():
    draws = np.random.default_rng(0).normal(size=(20_000, 5))
    mean, sd = s.mean_and_sd(draws)
    # 3 Monte Carlo standard errors of 0.95 over 20 000 draws are 0.0046
    assert (abs(mean) <= s.t_half_width(sd, 5, 0.95)).mean() == pytest.approx(0.95, abs=0.005)


def test_rows_of_mean_and_sd_equal_single_intervals():
    draws = np.random.default_rng(1).normal(size=(7, 6))
    mean, sd = s.mean_and_sd(draws)
    half = s.t_half_width(sd, 6, 0.9)
    for k, row in enumerate(draws):
        assert s.t_interval(row.tolist(), 0.9) == (
            mean[k], mean[k] - half[k], mean[k] + half[k], 6, sd[k]
        )  # fmt: skip


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_bootstrap_is_seeded_and_near_the_t_interval(method):
    items = np.random.default_rng(2).binomial(1, 0.8, 400).astype(float)
    actual = s.bootstrap_interval(items, 0.95, seed=3, method=method)
    assert actual == s.bootstrap_interval(items, 0.95, seed=3, method=method)
    assert actual != s.bootstrap_interval(items, 0.95, seed=4, method=method)
    expected = s.t_interval(items, 0.95)
    # the two agree to O(1/n): a tenth of the half-width (0.039) is generous
    assert (actual.low, actual.high) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert s.bootstrap_interval([2.0] * 9, 0.95, seed=0, method=method)[:3] == (2, 2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.t_interval([1.0], 0.95), r"at least 2 values, got \[1.0\]"),
        (lambda: s.t_interval([], 0.95), r"at least 2 values, got \[\]"),
        (lambda: s.t_interval([1.0, math.nan], 0.95), r"finite, got \[nan\]"),
        (lambda: s.t_interval([1.0, math.inf], 0.95), r"finite, got \[inf\]"),
        (lambda: s.t_interval([1.0, 2.0], 1.0), "confidence must be in (0, 1), got 1.0"),
        (lambda: s.t_interval([1.0, 2.0], 95), "got 95"),
        (lambda: s.bootstrap_interval([math.nan, 1.0], 0.95, seed=0), "finite"),
        (lambda: s.bootstrap_interval([0.0, 1.0], 0.0, seed=0), "got 0.0"),
    ],
)
def test_bad_input_raises_and_shows_the_value(call, message):
    pattern = message if "\\" in message else message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=pattern):
        call()
