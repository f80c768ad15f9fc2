"""Exact maximum margins: known least norms, duality, other solvers, refusals."""

from __future__ import annotations

import importlib
import math
import pickle
from collections.abc import Callable
from fractions import Fraction

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC
from torch import Tensor

from trainaug.data.binary import binary_problem
from trainaug.methods.linear_robustness import (
    NORMS,
    FourierNorm,
    MaxMargin,
    Norm,
    NotSeparableError,
    SolverFailedError,
    certificate,
    dual,
    max_margin,
    norm,
    robust_error,
    robust_radius,
    second_solver,
    signed_rows,
    steepest_descent_paths,
)

# the package exports the function under the module's name
module = importlib.import_module("trainaug.methods.linear_robustness.max_margin")

Gaussian = Callable[..., tuple[Tensor, Tensor]]
ATTACKS = NORMS
ORDER: dict[Norm, float] = {"l1": 1, "l2": 2, "linf": math.inf}

# Mean over seeds 0-2 of the least l1, l2, linf norm, as docs/sources/optimisation_bias.md has it.
TABLE = {
    100: ("9.077", "1.2843", "0.2049"),
    50: ("4.965", "0.7730", "0.1063"),
    25: ("3.143", "0.5642", "0.0746"),
    12: ("1.908", "0.3727", "0.0474"),
    10: ("1.718", "0.3409", "0.0425"),
    6: ("1.196", "0.2491", "0.0307"),
    3: ("0.734", "0.1781", "0.0221"),
}


def digits(classes: tuple[int, int] = (0, 1), n: int = 60) -> tuple[Tensor, Tensor]:
    X, y, _, _ = binary_problem("digits", classes, n=n, seed=0)
    return torch.from_numpy(X), torch.from_numpy(y)


def assert_certified(result: MaxMargin, X: Tensor, y: Tensor, attack: Norm) -> None:
    """Check both points, the gap between them and the KKT conditions from the data alone."""
    Z = signed_rows(X, y).double()
    size = float(norm(result.w, dual(attack)))
    margins = Z @ result.w
    assert float(margins.min()) == pytest.approx(1, abs=1e-12)
    assert bool((result.lam >= 0).all())
    assert float(norm(result.lam @ Z, attack)) <= 1 + 1e-12
    assert result.eps_star == pytest.approx(1 / size, rel=1e-12)
    assert result.eps_star == pytest.approx(
        float(robust_radius(result.w, X.double(), y, attack)), rel=1e-12
    )
    assert result.upper == pytest.approx(1 / float(result.lam.sum()), rel=1e-12)
    assert -1e-12 <= result.gap <= 1e-6
    assert result.gap == pytest.approx((size - float(result.lam.sum())) / size, abs=1e-12)
    assert float((result.lam * (margins - 1)).abs().max()) <= 1e-6 * size
    assert float(result.lam @ margins) == pytest.approx(size, rel=1e-6)
    assert set(result.kkt) == {"primal", "dual", "complementarity", "stationarity"}
    assert all(0 <= value <= 1e-6 for value in result.kkt.values())


# --- oracles


@pytest.mark.oracle("lin.table")
@pytest.mark.parametrize("n", TABLE)
def test_minimum_norms_match_the_table_to_its_printed_digits(n: int, gaussian: Gaussian) -> None:
    for attack, printed in zip(("linf", "l2", "l1"), TABLE[n], strict=True):
        norms = []
        for seed in range(3):
            X, y = gaussian(n, seed)
            result = max_margin(X, y, attack)
            assert_certified(result, X, y, attack)
            assert float(robust_error(result.w, X, y, attack, 0.999 * result.eps_star)) == 0
            assert float(robust_error(result.w, X, y, attack, 1.001 * result.upper)) > 0
            norms.append(1 / result.eps_star)
        digits = len(printed.split(".")[1])
        half_a_digit = 0.5 * 10**-digits * (1 + 1e-6)
        assert float(np.mean(norms)) == pytest.approx(float(printed), rel=0, abs=half_a_digit)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("classes", [(0, 1), (4, 9)])
def test_digits_are_certified(attack: Norm, classes: tuple[int, int]) -> None:
    X, y = digits(classes)
    result = max_margin(X, y, attack)
    assert_certified(result, X, y, attack)
    assert result.solver == "CLARABEL"


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["gaussian", "digits"])
def test_second_solver_agrees(attack: Norm, name: str, gaussian: Gaussian) -> None:
    X, y = gaussian(12, 0) if name == "gaussian" else digits()
    solver = second_solver(attack)
    assert solver == {"linf": "HIGHS", "l2": "SCS", "l1": "HIGHS"}[attack]
    first, second = max_margin(X, y, attack), max_margin(X, y, attack, solver=solver)
    assert_certified(second, X, y, attack)
    assert second.solver == solver
    assert second.eps_star == pytest.approx(first.eps_star, rel=1e-6)
    # margins only: for l1 and linf the minimiser need not be unique (lin.6.6)


@pytest.mark.parametrize("attack", ATTACKS)
def test_eps_star_is_the_distance_to_the_convex_hull(attack: Norm, gaussian: Gaussian) -> None:
    X, y = gaussian(6, 1, 20)
    q = cp.Variable(6, nonneg=True)
    hull = cp.Problem(
        cp.Minimize(cp.norm(signed_rows(X, y).numpy().T @ q, ORDER[attack])), [cp.sum(q) == 1]
    )
    hull.solve(solver="CLARABEL")
    assert hull.status == "optimal"
    assert max_margin(X, y, attack).eps_star == pytest.approx(hull.value, rel=1e-6)


@pytest.mark.oracle("lin.6.4")
@pytest.mark.parametrize("classes", [(0, 1), (3, 8)])
def test_l2_radius_matches_the_homogeneous_hard_margin_svm(classes: tuple[int, int]) -> None:
    X, y = digits(classes)
    svm = LinearSVC(
        C=1e5, loss="hinge", dual=True, fit_intercept=False, max_iter=10**6, random_state=0
    ).fit(X.numpy(), y.numpy())
    assert svm.n_iter_ < 10**6
    radius = float(robust_radius(torch.from_numpy(svm.coef_[0]), X, y, "l2"))
    exact = max_margin(X, y, "l2")
    assert radius == pytest.approx(exact.eps_star, rel=1e-3)
    assert radius <= exact.upper


@pytest.mark.oracle("lin.6.4")
def test_a_bias_column_changes_eps_star() -> None:
    X, y = torch.tensor([[3.0], [1.0]]).double(), torch.tensor([1, -1])
    with pytest.raises(NotSeparableError):
        max_margin(X, y, "l2")
    with_bias = torch.cat([X, torch.ones(2, 1).double()], 1)
    assert max_margin(with_bias, y, "l2").eps_star > 0


@pytest.mark.oracle("lin.6.6")
def test_identical_columns_have_many_solutions_and_one_margin() -> None:
    X, y = torch.tensor([[2.0, 2.0], [-3.0, -3.0]]).double(), torch.tensor([1, -1])
    interior = max_margin(X, y, "linf")
    vertex = max_margin(X, y, "linf", solver="HIGHS")
    assert interior.eps_star == pytest.approx(2, rel=1e-6)
    assert vertex.eps_star == pytest.approx(2, rel=1e-6)
    cosine = torch.cosine_similarity(interior.w, vertex.w, dim=0)
    assert float(cosine) < 0.99  # both are right, so weights must never be compared
    path = steepest_descent_paths(signed_rows(X, y)[None], ["l1"], record_at=[2000])
    w = path.weights[0, 0, 0]
    assert float(w[1]) == 0  # coordinate descent stays on the first of the tied columns
    assert float(robust_radius(w, X, y, "linf")) == pytest.approx(2, rel=1e-2)


# --- corners and invariances


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("label", [1, -1])
def test_one_point_has_its_own_norm_as_radius(attack: Norm, label: int) -> None:
    X, y = torch.tensor([[3.0, -4.0, 0.5]]).double(), torch.tensor([label])
    result = max_margin(X, y, attack)
    assert_certified(result, X, y, attack)
    assert result.eps_star == pytest.approx(float(norm(X[0], attack)), rel=1e-6)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_eps_star_scales_with_the_data(attack: Norm, scale: float, gaussian: Gaussian) -> None:
    X, y = gaussian(10, 0)
    plain, scaled = max_margin(X, y, attack), max_margin(scale * X, y, attack)
    assert_certified(scaled, scale * X, y, attack)
    assert scaled.eps_star == pytest.approx(scale * plain.eps_star, rel=1e-6)


@pytest.mark.parametrize("attack", ATTACKS)
def test_duplicates_do_not_matter(attack: Norm, gaussian: Gaussian) -> None:
    X, y = gaussian(8, 0)
    result = max_margin(torch.cat([X, X, X[:3]]), torch.cat([y, y, y[:3]]), attack)
    assert_certified(result, torch.cat([X, X, X[:3]]), torch.cat([y, y, y[:3]]), attack)
    assert result.lam.shape == (19,)
    assert result.eps_star == pytest.approx(max_margin(X, y, attack).eps_star, rel=1e-6)


@given(seed=st.integers(0, 10_000), attack=st.sampled_from(ATTACKS))
@settings(max_examples=25, deadline=None)
def test_order_flips_and_further_points(seed: int, attack: Norm) -> None:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(5, generator=generator) > 0.5, 1, -1)
    rows = torch.randperm(5, generator=generator)
    columns = torch.randperm(8, generator=generator)
    eps = max_margin(X, y, attack).eps_star
    assert max_margin(X[rows], y[rows], attack).eps_star == pytest.approx(eps, rel=1e-5)
    assert max_margin(X[:, columns], y, attack).eps_star == pytest.approx(eps, rel=1e-5)
    assert max_margin(-X, -y, attack).eps_star == pytest.approx(eps, rel=1e-5)
    assert max_margin(X[:4], y[:4], attack).eps_star >= eps * (1 - 1e-5)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_other_weights_are_more_robust(attack: Norm, gaussian: Gaussian) -> None:
    X, y = gaussian(10, 0)
    result = max_margin(X, y, attack)
    others = torch.stack([max_margin(X, y, other).w for other in ATTACKS])
    noise = torch.randn(500, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    candidates = torch.cat([others, result.w + 0.01 * result.w.abs().max() * noise])
    assert bool((robust_radius(candidates, X, y, attack) <= result.upper * (1 + 1e-12)).all())


def test_float32_and_inputs_that_require_grad(gaussian: Gaussian) -> None:
    X, y = gaussian(10, 0)
    expected = max_margin(X.float().double(), y, "l2")
    leaf = X.float().requires_grad_()
    before = leaf.detach().clone()
    result = max_margin(leaf, y.to(torch.int8), "l2")
    assert result.w.dtype == result.lam.dtype == torch.float64
    assert not result.w.requires_grad
    assert not result.lam.requires_grad
    assert leaf.grad is None
    assert torch.equal(leaf.detach(), before)
    assert result.eps_star == expected.eps_star


# --- refusals


def assert_witness(error: NotSeparableError, X: Tensor, y: Tensor) -> None:
    """The witness alone must prove it: q in the simplex with Z^T q = 0."""
    Z = signed_rows(X, y)
    assert error.q.shape == (len(X),)
    assert bool((error.q >= 0).all())
    assert float(error.q.sum()) == pytest.approx(1, abs=1e-12)
    distance = float((error.q @ Z).abs().max())
    assert distance <= 1e-7 * float(Z.abs().max())
    assert error.distance == pytest.approx(distance, abs=1e-12)
    assert "not linearly separable" in str(error)


@pytest.mark.oracle("lin.6.5")
@pytest.mark.parametrize("attack", ATTACKS)
def test_iris_versicolor_and_virginica_are_refused_with_a_witness(attack: Norm) -> None:
    X, y = map(torch.from_numpy, binary_problem("iris", (1, 2))[:2])
    with pytest.raises(NotSeparableError) as caught:
        max_margin(X, y, attack)
    assert_witness(caught.value, X, y)
    upper = certificate(torch.ones(4).double(), X, y, attack, caught.value.q).upper
    assert float(upper) == pytest.approx(0, abs=1e-6)  # eps_star <= 0: the same statement


@pytest.mark.oracle("lin.6.5")
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("solver", ["CLARABEL", "second"])
def test_exclusive_or_is_refused_with_a_witness(attack: Norm, scale: float, solver: str) -> None:
    X = scale * torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]).double()
    y = torch.tensor([1, 1, -1, -1])
    with pytest.raises(NotSeparableError) as caught:
        max_margin(X, y, attack, solver=second_solver(attack) if solver == "second" else solver)
    assert_witness(caught.value, X, y)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rows", ["all", "one", "contradiction"])
def test_rows_of_zeros_and_contradictions_are_refused(attack: Norm, rows: str) -> None:
    X, y = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]]).double(), torch.tensor([1, 1, 1])
    if rows == "all":
        X = torch.zeros_like(X)
    elif rows == "one":
        X[1] = 0
    else:
        X, y = torch.cat([X, X[:1]]), torch.tensor([1, 1, 1, -1])
    with pytest.raises(NotSeparableError) as caught:
        max_margin(X, y, attack)
    assert_witness(caught.value, X, y)


def test_not_separable_is_a_value_error_and_solver_failure_is_not() -> None:
    assert issubclass(NotSeparableError, ValueError)
    assert issubclass(SolverFailedError, RuntimeError)
    assert not issubclass(SolverFailedError, ValueError)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize(
    ("solver", "options", "attack", "status"),
    [
        ("CLARABEL", {"max_iter": 1}, "l2", "user_limit"),
        ("HIGHS", {"simplex_iteration_limit": 1}, "linf", "user_limit"),
        ("SCS", {"max_iters": 1}, "l2", "inaccurate"),
    ],
)
def test_a_status_other_than_optimal_is_an_error_that_names_it(
    solver: str,
    options: dict[str, float],
    attack: Norm,
    status: str,
    gaussian: Gaussian,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(module._OPTIONS, solver, options)
    with pytest.raises(SolverFailedError, match=rf"{solver}.*{status}.*\(10, 100\)"):
        max_margin(*gaussian(10, 0), attack, solver=solver)


def test_a_solver_for_another_kind_of_program_is_an_error(gaussian: Gaussian) -> None:
    with pytest.raises(SolverFailedError, match="HIGHS"):
        max_margin(*gaussian(3, 0), "l2", solver="HIGHS")


def test_unknown_solver_and_attack_are_named(gaussian: Gaussian) -> None:
    with pytest.raises(ValueError, match="unknown solver 'MOSEK', expected one of CLARABEL, HIGHS"):
        max_margin(*gaussian(3, 0), "l2", solver="MOSEK")
    with pytest.raises(ValueError, match="unknown norm 'l4'"):
        max_margin(*gaussian(3, 0), "l4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown norm 'l4'"):
        second_solver("l4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (torch.ones(3), torch.ones(3), r"X must have shape \(N, D\)"),
        (torch.ones(0, 2), torch.ones(0), "N, D >= 1"),
        (torch.ones(2, 2), torch.ones(3), r"y must have shape \(2,\)"),
        (torch.ones(2, 2), torch.tensor([0, 1]), r"labels must be -1 or \+1, got \[0\]"),
        (torch.full((2, 2), math.nan), torch.ones(2), "finite, row 0"),
        (torch.full((2, 2), math.inf), torch.ones(2), "finite, row 0"),
    ],
)
def test_malformed_data_are_refused_before_a_solve(
    X: Tensor, y: Tensor, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_solve", lambda *_: pytest.fail("a solver ran"))
    with pytest.raises(ValueError, match=message):
        max_margin(X, y, "l2")


def stamps(base: float) -> tuple[Tensor, Tensor]:
    """A large column that tells nothing beside a small one that is the label."""
    generator = torch.Generator().manual_seed(3)
    y = torch.where(torch.rand(30, generator=generator) > 0.5, 1, -1)
    large = base + torch.randint(0, 500, (30,), generator=generator)
    return torch.stack([large.double(), y.double()], 1), y


@pytest.mark.parametrize("attack", [*ATTACKS, FourierNorm("linf", (2,)), FourierNorm("l1", (2,))])
@pytest.mark.parametrize("base", [1e3, 1e7, 2e9])
@pytest.mark.parametrize("flag", [1.0, 1e-3])
def test_unscaled_columns_are_solved_exactly(attack: Norm, base: float, flag: float) -> None:
    X, y = stamps(base)
    X[:, 1] *= flag
    # w = (0, 1 / flag) attains flag, and the hull of the rows holds (0, flag)
    factor = math.sqrt(2) if attack == FourierNorm("l1", (2,)) else 1
    factor = math.sqrt(0.5) if attack == FourierNorm("linf", (2,)) else factor
    flag *= factor  # the Fourier norm of (0, 1)
    result = max_margin(X, y, attack)
    assert result.eps_star == pytest.approx(flag, rel=1e-3)
    assert result.upper == pytest.approx(flag, rel=1e-3)
    assert float(robust_radius(result.w, X, y, attack)) == pytest.approx(flag, rel=1e-3)
    q = result.lam / result.lam.sum()
    assert float(certificate(result.w, X, y, attack, q).upper) == pytest.approx(flag, rel=1e-3)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("scales", [(1.0, 1e-9), (1e9, 1.0), (1e-9, 1e9), (1e-9, 1e-9)])
def test_one_row_of_any_scale_and_a_column_of_zeros(
    attack: Norm, scales: tuple[float, float]
) -> None:
    X = torch.tensor([[3 * scales[0], 0.0, -2 * scales[1]]], dtype=torch.float64)
    result = max_margin(X, torch.tensor([-1]), attack)
    assert result.eps_star == pytest.approx(float(norm(X[0], attack)), rel=1e-4)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("margin", [1e-3, 1e-6, 1e-9, 1e-12])
def test_tiny_margins_are_found_or_left_open_and_never_denied(attack: Norm, margin: float) -> None:
    X = torch.tensor([[1.0, 2.0 + margin], [1.0, 2.0 - margin]], dtype=torch.float64)
    y = torch.tensor([1, -1])  # w = (-2, 1) / margin has margins 1
    try:
        result = max_margin(X, y, attack)
    except SolverFailedError:
        assert margin < 1e-6
    else:
        assert float((signed_rows(X, y) @ result.w).min()) == pytest.approx(1, abs=1e-6)
        radius = float(robust_radius(torch.tensor([-2.0, 1.0]), X, y, attack))
        assert result.upper >= radius * (1 - 1e-9)  # rounding of margins of 1e-6


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_witness_is_exact_in_columns_of_any_scale(attack: Norm) -> None:
    X = torch.tensor([[1.7e9, 1e-9], [1.7e9, -1e-9], [-1.7e9, 2e-9], [-1.7e9, -2e-9]]).double()
    y = torch.tensor([1, 1, 1, 1])
    with pytest.raises(NotSeparableError) as caught:
        max_margin(X, y, attack)
    total = [
        sum(Fraction(q) * Fraction(z) for q, z in zip(caught.value.q.tolist(), column, strict=True))
        for column in X.T.tolist()
    ]
    assert all(
        abs(value) <= 1e-15 * float(column.max()) for value, column in zip(total, X.T, strict=True)
    )


def test_an_error_with_a_witness_survives_a_process_boundary() -> None:
    with pytest.raises(NotSeparableError) as caught:
        max_margin(torch.ones(2, 3), torch.tensor([1, -1]), "l2")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert str(again) == str(caught.value)
    assert torch.equal(again.q, caught.value.q)
    assert again.distance == caught.value.distance


@pytest.mark.parametrize("entry", [1e-200, 1e200])
def test_entries_whose_squares_leave_the_range_are_refused(entry: float) -> None:
    with pytest.raises(ValueError, match="largest entry of X must be between"):
        max_margin(torch.full((2, 2), entry, dtype=torch.float64), torch.tensor([1, 1]), "l2")


def test_unsigned_labels_are_refused_and_half_precision_is_solved_in_float64() -> None:
    X = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])
    with pytest.raises(ValueError, match="unsigned bytes"):
        max_margin(X, torch.tensor([1, 255], dtype=torch.uint8), "l2")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu"):
            result = max_margin(X.to(dtype), torch.tensor([1, -1], dtype=torch.int8), "l2")
        assert result.w.dtype == torch.float64
        assert result.eps_star == pytest.approx(5, rel=1e-6)


# --- devices


@pytest.mark.parametrize("attack", ATTACKS)
def test_inside_a_meta_context_values_are_the_same(
    attack: Norm, same_inside_meta: Callable[..., None], gaussian: Gaussian
) -> None:
    same_inside_meta(lambda X, y: max_margin(X, y, attack), *gaussian(6, 0, 10))


@pytest.mark.parametrize("fill", ["zeros", "contradiction"])
def test_inside_a_meta_context_witnesses_are_the_same(
    fill: str, same_inside_meta: Callable[..., None]
) -> None:
    X = torch.zeros(2, 3) if fill == "zeros" else torch.ones(2, 3)

    def witness(X: Tensor, y: Tensor) -> Tensor:
        with pytest.raises(NotSeparableError) as caught:
            max_margin(X, y, "l2")
        return caught.value.q

    same_inside_meta(witness, X.double(), torch.tensor([1, -1]))


@pytest.mark.gpu
@pytest.mark.parametrize("attack", ATTACKS)
def test_on_cuda_values_are_the_same(
    attack: Norm, same_on_cuda: Callable[..., None], gaussian: Gaussian
) -> None:
    same_on_cuda(lambda X, y: max_margin(X, y, attack), *gaussian(6, 0, 10))
