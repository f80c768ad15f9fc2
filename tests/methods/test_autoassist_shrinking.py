"""Shrinking: the keep rule, the bias by enumeration, Theorem A line by line, Proposition B."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.autoassist import (
    constant_threshold,
    decaying_threshold,
    distance_bound,
    keep,
    keep_probability,
    shrinking_bias,
    threshold_floor,
)
from trainaug.training.randomness import stream

UNIT = st.floats(0, 1, allow_subnormal=False)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
NAN = float("nan")


# --- the keep rule


@DTYPES
@given(base=UNIT, r=st.lists(UNIT, min_size=1, max_size=8), seed=st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_who_is_kept_equals_the_two_stages_one_example_at_a_time(dtype, base, r, seed):
    u = torch.rand(len(r), generator=stream(seed, "keep"), dtype=dtype)
    r = torch.tensor(r, dtype=dtype)
    kept, p = keep(r, base, u), keep_probability(r, base)
    assert (kept.dtype, p.dtype, kept.shape) == (torch.bool, dtype, r.shape)
    for i in range(len(r)):
        chance, draw = float(r[i]), float(u[i])
        # inverse of the distribution: the second stage's uniform number is below r
        expected = base + (1 - base) * chance
        assert float(p[i]) == pytest.approx(expected, abs=1e-6)
        if abs(draw - expected) > 1e-6 and abs(draw - base) > 1e-6:  # roundings of float32
            assert bool(kept[i]) == (draw < expected)


@pytest.mark.oracle("aa.1")
@pytest.mark.parametrize("base", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("r", [0.0, 0.05, 0.5, 1.0])
def test_the_keep_rate_is_within_four_standard_deviations(base, r):
    n = 100_000
    kept = keep(torch.full((n,), r), base, torch.rand(n, generator=stream(0, "keep")))
    p = base + (1 - base) * r
    rate = float(kept.double().mean())
    assert abs(rate - p) <= 4 * math.sqrt(p * (1 - p) / n)  # exact where p is 0 or 1
    assert p == pytest.approx(float(keep_probability(torch.tensor([r]), base)), abs=1e-6)


@pytest.mark.oracle("aa.1")
@DTYPES
def test_at_the_ends_the_decision_does_not_depend_on_the_draw(dtype):
    u = torch.tensor([0.0, 0.5, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    zero, one = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    assert keep(zero, 1.0, u).all()
    assert keep(one, 0.0, u).all()
    assert not keep(zero, 0.0, u).any()  # 0 < 0 is false
    assert keep(zero, 0.5, u).tolist() == [True, False, False]


@DTYPES
def test_a_sure_prediction_is_kept_with_the_largest_draw(dtype):
    """An ulp: at some bases the division rounds up to 1."""
    u = torch.tensor([1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    bases = [i / 1000 for i in range(1000)] + [0.2878308006916458]
    lost = [base for base in bases if not keep(torch.ones_like(u), base, u).all()]
    assert not lost, f"{len(lost)} of 1001 bases drop r = 1, say {lost[0]}"


# --- bias


@pytest.mark.oracle("aa.2")
@given(
    n=st.integers(1, 7),
    d=st.integers(1, 4),
    base=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=50, deadline=None)
def test_the_mean_over_all_draws_is_the_gradient_and_the_bias(n, d, base, seed):
    """Decisions enumerated: r in quarters, u in the middle of 64 equal cells, so none rounds."""
    g = stream(seed, "measure")
    gradients = torch.randn(n, d, dtype=torch.float64, generator=g)
    r = torch.randint(5, (n,), generator=g).double() / 4
    cells = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    total = torch.zeros(d, dtype=torch.float64)
    for i in range(n):
        total += gradients[i] * int(keep(r[i].expand(64), base, cells).sum())
    bias = shrinking_bias(gradients, keep_probability(r, base))
    assert bias.shape == (d,)
    torch.testing.assert_close(total / (64 * n), gradients.mean(0) + bias, rtol=0, atol=1e-12)


@pytest.mark.oracle("aa.2")
@DTYPES
def test_the_bias_of_a_threshold_is_at_most_the_share_below_times_it(dtype, randn):
    gradients = randn(0, 40, 3, dtype=dtype)
    norms = gradients.norm(dim=1)
    for base in (0.0, 0.3, 1.0):
        for value in (0.0, 0.5, 1.5, 9.0):
            r = (norms >= value).to(dtype)
            bias = shrinking_bias(gradients, keep_probability(r, base))
            naive = -sum((1 - base) * gradients[i] for i in range(40) if norms[i] < value) / 40
            torch.testing.assert_close(bias, torch.zeros(3, dtype=dtype) + naive)
            share = float((norms < value).double().mean())
            assert float(bias.norm()) <= (1 - base) * share * value + 1e-6


# --- Theorem A: f_i(w) = 1/2 <w - a_i, h_i (w - a_i)>, N = 50, in three dimensions


def quadratics(randn, kind):
    points, n = randn(1, 50, 3), 50
    if kind == "equal":
        curves = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    else:
        roots = randn(2, n, 3, 3)
        curves = 0.3 * roots @ roots.mT + 0.4 * torch.eye(3, dtype=torch.float64)
    mean = curves.mean(0)
    best = torch.linalg.solve(mean, torch.einsum("nij,nj->i", curves, points) / n)
    return points, curves, best, float(torch.linalg.eigvalsh(mean)[0])


@pytest.mark.parametrize(
    ("kind", "c", "base"),
    [
        ("equal", 0.0, 0.0),
        ("equal", 1.0, 0.0),
        ("equal", 10.0, 0.0),
        ("different", 1.0, 0.0),
        ("different", 10.0, 0.5),
    ],
)
def test_theorem_a_line_by_line_on_quadratics(randn, kind, c, base):
    """One step is averaged over all i and decisions, the paths over 200 runs."""
    points, curves, best, sigma = quadratics(randn, kind)
    pulls = (curves @ points[:, :, None]).mT  # (N, 1, 3)
    runs, steps, g = 200, 400, stream(3, "order")
    rows, threshold, largest = torch.arange(runs), decaying_threshold(c), 0.0
    w = torch.zeros(runs, 3, dtype=torch.float64)
    squares, lines = [], []
    for k in range(1, steps + 1):
        apart = w - best
        squares.append(float(apart.square().sum(1).mean()))
        gradients = w @ curves - pulls  # (N, R, 3)
        norms = gradients.norm(dim=2)
        largest = max(largest, float(norms.max()))
        eta = 2 / (sigma * (k + 1))
        r = (norms >= threshold(k)).double()
        if k <= 15 or k % 50 == 0:
            p = keep_probability(r.flatten(), base).view(50, runs)
            bias = torch.stack([shrinking_bias(gradients[:, j], p[:, j]) for j in range(20)])
            ahead, stay = (apart - eta * gradients).square().sum(2), apart.square().sum(1)
            expected = (p * ahead + (1 - p) * stay).mean(0)  # of step k + 1, exactly
            lines.append((k, apart[:20], gradients[:, :20].mean(0), bias, expected[:20]))
        i = torch.randint(50, (runs,), generator=g)
        kept = keep(r[i, rows], base, torch.rand(runs, generator=g, dtype=torch.float64))
        w = w - eta * kept[:, None] * gradients[i, rows]
    rate = (1 - base) * c
    share = 4 * (largest**2 + rate**2) / sigma**2
    for k, apart, mean, bias, expected in lines:
        eta, a = 2 / (sigma * (k + 1)), apart.square().sum(1)
        slack = 1e-9 * (1 + a)  # roundings
        along = ((mean + bias) * apart).sum(1)
        assert bool((expected <= a - 2 * eta * along + eta**2 * largest**2 + slack).all())  # (1)
        assert bool(((mean * apart).sum(1) >= sigma * a - slack).all())  # (2)
        assert float(bias.norm(dim=1).max()) <= rate / k + 1e-12
        cross = 2 * eta * bias.norm(dim=1) * a.sqrt()
        young = eta * sigma * a + eta * rate**2 / (sigma * k**2)
        assert bool((cross <= young + slack).all())  # (3)
        added = 2 * rate**2 / (sigma**2 * k**2 * (k + 1)) + 4 * largest**2 / (sigma * (k + 1)) ** 2
        assert bool((expected <= (1 - 2 / (k + 1)) * a + added + slack).all())  # (4)
        assert added <= share / (k + 1) ** 2 * (1 + 1e-12)  # (5)
    assert squares[1] <= share / 3  # (6)
    for k in range(2, steps + 1):  # (7)
        now, then = (distance_bound(j, largest, c, sigma, base) for j in (k, k + 1))
        assert now == pytest.approx(share / (k + 1), rel=1e-12)
        assert (1 - 2 / (k + 1)) * now + share / (k + 1) ** 2 <= then * (1 + 1e-12)
        assert squares[k - 1] <= now
    if kind == "equal":
        spread = float((points - best).square().sum(1).mean())
        # the mean of draws weighed by 2j/(k(k-1)); and what c=10 leaves is not more
        assert (steps + 1) * squares[-1] == pytest.approx(4 / 3 * spread, rel=0.2)


def test_the_bound_by_hand():
    assert distance_bound(3, 2.0, 1.0, 0.5) == 4 * 5 / 0.25 / 4
    assert distance_bound(3, 2.0, 4.0, 1.0, base=0.5) == 4 * (4 + 4) / 4
    assert distance_bound(9, 2.0, 4.0, 1.0, base=1.0) == distance_bound(9, 2.0, 0.0, 1.0)


# --- Proposition B


def test_with_a_constant_threshold_iterates_freeze_beside_the_optimum():
    """f_1 = (w - 1)^2 / 2, f_2 = s w, in small steps from the right."""
    value, slope, step = 0.2, 0.19, 1e-3
    threshold, best = constant_threshold(value), 1 - slope
    w, kept = 3.0, 0
    draws = torch.randint(2, (40_000,), generator=stream(0, "order")).tolist()
    for k, i in enumerate(draws, start=1):
        gradient = w - 1 if i == 0 else slope
        if abs(gradient) >= threshold(k):
            w -= step * gradient
            kept += 1
            last = k
    assert last < 10_000  # frozen
    assert 1 + value * (1 - step) <= w < 1 + value
    floor = threshold_floor(value, 0.5)
    assert floor**2 == pytest.approx(0.16)
    assert (w - best) ** 2 == pytest.approx(0.1521, abs=4e-4)  # a step is 2e-4
    assert (w - best) ** 2 < (value + slope) ** 2 < floor**2
    for k, i in enumerate(draws, start=1):  # what is skipped was to be used
        w -= 2 / (0.5 * (k + 1)) * (w - 1 if i == 0 else slope)
    assert (w - best) ** 2 < 0.01


def test_thresholds_by_hand():
    assert [constant_threshold(0.5)(k) for k in (1, 2, 100)] == [0.5] * 3
    assert [decaying_threshold(3.0)(k) for k in (1, 2, 300)] == [3.0, 1.5, 0.01]
    assert decaying_threshold(0.0)(7) == constant_threshold(0.0)(7) == 0.0
    assert threshold_floor(0.3, 1.5) == pytest.approx(0.2)


# --- devices, bad input


def everything(r, u, gradients):
    p = keep_probability(r, 0.3)
    return [p, keep(r, 0.3, u), keep(r, 1.0, u), shrinking_bias(gradients, p)]


def arguments(randn):
    u = torch.rand(9, generator=stream(1, "keep"), dtype=torch.float64)
    return torch.arange(9, dtype=torch.float64) / 8, u, randn(0, 9, 2)


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, *arguments(randn))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, *arguments(randn))


@pytest.mark.parametrize("bad", [-0.1, 1.1, NAN])
def test_a_number_out_of_range_is_named(bad):
    r, u, one = torch.tensor([0.5, bad]), torch.tensor([0.5, 0.5]), torch.ones(2)
    for call in (lambda b: keep(one, b, u), lambda b: keep_probability(one, b)):
        with pytest.raises(ValueError, match=rf"base pass rate must be in \[0, 1\], got {bad}"):
            call(bad)
    named = "nan" if math.isnan(bad) else str(bad)
    grads = torch.ones(2, 3)
    for call in (
        keep_probability,
        lambda r, b: keep(r, b, u),
        lambda r, b: shrinking_bias(grads, r),
    ):
        with pytest.raises(ValueError, match=rf"r must be in \[0, 1\].*{named}"):
            call(r, 0.5)
    with pytest.raises(ValueError, match=rf"u must be in \[0, 1\).*{named}"):
        keep(one, 0.5, r)


def test_other_bad_input_is_refused():
    one = torch.ones(2)
    for u in (torch.ones(2), torch.zeros(3), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match=r"u must be in \[0, 1\) with shape \(2,\), got"):
            keep(one, 0.5, u)
    for grads in (torch.ones(3, 2), torch.ones(2)):
        with pytest.raises(ValueError, match=r"need \(N, P\) and \(N,\) with N >= 1, got"):
            shrinking_bias(grads, one)
    for make in (constant_threshold, decaying_threshold):
        for bad in (-1.0, NAN):
            with pytest.raises(ValueError, match=f"got {bad}"):
                make(bad)
    with pytest.raises(ValueError, match="k counts from 1, got 0"):
        decaying_threshold(1.0)(0)
    for bad in ((1, 1.0, 1.0, 1.0), (2, -1.0, 1.0, 1.0), (2, 1.0, -1.0, 1.0), (2, 1.0, 1.0, 0.0)):
        with pytest.raises(ValueError, match=f"got {', '.join(map(str, bad))}"):
            distance_bound(*bad)
    with pytest.raises(ValueError, match="base pass rate"):
        distance_bound(2, 1.0, 1.0, 1.0, base=2.0)
    for bad in ((-1.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (NAN, 1.0)):
        with pytest.raises(ValueError, match=f"got {bad[0]}, {bad[1]}"):
            threshold_floor(*bad)


# --- other types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_whom_double_keeps(dtype):
    r = torch.linspace(0, 1, 9).to(dtype)
    u = torch.rand(9, generator=stream(0, "keep"))
    p = keep_probability(r, 0.3)
    assert p.dtype == dtype
    torch.testing.assert_close(p.double(), keep_probability(r.double(), 0.3), rtol=0, atol=4e-3)
    assert torch.equal(keep(r, 0.3, u), keep(r.double(), 0.3, u.double()))


def test_indicators_of_any_type_are_probabilities():
    kept, u = torch.tensor([True, False, True]), torch.full((3,), 0.5)
    gradients = torch.arange(6.0).view(3, 2)
    for r in (kept, kept.byte(), kept.int()):
        assert keep_probability(r, 0.25).tolist() == [1.0, 0.25, 1.0]
        assert torch.equal(keep(r, 0.25, u), kept)
        assert torch.equal(shrinking_bias(gradients, r), shrinking_bias(gradients, kept.float()))


def test_thresholds_can_be_pickled_and_bounds_refuse_what_is_no_number():
    for threshold in (constant_threshold(0.5), decaying_threshold(2.0)):
        twin = pickle.loads(pickle.dumps(threshold))  # noqa: S301 - our own bytes
        assert twin(4) == threshold(4) == 0.5
    for bad in (NAN, math.inf):
        for position in range(3):
            numbers = [1.0, 1.0, 1.0]
            numbers[position] = bad
            with pytest.raises(ValueError, match=str(bad)):
                distance_bound(3, *numbers)
