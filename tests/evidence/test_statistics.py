"""Intervals, sample sizes and power against textbook formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from companion.evidence import statistics as s

VALUES = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=12)


def naive(values, confidence, m=math.inf):
    n = len(values)
    mean = sum(values) / n
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = stats.t.ppf(1 - (1 - confidence) / 2, n - 1) * sd * math.sqrt(1 / n + 1 / m)
    return mean, mean - half, mean + half, n, sd


@pytest.mark.parametrize("n", [2, 3, 5, 10, 37])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_intervals_match_the_naive_formula(n, confidence):
    values = np.random.default_rng(n).normal(3, 2, n).tolist()
    assert s.t_interval(values, confidence) == pytest.approx(naive(values, confidence), rel=1e-12)
    for m in (1, 4):
        found = s.prediction_interval(values, confidence, m)
        assert found == pytest.approx(naive(values, confidence, m), rel=1e-12)


def test_interval_matches_a_printed_table():
    # t(0.975, 4) = 2.776 in every table; the sd of 1..5 is sqrt(2.5)
    found = s.t_interval([1, 2, 3, 4, 5], 0.95)
    assert found.high - found.mean == pytest.approx(2.776 * math.sqrt(2.5 / 5), abs=1e-3)


@pytest.mark.parametrize("value", [0.1, -3.7, 0.0, 1e-9])
def test_equal_values_give_a_point_exactly(value):
    found = s.t_interval([value] * 3, 0.95)  # sum([0.1] * 3) / 3 is above 0.1
    assert (found.mean, found.low, found.high, found.sd) == (value, value, value, 0)


@settings(deadline=None)
@given(VALUES, st.floats(0.1, 10), st.floats(-50, 50))
def test_intervals_follow_shift_and_scale(values, scale, shift):
    moved = [scale * v + shift for v in values]
    for make in (s.t_interval, s.prediction_interval):
        before, after = make(values, 0.95), make(moved, 0.95)
        for name in ("mean", "low", "high"):
            expected = scale * getattr(before, name) + shift
            assert getattr(after, name) == pytest.approx(expected, rel=1e-9, abs=1e-7)
        assert after.sd == pytest.approx(scale * before.sd, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(VALUES)
def test_more_confidence_is_wider_and_prediction_is_wider_than_mean(values):
    narrow, wide = s.t_interval(values, 0.9), s.t_interval(values, 0.99)
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    predicted = s.prediction_interval(values, 0.9, m=3)
    assert predicted.low <= narrow.low <= narrow.high <= predicted.high


def test_intervals_cover_as_promised():
    draws = np.random.default_rng(0).normal(size=(20_000, 8))
    mean, sd = s.mean_and_sd(draws[:, :5])
    # 3 Monte Carlo standard errors of 0.95 over 20 000 draws are 0.0046
    assert (abs(mean) <= s.t_half_width(sd, 5, 0.95)).mean() == pytest.approx(0.95, abs=0.005)
    near = abs(draws[:, 5:].mean(axis=1) - mean) <= s.t_half_width(sd, 5, 0.95, 3)
    assert near.mean() == pytest.approx(0.95, abs=0.005)


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
    found = s.bootstrap_interval(items, 0.95, seed=3, method=method)
    assert found == s.bootstrap_interval(items, 0.95, seed=3, method=method)
    assert found != s.bootstrap_interval(items, 0.95, seed=4, method=method)
    expected = s.t_interval(items, 0.95)
    # the two agree to O(1/n): a tenth of the half-width (0.039) is generous
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert s.bootstrap_interval([2.0] * 9, 0.95, seed=0, method=method)[:3] == (2, 2, 2)


@pytest.mark.parametrize(("sd", "half"), [(1, 1), (1, 0.3), (0.02, 0.05), (5, 0.1), (0, 1), (1, 9)])
def test_seeds_needed_is_the_smallest_by_linear_search(sd, half):
    expected = next(
        n for n in range(2, 20_000) if stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n) < half
    )
    assert s.seeds_needed(sd, half, 0.95) == expected


@pytest.mark.parametrize("n", [2, 5, 10, 400])
@pytest.mark.parametrize("mean", [-1, 0, 0.5, 3])
def test_power_of_one_sided_regions_is_noncentral_t(n, mean):
    critical, centre = stats.t.ppf(0.975, n - 1), mean / 2 * math.sqrt(n)
    above = s.predicted_power(mean, 2, n, [(0, math.inf)], 0.95)
    below = s.predicted_power(mean, 2, n, [(-math.inf, 0)], 0.95)
    assert above == pytest.approx(stats.nct.sf(critical, n - 1, centre), abs=1e-4)
    mirrored = stats.nct.sf(critical, n - 1, -centre)  # nct.cdf far in the tail is nan
    assert below == pytest.approx(mirrored, abs=1e-4)


@pytest.mark.parametrize("pieces", [[(-1, 1)], [(-math.inf, -0.5), (0.5, math.inf)]])
def test_power_of_two_sided_regions_equals_simulation(pieces):
    draws = np.random.default_rng(5).normal(0.2, 0.8, size=(40_000, 6))
    mean, sd = s.mean_and_sd(draws)
    half = s.t_half_width(sd, 6, 0.95)
    inside = sum(((a < mean - half) & (mean + half < b)).mean() for a, b in pieces)
    # 3 Monte Carlo standard errors at one half are 0.0075
    assert s.predicted_power(0.2, 0.8, 6, pieces, 0.95) == pytest.approx(inside, abs=0.0075)


def test_bonferroni_splits_the_error():
    assert s.bonferroni(0.99, 1) == 0.99
    assert s.bonferroni(0.95, 5) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.t_interval([1.0], 0.95), r"at least 2 values, got \[1.0\]"),
        (lambda: s.t_interval([], 0.95), r"at least 2 values, got \[\]"),
        (lambda: s.t_interval([1.0, math.nan], 0.95), r"finite, got \[nan\]"),
        (lambda: s.t_interval([1.0, math.inf], 0.95), r"finite, got \[inf\]"),
        (lambda: s.t_interval([1.0, 2.0], 1.0), "confidence must be in (0, 1), got 1.0"),
        (lambda: s.t_interval([1.0, 2.0], 95), "got 95"),
        (lambda: s.prediction_interval([1.0, 2.0], 0.95, 0), "m must be at least 1, got 0"),
        (lambda: s.bootstrap_interval([math.nan, 1.0], 0.95, seed=0), "finite"),
        (lambda: s.bootstrap_interval([0.0, 1.0], 0.0, seed=0), "got 0.0"),
        (lambda: s.seeds_needed(1.0, 0.0, 0.95), "got 0.0 and 1.0"),
        (lambda: s.seeds_needed(math.nan, 1.0, 0.95), "got 1.0 and nan"),
        (lambda: s.predicted_power(0, 1, 1, [(0, 1)], 0.95), "n = 1"),
        (lambda: s.predicted_power(0, 0, 5, [(0, 1)], 0.95), "sd = 0"),
        (lambda: s.bonferroni(0.95, 0), "got 0"),
    ],
)
def test_bad_input_raises_and_shows_the_value(call, message):
    pattern = message if "\\" in message else message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=pattern):
        call()
