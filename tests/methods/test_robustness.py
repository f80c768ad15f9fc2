"""Exact robustness against explicit perturbations, brute force, attacks and certificates."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainaug.methods.linear_robustness import (
    NORMS,
    Norm,
    certificate,
    dual,
    dual_vector,
    max_margin,
    norm,
    project,
    robust_error,
    robust_radius,
    signed_rows,
    steepest_descent_paths,
    worst_case_margin,
    worst_case_perturbation,
)

Randn = Callable[..., Tensor]
Gaussian = Callable[..., tuple[Tensor, Tensor]]
ATTACKS = NORMS


def problem(randn: Randn, n: int = 7, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw weights, inputs and labels; not separable in general."""
    X = randn(seed, n, d)
    return randn(seed + 1, d), X, torch.where(randn(seed + 2, n) > 0, 1.0, -1.0).double()


def separator(X: Tensor, y: Tensor) -> Tensor:
    """Least-norm interpolation of the labels, a separator when N <= D."""
    return torch.linalg.lstsq(X, y.unsqueeze(1), driver="gelsd").solution.squeeze(1)


# --- closed form


@pytest.mark.oracle("lin.6.1")
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("eps", [0.0, 0.1, 3.0])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 6), (9, 4)])
def test_margin_is_the_closed_form_and_the_perturbation_attains_it(
    attack: Norm, eps: float, n: int, d: int, randn: Randn
) -> None:
    w, X, y = problem(randn, n, d)
    margins = worst_case_margin(w, X, y, attack, eps)
    delta = worst_case_perturbation(w, y, attack, eps)
    sizes = {"linf": w.abs().sum(), "l2": w.square().sum().sqrt(), "l1": w.abs().max()}  # duals
    for i in range(n):
        closed = float(y[i] * (X[i] @ w)) - eps * float(sizes[attack])
        assert float(margins[i]) == pytest.approx(closed, abs=1e-10)
        assert float(y[i] * ((X[i] + delta[i]) @ w)) == pytest.approx(closed, abs=1e-10)
        assert float(norm(delta[i], attack)) <= eps * (1 + 1e-12)


@pytest.mark.parametrize("attack", ["l1", "linf"])
def test_margin_is_the_minimum_over_all_vertices_of_the_ball(attack: Norm, randn: Randn) -> None:
    d, eps = 4, 0.8
    w, X, y = problem(randn, 6, d, seed=10)
    if attack == "l1":
        vertices = torch.cat([torch.eye(d), -torch.eye(d)])
    else:
        vertices = torch.tensor(list(product([-1.0, 1.0], repeat=d)))
    moved = X.unsqueeze(1) + eps * vertices.double()  # (N, V, D)
    brute = (y.unsqueeze(1) * (moved @ w)).amin(1)
    torch.testing.assert_close(worst_case_margin(w, X, y, attack, eps), brute, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_random_perturbation_is_worse(attack: Norm, randn: Randn) -> None:
    w, X, y = problem(randn, 5, 3, seed=20)
    delta = randn(23, 4000, 3)
    delta = 0.5 * delta / norm(delta, attack).unsqueeze(-1)  # on the sphere
    margins = y * ((X + delta.unsqueeze(1)) @ w)  # (4000, N)
    worst = worst_case_margin(w, X, y, attack, 0.5)
    assert bool((margins >= worst - 1e-12).all())
    assert bool((margins.amin(0) <= worst + 0.05).all())  # many draws come close in D = 3


@pytest.mark.oracle("lin.6.1")
@pytest.mark.parametrize("attack", ATTACKS)
def test_projected_gradient_attack_reaches_but_never_exceeds_it(attack: Norm, randn: Randn) -> None:
    w, X, y = problem(randn, 6, 8, seed=30)
    eps = 0.4
    worst = worst_case_margin(w, X, y, attack, eps)
    delta = torch.zeros_like(X)
    for _ in range(50):
        delta = project(delta - 100 * y.unsqueeze(1) * w, attack, eps)
        margins = y * ((X + delta) * w).sum(1)
        assert bool((margins >= worst - 1e-10).all())
    torch.testing.assert_close(margins, worst, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("attack", ATTACKS)
def test_batches_of_weights_match_one_at_a_time(
    attack: Norm, dtype: torch.dtype, randn: Randn
) -> None:
    W = randn(40, 2, 3, 5, dtype=dtype)
    X, y = randn(41, 6, 5, dtype=dtype), torch.tensor([1, -1, 1, 1, -1, -1])
    tol = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    margins = worst_case_margin(W, X, y, attack, 0.3)
    errors = robust_error(W, X, y, attack, 0.3)
    radii = robust_radius(W, X, y, attack)
    bounds = certificate(W, X, y, attack)
    assert margins.shape == (2, 3, 6)
    assert errors.shape == radii.shape == bounds.lower.shape == bounds.upper.shape == (2, 3)
    assert {t.dtype for t in (margins, errors, radii, *bounds)} == {dtype}
    for i, j in product(range(2), range(3)):
        w = W[i, j]
        torch.testing.assert_close(margins[i, j], worst_case_margin(w, X, y, attack, 0.3), **tol)
        torch.testing.assert_close(errors[i, j], robust_error(w, X, y, attack, 0.3), **tol)
        torch.testing.assert_close(radii[i, j], robust_radius(w, X, y, attack), **tol)
        single = certificate(w, X, y, attack)
        torch.testing.assert_close(bounds.lower[i, j], single.lower, **tol)
        torch.testing.assert_close(bounds.upper[i, j], single.upper, **tol)


@pytest.mark.parametrize("attack", ATTACKS)
def test_error_counts_margins_at_or_below_zero(attack: Norm, randn: Randn) -> None:
    w, X, y = problem(randn, 40, 6, seed=50)
    for eps in (0.0, 0.2, 1.0, 100.0):
        wrong = 0
        for i in range(40):
            moved = X[i] + worst_case_perturbation(w, y[i : i + 1], attack, eps)[0]
            wrong += float(y[i] * (moved @ w)) <= 0
        assert float(robust_error(w, X, y, attack, eps)) == pytest.approx(wrong / 40)
    assert float(robust_error(w, X, y, attack, 100.0)) == 1.0


def test_a_margin_of_exactly_zero_is_an_error() -> None:
    X, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1])
    w = torch.tensor([1.0, 0.0])
    assert float(robust_error(w, X, y, "l2", 0.0)) == 0.5
    assert float(robust_radius(w, X, y, "l2")) == 0.0
    assert float(robust_error(w, X[:1], y[:1], "l2", 1.0)) == 1.0


# --- radius


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("n", [1, 6, 25])
def test_first_input_flips_between_999_and_1001_thousandths_of_the_radius(
    attack: Norm, n: int, gaussian: Gaussian
) -> None:
    X, y = gaussian(n, 0)
    w = separator(X, y)
    radius = float(robust_radius(w, X, y, attack))
    assert radius > 0
    for fraction, flips in ((0.0, 0), (0.5, 0), (0.999, 0), (1.001, 1)):
        moved = X + worst_case_perturbation(w, y, attack, fraction * radius)
        wrong = int((y * (moved @ w) <= 0).sum())
        assert (wrong > 0) == bool(flips)
        assert float(robust_error(w, X, y, attack, fraction * radius)) == wrong / n


def test_radius_is_negative_where_an_input_is_misclassified() -> None:
    X, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1, -1])
    assert float(robust_radius(torch.tensor([1.0, 1.0]), X, y, "linf")) == -1.0


@given(seed=st.integers(0, 999), c=st.floats(1e-6, 1e6), attack=st.sampled_from(ATTACKS))
@settings(max_examples=100, deadline=None)
def test_radius_ignores_the_length_of_w_and_the_order_of_the_data(
    seed: int, c: float, attack: Norm
) -> None:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    w = torch.randn(4, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(6, generator=generator) > 0.5, 1, -1)
    order = torch.randperm(6, generator=generator)
    radius = robust_radius(w, X, y, attack)
    torch.testing.assert_close(robust_radius(c * w, X, y, attack), radius)
    torch.testing.assert_close(robust_radius(w, X[order], y[order], attack), radius)
    torch.testing.assert_close(robust_radius(-w, X, -y, attack), radius)
    torch.testing.assert_close(robust_radius(w, c * X, y, attack), c * radius)


# --- certificate


@pytest.mark.oracle("lin.6.3")
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("step", ["log_loss", "constant", "normalized"])
@pytest.mark.parametrize("n", [4, 12])
def test_sandwich_holds_at_every_step_of_a_run(
    attack: Norm, step: str, n: int, gaussian: Gaussian
) -> None:
    X, y = gaussian(n, 1)
    exact = max_margin(X, y, attack)
    path = steepest_descent_paths(
        signed_rows(X, y).unsqueeze(0),
        NORMS,  # any optimiser's iterate has to satisfy it, not only the matching one
        record_at=range(1, 301),
        step=step,  # type: ignore[arg-type]
        lr=0.1 if step == "normalized" else 1.0,
    )
    bounds = certificate(path.weights[:, 0], X, y, attack)
    assert bounds.lower.shape == (300, 3)
    assert bool((bounds.lower <= exact.upper * (1 + 1e-12)).all())
    assert bool((bounds.upper >= exact.eps_star * (1 - 1e-12)).all())
    logistic = torch.sigmoid(-(path.weights[:, 0] @ signed_rows(X, y).T))
    q = logistic / logistic.sum(-1, keepdim=True)
    assert bool((certificate(path.weights[:, 0], X, y, attack, q).upper >= exact.eps_star).all())


@pytest.mark.parametrize("attack", ATTACKS)
def test_certificate_closes_at_the_solution(attack: Norm, gaussian: Gaussian) -> None:
    X, y = gaussian(10, 2)
    exact = max_margin(X, y, attack)
    lower, upper = certificate(exact.w, X, y, attack, exact.lam / exact.lam.sum())
    assert float(lower) == pytest.approx(exact.eps_star, rel=1e-12)
    assert float(upper) == pytest.approx(exact.upper, rel=1e-12)
    assert float(upper / lower) == pytest.approx(1, abs=1e-6)  # solver tolerance


def test_default_q_gives_the_gradient_of_the_log_loss(randn: Randn) -> None:
    w, X, y = problem(randn, 8, 5, seed=60)
    w.requires_grad_()
    torch.logsumexp(-(signed_rows(X, y) @ w), 0).backward()
    for attack in ATTACKS:
        upper = certificate(w.detach(), X, y, attack).upper
        torch.testing.assert_close(upper, norm(w.grad, attack))


@pytest.mark.parametrize(
    ("q", "message"),
    [
        ([0.5, 0.5], r"q must have shape \(\.\.\., 3\), got \(2,\)"),
        (1.0, r"q must have shape \(\.\.\., 3\), got \(\)"),
        ([0.5, 0.5, 0.5], "sum off by 0.5"),
        ([0.3, 0.3, 0.3], "sum off by 0.0999"),
        ([2.0, -1.0, 0.0], "smallest -1.0"),
        ([math.nan, 0.5, 0.5], "sum off by nan"),
    ],
)
def test_q_outside_the_simplex_is_refused(q: object, message: str, randn: Randn) -> None:
    w, X, y = problem(randn, 3, 2)
    with pytest.raises(ValueError, match=message):
        certificate(w, X, y, "l2", torch.tensor(q).double())


# --- gradients


@pytest.mark.parametrize("attack", ATTACKS)
def test_gradient_reaches_the_weights_and_inputs(attack: Norm, randn: Randn) -> None:
    w, X, y = problem(randn, 3, 4, seed=70)
    w.requires_grad_()
    X.requires_grad_()
    worst_case_margin(w, X, y, attack, 0.3)[1].backward()
    expected = (y[1] * X[1] - 0.3 * dual_vector(w, dual(attack))).detach()
    torch.testing.assert_close(w.grad, expected)
    assert torch.equal(X.grad[1], y[1] * w.detach())
    assert torch.equal(X.grad[[0, 2]], torch.zeros(2, 4).double())


# --- bad input

OK_X, OK_Y, OK_W = torch.ones(3, 2), torch.tensor([1, -1, 1]), torch.ones(2)
BAD_DATA = {
    "X of one dimension": (torch.ones(3), OK_Y, r"X must have shape \(N, D\).*got \(3,\)"),
    "X of three dimensions": (torch.ones(3, 2, 1), OK_Y, r"got \(3, 2, 1\)"),
    "no rows": (torch.ones(0, 2), torch.ones(0), r"N, D >= 1, got \(0, 2\)"),
    "no features": (torch.ones(3, 0), OK_Y, r"N, D >= 1, got \(3, 0\)"),
    "too few labels": (OK_X, OK_Y[:2], r"y must have shape \(3,\), got \(2,\)"),
    "labels as a column": (OK_X, OK_Y.unsqueeze(1), r"y must have shape \(3,\), got \(3, 1\)"),
    "labels 0/1": (OK_X, torch.tensor([0, 1, 1]), r"labels must be -1 or \+1, got \[0\]"),
    "label 0.5": (OK_X, torch.tensor([0.5, -1, 1]), r"-1 or \+1, got \[0.5\]"),
    "boolean labels": (OK_X, torch.tensor([True, False, True]), "labels must be .*got torch.bool"),
    "bytes for -1": (OK_X, 2 * torch.tensor([1, 0, 1]).byte() - 1, r"got \[255\]; unsigned bytes"),
    "NaN label": (OK_X, torch.tensor([math.nan, 1, 1]), r"labels must be -1 or \+1, got"),
    "NaN input": (torch.tensor([[0, 0], [0, math.nan], [0, 0]]), OK_Y, "finite, row 1"),
    "infinite input": (torch.tensor([[0, 0], [0, 0], [math.inf, 0]]), OK_Y, "finite, row 2"),
    "integer input": (torch.ones(3, 2, dtype=torch.int64), OK_Y, "floating point, got torch.int64"),
}
FUNCTIONS: dict[str, Callable[..., object]] = {
    "signed_rows": lambda w, X, y, attack: signed_rows(X, y),
    "worst_case_margin": lambda w, X, y, attack: worst_case_margin(w, X, y, attack, 0.1),
    "robust_error": lambda w, X, y, attack: robust_error(w, X, y, attack, 0.1),
    "robust_radius": robust_radius,
    "certificate": certificate,
}


@pytest.mark.parametrize("case", BAD_DATA)
@pytest.mark.parametrize("call", FUNCTIONS)
def test_malformed_data_are_refused(call: str, case: str) -> None:
    X, y, message = BAD_DATA[case]
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[call](OK_W, X, y, "l2")


@pytest.mark.parametrize("call", [name for name in FUNCTIONS if name != "signed_rows"])
@pytest.mark.parametrize(
    ("w", "message"),
    [
        (torch.ones(3), r"w must have shape \(\.\.\., 2\), got \(3,\)"),
        (torch.tensor(1.0), r"w must have shape \(\.\.\., 2\), got \(\)"),
        (torch.tensor([1.0, math.nan]), "w must be finite"),
        (torch.tensor([[1.0, 1.0], [math.inf, 1.0]]), "w must be finite"),
    ],
    ids=["length", "scalar", "nan", "inf"],
)
def test_malformed_weights_are_refused(call: str, w: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[call](w, OK_X, OK_Y, "l2")


@pytest.mark.parametrize("call", [name for name in FUNCTIONS if name != "signed_rows"])
def test_unknown_attack_is_named(call: str) -> None:
    with pytest.raises(ValueError, match="unknown norm 'l7'"):
        FUNCTIONS[call](OK_W, OK_X, OK_Y, "l7")


@pytest.mark.parametrize("call", [robust_radius, certificate])
@pytest.mark.parametrize("w", [torch.zeros(2), torch.tensor([[1.0, 1.0], [0.0, 0.0]])])
def test_radius_of_zero_weights_is_refused(call: Callable[..., object], w: Tensor) -> None:
    with pytest.raises(ValueError, match="w = 0"):
        call(w, OK_X, OK_Y, "l2")


@pytest.mark.parametrize("eps", [-1e-12, -1.0, math.nan, math.inf])
def test_negative_or_missing_radius_is_refused(eps: float) -> None:
    for call in (worst_case_margin, robust_error):
        with pytest.raises(ValueError, match=f"eps must be finite and at least 0, got {eps}"):
            call(OK_W, OK_X, OK_Y, "l2", eps)
    with pytest.raises(ValueError, match=f"got {eps}"):
        worst_case_perturbation(OK_W, OK_Y, "l2", eps)


@pytest.mark.parametrize(
    ("w", "y", "attack", "eps", "message"),
    [
        (OK_W, OK_Y, "l2", math.inf, "finite and at least 0, got inf"),
        (OK_W, OK_Y, "l7", 1.0, "unknown norm 'l7'"),
        (OK_W, torch.tensor([0, 1]), "l2", 1.0, r"labels must be -1 or \+1, got \[0\]"),
        (OK_W, torch.tensor([1, 255]).byte(), "l2", 1.0, r"got \[255\]; unsigned bytes"),
        (OK_W, torch.tensor([0.5]), "l1", 1.0, r"labels must be -1 or \+1, got \[0.5\]"),
        (OK_W, OK_Y.unsqueeze(1), "l2", 1.0, r"y of shape \(N,\), got \(2,\), \(3, 1\)"),
        (torch.ones(2, 2), OK_Y, "l2", 1.0, r"w of shape \(D,\)"),
        (torch.tensor([math.nan, 1.0]), OK_Y, "linf", 1.0, "finite w"),
    ],
)
def test_malformed_perturbation_request_is_refused(
    w: Tensor, y: Tensor, attack: Norm, eps: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        worst_case_perturbation(w, y, attack, eps)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.float16])
def test_labels_of_every_signed_type_give_the_same(dtype: torch.dtype, randn: Randn) -> None:
    w, X, y = problem(randn)
    for call in FUNCTIONS.values():
        torch.testing.assert_close(call(w, X, y.to(dtype), "l1"), call(w, X, y, "l1"))
    perturbation = worst_case_perturbation(w, y.to(dtype), "l1", 0.1)
    assert torch.equal(perturbation, worst_case_perturbation(w, y, "l1", 0.1))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16, torch.float32])
def test_bounds_come_in_the_wider_type_and_at_least_float32(
    attack: Norm, narrow: torch.dtype, randn: Randn
) -> None:
    w, X, y = problem(randn, 30, 40, seed=80)
    w, X = (100 * w).to(narrow), (100 * X).to(narrow)  # margins above the largest float16
    least = torch.float32
    for call in list(FUNCTIONS.values())[1:]:
        exact = call(w.double(), X.double(), y, attack)
        for a, b in ((w, X), (w.double(), X), (w, X.double())):
            with torch.autocast("cpu"):  # would round the products
                actual = call(a, b, y, attack)
            wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else least
            for one, two in zip(parts(actual), parts(exact), strict=True):
                assert one.dtype == wide
                bound = 1e-5 if wide == least else 1e-12
                scale = float(two.abs().max()) + 1
                torch.testing.assert_close(one.double(), two, rtol=0, atol=bound * scale)
    delta = worst_case_perturbation(w, y, attack, 0.5)
    assert delta.dtype == narrow
    assert bool(delta.isfinite().all())


def parts(actual: object) -> list[Tensor]:
    return [actual] if isinstance(actual, Tensor) else list(actual)  # type: ignore[call-overload]


@pytest.mark.parametrize("call", [name for name in FUNCTIONS if name != "signed_rows"])
def test_bounds_that_floats_do_not_hold_are_refused(call: str) -> None:
    X, y = torch.full((2, 4), 1e200, dtype=torch.float64), torch.tensor([1, 1])
    with pytest.raises(ValueError, match="margins leave the range"):
        FUNCTIONS[call](torch.full((4,), 1e200, dtype=torch.float64), X, y, "l2")
    with pytest.raises(ValueError, match=r"w must be floating point, got torch\.int64"):
        FUNCTIONS[call](torch.ones(2, dtype=torch.int64), OK_X, OK_Y, "l2")
    with pytest.raises(ValueError, match="w must be on the device of X, cpu, got meta"):
        FUNCTIONS[call](torch.ones(2, device="meta"), OK_X, OK_Y, "l2")
    with pytest.raises(ValueError, match="meta device"):
        FUNCTIONS[call](OK_W, OK_X.to("meta"), OK_Y, "l2")


def test_weights_whose_margins_are_rounding_errors_have_no_radius() -> None:
    X, y, w = torch.tensor([[1.0, -1.0]]), torch.tensor([1]), torch.tensor([3e-45, 1.4e-45])
    for call in (robust_radius, certificate):
        with pytest.raises(ValueError, match="w is too small"):
            call(w, X, y, "l2")


# --- devices


def everything(w: Tensor, X: Tensor, y: Tensor) -> list[object]:
    return [signed_rows(X, y)] + [
        result
        for attack in ATTACKS
        for result in (
            worst_case_margin(w, X, y, attack, 0.2),
            worst_case_perturbation(w, y, attack, 0.2),
            robust_error(w, X, y, attack, 0.2),
            robust_radius(w, X, y, attack),
            certificate(w, X, y, attack),
            certificate(w, X, y, attack, torch.full_like(y, 1 / len(y))),
        )
    ]


def test_inside_a_meta_context_values_are_the_same(
    same_inside_meta: Callable[..., None], randn: Randn
) -> None:
    same_inside_meta(everything, *problem(randn))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda: Callable[..., None], randn: Randn) -> None:
    same_on_cuda(everything, *problem(randn))
