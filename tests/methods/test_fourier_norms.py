"""Fourier norms, proximal operators and Fourier margins against loops, numpy and cvxpy."""

from __future__ import annotations

import cmath
import importlib
import math
from itertools import product

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.linear_robustness import (
    NORMS,
    FourierNorm,
    certificate,
    dual,
    dual_vector,
    max_margin,
    norm,
    project,
    prox,
    second_solver,
    signed_rows,
)

margins = importlib.import_module("trainaug.methods.linear_robustness.max_margin")
ORDERS = ["l1", "linf"]
SHAPES = [(1,), (2,), (7,), (8,), (1, 2), (2, 2), (3, 4), (5, 3)]
DTYPES = {torch.float32: 2e-5, torch.float64: 1e-12}  # tolerance: about 100 rounding errors
ORDER = {"l1": 1, "l2": 2, "linf": "inf"}
SOLVED = 1e-3  # a relative gap of 1e-8 in a squared distance of 50 allows 1e-3 in the point
fouriers = st.builds(FourierNorm, st.sampled_from(ORDERS), st.sampled_from(SHAPES))


def fourier_matrix(shape):
    """The unitary transform as a full complex matrix, one axis at a time."""
    matrix = np.ones((1, 1))
    for n in shape:
        k = np.arange(n)
        matrix = np.kron(matrix, np.exp(-2j * np.pi * np.outer(k, k) / n) / math.sqrt(n))
    return matrix


def naive_spectrum(x, shape):
    points, spectrum = list(product(*map(range, shape))), []
    for k in points:
        total = 0j
        for value, j in zip(x, points, strict=True):
            turn = sum(a * b / n for a, b, n in zip(k, j, shape, strict=True))
            total += value * cmath.exp(-2j * math.pi * turn)
        spectrum.append(total / math.sqrt(len(points)))
    return spectrum


def cp_norm(u, kind):
    if isinstance(kind, FourierNorm):
        moduli = cp.abs(fourier_matrix(kind.shape) @ u)
        return cp.sum(moduli) if kind.order == "l1" else cp.max(moduli)
    return cp.norm(u, ORDER[kind])


def every_norm(shape):
    return [*NORMS, *(FourierNorm(order, shape) for order in ORDERS)]


def draw(data, size):
    values = data.draw(st.lists(st.floats(-50, 50), min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).round(decimals=9)  # no subnormal entries


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_equals_a_naive_transform_and_numpy(order, shape, dtype, randn):
    x = randn(0, 2, 3, math.prod(shape), dtype=dtype)
    kind, summary = FourierNorm(order, shape), {"l1": sum, "linf": max}[order]
    result = norm(x, kind)
    assert (result.shape, result.dtype) == ((2, 3), dtype)
    for i, j in product(range(2), range(3)):
        row = x[i, j].tolist()
        spectrum = naive_spectrum(row, shape)
        other = np.fft.fftn(np.reshape(row, shape), norm="ortho").ravel()
        np.testing.assert_allclose(spectrum, other, atol=1e-12)
        np.testing.assert_allclose(kind.transform(x[i, j]).numpy(), other, atol=DTYPES[dtype])
        expected = summary(abs(z) for z in spectrum)
        assert float(result[i, j]) == pytest.approx(expected, rel=DTYPES[dtype])
    torch.testing.assert_close(kind.invert(kind.transform(x)), x, rtol=0, atol=DTYPES[dtype])


@pytest.mark.oracle("lin.6.11")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_half_spectrum_with_weight_two_for_pairs_gives_the_same_norms(shape, randn):
    x = randn(1, math.prod(shape))
    half = np.abs(np.fft.rfftn(x.reshape(shape).numpy(), norm="ortho"))
    weights = np.full(half.shape[-1], 2.0)
    weights[[0, shape[-1] // 2] if shape[-1] % 2 == 0 else 0] = 1  # odd sizes: no Nyquist
    l1, linf = (float(norm(x, FourierNorm(order, shape))) for order in ORDERS)
    assert l1 == pytest.approx((weights * half).sum(), rel=1e-13)
    assert linf == pytest.approx(half.max(), rel=1e-13)
    assert float(x @ x) == pytest.approx((weights * half**2).sum(), rel=1e-13)


def test_modulus_is_the_length_in_the_plane():
    x = torch.eye(8).double()[1]  # spectrum exp(-i pi k / 4) / sqrt(8)
    assert float(norm(x, FourierNorm("l1", (8,)))) == pytest.approx(math.sqrt(8), rel=1e-14)
    z = FourierNorm("l1", (8,)).transform(x)
    taxicab = float((z.real.abs() + z.imag.abs()).sum())
    assert taxicab == pytest.approx((4 + 4 * math.sqrt(2)) / math.sqrt(8), rel=1e-14)


@pytest.mark.oracle("lin.6.10")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hoelder_is_an_equality_at_a_real_dual_vector(order, shape, dtype, randn):
    kind, tol = FourierNorm(order, shape), DTYPES[dtype]
    assert dual(dual(kind)) == kind != dual(kind)
    w, u = randn(2, 2, 50, math.prod(shape), dtype=dtype)
    parseval = (kind.transform(w) * kind.transform(u).conj()).sum(-1)
    torch.testing.assert_close(parseval.real, (w * u).sum(-1), rtol=tol, atol=tol)
    assert bool((norm(w, kind) * norm(u, dual(kind)) >= (w * u).sum(-1) - tol).all())
    v = dual_vector(w, kind)
    assert v.dtype == dtype
    torch.testing.assert_close(norm(v, dual(kind)), torch.ones_like(v[:, 0]), rtol=tol, atol=0)
    torch.testing.assert_close((w * v).sum(-1), norm(w, kind), rtol=tol, atol=tol)
    if order == "linf":
        return
    z = kind.transform(w)
    torch.testing.assert_close(kind.transform(v), z / z.abs(), rtol=0, atol=10 * tol)  # all bins 1
    raw = torch.fft.ifftn((z / z.abs()).reshape(50, *shape), dim=tuple(range(1, 1 + len(shape))))
    assert float(raw.imag.abs().max()) < tol  # real before the real part is taken
    z, u = (torch.fft.fftn(a.double().reshape(shape)) for a in (w[0], v[0]))  # not unitary:
    pairing = math.prod(shape) * float(w[0] @ v[0])  # off by the dimension
    assert float(z.abs().sum() * u.abs().max()) == pytest.approx(pairing, rel=10 * tol)


@pytest.mark.oracle("lin.6.10")
def test_lone_frequencies_stay_real_and_empty_ones_empty():
    kind = FourierNorm("l1", (4,))
    x = torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 1, 0], [-3.0, 2, 0, 1]]).double()
    z = kind.transform(dual_vector(x, kind))
    assert torch.equal(z[0].abs(), torch.zeros(4).double())
    torch.testing.assert_close(z[1], torch.tensor([1, 0, 1, 0]).to(z))  # bins 1, 3 are exact zeros
    assert bool((z[:, [0, 2]].imag == 0).all())  # DC and Nyquist
    assert z[2, [0, 2]].real.tolist() == pytest.approx([0, -1])  # sum 0 and alternating sum -6
    assert torch.equal(dual_vector(x[0], dual(kind)), x[0])


@pytest.mark.parametrize("shape", [(7,), (8,), (3, 4)], ids=str)
def test_dual_vector_of_linf_puts_half_on_each_of_a_mirror_pair(shape):
    kind, tolerance = FourierNorm("linf", shape), 1e-12
    points = np.indices(shape).reshape(len(shape), -1) / np.array(shape)[:, None]
    angle = torch.from_numpy(2 * math.pi * points.sum(0))  # frequency (1, ..., 1)
    z = kind.transform(dual_vector(3 * torch.cos(angle + 0.7), kind))
    order = z.abs().sort(descending=True).values
    assert order[:2].tolist() == pytest.approx([0.5, 0.5], abs=tolerance)
    assert float(order[2:].sum()) < tolerance
    for k, phase in (1, 0.7), (-1, -0.7):
        at = np.ravel_multi_index((k,) * len(shape), shape, mode="wrap")
        assert complex(z[at]) == pytest.approx(cmath.exp(1j * phase) / 2, abs=tolerance)


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-39), (torch.float64, 1e-309)])
def test_subnormal_spectra_give_finite_results(dtype, tiny):
    x = torch.tensor([tiny] + [0.0] * 6, dtype=dtype)
    for kind in (FourierNorm(order, (7,)) for order in ORDERS):
        assert bool(dual_vector(x, kind).isfinite().all())
        assert bool(project(x, kind, tiny / 2).isfinite().all())


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (6,), (2, 3)], ids=str)
def test_prox_and_projection_equal_the_programs(shape, randn):
    x = 2 * randn(4, math.prod(shape))
    u = cp.Variable(len(x))
    for kind, level in product(every_norm(shape), (0.3, 1.5)):
        distance = cp.sum_squares(u - x.numpy())
        programs = [
            (cp.Problem(cp.Minimize(distance), [cp_norm(u, kind) <= level]), project),
            (cp.Problem(cp.Minimize(distance / 2 + level * cp_norm(u, kind))), prox),
        ]
        for program, operation in programs:
            program.solve(solver="CLARABEL")
            assert program.status == "optimal"
            np.testing.assert_allclose(operation(x, kind, level).numpy(), u.value, atol=SOLVED)


@given(kind=fouriers, radius=st.floats(0, 10), data=st.data())
@settings(max_examples=100, deadline=None)
def test_project_is_idempotent_and_non_expansive(kind, radius, data):
    a, b = (draw(data, math.prod(kind.shape)) for _ in range(2))
    once = project(a, kind, radius)
    assert float(norm(once, kind)) <= radius + 1e-9  # rounding of entries up to 50
    torch.testing.assert_close(project(once, kind, radius), once, rtol=0, atol=1e-9)
    moved = torch.linalg.vector_norm(once - project(b, kind, radius))
    assert float(moved) <= float(torch.linalg.vector_norm(a - b)) + 1e-9
    if float(norm(a, kind)) <= radius:
        assert torch.equal(once, a)


@given(plain=st.sampled_from(NORMS), kind=fouriers, tau=st.floats(0, 10), data=st.data())
@settings(max_examples=100, deadline=None)
def test_prox_satisfies_moreau_and_its_optimality_condition(plain, kind, tau, data):
    x = draw(data, math.prod(kind.shape))
    for k in (plain, kind):
        u = prox(x, k, tau)
        torch.testing.assert_close(u + project(x, dual(k), tau), x, rtol=0, atol=1e-12)
        # x - u is tau times a subgradient at u: dual norm at most tau, pairing tau |u|
        assert float(norm(x - u, dual(k))) <= tau + 1e-9
        assert float((x - u) @ u) == pytest.approx(tau * float(norm(u, k)), rel=1e-9, abs=1e-7)
        assert bool((u == 0).all()) or float(norm(x, dual(k))) > tau


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prox_has_the_closed_forms(dtype, randn):
    x, tau, tol = randn(5, 4, 12, dtype=dtype), 0.7, DTYPES[dtype]
    close = {"rtol": 0, "atol": tol}
    z = torch.fft.fft2(x.reshape(4, 3, 4), norm="ortho")
    spectrum = z * (1 - tau / z.abs()).clamp(min=0)
    for kind, expected in [
        ("l1", x.sign() * (x.abs() - tau).clamp(min=0)),
        ("l2", x * (1 - tau / x.square().sum(-1, keepdim=True).sqrt()).clamp(min=0)),
        ("linf", x - tau * project(x / tau, "l1", 1)),
        (FourierNorm("l1", (3, 4)), torch.fft.ifft2(spectrum, norm="ortho").real.flatten(1)),
    ]:
        torch.testing.assert_close(prox(x, kind, tau), expected, **close)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_levels_of_rows_act_row_by_row_and_zero_is_exact(dtype, randn):
    x = randn(6, 2, 3, 6, dtype=dtype)
    for kind in every_norm((2, 3)):
        size = norm(x, dual(kind))
        assert torch.equal(prox(x, kind, size), torch.zeros_like(x))  # tau = dual norm
        assert bool((prox(x, kind, 0.99 * size) != 0).any(-1).all())
        levels = torch.linspace(0, 1, 6).reshape(2, 3).double()
        for operation in (prox, project):
            together = operation(x, kind, levels)
            assert together.dtype == dtype
            for i, j in product(range(2), range(3)):
                single = operation(x[i, j], kind, float(levels[i, j]))
                torch.testing.assert_close(together[i, j], single, rtol=0, atol=DTYPES[dtype])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (8,), (2, 4), (3, 3)], ids=str)
def test_max_margin_equals_the_full_complex_program(order, shape, gaussian):
    X, y = gaussian(1 + math.prod(shape) // 3, 5, d=math.prod(shape))
    attack, Z = FourierNorm(order, shape), signed_rows(X, y)
    w = cp.Variable(math.prod(shape))
    program = cp.Problem(cp.Minimize(cp_norm(w, dual(attack))), [Z.numpy() @ w >= 1])
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    for solver in ("CLARABEL", second_solver(attack)):
        result = max_margin(X, y, attack, solver=solver)
        assert 1 / result.eps_star == pytest.approx(program.value, rel=1e-6)  # solver tolerance
        assert -1e-12 <= result.gap <= 1e-6
        assert float((Z @ result.w).min()) == pytest.approx(1, abs=1e-12)
        q = result.lam / result.lam.sum()
        lower, upper = certificate(result.w, X, y, attack, q)
        assert float(lower) == pytest.approx(result.eps_star, rel=1e-12)
        assert float(upper) == pytest.approx(result.upper, rel=1e-12)
        assert float(certificate(result.w, X, y, attack).upper) >= result.eps_star * (1 - 1e-12)


# Mean over seeds 0-2 of the least Fourier l1 norm, as docs/sources/optimisation_bias.md has it.
TABLE = {100: 10.446, 50: 6.176, 25: 3.906, 12: 2.279, 10: 1.959, 6: 1.395, 3: 0.857}


@pytest.mark.oracle("lin.table")
@pytest.mark.parametrize("n", TABLE)
def test_smallest_fourier_norms_match_the_table_to_its_printed_digits(n, gaussian):
    results = [max_margin(*gaussian(n, seed), FourierNorm("linf", (100,))) for seed in range(3)]
    assert all(-1e-12 <= r.gap <= 1e-6 and max(r.kkt.values()) <= 1e-6 for r in results)
    mean = sum(1 / r.eps_star for r in results) / 3
    assert mean == pytest.approx(TABLE[n], rel=0, abs=0.5e-3)  # half a printed digit


def test_bad_input_is_refused_and_named():
    kind = FourierNorm("l1", (2, 3))
    for call in (norm, dual_vector, lambda x, k: project(x, k, 1.0), lambda x, k: prox(x, k, 1.0)):
        for x in (torch.ones(4, 5), torch.tensor(1.0)):
            with pytest.raises(ValueError, match=r"signals \(2, 3\)|shape \(\.\.\., D\)"):
                call(x, kind)
    with pytest.raises(ValueError, match=r"l1 or linf, got 'l2'"):
        FourierNorm("l2", (3,))
    for shape in [(), (0,), (3, 0), (-1,)]:
        with pytest.raises(ValueError, match="sides of at least 1"):
            FourierNorm("l1", shape)
    levels = -0.1, math.nan, math.inf, torch.tensor([1.0, -1.0])
    for k, bad in product(every_norm((2, 3)), levels):
        with pytest.raises(ValueError, match="finite and at least 0"):
            prox(torch.ones(2, 6), k, bad)
    with pytest.raises(ValueError, match="unknown norm 'l3'"):
        prox(torch.ones(3), "l3", 1.0)
    with pytest.raises(ValueError, match=r"signals \(3,\)"):
        max_margin(torch.ones(1, 2), torch.ones(1), FourierNorm("l1", (3,)))


def everything(x):
    kinds = every_norm((2, 3))
    parts = [(norm(x, k), dual_vector(x, k), project(x, k, 0.5), prox(x, k, 0.5)) for k in kinds]
    margins._real_basis.cache_clear()  # or it would be built on another device
    y = torch.ones(len(x), device=x.device)
    return parts, [max_margin(x, y, FourierNorm(order, (2, 3))).w for order in ORDERS]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(7, 3, 6))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(7, 3, 6))


HALF = {torch.float16: 2**-10, torch.bfloat16: 2**-7}  # tolerance: two units in the last place


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 900.0])
def test_half_precision_is_computed_in_float32(dtype, scale, randn):
    x = (scale * randn(8, 3, 6)).to(dtype)  # squares of 900 are above the largest float16
    wide = x.double()
    for kind, autocast in product(every_norm((2, 3)), (False, True)):
        for call in (
            norm,
            dual_vector,
            lambda x, k: project(x, k, scale),
            lambda x, k: prox(x, k, scale),
        ):
            with torch.autocast("cpu", enabled=autocast):
                actual = call(x, kind)
            expected = call(wide, kind)
            assert actual.dtype == dtype
            bound = HALF[dtype] * float(expected.abs().max())
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_long_half_precision_vectors_are_summed_in_float32(dtype):
    x = torch.full((70_000,), 0.5, dtype=dtype)  # a count that float16 does not hold
    for kind in (*NORMS, FourierNorm("linf", (70_000,))):
        assert float(norm(x, kind)) == pytest.approx(float(norm(x.double(), kind)), rel=HALF[dtype])
        for operation in (project, prox):
            actual = operation(x, kind, 0.25).double()
            expected = operation(x.double(), kind, 0.25)
            torch.testing.assert_close(actual, expected, rtol=HALF[dtype], atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *product([torch.float32, torch.bfloat16], [1e-30, 1e25]),
        *product([torch.float64], [1e-200, 1e200]),
    ],
)
def test_lengths_whose_squares_leave_the_range(dtype, size):
    x = torch.tensor([3.0, -4.0, 0.0], dtype=dtype) * size
    tolerance = HALF.get(dtype, 1e-6)
    assert float(norm(x, "l2")) == pytest.approx(5 * size, rel=tolerance)
    unit = torch.tensor([0.6, -0.8, 0.0], dtype=dtype)
    torch.testing.assert_close(dual_vector(x, "l2"), unit, rtol=tolerance, atol=0)
    inside = project(x, "l2", size)
    torch.testing.assert_close(inside, unit * size, rtol=3 * tolerance, atol=0)
    leaf = x.clone().requires_grad_()
    norm(leaf, "l2").backward()
    torch.testing.assert_close(leaf.grad, unit, rtol=tolerance, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_passes_through_norms_and_is_refused_by_projections(bad):
    x = torch.ones(2, 6).double()
    x[1, 2] = bad
    for kind in every_norm((2, 3)):
        assert not bool(norm(x, kind)[1].isfinite())
        if math.isnan(bad):
            assert bool(dual_vector(x, kind)[1].isnan().any())
        assert bool(dual_vector(x, kind)[0].isfinite().all())
        for operation in (project, prox):
            with pytest.raises(ValueError, match="x must be finite, row 1 holds"):
                operation(x, kind, 0.5)
    largest = torch.finfo(torch.float64).max
    with pytest.raises(ValueError, match="norm of x leaves the range"):
        project(torch.full((6,), largest, dtype=torch.float64), "l1", 1.0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.cfloat])
def test_vectors_of_other_types_are_refused_by_name(dtype):
    x = torch.ones(2, 6).to(dtype)  # -128 of int8 has no modulus, bytes no sign
    for kind in every_norm((2, 3)):
        for call in (
            norm,
            dual_vector,
            lambda x, k: project(x, k, 1.0),
            lambda x, k: prox(x, k, 1.0),
        ):
            with pytest.raises(ValueError, match=f"floating-point.*got {dtype}"):
                call(x, kind)


def test_projections_of_meta_tensors_are_refused_and_norms_have_a_shape():
    x = torch.ones(2, 6, device="meta")
    for kind in every_norm((2, 3)):
        assert norm(x, kind).shape == (2,)
        assert dual_vector(x, kind).shape == (2, 6)
        for operation in (project, prox):
            with pytest.raises(ValueError, match="meta device"):
                operation(x, kind, 1.0)
