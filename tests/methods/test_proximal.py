"""Proximal gradient steps and regularisation paths against hand, textbook FISTA and cvxpy."""

from __future__ import annotations

import copy
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.nn import Parameter
from torch.nn.functional import softplus

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.linear_robustness import (
    FourierNorm,
    LinearClassifier,
    ProximalGradient,
    dual,
    norm,
    prox,
    regularisation_path,
    robust_radius,
    signed_rows,
)
from trainaug.training.loop import train

D = 8
KINDS = ["l1", "l2", "linf", FourierNorm("l1", (D,)), FourierNorm("l1", (2, 4))]
ORDER = {"l1": 1, "l2": 2, "linf": "inf"}


def logistic(w, Z):
    return softplus(-(w @ Z.mT)).mean(-1)


def advance(optimizer, loss, steps):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return [optimizer.step(closure) for _ in range(steps)][-1]


def run(w, Z, kind, lam, steps, lr=None, **options):
    p = Parameter(w.clone())
    curvature = float(torch.linalg.matrix_norm(Z, 2)) ** 2 / len(Z) / 4
    optimizer = ProximalGradient([p], lr or 1 / curvature, kind, lam, **options)
    advance(optimizer, lambda: logistic(p, Z).sum(), steps)
    return p.detach()


def solve(Z, kind, lam):
    w = cp.Variable(Z.shape[1])
    if isinstance(kind, FourierNorm):
        matrix = np.ones((1, 1))
        for n in kind.shape:
            k = np.arange(n)
            matrix = np.kron(matrix, np.exp(-2j * np.pi * np.outer(k, k) / n) / math.sqrt(n))
        size = cp.sum(cp.abs(matrix @ w))
    else:
        size = cp.norm(w, ORDER[kind])
    program = cp.Problem(cp.Minimize(cp.sum(cp.logistic(-Z.numpy() @ w)) / len(Z) + lam * size))
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    return program.value, torch.from_numpy(w.value)


def largest(Z, kind):
    return float(norm(Z.mean(0) / 2, dual(kind)))


BY_HAND = {  # from (3, -1) with gradient (2, 0): v = (2, -1), tau = 1/2
    "l1": [1.5, -0.5],
    "l2": [2 - 1 / math.sqrt(5), -1 + 0.5 / math.sqrt(5)],
    "linf": [1.5, -1],
    FourierNorm("l1", (2,)): [2 - math.sqrt(0.5), -1],  # both bins of (1, 3) / sqrt(2) shrink
    FourierNorm("linf", (2,)): [2 - math.sqrt(0.125), -1 + math.sqrt(0.125)],  # the larger bin
}


@pytest.mark.parametrize("kind", BY_HAND, ids=str)
@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_first_step_equals_the_one_by_hand(kind, accelerate, dtype, tol):
    w = Parameter(torch.tensor([3.0, -1.0], dtype=dtype))
    optimizer = ProximalGradient([w], lr=0.5, norm=kind, lam=1.0, accelerate=accelerate)
    gradient = torch.tensor([2.0, 0.0], dtype=dtype)
    loss = advance(optimizer, lambda: w @ gradient, 1)
    assert loss.item() == 6
    assert w.tolist() == pytest.approx(BY_HAND[kind], abs=tol)
    assert optimizer.requires_closure is accelerate


def test_without_norm_and_momentum_it_is_gradient_descent(randn):
    Z, start = randn(0, 6, D), randn(1, D)
    p = Parameter(start.clone())
    optimizer = torch.optim.SGD([p], lr=0.3)
    advance(optimizer, lambda: logistic(p, Z), 20)
    for kind in KINDS:
        w = run(start, Z, kind, 0.0, 20, lr=0.3, accelerate=False)
        torch.testing.assert_close(w, p.detach(), rtol=0, atol=1e-13)  # rounding of 20 steps


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_accelerated_steps_equal_textbook_fista_with_restart(kind, randn):
    Z, lr, lam = randn(2, 6, D), 0.5, 0.02
    p = Parameter(randn(3, D))
    x = y = p.detach().clone()
    t, restarts, seen = 1.0, 0, []
    optimizer = ProximalGradient([p], lr, kind, lam)

    def loss():
        seen.append(p.detach().clone())
        return logistic(p, Z)

    for _ in range(150):
        value = advance(optimizer, loss, 1)
        torch.testing.assert_close(seen[-1], y, rtol=0, atol=1e-11)  # gradient at the extrapolation
        assert float(value) == pytest.approx(float(logistic(y, Z)), abs=1e-11)
        gradient = -(torch.sigmoid(-Z @ y) @ Z) / len(Z)
        following = prox(y - lr * gradient, kind, lr * lam)
        if float((y - following) @ (following - x)) > 0:
            t, restarts = 1.0, restarts + 1
        longer = (1 + math.sqrt(1 + 4 * t * t)) / 2
        step = 0.0 if t == 1 else (t - 1) / longer
        x, y, t = following, following + step * (following - x), longer
        torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-11)  # holds the iterate
    assert restarts > 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fista_reaches_the_solution_of_the_program(kind, randn):
    Z = randn(4, 6, D) + 0.5
    lam = 0.2 * largest(Z, kind)
    best, solution = solve(Z, kind, lam)
    w = run(torch.zeros(D).double(), Z, kind, lam, 600)
    value = float(logistic(w, Z) + lam * norm(w, kind))
    assert value == pytest.approx(best, abs=1e-6)
    assert value <= float(logistic(solution, Z) + lam * norm(solution, kind)) + 1e-12  # feasible
    slow = run(torch.zeros(D).double(), Z, kind, lam, 20, accelerate=False)
    fast = run(torch.zeros(D).double(), Z, kind, lam, 20)
    assert value < float(logistic(fast, Z) + lam * norm(fast, kind))
    assert logistic(fast, Z) + lam * norm(fast, kind) < logistic(slow, Z) + lam * norm(slow, kind)


@pytest.mark.oracle("lin.6.14")
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("accelerate", [False, True])
def test_solution_is_zero_exactly_from_lambda_max(kind, accelerate, randn):
    Z = randn(5, 6, D) + 0.5
    lam = largest(Z, kind) * torch.tensor([1.02, 0.98, 1.02, 0.98]).double()
    start = torch.cat([torch.zeros(2, D).double(), 0.1 * randn(6, 2, D)])
    w = run(start, Z, kind, lam, 400, accelerate=accelerate)
    assert (w != 0).any(-1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("accelerate", [False, True])
def test_stacked_problems_equal_solo_runs(accelerate, randn):
    target, bend = randn(7, 3, D), randn(8, 3, D).abs()
    lr, lam = torch.tensor([0.1, 0.3, 0.2]).double(), torch.tensor([0.5, 0.0, 2.0]).double()
    for kind in KINDS:
        results = []
        for rows in (slice(0, 3), 0, 1, 2):
            p = Parameter(randn(9, 3, D)[rows].clone())
            optimizer = ProximalGradient([p], lr[rows], kind, lam[rows], accelerate=accelerate)

            def loss(p=p, rows=rows):
                return (bend[rows] * (p - target[rows]) ** 2).sum()

            advance(optimizer, loss, 40)
            results.append(p.detach())
        torch.testing.assert_close(results[0], torch.stack(results[1:]), rtol=0, atol=1e-12)


def test_parameters_without_gradient_and_unused_groups_stay(randn):
    a, b = Parameter(randn(10, D)), Parameter(randn(11, D))
    groups = [{"params": [a]}, {"params": [b], "norm": "l2", "lam": 0.0, "lr": 0.05}]
    optimizer = ProximalGradient(groups, lr=0.1, norm="l1", lam=0.1)
    advance(optimizer, lambda: a.square().sum() + b.square().sum(), 3)
    before, old = a.detach().clone(), b.detach().clone()
    assert not torch.equal(optimizer.state[b]["ahead"], b)
    advance(optimizer, lambda: a.square().sum(), 1)
    assert torch.equal(b, old)
    assert not torch.equal(a, before)


def test_saved_state_continues_the_same_run(randn):
    Z = randn(12, 6, D)
    for kind in KINDS:
        p = Parameter(randn(13, D))
        optimizer = ProximalGradient([p], 0.3, kind, 0.02)
        advance(optimizer, lambda p=p: logistic(p, Z), 15)
        q = Parameter(p.detach().clone())
        twin = ProximalGradient([q], 9.0, "l2", 9.0)
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        advance(optimizer, lambda p=p: logistic(p, Z), 15)
        advance(twin, lambda q=q: logistic(q, Z), 15)
        assert torch.equal(p, q)


def test_training_loop_gives_the_same_weights(randn):
    Z, model = randn(14, 6, D), LinearClassifier(D).double()
    optimizer = ProximalGradient(model.parameters(), 0.3, "l1", 0.02)
    data = IndexedDataset(Z, torch.ones(6, dtype=torch.int64))
    train(model, data, [range(6)], lambda s, _: softplus(-s), optimizer, max_steps=25)
    expected = run(torch.zeros(D).double(), Z, "l1", 0.02, 25, lr=0.3)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-13)


def test_bad_options_and_gradients_are_refused():
    w = Parameter(torch.ones(3))
    for changes, message in [
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": torch.tensor([1.0, math.nan])}, "lr must be positive"),
        ({"lam": -1.0}, "lam must be finite and at least 0, got -1.0"),
        ({"lam": math.nan}, "lam must be finite and at least 0"),
        ({"norm": "l3"}, "unknown norm 'l3'"),
    ]:
        with pytest.raises(ValueError, match=message):
            ProximalGradient([w], **{"lr": 1.0, "norm": "l1", "lam": 1.0, **changes})
    with pytest.raises(ValueError, match=r"needs step\(closure\)"):
        ProximalGradient([w], 1.0, "l1", 1.0).step()
    for bad in (math.nan, math.inf):
        w.grad = torch.tensor([0.0, bad, 0.0])
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            ProximalGradient([w], 1.0, "l1", 1.0, accelerate=False).step()
        assert torch.equal(w, torch.ones(3))


def test_failed_loss_leaves_the_iterate(randn):
    p = Parameter(randn(15, D))
    optimizer = ProximalGradient([p], 0.3, "l1", 0.0)
    advance(optimizer, lambda: logistic(p, randn(16, 6, D)), 9)
    before = p.detach().clone()
    with pytest.raises(FloatingPointError):
        advance(optimizer, lambda: p.sum() * math.nan, 1)
    assert torch.equal(p, before)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_path_solves_the_programs(kind, randn):
    Z = randn(16, 2, 5, D)
    path = regularisation_path(Z, kind, [0.9, 0.3, 0.05], steps=800)
    assert (path.weights.shape, path.residual.shape) == ((2, 3, D), (2, 3))
    assert float(path.residual.max()) < 1e-6
    for i in range(2):
        assert float(path.lambda_max[i]) == pytest.approx(largest(Z[i], kind), rel=1e-12)
        for s, share in enumerate(path.strengths.tolist()):
            lam, w = share * largest(Z[i], kind), path.weights[i, s]
            best, _ = solve(Z[i], kind, lam)
            value = float(logistic(w, Z[i]) + lam * norm(w, kind))
            assert value == pytest.approx(best, abs=1e-7)  # tolerance of the solver
            gradient = -(torch.sigmoid(-Z[i] @ w) @ Z[i]) / 5
            assert float(norm(gradient, dual(kind))) == pytest.approx(lam, rel=1e-6)
            assert float(-gradient @ w) == pytest.approx(lam * float(norm(w, kind)), rel=1e-6)


@pytest.mark.parametrize("kind", ["l1", "l2", "linf", FourierNorm("l1", (100,))], ids=str)
def test_radius_rises_as_lambda_falls(kind, gaussian):
    X, y = gaussian(10, 0)
    path = regularisation_path(signed_rows(X, y)[None], kind, [0.5, 0.1, 0.01], steps=600)
    assert float(path.residual.max()) < 1e-3  # against rises of 0.05 and more
    radii = robust_radius(path.weights[0], X, y, dual(kind))
    assert bool((radii.diff() > 0).all())


@pytest.mark.oracle("lin.6.14")
def test_path_refuses_lambda_max_and_bad_input():
    Z = torch.ones(1, 2, 3)
    for bad in ([1.0], [1.5], [0.5, 1.0], [0.0], [-0.1], [math.nan], []):
        with pytest.raises(ValueError, match=r"strengths must lie in \(0, 1\)"):
            regularisation_path(Z, "l1", bad, steps=1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        regularisation_path(Z, "l1", [0.5], steps=0)
    for data in (Z[0], Z[:0], Z[:, :0], Z * math.nan, Z * math.inf):
        with pytest.raises(ValueError, match=r"shape \(P, N, D\)"):
            regularisation_path(data, "l1", [0.5], steps=1)
    with pytest.raises(ValueError, match="sum to zero"):
        regularisation_path(
            torch.cat([Z, torch.stack([Z[:, 0], -Z[:, 0]], 1)]), "l1", [0.5], steps=1
        )


def paths(Z):
    return [regularisation_path(Z, kind, [0.5, 0.1], steps=5) for kind in KINDS]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(paths, randn(17, 2, 3, D))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(paths, randn(17, 2, 3, D))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", math.inf),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lam", math.inf),
        ("lam", -0.1),
        ("norm", "l3"),
    ],
)
def test_bad_options_of_a_group_are_refused(option, value):
    good = {"lr": 0.1, "norm": "l1", "lam": 0.0}
    with pytest.raises(ValueError, match=str(value)):
        ProximalGradient([Parameter(torch.zeros(2))], **{**good, option: value})
    optimizer = ProximalGradient([Parameter(torch.zeros(2))], **good)
    with pytest.raises(ValueError, match=str(value)):
        optimizer.add_param_group({"params": [Parameter(torch.zeros(2))], option: value})
