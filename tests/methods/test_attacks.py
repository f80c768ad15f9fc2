"""Attacks against closed forms and cvxpy, and their hygiene on a small CNN."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from test_attack_balls import (
    CASES,
    KINDS,
    SHAPES,
    Randn,
    dual_norm,
    factors_for,
    naive_length,
    spectrum,
)
from torch import Tensor, nn

from trainaug.data import registry
from trainaug.methods.attacks import AttackNorm, fgsm, pgd, radial_band
from trainaug.training.networks import SmallCNN

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
        actual = pgd(model, x, y, criterion=minus_margin, **common, **options)
        assert bool((y * model(actual) >= lowest - 1e-9).all())  # rounding
        torch.testing.assert_close(y * model(actual), lowest, rtol=0, atol=1e-6)
        assert naive_length(actual - x, kind, band) <= 0.3 * (1 + 1e-9)


def test_pgd_comes_near_the_solver_value_in_box_and_fourier_ball(randn: Randn) -> None:
    w, x = randn(5, 1, 6), randn(6, 1, 6).sigmoid()
    F = np.fft.fft(np.eye(6), norm="ortho")
    d = cp.Variable(6)
    inside = [cp.abs(F @ d) <= 0.4, x[0].numpy() + d >= 0, x[0].numpy() + d <= 1]
    program = cp.Problem(cp.Minimize(w[0].numpy() @ d), inside)
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    options: dict[str, Any] = {"steps": 400, "step_size": 0.01, "criterion": minus_margin}
    ball: dict[str, Any] = {"norm": "fourier_linf", "eps": 0.4}
    y, generator = torch.ones(1), torch.Generator()
    actual = pgd(lambda x: (x * w).sum(1), x, y, **ball, generator=generator, **options)
    value = float(((actual - x) * w).sum())
    # never beyond the optimum; alternating projections of unit steps find 88 per cent of it here
    assert program.value * (1 + 1e-6) <= value <= 0.85 * program.value


# --- hygiene on a small CNN


@pytest.fixture(scope="module")
def digits() -> tuple[SmallCNN, Tensor, Tensor]:
    """Train a SmallCNN on 8x8 digits for a few seconds."""
    arrays = registry.load("digits")
    x = torch.tensor(np.asarray(arrays["train_x"]), dtype=torch.float32).reshape(-1, 1, 8, 8)
    x = x / x.max()
    y = torch.tensor(np.asarray(arrays["train_y"])).long()
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


def attack(model: nn.Module, x: Tensor, y: Tensor, kind: Any, eps: float, **o: Any) -> Tensor:
    o = {"steps": 8, "step_size": eps / 3 or 1.0, "generator": torch.Generator().manual_seed(1)} | o
    return pgd(model, x, y, norm=kind, eps=eps, **o)


# Radii with about half the digits still right, from a scan; l1 moves few pixels a step.
RADIUS: dict[AttackNorm, float] = {
    "linf": 0.12,
    "l2": 0.8,
    "l1": 4.0,
    "fourier_linf": 0.15,
    "fourier_l1": 4.0,
}


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
    wrong, losses = model(x).argmax(1) != y, torch.full((len(x),), -math.inf)
    for restarts in (1, 2, 4):
        actual = attack(model, x, y, kind, RADIUS[kind] / 2, restarts=restarts, band=band, steps=3)
        logits = model(actual).detach()
        now, new = logits.argmax(1) != y, nn.functional.cross_entropy(logits, y, reduction="none")
        assert bool((now | ~wrong).all())
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
    rings = [radial_band((8, 8), 0, 0.3), radial_band((8, 8), 0.3, 1)]
    for band in [*rings, factors_for((1, 1, 8, 8), 3)] if banded else [None]:
        once = fgsm(model, x, y, norm=kind, eps=eps, band=band)
        for actual in (once, attack(model, x, y, kind, eps, band=band, steps=4)):
            assert actual.dtype == dtype
            assert 0 <= float(actual.min()) <= float(actual.max()) <= 1
            delta = actual.double() - x.double()
            if band is not None:
                moduli, radii = abs(spectrum(delta)), eps * band.double().numpy()
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
    band = radial_band((8, 8), 0.0, 0.3) if kind == "fourier_linf" else None
    options = {"random_start": False, "steps": 4, "band": band}
    together = attack(model, x, y[:9], kind, RADIUS[kind], **options)
    alone = [attack(model, x[[i]], y[[i]], kind, RADIUS[kind], **options) for i in range(9)]
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
        actual = attack(model, x, y, kind, 0.5)
        assert not actual.requires_grad
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

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return attack(model, x, y, kind, 0.3, steps=1, generator=generator)

    first = run(5)
    assert torch.equal(first, run(5))
    assert not torch.equal(first, run(6))
    with torch.no_grad():  # the caller's grad mode does not matter
        assert torch.equal(first, run(5))


@pytest.mark.filterwarnings("ignore:pgd")  # no gradient at x
@pytest.mark.parametrize(("kind", "banded"), CASES)
def test_misclassified_beats_a_larger_loss(kind: AttackNorm, banded: bool) -> None:
    """The worst of four restarts is the worst, example by example, of four single ones."""
    # Outputs (B,): the loss is largest at x itself, but only points away from it are misclassified.
    x, y = torch.full((64, 5), 0.5), torch.ones(64)

    def model(x: Tensor) -> Tensor:
        return 0.01 - (x[:, 0] - 0.5).square()

    def run(restarts: int, generator: torch.Generator) -> Tensor:
        band = torch.ones(5) if banded else None
        start: dict[str, Any] = {"restarts": restarts, "generator": generator, "band": band}
        rest = {"eps": 0.3, "steps": 1, "step_size": 1e-3, "criterion": lambda z, _: z}
        return pgd(model, x, y, norm=kind, **start, **rest)

    actual = run(4, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    singles = [run(1, generator) for _ in range(4)]
    z = torch.stack([model(single) for single in singles])  # (4, B), misclassified at most 0
    worst = [max(range(4), key=lambda i: (z[i, b] <= 0, z[i, b])) for b in range(64)]
    expected = torch.stack([singles[i][b] for b, i in enumerate(worst)])
    assert torch.equal(actual, expected)
    # not in vain: the last restart alone, or the larger loss alone, would give something else
    last_fails, is_wrong = z[-1] > 0, model(expected) <= 0
    assert bool((last_fails & is_wrong).any())
    assert bool((~last_fails & (z[-1] < model(expected))).any())
    assert bool((is_wrong & (z.amax(0) > 0)).any())


# --- bad input


def call(**changes: Any) -> Tensor:
    inputs = {"model": lambda x: x[:, :3], "x": torch.full((2, 4), 0.5), "y": torch.tensor([0, 1])}
    options: dict[str, Any] = {"norm": "linf", "eps": 0.1, "steps": 2, "step_size": 0.1}
    return pgd(**(inputs | options | {"generator": torch.Generator()} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -0.5}, "-0.5"),
        ({"steps": 0}, "steps=0"),
        ({"restarts": 0}, "restarts=0"),
        ({"step_size": 0.0}, "got 0.0"),
        ({"step_size": math.inf}, "got inf"),
        ({"bounds": (1.0, 0.0)}, r"\(1.0, 0.0\)"),
        ({"y": torch.zeros(3).long()}, "2 examples, y 3"),
        ({"x": torch.tensor([[0.5] * 4, [0.5, 1.5, 0.5, 0.5]])}, "got 1.5"),
        ({"x": torch.tensor([[0.5] * 4, [0.5, math.nan, 0.5, 0.5]])}, "got nan"),
        ({"model": lambda x: x[:, 0]}, r"criterion.*\(2,\)"),
        ({"criterion": lambda z, y: z}, r"\(2, 3\)"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_bad_losses_are_named() -> None:
    with pytest.raises(FloatingPointError, match=r"loss .* nan"):
        call(criterion=lambda z, y: z[:, 0] * math.nan)
    with pytest.raises(FloatingPointError, match=r"gradient .* (inf|nan)"):
        call(criterion=lambda z, y: (z[:, 0] - z[:, 0].detach()).sqrt(), random_start=False)


# --- devices


def everything(x: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype, device=x.device)
    y = torch.ones(len(x), dtype=x.dtype, device=x.device)
    low = radial_band((4, 5), 0.1, 0.4)
    options: dict[str, Any] = {"eps": 0.5, "criterion": minus_margin}
    result = []
    for kind, banded in CASES:
        options |= {"norm": kind, "band": low if banded else None}
        steps = {"steps": 2, "step_size": 0.2, "generator": torch.Generator().manual_seed(0)}
        inputs = lambda x: x.flatten(1).sigmoid() @ weights, x.sigmoid(), y
        result += [pgd(*inputs, **options, **steps), fgsm(*inputs, **options)]
    return result


def test_inside_a_meta_context_values_are_the_same(
    same_inside_meta: Callable[..., None], randn: Randn
) -> None:
    same_inside_meta(everything, randn(16, 2, 2, 4, 5))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda: Callable[..., None], randn: Randn) -> None:
    same_on_cuda(everything, randn(16, 2, 2, 4, 5))
