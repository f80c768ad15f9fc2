"""Moments of gradient samples: naive loops, simulated biases, scales and dead coordinates."""

from __future__ import annotations

import math

import pytest
import torch

from trainaug.methods.gradient_clustering.moments import gradient_moments

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.mark.oracle("gc.9")
@DTYPES
@pytest.mark.parametrize("epsilon", ["absolute", "relative"])
@pytest.mark.parametrize(("t", "d"), [(2, 1), (3, 4), (10, 7)])
def test_moments_match_naive_loops(randn, t, d, epsilon, dtype):
    samples, fresh = randn(0, t, d, dtype=dtype) + 0.5, randn(1, t, d, dtype=dtype) + 0.5
    actual = gradient_moments(samples, fresh, epsilon=epsilon)
    a, b = samples.tolist(), fresh.tolist()
    variance = plugin = ratio = length = 0.0
    for j in range(d):
        mean = sum(a[i][j] for i in range(t)) / t
        length += mean**2
        variance += sum((a[i][j] - mean) ** 2 for i in range(t)) / (t - 1)
        scatter = sum((b[i][j] - mean) ** 2 for i in range(t))
        second = sum(b[i][j] ** 2 for i in range(t))
        plugin += scatter / t
        ratio += scatter / (second + (1e-7 if epsilon == "absolute" else 0.0))
    signal = max(length - variance / t, 0.0)
    assert actual.variance == pytest.approx(variance / d, rel=1e-9)
    assert actual.variance_plugin == pytest.approx(plugin / d, rel=1e-9)
    assert actual.normalised_plugin == pytest.approx(ratio / d, rel=1e-8)
    assert actual.normalised == pytest.approx(variance / (variance + signal), rel=1e-9)
    assert actual.dead == 0


@pytest.mark.oracle("gc.9")
@pytest.mark.parametrize(("t", "expected"), [(10, 1.125), (50, 1 + 1 / 48)])
def test_pure_noise_exceeds_one_by_the_plugin_only(randn, t, expected):
    d, repeats = 4000, 50  # noise about 0 of a scale of its own for each coordinate
    scales = torch.logspace(-3, 0, d, dtype=torch.float64)
    actual = [
        gradient_moments(randn(2 * s, t, d) * scales, randn(2 * s + 1, t, d) * scales)
        for s in range(repeats)
    ]

    def error(values):  # of the mean, from the repeats
        return float(torch.tensor(values).std()) / math.sqrt(repeats)

    ratios = [m.normalised_plugin for m in actual]
    assert error(ratios) < 0.002
    assert sum(ratios) / repeats == pytest.approx(expected, abs=4 * error(ratios))
    assert expected == pytest.approx({10: 1.125, 50: 1.021}[t], abs=5e-4)
    truth = float(scales.square().mean())
    plugin = [m.variance_plugin / truth for m in actual]
    assert sum(plugin) / repeats == pytest.approx(1 + 1 / t, abs=4 * error(plugin))
    unbiased = [m.variance / truth for m in actual]
    assert error(unbiased) < 0.01
    assert sum(unbiased) / repeats == pytest.approx(1.0, abs=4 * error(unbiased))
    # the correction of the length is clipped at 0, so never above 1
    normalised = [m.normalised for m in actual]
    assert sum(normalised) / repeats == pytest.approx(1.0, abs=0.01)
    assert max(normalised) <= 1.0


@pytest.mark.oracle("gc.9")
@pytest.mark.parametrize("t", [5, 10, 50])
def test_unbiased_ratio_is_that_of_the_population(randn, t):
    # V = 1 and squared means that average 0.25: V / (V + m^2) = 0.8 of sums, for any T
    d, mean = 2000, 0.5
    actual = [
        gradient_moments(randn(s, t, d) + mean, randn(99 + s, t, d) + mean) for s in range(40)
    ]
    average = sum(m.normalised for m in actual) / 40
    # s.e. of one: 2 m sqrt(1 / (T d)) relative to 1.25, below 0.006; of 40, below 0.001
    assert average == pytest.approx(0.8, abs=0.004)
    plugin = sum(m.normalised_plugin for m in actual) / 40
    assert plugin > average + 0.3 / t  # still inflated


@pytest.mark.oracle("gc.9")
def test_scale_matters_to_the_absolute_epsilon_only(randn):
    samples, fresh = randn(0, 10, 50), randn(1, 10, 50)
    whole = gradient_moments(samples, fresh)
    tiny = gradient_moments(1e-5 * samples, 1e-5 * fresh)
    assert tiny.normalised_plugin == pytest.approx(whole.normalised_plugin, rel=1e-9)
    assert tiny.normalised == pytest.approx(whole.normalised, rel=1e-9)
    assert tiny.variance == pytest.approx(1e-10 * whole.variance, rel=1e-9)
    assert tiny.variance_plugin == pytest.approx(1e-10 * whole.variance_plugin, rel=1e-9)
    published = gradient_moments(1e-5 * samples, 1e-5 * fresh, epsilon="absolute")
    assert published.normalised_plugin < 0.02  # 1e-9 against 1e-7
    large = gradient_moments(samples, fresh, epsilon="absolute")
    assert large.normalised_plugin == pytest.approx(whole.normalised_plugin, rel=1e-6)


@pytest.mark.oracle("gc.9")
@DTYPES
def test_dead_coordinates_are_counted_and_left_out(randn, dtype):
    samples, fresh = randn(0, 6, 5, dtype=dtype), randn(1, 6, 5, dtype=dtype)
    alive = gradient_moments(samples, fresh)
    pad = torch.zeros(6, 3, dtype=dtype)
    some = gradient_moments(torch.cat([samples, pad], 1), torch.cat([fresh, pad], 1))
    assert (alive.dead, some.dead) == (0, 3)
    assert some.normalised_plugin == pytest.approx(alive.normalised_plugin, rel=1e-9)
    assert some.normalised == alive.normalised
    assert some.variance == pytest.approx(alive.variance * 5 / 8, rel=1e-12)  # over all
    assert some.variance_plugin == pytest.approx(alive.variance_plugin * 5 / 8, rel=1e-12)
    # the authors' average takes them as 0
    options = {"epsilon": "absolute"}
    alive = gradient_moments(samples, fresh, **options)
    some = gradient_moments(torch.cat([samples, pad], 1), torch.cat([fresh, pad], 1), **options)
    assert some.dead == 3
    assert some.normalised_plugin == pytest.approx(alive.normalised_plugin * 5 / 8, rel=1e-12)
    # alive in the first set only: the ratio would be infinite
    once = gradient_moments(torch.cat([samples, pad + 1], 1), torch.cat([fresh, pad], 1))
    assert once.dead == 3
    assert once.normalised_plugin == pytest.approx(
        gradient_moments(samples, fresh).normalised_plugin, rel=1e-9
    )


def test_no_gradient_at_all_has_no_ratio():
    zero = torch.zeros(4, 3)
    actual = gradient_moments(zero, zero)
    assert (actual.variance, actual.variance_plugin, actual.dead) == (0.0, 0.0, 3)
    assert math.isnan(actual.normalised)
    assert math.isnan(actual.normalised_plugin)
    assert gradient_moments(zero, zero, epsilon="absolute").normalised_plugin == 0.0


@DTYPES
def test_a_gradient_without_noise_has_no_variance(dtype):
    constant = torch.tensor([[0.1, -3.0]], dtype=dtype).expand(5, 2)
    actual = gradient_moments(constant, constant)
    for value in (actual.variance, actual.variance_plugin, actual.normalised):
        assert value == pytest.approx(0.0, abs=1e-12)
    assert actual.normalised_plugin == pytest.approx(0.0, abs=1e-12)


def test_one_set_gives_the_unbiased_figures_only(randn):
    samples, fresh = randn(0, 6, 5), randn(1, 6, 5)
    both, one = gradient_moments(samples, fresh), gradient_moments(samples)
    assert (one.variance, one.normalised) == (both.variance, both.normalised)
    assert one.variance_plugin is None
    assert one.normalised_plugin is None
    dead = torch.cat([samples, torch.zeros(6, 2).double()], 1)
    assert gradient_moments(dead).dead == 2


def test_bad_input_is_named(randn):
    samples = randn(0, 4, 3)
    for message, call in {
        r"two samples.*\(1, 3\)": lambda: gradient_moments(samples[:1]),
        r"two samples.*\(3,\)": lambda: gradient_moments(samples[0]),
        r"two samples.*\(4, 0\)": lambda: gradient_moments(samples[:, :0]),
        r"\(4, 3\), \(4, 2\)": lambda: gradient_moments(samples, samples[:, :2]),
        r"\(4, 3\), \(3, 3\)": lambda: gradient_moments(samples, samples[:3]),
        "epsilon.*'tiny'": lambda: gradient_moments(samples, samples, epsilon="tiny"),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    for bad in (float("nan"), float("inf")):
        broken = samples.clone()
        broken[1, 2] = bad
        with pytest.raises(FloatingPointError, match="not finite"):
            gradient_moments(broken)
        with pytest.raises(FloatingPointError, match="not finite"):
            gradient_moments(samples, broken)


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    def everything(samples, fresh):
        options = [{}, {"epsilon": "absolute"}]
        return [gradient_moments(samples, fresh, **o) for o in options]

    same_inside_meta(everything, randn(0, 5, 4), randn(1, 5, 4))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(gradient_moments, randn(0, 5, 4), randn(1, 5, 4))
