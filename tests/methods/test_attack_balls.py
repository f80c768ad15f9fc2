"""Bands, steepest steps and projections against full-spectrum loops and cvxpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainaug.methods.attacks import (
    AttackNorm,
    equal_bands,
    project_ball,
    radial_band,
    steepest_step,
)
from trainaug.norms import FourierNorm, dual_vector, project

Randn = Callable[..., Tensor]
KINDS: tuple[AttackNorm, ...] = ("linf", "l2", "l1", "fourier_linf", "fourier_l1")
SHAPES = [(1, 1), (3, 7), (2, 8), (2, 1, 4, 6), (2, 3, 5, 5), (2, 2, 5, 8), (2, 2, 6, 3)]


def signal(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[2:] if len(shape) > 2 else shape[1:]


def spectrum(x: Tensor) -> np.ndarray[Any, Any]:
    """Return the full unitary spectrum in double precision, by numpy."""
    axes = tuple(range(-len(signal(tuple(x.shape))), 0))
    return np.fft.fftn(x.double().numpy(), axes=axes, norm="ortho")


def invert(z: np.ndarray[Any, Any]) -> Tensor:
    axes = tuple(range(-len(signal(z.shape)), 0))
    x = np.fft.ifftn(z, axes=axes, norm="ortho")
    assert abs(x.imag).max() < 1e-12 * max(1.0, abs(z).max())
    return torch.from_numpy(x.real.copy())


def factors_for(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw symmetric factors of which about a third are zero."""
    sides = signal(shape)
    noise = torch.randn(sides, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    moduli = torch.fft.fftn(noise).abs()
    axes = tuple(range(len(sides)))
    moduli = moduli + moduli.flip(axes).roll([1] * len(sides), axes)
    return torch.where(moduli >= moduli.quantile(0.33), moduli / moduli.max(), 0.0)


def naive_length(delta: Tensor, kind: AttackNorm, band: Tensor | None = None) -> float:
    """Return the largest length over the batch; frequencies of factor 0 must be empty."""
    if kind == "fourier_linf":
        moduli = abs(spectrum(delta))
        factors = np.ones(moduli.shape) if band is None else band.double().numpy() + 0 * moduli
        zero = factors == 0
        assert moduli[zero].max(initial=0.0) <= 1e-12
        return float((moduli[~zero] / factors[~zero]).max())
    if kind == "fourier_l1":
        moduli = abs(spectrum(delta))
        return float(moduli.sum(axis=tuple(range(-len(signal(tuple(delta.shape))), 0))).max())
    order = {"linf": math.inf, "l2": 2, "l1": 1}[kind]
    return max(float(np.linalg.norm(d.double().numpy().ravel(), order)) for d in delta)


def dual_norm(w: Tensor, kind: AttackNorm, band: Tensor | None) -> float:
    if kind == "fourier_linf":
        moduli = abs(spectrum(w))
        return float((moduli if band is None else moduli * band.double().numpy()).sum())
    if kind == "fourier_l1":  # a frequency in each channel
        moduli = abs(spectrum(w))
        return float(moduli.max(axis=tuple(range(-len(signal(tuple(w.shape))), 0))).sum())
    order = {"linf": 1, "l2": 2, "l1": math.inf}[kind]
    return float(np.linalg.norm(w.double().numpy().ravel(), order))


CASES = [(kind, False) for kind in KINDS] + [("fourier_linf", True)]


# --- steps and projections


@pytest.mark.oracle("lin.6.10")
@pytest.mark.oracle("lin.6.11")
@pytest.mark.parametrize("banded", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fourier_step_matches_the_full_spectrum(
    shape: tuple[int, ...], banded: bool, randn: Randn
) -> None:
    g = randn(7, *shape)
    band = factors_for(shape, 8) if banded else None
    step = steepest_step(g, "fourier_linf", band)
    factors = np.ones(signal(shape)) if band is None else band.numpy()
    z = spectrum(g)
    np.testing.assert_allclose(step, invert(factors * z / abs(z)), atol=1e-12)
    np.testing.assert_allclose(abs(spectrum(step)), factors + 0 * abs(z), atol=1e-12)
    gain = (step * g).flatten(1).sum(1)
    np.testing.assert_allclose(gain, (factors * abs(z)).reshape(len(g), -1).sum(1), atol=1e-10)


@pytest.mark.parametrize("kind", ["linf", "l2", "l1"])
def test_plain_step_works_on_each_example(kind: Any, randn: Randn) -> None:
    g = torch.cat([randn(9, 2, 2, 3, 3), 1e-30 * randn(9, 1, 2, 3, 3), torch.zeros(1, 2, 3, 3)])
    step = steepest_step(g.float(), kind)
    other = {"linf": "l1", "l2": "l2", "l1": "linf"}[kind]
    for one, row in zip(step, g, strict=True):
        expected = dual_vector(row.flatten(), other)  # type: ignore[arg-type]
        torch.testing.assert_close(one.flatten().double(), expected, rtol=1e-6, atol=1e-6)
    tied = steepest_step(torch.tensor([[1.0, -2.0, 2.0], [3.0, 3.0, 0.0]]), "l1")
    assert tied.tolist() == [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]


@pytest.mark.oracle("lin.6.10")
@pytest.mark.parametrize("size", [(5, 5), (4, 6), (1, 2)])
def test_zero_spectra_and_self_conjugate_bins(size: tuple[int, int]) -> None:
    zero = torch.zeros(2, 1, *size)
    assert torch.equal(steepest_step(zero, "fourier_linf"), zero)
    assert torch.equal(project_ball(zero, "fourier_linf", 0.0), zero)
    flat = steepest_step(zero + 0.3, "fourier_linf")  # only the mean has a phase
    expected = torch.full_like(zero, 1 / math.prod(size) ** 0.5)
    torch.testing.assert_close(flat, expected)
    step = steepest_step(torch.randn(zero.shape, generator=torch.Generator()), "fourier_linf")
    for i in {0, size[0] / 2} & {0, size[0] // 2}:
        for j in {0, size[1] / 2} & {0, size[1] // 2}:
            coefficient = spectrum(step)[..., int(i), int(j)]
            assert abs(coefficient.imag).max() < 1e-6  # float32
            np.testing.assert_allclose(abs(coefficient.real), 1, atol=1e-5)


@pytest.mark.oracle("lin.6.11")
@pytest.mark.parametrize("banded", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fourier_projection_matches_a_loop_over_bins(
    shape: tuple[int, ...], banded: bool, dtype: torch.dtype, randn: Randn
) -> None:
    x = randn(10, *shape, dtype=dtype)
    band = factors_for(shape, 11) if banded else None
    z = spectrum(x)
    for index in np.ndindex(z.shape):
        radius = 0.7 * (1.0 if band is None else float(band[index[-len(signal(shape)) :]]))
        if abs(z[index]) > radius:
            z[index] *= radius / abs(z[index])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    result = project_ball(x, "fourier_linf", 0.7, band)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, invert(z), atol=tolerance)
    if band is None:
        twin = project(
            x.reshape(*shape[: -len(signal(shape))], -1), FourierNorm("linf", signal(shape)), 0.7
        )
        torch.testing.assert_close(result, twin.view(shape), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("kind", "banded"), CASES)
def test_projection_is_nearer_than_any_point_of_the_ball(
    kind: AttackNorm, banded: bool, randn: Randn
) -> None:
    shape = (1, 2, 4, 3)
    band = factors_for(shape, 12) if banded else None
    x = 2 * randn(13, *shape)
    nearest = project_ball(x, kind, 0.9, band)
    assert naive_length(nearest, kind, band) <= 0.9 * (1 + 1e-12)
    others = project_ball(nearest + 0.3 * randn(14, 300, *shape[1:]), kind, 0.9, band)
    # obtuse angle to every point of a convex set: the mark of the projection
    assert float(((x - nearest) * (others - nearest)).flatten(1).sum(1).max()) <= 1e-10


def test_fourier_projection_matches_the_solver(randn: Randn) -> None:
    x = 2 * randn(15, 1, 5)
    band = torch.tensor([0.5, 1.0, 0.0, 0.0, 1.0])
    u = cp.Variable(5)
    inside = [cp.abs(np.fft.fft(np.eye(5), norm="ortho") @ u) <= 0.6 * band.numpy()]
    program = cp.Problem(cp.Minimize(cp.sum_squares(u - x[0].numpy())), inside)
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    np.testing.assert_allclose(project_ball(x, "fourier_linf", 0.6, band)[0], u.value, atol=1e-3)


@given(
    kind=st.sampled_from(CASES),
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(SHAPES),
    eps=st.floats(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_projection_is_idempotent_and_non_expansive(
    kind: tuple[AttackNorm, bool], seed: int, shape: tuple[int, ...], eps: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    band = factors_for(shape, seed) if kind[1] else None
    once, other = (project_ball(t, kind[0], eps, band) for t in (a, b))
    torch.testing.assert_close(project_ball(once, kind[0], eps, band), once, rtol=0, atol=1e-12)
    before, after = ((s - t).flatten(1).norm(dim=1) for s, t in ((a, b), (once, other)))
    assert bool((after <= before + 1e-12).all())


# --- bands


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (6, 9), (11,), (12,)], ids=str)
def test_bands_are_symmetric_disjoint_and_complete(shape: tuple[int, ...]) -> None:
    total = math.prod(shape)
    edges = [0, 0.1, 0.3, 0.8]
    rings = [radial_band(shape, a, b) for a, b in pairwise(edges)]
    for count in (1, 2, 3, 5):
        bands = equal_bands(shape, count)
        assert bands.shape == (count, *shape)
        assert torch.equal(bands.sum(0), torch.ones(shape, dtype=torch.long))
        sizes = bands.flatten(1).sum(1)
        assert float((sizes - total / count).abs().max()) <= 2
        for band in [*bands, *rings]:
            for k in np.ndindex(shape):
                assert band[k] == band[tuple(-i % n for i, n in zip(k, shape, strict=True))]
        radius = [
            math.hypot(*(np.fft.fftfreq(n)[i] for n, i in zip(shape, k, strict=True)))
            for k in np.ndindex(shape)
        ]
        spans = [np.array(radius)[band.flatten().numpy()] for band in bands]
        for low, high in pairwise(spans):
            assert low.max() <= high.min()
    assert torch.equal(torch.stack(rings).sum(0), torch.ones(shape, dtype=torch.long))


# --- bad input


@pytest.mark.parametrize(
    ("band", "message"),
    [
        (torch.ones(5), r"\(5,\)"),
        (torch.ones(4).cfloat(), "complex64"),
        (torch.zeros(4).bool(), "empty"),
        (torch.tensor([True, True, False, False]), r"k = \[1\]"),
        (-torch.ones(4), "-1"),
        (torch.full((4,), math.inf), "inf"),
    ],
)
def test_bad_bands_are_named(band: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        project_ball(torch.ones(2, 4), "fourier_linf", 0.1, band)
    with pytest.raises(ValueError, match=message):
        steepest_step(torch.ones(2, 4), "fourier_linf", band)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -0.5}, "-0.5"),
        ({"eps": math.nan}, "nan"),
        ({"eps": math.inf}, "inf"),
        ({"norm": "l3"}, "'l3'"),
        ({"delta": torch.full((2,), 0.5)}, r"\(2,\)"),
        ({"delta": torch.ones(2, 4).long()}, "int64"),
        ({"band": torch.ones(4)}, "'linf'"),
    ],
)
def test_bad_balls_are_named(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"delta": torch.ones(2, 4), "norm": "linf", "eps": 0.1}
    with pytest.raises(ValueError, match=message):
        project_ball(**(options | changes))


def test_bad_masks_are_named() -> None:
    picture = torch.zeros(5, 4).bool()
    picture[1, 2] = True  # its mirror is [4, 2]
    with pytest.raises(ValueError, match=r"k = \[1, 2\]"):
        steepest_step(torch.ones(1, 1, 5, 4), "fourier_linf", picture)
    with pytest.raises(ValueError, match=r"0.5 and 0.5"):
        radial_band((4, 4), 0.5, 0.5)
    for count in (0, 9):
        with pytest.raises(ValueError, match=f"into {count} bands"):
            equal_bands((2, 4), count)
    with pytest.raises(ValueError, match=r"\(0, 4\)"):
        equal_bands((0, 4), 1)


# --- types and values


@pytest.mark.parametrize(("kind", "banded"), CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(
    kind: AttackNorm, banded: bool, dtype: torch.dtype, randn: Randn
) -> None:
    shape = (4, 2, 6, 10)
    x = (3 * randn(17, *shape)).to(dtype)
    band = factors_for(shape, 18) if banded else None
    spacing = torch.finfo(dtype).eps
    for eps in (1e-3, 0.8, 20.0):
        result = project_ball(x, kind, eps, band)
        assert result.dtype == dtype
        exact = project_ball(x.double(), kind, eps, band)
        assert bool(((result - exact).abs() <= spacing * exact.abs() + 1e-6 * eps + 6e-8).all())
        if not str(kind).startswith("fourier"):
            assert naive_length(result, kind) <= eps * (1 + 1e-6)
        assert torch.equal(project_ball(x * 0, kind, 0.0, band), x * 0)
    step = steepest_step(x, kind, band)
    assert step.dtype == dtype
    exact = steepest_step(x.double(), kind, band)
    torch.testing.assert_close(step.double(), exact, rtol=spacing, atol=1e-5)


@pytest.mark.parametrize(("kind", "banded"), CASES)
def test_empty_batches_and_values_that_are_none(kind: AttackNorm, banded: bool) -> None:
    band = torch.ones(3, 4) if banded else None
    calls = (lambda x: project_ball(x, kind, 0.5, band), lambda x: steepest_step(x, kind, band))
    for call in calls:
        for dtype in (torch.float16, torch.float64):
            empty = call(torch.zeros(0, 2, 3, 4, dtype=dtype))
            assert empty.shape == (0, 2, 3, 4)
            assert empty.dtype == dtype
        for bad in (math.nan, math.inf):
            x = torch.zeros(3, 1, 3, 4)
            x[1, 0, 0, 0] = bad
            with pytest.raises(ValueError, match="row 1"):
                call(x)
        with pytest.raises(ValueError, match="meta"):
            call(torch.zeros(1, 1, 3, 4, device="meta"))
        with pytest.raises(TypeError, match="ndarray"):
            call(np.zeros((1, 1, 3, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="meta"):
        project_ball(torch.zeros(1, 4), "fourier_linf", 0.5, torch.ones(4, device="meta"))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        project_ball(torch.zeros(2, 4), "l2", torch.ones(2))  # type: ignore[arg-type]


# --- devices


def everything(x: Tensor) -> list[Tensor]:
    result = [radial_band((4, 5), 0.1, 0.4), equal_bands((4, 5), 3)]
    for kind in KINDS:
        for band in [None, result[0]] if kind == "fourier_linf" else [None]:
            result += [project_ball(x, kind, 0.5, band), steepest_step(x, kind, band)]
    return result


def test_inside_a_meta_context_values_are_the_same(
    same_inside_meta: Callable[..., None], randn: Randn
) -> None:
    same_inside_meta(everything, randn(16, 2, 2, 4, 5))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda: Callable[..., None], randn: Randn) -> None:
    same_on_cuda(lambda x: everything(x)[2:], randn(16, 2, 2, 4, 5))
