"""Norms, duals, dual vectors and projections against loops, numpy and cvxpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainaug.methods.linear_robustness import NORMS, Norm, dual, dual_vector, norm, project
from trainaug.norms import check_norm, measured

Randn = Callable[..., Tensor]
ORDER: dict[Norm, float] = {"l1": 1, "l2": 2, "linf": math.inf}
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}  # tolerance: about 100 rounding errors
SHAPES = [(1,), (7,), (3, 1), (4, 6), (2, 3, 5), (0, 4)]

# Few distinct values, so that ties and zeros are common.
vectors = st.lists(st.sampled_from([-3.0, -1.5, -1.0, 0.0, 0.25, 1.0, 2.0]), min_size=1, max_size=8)
reals = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8)
radii = st.floats(0, 10)
kinds = st.sampled_from(NORMS)


def naive_norm(x: list[float], kind: Norm) -> float:
    if kind == "l1":
        total = 0.0
        for value in x:
            total += abs(value)
        return total
    if kind == "l2":
        total = 0.0
        for value in x:
            total += value * value
        return math.sqrt(total)
    largest = 0.0
    for value in x:
        largest = max(largest, abs(value))
    return largest


def naive_dual_vector(x: list[float], kind: Norm) -> list[float]:
    def sign(value: float) -> float:
        return (value > 0) - (value < 0)

    if kind == "l1":
        return [sign(value) for value in x]
    if kind == "l2":
        length = naive_norm(x, "l2")
        return [value / length if length else 0.0 for value in x]
    best = 0
    for j, value in enumerate(x):
        if abs(value) > abs(x[best]):
            best = j
    return [sign(value) if j == best else 0.0 for j, value in enumerate(x)]


# --- values


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_matches_numpy_and_a_loop(
    kind: Norm, shape: tuple[int, ...], dtype: torch.dtype, randn: Randn
) -> None:
    x = randn(0, *shape, dtype=dtype)
    result = norm(x, kind)
    assert result.shape == shape[:-1]
    assert result.dtype == dtype
    if result.numel():
        expected = np.linalg.norm(x.double().numpy(), ord=ORDER[kind], axis=-1)
        np.testing.assert_allclose(result.numpy(), expected, rtol=DTYPES[dtype])
    for index in product(*map(range, shape[:-1])):
        expected_loop = naive_norm(x[index].tolist(), kind)
        assert float(result[index]) == pytest.approx(expected_loop, rel=DTYPES[dtype])


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dual_vector_matches_a_loop(
    kind: Norm, shape: tuple[int, ...], dtype: torch.dtype, randn: Randn
) -> None:
    x = randn(1, *shape, dtype=dtype)
    v = dual_vector(x, kind)
    assert v.shape == shape
    assert v.dtype == dtype
    for index in product(*map(range, shape[:-1])):
        expected = naive_dual_vector(x[index].tolist(), kind)
        assert v[index].tolist() == pytest.approx(expected, abs=DTYPES[dtype])


def test_dual_is_an_involution_that_swaps_l1_and_linf() -> None:
    assert [dual(kind) for kind in ("l1", "l2", "linf")] == ["linf", "l2", "l1"]
    assert all(dual(dual(kind)) == kind for kind in NORMS)


@pytest.mark.parametrize("kind", NORMS)
def test_norm_is_the_support_function_of_the_dual_ball(kind: Norm, randn: Randn) -> None:
    w = randn(2, 6)
    delta = cp.Variable(6)
    program = cp.Problem(cp.Maximize(w.numpy() @ delta), [cp.norm(delta, ORDER[dual(kind)]) <= 1])
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    assert float(norm(w, kind)) == pytest.approx(program.value, rel=1e-6)  # solver tolerance


# --- Hölder and subgradients


@pytest.mark.oracle("lin.6.2")
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hoelder_holds_with_equality_at_the_dual_vector(
    kind: Norm, dtype: torch.dtype, randn: Randn
) -> None:
    tol = DTYPES[dtype]
    w, v = randn(3, 200, 9, dtype=dtype), randn(4, 200, 9, dtype=dtype)
    assert bool((norm(w, kind) * norm(v, dual(kind)) >= (w * v).sum(-1) - tol).all())
    best = dual_vector(w, kind)
    torch.testing.assert_close(norm(best, dual(kind)), torch.ones(200, dtype=dtype))
    torch.testing.assert_close((w * best).sum(-1), norm(w, kind), rtol=tol, atol=tol)


@given(kind=kinds, x=vectors, data=st.data())
@settings(max_examples=150, deadline=None)
def test_dual_vector_is_a_subgradient(kind: Norm, x: list[float], data: st.DataObject) -> None:
    size = len(x)
    other = data.draw(st.lists(st.floats(-5, 5), min_size=size, max_size=size))
    a, u = torch.tensor(x).double(), torch.tensor(other).double()
    v = dual_vector(a, kind)
    assert float(norm(u, kind)) >= float(norm(a, kind) + v @ (u - a)) - 1e-9  # rounding


@pytest.mark.parametrize("kind", NORMS)
def test_gradient_of_the_norm_is_the_dual_vector(kind: Norm, randn: Randn) -> None:
    x = randn(5, 4, 6).requires_grad_()
    norm(x, kind).sum().backward()
    torch.testing.assert_close(x.grad, dual_vector(x.detach(), kind))


# --- corners


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_vector_has_norm_zero_and_subgradient_zero(kind: Norm, dtype: torch.dtype) -> None:
    zero = torch.zeros(2, 4, dtype=dtype)
    assert torch.equal(norm(zero, kind), zero[:, 0])
    assert torch.equal(dual_vector(zero, kind), zero)
    assert torch.equal(project(zero, kind, 1.0), zero)


@pytest.mark.oracle("lin.6.8")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 0.0, math.inf, math.nan])
def test_loops_measure_to_the_last_bit_as_everyone(dtype: torch.dtype, scale: float) -> None:
    exponent = 1 if dtype == torch.float32 else 7  # then squares leave the range of either type
    x = torch.tensor([[3.0, -4.0, 0.5], [1.0, 2.0, 2.0]], dtype=dtype)
    x[1] *= scale**exponent
    for kind in NORMS:
        torch.testing.assert_close(measured(x, kind), norm(x, kind), rtol=0, atol=0, equal_nan=True)
    if math.isfinite(scale):
        assert float(measured(x, "l2")[1]) == pytest.approx(3 * scale**exponent, rel=1e-6)


def test_linf_takes_the_first_of_tied_coordinates() -> None:
    x = torch.tensor([[1.0, -2.0, 2.0, -2.0], [-1.0, 1.0, 1.0, 0.5], [3.0, 3.0, 3.0, 3.0]])
    expected = torch.tensor([[0.0, -1, 0, 0], [-1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    assert torch.equal(dual_vector(x, "linf"), expected)


@pytest.mark.oracle("lin.6.8")
def test_identical_columns_are_treated_alike_except_by_linf(randn: Randn) -> None:
    column = randn(6, 50, 1)
    x = column.expand(50, 3)
    for kind in ("l1", "l2"):
        v = dual_vector(x, kind)
        assert torch.equal(v[:, 0], v[:, 1])
        assert torch.equal(v[:, 0], v[:, 2])
    assert torch.equal(dual_vector(x, "linf"), torch.cat([column.sign(), 0 * x[:, 1:]], 1))


@pytest.mark.oracle("lin.6.8")
def test_l1_leaves_zero_coordinates_zero() -> None:
    x = torch.tensor([0.0, -2.0, 0.0, 5.0])
    assert torch.equal(dual_vector(x, "l1"), torch.tensor([0.0, -1.0, 0.0, 1.0]))


# --- projection


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("size", [1, 2, 6, 30])
@pytest.mark.parametrize("radius", [0.3, 2.0])
def test_project_matches_the_quadratic_program(
    kind: Norm, size: int, radius: float, randn: Randn
) -> None:
    x = 2 * randn(size, size)
    u = cp.Variable(size)
    program = cp.Problem(
        cp.Minimize(cp.sum_squares(u - x.numpy())), [cp.norm(u, ORDER[kind]) <= radius]
    )
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    # a relative gap of 1e-8 in the squared distance of about 100 allows 1e-3 in u
    np.testing.assert_allclose(project(x, kind, radius).numpy(), u.value, atol=1e-3)


def test_project_l1_matches_bisection_of_the_threshold(randn: Randn) -> None:
    for seed, radius in enumerate([1e-6, 0.5, 1.0, 4.0]):
        x = randn(seed, 40)
        low, high = 0.0, float(x.abs().max())
        for _ in range(200):
            level = (low + high) / 2
            inside = float((x.abs() - level).clamp(min=0).sum()) <= radius
            low, high = (low, level) if inside else (level, high)
        expected = x.sign() * (x.abs() - high).clamp(min=0)
        torch.testing.assert_close(project(x, "l1", radius), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_project_works_row_by_row_in_both_float_types(
    kind: Norm, dtype: torch.dtype, randn: Randn
) -> None:
    x = randn(7, 2, 5, 8, dtype=dtype)
    x[0, 0] *= 0.001  # one row inside the ball
    result = project(x, kind, 1.0)
    assert result.dtype == dtype
    for index in product(range(2), range(5)):
        single = project(x[index].double(), kind, 1.0)
        torch.testing.assert_close(result[index].double(), single, rtol=0, atol=DTYPES[dtype])
    assert torch.equal(result[0, 0], x[0, 0])


@pytest.mark.parametrize("kind", NORMS)
def test_project_to_radius_zero_gives_zero(kind: Norm, randn: Randn) -> None:
    x = torch.cat([randn(8, 5, 4), torch.ones(1, 4).double(), torch.zeros(1, 4).double()])
    assert torch.equal(project(x, kind, 0.0).abs(), torch.zeros(7, 4).double())


@pytest.mark.parametrize("kind", NORMS)
def test_project_does_not_change_its_input_or_points_of_the_ball(kind: Norm, randn: Randn) -> None:
    x = randn(9, 20, 6)
    before = x.clone()
    inside = x / norm(x, kind).unsqueeze(-1) * 0.999
    assert torch.equal(project(inside, kind, 1.0), inside)
    project(x, kind, 0.1)
    assert torch.equal(x, before)
    corner = torch.tensor([0.0, 2.0, 0.0])  # on the boundary
    assert torch.equal(project(corner, kind, 2.0), corner)


def test_gradient_flows_through_the_projection(randn: Randn) -> None:
    x = (5 * randn(10, 3, 4)).requires_grad_()
    torch.autograd.gradcheck(lambda t: torch.stack([project(t, k, 1.0) for k in NORMS]), x)


# --- properties


@given(kind=kinds, x=reals, c=st.floats(-100, 100))
@settings(max_examples=150, deadline=None)
def test_norm_scales_and_dual_vector_only_by_sign(kind: Norm, x: list[float], c: float) -> None:
    a = torch.tensor(x).double()
    torch.testing.assert_close(norm(c * a, kind), abs(c) * norm(a, kind), rtol=1e-12, atol=1e-150)
    if abs(c) > 1e-3 and float(a.abs().max()) > 1e-3:
        torch.testing.assert_close(dual_vector(2 * a, kind), dual_vector(a, kind))
        torch.testing.assert_close(dual_vector(-a, kind), -dual_vector(a, kind))


@given(kind=kinds, x=reals, radius=radii, seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_permuting_coordinates_permutes_results(
    kind: Norm, x: list[float], radius: float, seed: int
) -> None:
    a = torch.tensor(x).double()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(norm(a[order], kind), norm(a, kind))
    moved = project(a[order], kind, radius)
    torch.testing.assert_close(moved, project(a, kind, radius)[order], rtol=0, atol=1e-9)


@given(kind=kinds, x=reals, radius=radii, c=st.floats(0.01, 100))
@example(kind="l2", x=[73.0], radius=2.2e-309, c=1.0)  # 1 / radius overflows
@settings(max_examples=150, deadline=None)
def test_project_is_in_the_ball_idempotent_and_scales(
    kind: Norm, x: list[float], radius: float, c: float
) -> None:
    a = torch.tensor(x).double()
    once = project(a, kind, radius)
    assert float(norm(once, kind)) <= radius + 1e-9  # rounding of entries up to 1e3
    torch.testing.assert_close(project(once, kind, radius), once, rtol=0, atol=1e-9)
    torch.testing.assert_close(project(c * a, kind, c * radius), c * once, rtol=1e-9, atol=1e-8)
    assert bool((once * a >= 0).all())  # no sign flips


@given(kind=kinds, pair=st.lists(st.tuples(*[st.floats(-50, 50)] * 2), min_size=1), radius=radii)
@settings(max_examples=150, deadline=None)
def test_project_is_non_expansive(
    kind: Norm, pair: list[tuple[float, float]], radius: float
) -> None:
    a, b = torch.tensor(pair).double().T
    moved = torch.linalg.vector_norm(project(a, kind, radius) - project(b, kind, radius))
    assert float(moved) <= float(torch.linalg.vector_norm(a - b)) + 1e-9


# --- bad input


@pytest.mark.parametrize("bad", ["l3", "L1", "", "inf", None])
@pytest.mark.parametrize("call", ["check_norm", "dual", "norm", "dual_vector", "project"])
def test_unknown_norm_is_named(bad: str, call: str) -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match=rf"unknown norm {bad!r}, expected one of l1, l2, linf"):
        {
            "check_norm": lambda: check_norm(bad),
            "dual": lambda: dual(bad),  # type: ignore[arg-type]
            "norm": lambda: norm(x, bad),  # type: ignore[arg-type]
            "dual_vector": lambda: dual_vector(x, bad),  # type: ignore[arg-type]
            "project": lambda: project(x, bad, 1.0),  # type: ignore[arg-type]
        }[call]()


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0)], ids=str)
def test_norm_refuses_vectors_without_coordinates(kind: Norm, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="D >= 1"):
        norm(torch.zeros(shape), kind)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("radius", [-1e-9, -1.0, math.nan, math.inf])
def test_project_refuses_a_bad_radius(kind: Norm, radius: float) -> None:
    with pytest.raises(ValueError, match=f"got {radius}"):
        project(torch.ones(2), kind, radius)


# --- devices


def everything(x: Tensor) -> list[Tensor]:
    return [
        result
        for kind in NORMS
        for result in (norm(x, kind), dual_vector(x, kind), project(x, kind, 0.7))
    ]


def test_inside_a_meta_context_values_are_the_same(
    same_inside_meta: Callable[..., None], randn: Randn
) -> None:
    same_inside_meta(everything, randn(11, 3, 5))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda: Callable[..., None], randn: Randn) -> None:
    same_on_cuda(everything, randn(11, 3, 5))
