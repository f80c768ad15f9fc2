"""Steepest descent: the direction, the optimiser and the batched paths against slow twins."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from trainaug.data.gaussian import gaussian_problem
from trainaug.methods.linear_robustness import (
    NORMS,
    Norm,
    Path,
    SteepestDescent,
    StepRule,
    certificate,
    dual,
    max_margin,
    norm,
    robust_radius,
    signed_rows,
    steepest_descent_paths,
    steepest_direction,
)

Randn = Callable[..., Tensor]
Gaussian = Callable[..., tuple[Tensor, Tensor]]
ORDER: dict[Norm, float] = {"l1": 1, "l2": 2, "linf": math.inf}
STEPS: tuple[StepRule, ...] = ("constant", "normalized", "log_loss")
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}


def naive_direction(g: np.ndarray, kind: Norm) -> np.ndarray:
    """The three steepest directions, coordinate by coordinate."""
    v = np.zeros_like(g)
    if kind == "l2":
        for j in range(len(g)):
            v[j] = -g[j]
    elif kind == "l1":
        best = 0
        for j in range(len(g)):
            if abs(g[j]) > abs(g[best]):
                best = j
        v[best] = -g[best]
    else:
        total = sum(abs(value) for value in g)
        for j in range(len(g)):
            v[j] = -total * np.sign(g[j])
    return v


def naive_path(Z: np.ndarray, kind: Norm, step: str, lr: float, steps: int) -> list[np.ndarray]:
    """Descend the exponential loss itself, not its logarithm, one row and one step at a time."""
    n, d = Z.shape
    bound = max(np.linalg.norm(z, ORDER[dual(kind)]) for z in Z)
    w, iterates = np.zeros(d), []
    for t in range(steps + 1):
        iterates.append(w.copy())
        loss, gradient = 0.0, np.zeros(d)
        for z in Z:
            loss += np.exp(-z @ w)
            gradient -= np.exp(-z @ w) * z
        v = naive_direction(gradient, kind)
        if step == "log_loss":
            w = w + lr / bound**2 * v / loss
        elif step == "constant":  # eta = lr on the mean loss, at most 1 / (B^2 L) on the sum
            w = w + min(lr / n, 1 / (bound**2 * loss)) * v
        else:
            w = w + lr / math.sqrt(t + 1) * v / np.linalg.norm(v, ORDER[kind])
    return iterates


def stack(problems: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pad problems to one tensor; the padding is NaN, so that no value of it may be used."""
    rows = [signed_rows(X, y) for X, y in problems]
    size = max(len(z) for z in rows)
    Z = torch.full((len(rows), size, rows[0].shape[1]), math.nan, dtype=torch.float64)
    mask = torch.zeros(len(rows), size, dtype=torch.bool)
    for p, z in enumerate(rows):
        Z[p, : len(z)], mask[p, : len(z)] = z, True
    return Z, mask


# --- direction


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (6,), (3, 1), (4, 5), (2, 3, 7)], ids=str)
def test_direction_matches_the_printed_updates(
    kind: Norm, dtype: torch.dtype, shape: tuple[int, ...], randn: Randn
) -> None:
    g = randn(0, *shape, dtype=dtype)
    v = steepest_direction(g, kind)
    assert v.shape == shape
    assert v.dtype == dtype
    for row, result in zip(g.reshape(-1, shape[-1]), v.reshape(-1, shape[-1]), strict=True):
        expected = naive_direction(row.double().numpy(), kind)
        np.testing.assert_allclose(result.numpy(), expected, rtol=DTYPES[dtype])
    tol = {"rtol": DTYPES[dtype], "atol": 0.0}
    size = norm(g, dual(kind))
    torch.testing.assert_close(norm(v, kind), size, **tol)  # |v|_* = |g|
    torch.testing.assert_close(-(g * v).sum(-1), size**2, **tol)  # -g v = |g|^2


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("size", [1, 4, 12])
def test_direction_solves_its_program(kind: Norm, size: int, randn: Randn) -> None:
    g = randn(size, size)
    v = cp.Variable(size)
    program = cp.Problem(cp.Minimize(g.numpy() @ v + 0.5 * cp.square(cp.norm(v, ORDER[kind]))))
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    ours = steepest_direction(g, kind)
    value = float(g @ ours + 0.5 * norm(ours, kind) ** 2)
    assert value == pytest.approx(program.value, abs=1e-6)  # solver tolerance
    np.testing.assert_allclose(ours.numpy(), v.value, atol=1e-3)  # unique for Gaussian g


@given(
    kind=st.sampled_from(NORMS),
    g=st.lists(st.floats(-100, 100), min_size=1, max_size=6),
    c=st.floats(-50, 50),
)
@settings(max_examples=150, deadline=None)
def test_direction_is_homogeneous_and_descends(kind: Norm, g: list[float], c: float) -> None:
    x = torch.tensor(g).double()
    v = steepest_direction(x, kind)
    assert float(x @ v) <= 0
    if abs(c) > 1e-3:  # smaller products could underflow and move a tie
        torch.testing.assert_close(steepest_direction(c * x, kind), c * v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", NORMS)
def test_direction_of_a_zero_gradient_is_zero(kind: Norm) -> None:
    assert torch.equal(steepest_direction(torch.zeros(2, 3), kind), torch.zeros(2, 3))


@pytest.mark.oracle("lin.6.8")
def test_direction_takes_the_first_tie_and_leaves_zeros() -> None:
    g = torch.tensor([0.0, -2.0, 2.0, 2.0])
    assert steepest_direction(g, "l1").tolist() == [0, 2, 0, 0]
    assert steepest_direction(g, "linf").tolist() == [0, 6, -6, -6]


def test_direction_of_l2_is_the_gradient_to_the_last_bit(randn: Randn) -> None:
    for seed in range(20):
        g = randn(seed, 37, dtype=torch.float32) * 10.0 ** (seed - 10)
        assert torch.equal(steepest_direction(g, "l2"), -g)
    tiny = torch.tensor([3e-40, -1e-42])  # its norm is not representable exactly
    assert torch.equal(steepest_direction(tiny, "l2"), -tiny)


def test_direction_refuses_an_unknown_norm() -> None:
    with pytest.raises(ValueError, match="unknown norm 'l0'"):
        steepest_direction(torch.ones(2), "l0")  # type: ignore[arg-type]
    for kind in NORMS:
        with pytest.raises(ValueError, match=r"floating-point gradients, got torch\.uint8"):
            steepest_direction(torch.ones(2, dtype=torch.uint8), kind)


# --- the optimiser: values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_l2_with_constant_step_is_sgd_bit_for_bit(dtype: torch.dtype, randn: Randn) -> None:
    x, target = randn(1, 16, 5, dtype=dtype), randn(2, 16, 3, dtype=dtype)
    start = [randn(3, 5, 4, dtype=dtype), randn(4, 4, dtype=dtype), randn(5, 4, 3, dtype=dtype)]
    ours, theirs = ([Parameter(t.clone()) for t in start] for _ in range(2))
    optimizers = [SteepestDescent(ours, lr=0.03), torch.optim.SGD(theirs, lr=0.03)]
    for _ in range(50):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            hidden = torch.tanh(x @ params[0] + params[1])
            (hidden @ params[2] - target).square().mean().backward()
            optimizer.step()
    assert not torch.equal(ours[0], start[0])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("step", STEPS)
def test_group_is_one_vector_across_tensors(kind: Norm, step: StepRule, randn: Randn) -> None:
    g = randn(6, 13)
    shapes = [(2, 3), (4,), (1, 1, 3)]
    params = [Parameter(torch.zeros(s).double()) for s in shapes]
    for p, part in zip(params, g.split([6, 4, 3]), strict=True):
        p.grad = part.reshape(p.shape).clone()
    SteepestDescent(params, lr=0.5, norm=kind, step=step).step(loss=torch.tensor(4.0))
    moved = torch.cat([p.detach().flatten() for p in params])
    v = torch.from_numpy(naive_direction(g.numpy(), kind))
    scale = {"constant": 0.5, "normalized": 0.5 / norm(v, kind), "log_loss": 0.5 / 4}[step]
    torch.testing.assert_close(moved, scale * v)
    if kind == "l1":
        assert int((moved != 0).sum()) == 1  # over the whole group, not one per tensor


def test_groups_are_separate_vectors_with_their_own_options() -> None:
    a, b = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    a.grad, b.grad = torch.tensor([1.0, -3.0]), torch.tensor([5.0, 1.0])
    groups = [{"params": [a]}, {"params": [b], "norm": "linf", "lr": 2.0, "step": "normalized"}]
    SteepestDescent(groups, lr=0.1, norm="l1").step()
    torch.testing.assert_close(a.detach(), torch.tensor([0.0, 0.3]))
    torch.testing.assert_close(b.detach(), torch.tensor([-2.0, -2.0]))


def test_non_contiguous_parameters_are_updated_in_place() -> None:
    base = torch.zeros(3, 2)
    p = Parameter(base.T)
    p.grad = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    SteepestDescent([p], lr=1.0).step()
    assert torch.equal(p.detach(), -p.grad)
    assert torch.equal(base, -p.grad.T)


def test_parameters_without_a_gradient_are_skipped() -> None:
    used, unused, frozen = Parameter(torch.ones(2)), Parameter(torch.ones(9)), torch.ones(1)
    used.grad = torch.tensor([3.0, 1.0])
    for kind in NORMS:
        SteepestDescent([unused, used, frozen], lr=0.1, norm=kind).step()
    assert torch.equal(unused.detach(), torch.ones(9))
    assert torch.equal(frozen, torch.ones(1))
    assert bool((used < 1).all())
    SteepestDescent([unused], lr=0.1, step="log_loss").step()  # nothing to do, nothing to ask for
    assert torch.equal(unused.detach(), torch.ones(9))


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("step", STEPS)
def test_zero_gradient_does_not_move(kind: Norm, step: StepRule) -> None:
    p = Parameter(torch.tensor([1.0, -2.0]))
    p.grad = torch.zeros(2)
    SteepestDescent([p], lr=0.1, norm=kind, step=step).step(loss=torch.tensor(1.0))
    assert p.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("step", STEPS)
def test_closure_is_called_once_with_gradients_enabled(kind: Norm, step: StepRule) -> None:
    def build() -> tuple[Parameter, SteepestDescent]:
        p = Parameter(torch.tensor([1.0, -2.0]))
        return p, SteepestDescent([p], lr=0.1, norm=kind, step=step)

    (p, by_closure), (q, by_loss) = build(), build()
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        by_closure.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        returned = by_closure.step(closure)
    loss = q.square().sum()
    loss.backward()
    assert by_loss.step(loss=loss) is loss
    assert calls == [True]
    assert returned is not None
    assert float(returned.detach()) == 5.0
    assert torch.equal(p, q)
    assert not torch.equal(p.detach(), torch.tensor([1.0, -2.0]))


def test_step_without_loss_returns_none_and_keeps_the_gradient() -> None:
    p = Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, 2.0])
    assert SteepestDescent([p], lr=0.1, norm="linf").step() is None
    assert p.grad.tolist() == [1.0, 2.0]
    assert p.requires_grad
    assert p.is_leaf


@pytest.mark.parametrize("kind", NORMS)
def test_log_loss_step_on_L_is_the_constant_step_on_log_L(kind: Norm, gaussian: Gaussian) -> None:
    Z = signed_rows(*gaussian(10, 0))
    lr = float(1 / norm(Z, dual(kind)).max() ** 2)
    on_loss, on_log = (Parameter(torch.zeros(100).double()) for _ in range(2))
    first = SteepestDescent([on_loss], lr=lr, norm=kind, step="log_loss")
    second = SteepestDescent([on_log], lr=lr, norm=kind, step="constant")
    for _ in range(60):
        first.zero_grad()
        loss = torch.exp(-(Z @ on_loss)).sum()
        loss.backward()
        first.step(loss=loss)
        second.zero_grad()
        torch.logsumexp(-(Z @ on_log), 0).backward()
        second.step()
    torch.testing.assert_close(on_loss, on_log, rtol=0, atol=1e-9)
    assert float(on_log.detach().abs().max()) > 0.01


def test_scheduler_sets_the_step() -> None:
    p = Parameter(torch.zeros(1))
    optimizer = SteepestDescent([p], lr=1.0, norm="linf", step="normalized")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / math.sqrt(t + 1))
    for _ in range(4):
        p.grad = torch.tensor([-7.0])
        optimizer.step()
        scheduler.step()
    assert p.item() == pytest.approx(sum(1 / math.sqrt(t) for t in (1, 2, 3, 4)))


@pytest.mark.oracle("lin.6.9")
@pytest.mark.parametrize("kind", NORMS)
def test_normalised_steps_oscillate_unless_they_decrease(kind: Norm) -> None:
    final = {}
    for name, factor in (("constant", lambda t: 1.0), ("decreasing", lambda t: 1 / (t + 1))):
        p = Parameter(torch.tensor([0.5]).double())
        optimizer = SteepestDescent([p], lr=1.0, norm=kind, step="normalized")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        for _ in range(200):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
            scheduler.step()
        final[name] = abs(p.item())
    assert final["constant"] == 0.5
    assert final["decreasing"] < 0.01


# --- the optimiser: state and refusals


def test_state_dict_restores_options_and_the_next_step() -> None:
    a, b = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    source = SteepestDescent([a], lr=0.25, norm="l1", step="normalized")
    target = SteepestDescent([b], lr=9.0, norm="l2", step="constant")
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    for p, optimizer in ((a, source), (b, target)):
        p.grad = torch.tensor([1.0, -5.0, 2.0])
        optimizer.step()
    assert torch.equal(a, b)
    assert b.tolist() == [1.0, 1.25, 1.0]
    (group,) = target.state_dict()["param_groups"]
    assert {k: group[k] for k in ("lr", "norm", "step")} == {
        "lr": 0.25,
        "norm": "l1",
        "step": "normalized",
    }


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
    ({"lr": -1.0}, "got -1.0"),
    ({"lr": math.nan}, "got nan"),
    ({"lr": math.inf}, "got inf"),
    ({"norm": "l3"}, "unknown norm 'l3', expected one of l1, l2, linf"),
    ({"step": "adam"}, "unknown step 'adam', expected one of constant, normalized, log_loss"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    p = Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=message):
        SteepestDescent([p], **{"lr": 0.1, **options})
    with pytest.raises(ValueError, match=message):
        SteepestDescent([{"params": [p], **options}], lr=0.1)
    optimizer = SteepestDescent([Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [p], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("step", STEPS)
def test_a_gradient_that_is_not_finite_raises_before_a_move(
    bad: float, kind: Norm, step: StepRule
) -> None:
    good, broken = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    good.grad, broken.grad = torch.ones(2), torch.tensor([1.0, bad])
    optimizer = SteepestDescent([good, broken], lr=0.1, norm=kind, step=step)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        optimizer.step(loss=torch.tensor(1.0))
    assert torch.equal(good.detach(), torch.ones(2))
    assert torch.equal(broken.detach(), torch.ones(2))


def test_log_loss_without_the_loss_raises_with_advice() -> None:
    p = Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"needs the loss: call step\(closure\) or step\(loss="):
        SteepestDescent([p], lr=0.1, step="log_loss").step()
    assert torch.equal(p.detach(), torch.ones(2))


@pytest.mark.oracle("lin.6.7")
@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan, math.inf])
def test_log_loss_of_an_underflowed_loss_raises_with_advice(loss: float) -> None:
    p = Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    advice = f"positive loss, got {loss}; minimise .*logsumexp.*step='constant'"
    with pytest.raises(FloatingPointError, match=advice):
        SteepestDescent([p], lr=0.1, step="log_loss").step(loss=torch.tensor(loss))
    assert torch.equal(p.detach(), torch.ones(2))


@pytest.mark.oracle("lin.6.7")
def test_the_advice_works_where_the_loss_underflows() -> None:
    Z = torch.tensor([[1.0, 0.5], [0.5, 1.0]])  # float32
    w = Parameter(torch.tensor([300.0, 300.0]))
    loss = torch.exp(-(Z @ w)).sum()
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert w.grad is not None
    assert w.grad.tolist() == [0.0, 0.0]  # the loss has lost the direction
    for kind in NORMS:
        optimizer = SteepestDescent([w], lr=0.1, norm=kind)
        optimizer.zero_grad()
        before = Z @ w.detach()
        torch.logsumexp(-(Z @ w), 0).backward()
        optimizer.step()
        assert float((Z @ w.detach() - before).max()) > 0.05  # still descending


# --- batched paths: values


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_paths_equal_the_naive_loop(
    kind: Norm, step: StepRule, lr: float, gaussian: Gaussian
) -> None:
    problems = [gaussian(1, 0, 20), gaussian(9, 1, 20), gaussian(4, 2, 20)]
    Z, mask = stack(problems)
    path = steepest_descent_paths(
        Z, [kind], record_at=range(61), lr=lr, step=step, mask=mask
    )  # (61, P, 1, D)
    for p, (X, y) in enumerate(problems):
        rows = signed_rows(X, y).numpy()
        expected = np.stack(naive_path(rows, kind, step, lr, 60))
        np.testing.assert_allclose(path.weights[:, p, 0].numpy(), expected, rtol=0, atol=1e-9)
        losses = [math.log(sum(math.exp(-z @ w) for z in rows)) for w in expected]
        np.testing.assert_allclose(path.log_loss[:, p, 0].numpy(), losses, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("step", STEPS)
def test_paths_equal_a_run_of_the_optimiser(kind: Norm, step: StepRule, gaussian: Gaussian) -> None:
    Z = signed_rows(*gaussian(6, 3, 20))
    bound = float(norm(Z, dual(kind)).max())
    # small enough that the cap 1 / (B^2 L) of the constant step never binds
    lr = {"constant": 0.9 / bound**2, "normalized": 0.1, "log_loss": 0.7}[step]
    w = Parameter(torch.zeros(20).double())
    optimizer = SteepestDescent(
        [w], lr=lr / bound**2 if step == "log_loss" else lr, norm=kind, step=step
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 1 / math.sqrt(t + 1) if step == "normalized" else 1.0
    )
    for _ in range(50):
        optimizer.zero_grad()
        losses = torch.exp(-(Z @ w))
        loss = losses.mean() if step == "constant" else losses.sum()
        loss.backward()
        optimizer.step(loss=loss)
        scheduler.step()
    path = steepest_descent_paths(Z[None], [kind], record_at=[50], lr=lr, step=step)
    torch.testing.assert_close(path.weights[0, 0, 0], w.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("step", STEPS)
def test_padded_problems_equal_solo_runs_of_each_norm(step: StepRule, gaussian: Gaussian) -> None:
    problems = [gaussian(n, seed, 30) for n, seed in ((2, 0), (7, 0), (7, 1), (1, 2))]
    Z, mask = stack(problems)
    together = steepest_descent_paths(Z, NORMS, record_at=[0, 1, 40], step=step, mask=mask, lr=0.5)
    assert together.weights.shape == (3, 4, 3, 30)
    assert together.log_loss.shape == (3, 4, 3)
    for p, (X, y) in enumerate(problems):
        for m, kind in enumerate(NORMS):
            solo = steepest_descent_paths(
                signed_rows(X, y)[None], [kind], record_at=[0, 1, 40], step=step, lr=0.5
            )
            for a, b in (
                (together.weights[:, p, m], solo.weights[:, 0, 0]),
                (together.log_loss[:, p, m], solo.log_loss[:, 0, 0]),
            ):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@given(seed=st.integers(0, 10_000), step=st.sampled_from(STEPS))
@settings(max_examples=30, deadline=None)
def test_order_of_rows_and_scale_of_data(seed: int, step: StepRule) -> None:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(1, 5, 7, generator=generator, dtype=torch.float64)
    order = torch.randperm(5, generator=generator)
    plain = steepest_descent_paths(Z, NORMS, record_at=[5], step=step)
    moved = steepest_descent_paths(Z[:, order], NORMS, record_at=[5], step=step)
    torch.testing.assert_close(moved.weights, plain.weights, rtol=0, atol=1e-9)
    if step == "log_loss":  # margins do not see the unit of the data
        scaled = steepest_descent_paths(8 * Z, NORMS, record_at=[5])
        torch.testing.assert_close(8 * scaled.weights, plain.weights, rtol=0, atol=1e-9)


def test_float32_paths_stay_close_to_float64(gaussian: Gaussian) -> None:
    Z = signed_rows(*gaussian(5, 0, 20))[None]
    single = steepest_descent_paths(Z.float(), NORMS, record_at=[30])
    double = steepest_descent_paths(Z, NORMS, record_at=[30])
    assert single.weights.dtype == single.log_loss.dtype == torch.float32
    torch.testing.assert_close(single.weights.double(), double.weights, rtol=0, atol=1e-4)


def test_recorded_steps_do_not_depend_on_what_else_is_recorded(gaussian: Gaussian) -> None:
    Z = signed_rows(*gaussian(5, 0, 20))[None]
    some = steepest_descent_paths(Z, NORMS, record_at=[0, 3, 17])
    every = steepest_descent_paths(Z, NORMS, record_at=range(18))
    assert some.steps.tolist() == [0, 3, 17]
    assert torch.equal(some.weights, every.weights[[0, 3, 17]])
    assert torch.equal(some.log_loss, every.log_loss[[0, 3, 17]])
    assert torch.equal(some.weights[0], torch.zeros(1, 3, 20).double())
    torch.testing.assert_close(some.log_loss[0], torch.full((1, 3), math.log(5)).double())
    only_start = steepest_descent_paths(Z, ["l2"], record_at=[0])
    assert only_start.weights.shape == (1, 1, 1, 20)


def test_inputs_are_unchanged_and_no_graph_is_kept(gaussian: Gaussian) -> None:
    Z = signed_rows(*gaussian(5, 0, 20))[None].requires_grad_()
    before = Z.detach().clone()
    path = steepest_descent_paths(Z, NORMS, record_at=[10])
    assert torch.equal(Z.detach(), before)
    assert not path.weights.requires_grad
    assert not path.log_loss.requires_grad
    # the loop runs in inference mode, whose tensors autograd would refuse
    for values in (path.weights, path.log_loss, path.upper):
        (values * values.new_ones(()).requires_grad_()).sum().backward()


@pytest.mark.oracle("lin.6.8")
def test_coordinate_descent_on_identical_columns_moves_the_first_only() -> None:
    Z = torch.tensor([[[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]]).double()
    w1, _, winf = steepest_descent_paths(Z, NORMS, record_at=[20]).weights[0, 0]
    assert float(w1[0]) > 0
    assert w1[1:].tolist() == [0, 0]
    assert float(winf[0]) == float(winf[1]) > 0
    assert float(winf[2]) == 0  # sign(0) = 0


@pytest.mark.parametrize("step", STEPS)
def test_problems_with_a_zero_gradient_stay_at_zero(step: StepRule) -> None:
    Z = torch.tensor(
        [[[1.0, 2.0], [-1.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]]]
    ).double()
    path = steepest_descent_paths(Z, NORMS, record_at=[0, 1, 5], step=step)
    assert torch.equal(path.weights[:, :2], torch.zeros(3, 2, 3, 2).double())
    start = torch.full((3, 2, 3), math.log(2), dtype=torch.float64)
    torch.testing.assert_close(path.log_loss[:, :2], start)
    assert bool((path.log_loss[1, 2] < path.log_loss[0, 2]).all())  # its neighbour moves


@pytest.mark.oracle("lin.6.7")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_margins_of_a_hundred_thousand_stay_finite(dtype: torch.dtype) -> None:
    Z = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]], dtype=dtype)
    path = steepest_descent_paths(Z, NORMS, record_at=[0, 50, 200], lr=1e4)
    margins = path.weights @ Z.mT  # (K, 1, M, N)
    assert bool((margins[-1].amin(-1) > 1e5).all())
    assert bool(path.weights.isfinite().all())
    torch.testing.assert_close(path.log_loss[-1], -margins[-1].amin(-1), rtol=1e-5, atol=1.0)
    assert bool((path.log_loss[2] < path.log_loss[1]).all())  # still moving


# --- batched paths: theory


@pytest.mark.oracle("lin.thm7")
@pytest.mark.parametrize("fraction", [1.0, 0.1])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("n", [3, 10])
def test_theorem_7_holds_at_every_step(
    kind: Norm, fraction: float, n: int, gaussian: Gaussian
) -> None:
    X, y = gaussian(n, 0)
    attack = dual(kind)
    Z = signed_rows(X, y)
    eps_star = max_margin(X, y, attack).eps_star  # a lower bound of the true one: bounds hold
    square = float(norm(Z, attack).max()) ** 2
    alpha = fraction / square
    path = steepest_descent_paths(Z[None], [kind], record_at=range(301), lr=fraction)
    W, log_loss = path.weights[:, 0, 0], path.log_loss[:, 0, 0].tolist()
    sizes = norm(torch.softmax(-(W @ Z.T), -1) @ Z, attack).tolist()  # |g_t|
    decrease, travelled = 0.0, 0.0
    for t, (now, later) in enumerate(pairwise(log_loss)):
        drop = alpha * (1 - square * alpha / 2) * sizes[t] ** 2
        assert later <= now - drop + 1e-10  # (b)
        assert sizes[t] >= eps_star * (1 - 1e-12)  # (c)
        decrease += drop
        travelled += alpha * sizes[t]
        w, total = W[t + 1], (t + 1) * alpha
        assert float((Z @ w).min()) >= -later - 1e-10 >= decrease - math.log(n) - 1e-8  # (d)
        assert float(norm(w, kind)) <= travelled * (1 + 1e-12)  # (e)
        bound = eps_star * (1 - square * alpha / 2) - math.log(n) / (eps_star * total)
        assert float(robust_radius(w, X, y, attack)) >= bound - 1e-10


# rho / eps* after 100, 1000, 10 000 steps at n = 10, mean over seeds 0-2, as once measured.
RADII: dict[StepRule, dict[Norm, tuple[str, str, str]]] = {
    "constant": {
        "l2": (".930", ".955", ".964"),
        "l1": (".823", ".922", ".944"),
        "linf": (".925", ".962", ".967"),
    },
    "log_loss": {
        "l2": (".938", ".994", ".9994"),
        "l1": (".827", ".980", ".998"),
        "linf": (".925", ".992", ".9992"),
    },
}


@pytest.mark.oracle("lin.3")
@pytest.mark.parametrize("step", RADII)
def test_radii_after_given_steps_have_their_known_digits(
    step: StepRule, gaussian: Gaussian
) -> None:
    problems = [gaussian(10, seed) for seed in range(3)]
    Z = torch.stack([signed_rows(X, y) for X, y in problems])
    path = steepest_descent_paths(Z, NORMS, record_at=[100, 1000, 10_000], step=step)
    for m, kind in enumerate(NORMS):
        ratios = []
        for p, (X, y) in enumerate(problems):
            exact = max_margin(X, y, dual(kind))
            bounds = certificate(path.weights[:, p, m], X, y, dual(kind))
            assert bool((bounds.upper >= exact.eps_star).all())
            ratios.append(bounds.lower / exact.eps_star)
        for value, printed in zip(torch.stack(ratios).mean(0), RADII[step][kind], strict=True):
            half_a_digit = 0.5 * 10.0 ** -(len(printed) - 1)
            assert float(value) == pytest.approx(float(printed), rel=0, abs=half_a_digit)


# --- batched paths: refusals

OK = torch.ones(2, 3, 4)
BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "two dimensions": ({"Z": OK[0]}, r"shape \(P, N, D\).*got \(3, 4\)"),
    "no problem": ({"Z": OK[:0]}, r"got \(0, 3, 4\)"),
    "no row": ({"Z": OK[:, :0]}, r"got \(2, 0, 4\)"),
    "no feature": ({"Z": OK[..., :0]}, r"got \(2, 3, 0\)"),
    "no norm": ({"weight_norms": []}, r"norms \[\]"),
    "unknown norm": ({"weight_norms": ["l2", "l9"]}, "unknown norm 'l9'"),
    "unknown step": ({"step": "adam"}, "unknown step 'adam'"),
    "lr zero": ({"lr": 0.0}, "got 0.0"),
    "lr negative": ({"lr": -1.0}, "got -1.0"),
    "lr nan": ({"lr": math.nan}, "got nan"),
    "nothing recorded": ({"record_at": []}, r"record_at must increase from at least 0, got \[\]"),
    "recorded twice": ({"record_at": [1, 1]}, r"got \[1, 1\]"),
    "recorded backwards": ({"record_at": [2, 1]}, r"got \[2, 1\]"),
    "recorded before the start": ({"record_at": [-1, 1]}, r"got \[-1, 1\]"),
    "NaN row": ({"Z": torch.full((1, 2, 2), math.nan)}, "Z must be finite of shape"),
    "infinite row": ({"Z": torch.full((1, 2, 2), math.inf)}, "Z must be finite of shape"),
    "mask of another shape": (
        {"mask": torch.ones(2, 4, dtype=torch.bool)},
        r"boolean of shape \(2, 3\).*got torch.bool \(2, 4\)",
    ),
    "mask of integers": ({"mask": torch.ones(2, 3, dtype=torch.int64)}, "got torch.int64"),
    "problem without rows": (
        {"mask": torch.tensor([[True] * 3, [False] * 3])},
        "a row in each problem",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_requests_are_refused(case: str) -> None:
    changes, message = BAD_CALLS[case]
    options: dict[str, Any] = {"Z": OK, "weight_norms": ["l2"], "record_at": [1], **changes}
    with pytest.raises(ValueError, match=message):
        steepest_descent_paths(options.pop("Z"), options.pop("weight_norms"), **options)


# --- devices


def directions(g: Tensor) -> list[Tensor]:
    return [steepest_direction(g, kind) for kind in NORMS]


def paths(Z: Tensor, mask: Tensor) -> list[Path]:
    return [
        steepest_descent_paths(Z, NORMS, record_at=[0, 4], step=step, mask=m)
        for step in STEPS
        for m in (mask, None)
    ]


def optimised(start: Tensor, target: Tensor) -> list[Tensor]:
    results = []
    for kind in NORMS:
        for step in STEPS:
            p = Parameter(start.clone())
            optimizer = SteepestDescent([p], lr=0.01, norm=kind, step=step)
            for _ in range(3):
                optimizer.zero_grad()
                loss = (p - target).square().sum()
                loss.backward()
                optimizer.step(loss=loss)
            results.append(p.detach())
    return results


Twin = Callable[..., None]


@pytest.fixture
def masked(randn: Randn) -> tuple[Tensor, Tensor]:
    return randn(1, 2, 3, 5), torch.tensor([[True, True, True], [True, False, True]])


def test_inside_a_meta_context_values_are_the_same(
    same_inside_meta: Twin, randn: Randn, masked: tuple[Tensor, Tensor]
) -> None:
    same_inside_meta(directions, randn(0, 3, 5))
    same_inside_meta(paths, *masked)
    same_inside_meta(optimised, randn(2, 4), randn(3, 4))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(
    same_on_cuda: Twin, randn: Randn, masked: tuple[Tensor, Tensor]
) -> None:
    same_on_cuda(directions, randn(0, 3, 5))
    same_on_cuda(paths, *masked)
    same_on_cuda(optimised, randn(2, 4), randn(3, 4))


@pytest.mark.parametrize("kind", NORMS)
def test_path_upper_is_the_least_certificate_so_far(kind):
    X, y = map(torch.from_numpy, gaussian_problem(12, 40, seed=3))
    Z = signed_rows(X, y)
    path = steepest_descent_paths(Z[None], [kind], record_at=list(range(40)))
    q = torch.softmax(-(path.weights[:, 0, 0] @ Z.mT), -1)  # (40, 12)
    every = norm(q @ Z, dual(kind))  # (40,)
    torch.testing.assert_close(path.upper[:, 0, 0], every.cummin(0).values, rtol=1e-12, atol=0)
    assert bool((path.upper[:, 0, 0] >= max_margin(X, y, dual(kind)).eps_star * (1 - 1e-7)).all())
