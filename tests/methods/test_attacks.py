"""Attacks against closed forms, full-spectrum loops and cvxpy, and their hygiene on a small CNN."""

from __future__ import annotations

import copy
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
from torch import Tensor, nn

from trainaug.data import registry
from trainaug.methods.attacks import (
    AttackNorm,
    equal_bands,
    fgsm,
    pgd,
    project_ball,
    radial_band,
    steepest_step,
)
from trainaug.methods.linear_robustness.norms import FourierNorm, dual_vector, project
from trainaug.training.models import SmallCNN

Randn = Callable[..., Tensor]
KINDS: tuple[AttackNorm, ...] = ("linf", "l2", "l1", "fourier_linf")
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
    order = {"linf": math.inf, "l2": 2, "l1": 1}[kind]
    return max(float(np.linalg.norm(d.double().numpy().ravel(), order)) for d in delta)


def dual_norm(w: Tensor, kind: AttackNorm, band: Tensor | None) -> float:
    if kind == "fourier_linf":
        moduli = abs(spectrum(w))
        return float((moduli if band is None else moduli * band.double().numpy()).sum())
    order = {"linf": 1, "l2": 2, "l1": math.inf}[kind]
    return float(np.linalg.norm(w.double().numpy().ravel(), order))


CASES = [(kind, False) for kind in KINDS] + [("fourier_linf", True)]


# --- linear models


def minus_margin(z: Tensor, y: Tensor) -> Tensor:
    return -y * z


@pytest.mark.oracle("lin.6.10")
@pytest.mark.parametrize(("kind", "banded"), CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attacks_reach_the_closed_form_of_linear_models(
    kind: AttackNorm, banded: bool, shape: tuple[int, ...], randn: Randn
) -> None:
    w, x = randn(0, 1, *shape[1:]), randn(1, *shape)
    y = randn(2, len(x)).sign()
    band = factors_for(shape, 3) if banded else None
    common: dict[str, Any] = {"norm": kind, "eps": 0.3, "band": band, "bounds": None}

    def model(x: Tensor) -> Tensor:
        return (x * w).flatten(1).sum(1)

    lowest = y * model(x) - 0.3 * dual_norm(w, kind, band)
    once = fgsm(model, x, y, criterion=minus_margin, **common)
    torch.testing.assert_close(y * model(once), lowest, rtol=0, atol=1e-9)
    for start in (True, False):
        generator = torch.Generator().manual_seed(4)
        options = {"steps": 80, "step_size": 0.1, "random_start": start, "generator": generator}
        found = pgd(model, x, y, criterion=minus_margin, **common, **options)
        assert bool((y * model(found) >= lowest - 1e-9).all())  # rounding
        torch.testing.assert_close(y * model(found), lowest, rtol=0, atol=1e-6)
        assert naive_length(found - x, kind, band) <= 0.3 * (1 + 1e-9)


def test_pgd_comes_near_the_solver_value_in_box_and_fourier_ball(randn: Randn) -> None:
    w, x = randn(5, 1, 6), randn(6, 1, 6).sigmoid()
    F = np.fft.fft(np.eye(6), norm="ortho")
    d = cp.Variable(6)
    inside = [cp.abs(F @ d) <= 0.4, x[0].numpy() + d >= 0, x[0].numpy() + d <= 1]
    program = cp.Problem(cp.Minimize(w[0].numpy() @ d), inside)
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    found = pgd(
        lambda x: (x * w).sum(1),
        x,
        torch.ones(1),
        norm="fourier_linf",
        eps=0.4,
        steps=400,
        step_size=0.01,
        generator=torch.Generator(),
        criterion=minus_margin,
    )
    value = float(((found - x) * w).sum())
    # never beyond the optimum; alternating projections of unit steps find 88 per cent of it here
    assert program.value * (1 + 1e-6) <= value <= 0.85 * program.value


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
            own = spectrum(step)[..., int(i), int(j)]
            assert abs(own.imag).max() < 1e-6  # float32
            np.testing.assert_allclose(abs(own.real), 1, atol=1e-5)


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


# --- hygiene on a small CNN


@pytest.fixture(scope="module")
def digits() -> tuple[SmallCNN, Tensor, Tensor]:
    """Train a SmallCNN on 8x8 digits for a few seconds."""
    arrays = registry.load("digits")
    x = torch.tensor(np.asarray(arrays.train_x), dtype=torch.float32).reshape(-1, 1, 8, 8)
    x = x / x.max()
    y = torch.tensor(np.asarray(arrays.train_y)).long()
    generator = torch.Generator().manual_seed(0)
    model = SmallCNN(10, generator, image_size=8)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        rows = torch.randint(200, len(x), (128,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    model.eval()
    return model, x[:100], y[:100]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def attack(
    model: nn.Module, x: Tensor, y: Tensor, kind: AttackNorm, eps: float, **o: Any
) -> Tensor:
    o = {"steps": 8, "step_size": eps / 3 or 1.0, "generator": torch.Generator().manual_seed(1)} | o
    return pgd(model, x, y, norm=kind, eps=eps, **o)


# Radii with about half the digits still right, from a scan; l1 moves few pixels a step.
RADIUS: dict[AttackNorm, float] = {"linf": 0.12, "l2": 0.8, "l1": 4.0, "fourier_linf": 0.15}


@pytest.mark.oracle("lin.6.15")
@pytest.mark.parametrize("kind", KINDS)
def test_robust_accuracy_falls_from_clean_to_zero(kind: AttackNorm, digits: Any) -> None:
    model, x, y = digits
    clean = accuracy(model, x, y)
    assert clean > 0.9
    assert torch.equal(attack(model, x, y, kind, 0.0), x)
    radii = [0.0, *(RADIUS[kind] * s for s in (0.2, 0.5, 1, 2))]
    curve = [accuracy(model, attack(model, x, y, kind, eps), y) for eps in radii]
    assert curve[0] == clean
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < clean - 0.3
    # without a box and in steps of the usual size: far away the network saturates
    options = {"bounds": None, "random_start": False, "steps": 80, "step_size": RADIUS[kind] / 3}
    exact = copy.deepcopy(model).double()
    huge = attack(exact, x.double(), y, kind, 200 * RADIUS[kind], **options)
    assert accuracy(exact, huge, y) == 0


@pytest.mark.oracle("lin.6.15")
@pytest.mark.parametrize(("kind", "banded"), CASES)
def test_restarts_never_help_the_defender(kind: AttackNorm, banded: bool, digits: Any) -> None:
    model, x, y = digits
    band = radial_band((8, 8), 0.0, 0.3) if banded else None
    wrong, losses = torch.zeros(len(x), dtype=torch.bool), torch.full((len(x),), -math.inf)
    clean_wrong = model(x).argmax(1) != y
    for restarts in (1, 2, 4):
        found = attack(model, x, y, kind, RADIUS[kind] / 2, restarts=restarts, band=band, steps=3)
        logits = model(found).detach()
        now, new = logits.argmax(1) != y, nn.functional.cross_entropy(logits, y, reduction="none")
        assert bool((now | ~wrong).all())
        assert bool((now | ~clean_wrong).all())
        assert bool((new >= losses - 1e-5)[now == wrong].all())
        wrong, losses = now, new


@pytest.mark.oracle("lin.6.15")
@pytest.mark.parametrize(("kind", "banded"), CASES)
@pytest.mark.parametrize("scale", [0.3, 1, 20])  # at 20 the box is smaller than the ball
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_box_and_ball_hold_also_on_the_edge_of_the_box(
    kind: AttackNorm, banded: bool, scale: float, dtype: torch.dtype, digits: Any
) -> None:
    model, x, y = digits
    model, x, y = copy.deepcopy(model).to(dtype), x[:24].to(dtype), y[:24]
    assert bool((x == 0).any() & (x == 1).any())
    eps = scale * RADIUS[kind]
    rounding = 4 * torch.finfo(dtype).eps
    bands: list[Tensor | None] = [None]
    if banded:
        bands = [
            radial_band((8, 8), 0, 0.3),
            radial_band((8, 8), 0.3, 1),
            factors_for((1, 1, 8, 8), 3),
        ]
    for band in bands:
        for found in (
            attack(model, x, y, kind, eps, band=band, steps=4),
            fgsm(model, x, y, norm=kind, eps=eps, band=band),
        ):
            assert found.dtype == dtype
            assert 0 <= float(found.min()) <= float(found.max()) <= 1
            delta = found.double() - x.double()
            if banded:
                moduli, radii = abs(spectrum(delta)), eps * band.double().numpy()  # type: ignore[union-attr]
                assert float((moduli - radii).max()) <= 1.01e-5 * radii.max() + rounding
            else:
                assert naive_length(delta, kind) <= eps * (1 + 1e-5) + rounding


@pytest.mark.oracle("lin.6.15")
def test_narrow_bands_with_the_mean_still_move_pictures_on_the_edge(digits: Any) -> None:
    model, x, y = digits
    band = radial_band((8, 8), 0.0, 0.3)
    eps = 2 * RADIUS["fourier_linf"]
    moved = (attack(model, x, y, "fourier_linf", eps, band=band) - x).flatten(1).norm(dim=1)
    assert float(moved.median()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_attacked_alike_in_any_batch(kind: AttackNorm, digits: Any) -> None:
    model, x, y = digits
    model, x = copy.deepcopy(model).double(), x[:9].double()
    options = {"random_start": False, "steps": 4}
    band = radial_band((8, 8), 0.0, 0.3) if kind == "fourier_linf" else None
    together = attack(model, x, y[:9], kind, RADIUS[kind], band=band, **options)
    alone = [
        attack(model, x[[i]], y[[i]], kind, RADIUS[kind], band=band, **options) for i in range(9)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)


@pytest.mark.oracle("lin.6.15")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_model_inputs_and_modes_stay_as_they_were(kind: Any, fails: bool, digits: Any) -> None:
    model, x, y = copy.deepcopy(digits[0]), digits[1][:8].clone().requires_grad_(), digits[2][:8]
    model.train()
    model.features[1].eval()  # a mixed state must come back too
    nn.functional.cross_entropy(model(x), y).backward()
    x.grad = None
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    before = x.detach().clone()
    if fails:
        with pytest.raises(FloatingPointError, match="nan"):
            attack(model, x, y, kind, 0.5, criterion=lambda z, y: z[:, 0] * math.nan)
    else:
        found = attack(model, x, y, kind, 0.5)
        assert not found.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert modes == [m.training for m in model.modules()]
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_give_equal_attacks(kind: AttackNorm, digits: Any) -> None:
    model, x, y = digits[0], digits[1][:8], digits[2][:8]
    first, again, other = (
        attack(model, x, y, kind, 0.3, steps=1, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.no_grad():  # the caller's grad mode does not matter
        assert torch.equal(
            first,
            attack(model, x, y, kind, 0.3, steps=1, generator=torch.Generator().manual_seed(5)),
        )


@pytest.mark.parametrize(("kind", "banded"), CASES)
def test_misclassified_beats_a_larger_loss(kind: AttackNorm, banded: bool) -> None:
    # Outputs (B,): the loss is largest at x itself, but only other points are misclassified.
    x, y = torch.full((1, 5), 0.5), torch.ones(1)
    band = torch.ones(5) if banded else None
    found = pgd(
        lambda x: 1e-3 - (x - 0.5).square().sum(1),
        x,
        y,
        norm=kind,
        eps=0.3,
        steps=1,
        step_size=1e-3,
        generator=torch.Generator().manual_seed(0),
        band=band,
        criterion=lambda z, y: y * z,
    )
    assert float((found - x).norm()) > 0.03


# --- bad input


def call(**changes: Any) -> Tensor:
    options: dict[str, Any] = {
        "model": lambda x: x[:, :3],
        "x": torch.full((2, 4), 0.5),
        "y": torch.tensor([0, 1]),
        "norm": "linf",
        "eps": 0.1,
        "steps": 2,
        "step_size": 0.1,
        "generator": torch.Generator(),
    } | changes
    return pgd(options.pop("model"), options.pop("x"), options.pop("y"), **options)


FOURIER = {"norm": "fourier_linf"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -0.5}, "-0.5"),
        ({"eps": math.nan}, "nan"),
        ({"eps": math.inf}, "inf"),
        ({"steps": 0}, "steps=0"),
        ({"restarts": 0}, "restarts=0"),
        ({"step_size": 0.0}, "got 0.0"),
        ({"step_size": math.inf}, "got inf"),
        ({"norm": "l3"}, "'l3'"),
        ({"bounds": (1.0, 0.0)}, r"\(1.0, 0.0\)"),
        ({"y": torch.zeros(3).long()}, "2 examples, y 3"),
        ({"x": torch.tensor([[0.5] * 4, [0.5, 1.5, 0.5, 0.5]])}, "got 1.5"),
        ({"x": torch.tensor([[0.5] * 4, [0.5, math.nan, 0.5, 0.5]])}, "got nan"),
        ({"x": torch.full((2,), 0.5)}, r"\(2,\)"),
        ({"x": torch.ones(2, 4).long()}, "int64"),
        ({"model": lambda x: x[:, 0]}, r"criterion.*\(2,\)"),
        ({"criterion": lambda z, y: z}, r"\(2, 3\)"),
        ({"band": torch.ones(4)}, "'linf'"),
        (FOURIER | {"band": torch.ones(5)}, r"\(5,\)"),
        (FOURIER | {"band": torch.zeros(4).bool()}, "empty"),
        (FOURIER | {"band": torch.tensor([True, True, False, False])}, r"k = \[1\]"),
        (FOURIER | {"band": -torch.ones(4)}, "-1"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_bad_bands_and_losses_are_named() -> None:
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
    with pytest.raises(FloatingPointError, match=r"loss .* nan"):
        call(criterion=lambda z, y: z[:, 0] * math.nan)
    with pytest.raises(FloatingPointError, match=r"gradient .* (inf|nan)"):
        call(criterion=lambda z, y: (z[:, 0] - z[:, 0].detach()).sqrt(), random_start=False)


# --- devices


def everything(x: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype, device=x.device)
    y = torch.ones(len(x), dtype=x.dtype, device=x.device)
    result = [radial_band((4, 5), 0.1, 0.4), equal_bands((4, 5), 3)]
    for kind in KINDS:
        for band in [None, result[0]] if kind == "fourier_linf" else [None]:
            found = pgd(
                lambda x: x.flatten(1).sigmoid() @ weights,
                x.sigmoid(),
                y,
                norm=kind,
                eps=0.5,
                steps=2,
                step_size=0.2,
                generator=torch.Generator().manual_seed(0),
                band=band,
                criterion=minus_margin,
            )
            result += [found, project_ball(x, kind, 0.5, band), steepest_step(x, kind, band)]
    return result


def test_inside_a_meta_context_values_are_the_same(
    same_inside_meta: Callable[..., None], randn: Randn
) -> None:
    same_inside_meta(everything, randn(16, 2, 2, 4, 5))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda: Callable[..., None], randn: Randn) -> None:
    same_on_cuda(lambda x: everything(x)[2:], randn(16, 2, 2, 4, 5))
