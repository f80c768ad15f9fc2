"""Pegasos against loops and solvers, the rules of keeping, Proposition C."""

from __future__ import annotations

import copy
import math
from functools import cache

import cvxpy as cp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from trainaug.data import registry
from trainaug.methods.autoassist import (
    authors_rule,
    constant_threshold,
    decaying_threshold,
    gradient_threshold,
    importance_pegasos,
    pegasos,
    svm_gradients,
    svm_objective,
    violators,
)
from trainaug.training.randomness import stream

NAN = float("nan")


@cache
def breast_cancer():
    """Standardised, then rows of length 1; labels -1 and 1."""
    arrays = registry.load("breast_cancer")
    X, y = torch.tensor(arrays["train_x"]), torch.tensor(arrays["train_y"])
    X = (X - X.mean(0)) / X.std(0, correction=0)
    return X / X.norm(dim=1, keepdim=True), y.double() * 2 - 1


@cache
def optimum(lam):
    X, y = breast_cancer()
    options = {"loss": "hinge", "fit_intercept": False, "max_iter": 200_000, "random_state": 0}
    solver = LinearSVC(C=1 / (lam * len(X)), tol=1e-9, **options)
    return torch.from_numpy(solver.fit(X.numpy(), y.numpy()).coef_[0])


def problem(n, d, seed):
    g = stream(seed, "measure")
    X = torch.randn(n, d, dtype=torch.float64, generator=g)
    return X, torch.randint(2, (n,), generator=g).double() * 2 - 1


def epochs(n, count, seed=0):
    g = stream(seed, "order")
    return torch.cat([torch.randperm(n, generator=g) for _ in range(count)])


# --- objective and optimum


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_objective_and_gradients_equal_loops_and_autograd(n, d, seed):
    (X, y), lam = problem(n, d, seed), 0.3
    w = X[0].clone().requires_grad_()
    parts = [lam / 2 * w @ w + max(0.0, 1 - y[i] * (w @ X[i])) for i in range(n)]
    value, grads = sum(parts) / n, svm_gradients(w.detach(), X, y, lam)
    both = svm_objective(torch.stack([w.detach(), 0 * w.detach()]), X, y, lam)
    assert both.tolist() == pytest.approx([value.item(), 1.0], rel=1e-12)
    for i, part in enumerate(parts):
        (expected,) = torch.autograd.grad(part, w, retain_graph=True)
        torch.testing.assert_close(grads[i], expected, rtol=0, atol=1e-12)


@pytest.mark.oracle("aa.3")
@pytest.mark.parametrize(("lam", "value", "norm"), [(1e-2, 0.15735, 3.281), (1e-3, 0.07563, 6.176)])
def test_two_solvers_find_the_known_optimum(lam, value, norm):
    X, y = breast_cancer()
    w, slack = cp.Variable(X.shape[1]), cp.Variable(len(X))
    margins = cp.multiply(y.numpy(), X.numpy() @ w)
    goal = cp.Minimize(lam / 2 * cp.sum_squares(w) + cp.sum(slack) / len(X))
    task = cp.Problem(goal, [slack >= 0, slack >= 1 - margins])
    task.solve(solver=cp.CLARABEL)
    assert task.status == "optimal"
    assert max(float(c.violation().max()) for c in task.constraints) < 1e-7
    for actual in (torch.from_numpy(w.value), optimum(lam)):
        ours = float(svm_objective(actual, X, y, lam))
        assert ours == pytest.approx(task.value, abs=1e-6)  # 1e-4 is asked for
        assert ours == pytest.approx(value, abs=6e-6)
        assert float(actual.norm()) == pytest.approx(norm, abs=2e-3)
    assert float(optimum(lam).norm()) < lam**-0.5  # in the ball


# --- Pegasos


def naive_pegasos(X, y, lam, order, keep, *, decay, project, offset, scale):
    """All iterates and what the rule was told."""
    w, told, updates = torch.zeros(X.shape[1]).double(), [], [0]
    path = [w]
    for k, i in enumerate(order, start=1):
        eta = scale / (lam * (k + offset))
        gradient = svm_gradients(w, X, y, lam)[i]
        told.append((k, i, float(y[i] * (w @ X[i])), float(w.norm()), float(gradient.norm())))
        kept = keep is None or keep(*told[-1][:4])
        updates.append(updates[-1] + kept)
        if kept:
            w = w - eta * gradient
        elif decay:
            w = w - eta * lam * w
        length, radius = float(w.norm()), 1 / math.sqrt(lam)
        outside = {"sphere": length > 0, "ball": length > radius, "none": False}[project]
        if (kept or decay) and outside:
            w = w * radius / length
        path.append(w)
    return path, told, updates


@pytest.mark.parametrize("project", ["ball", "sphere", "none"])
@given(
    decay=st.booleans(),
    rule=st.sampled_from(["none", "some", "nobody"]),
    steps=st.sampled_from([(100.0, 1.0), (1.0, 2.0), (0.0, 1.0)]),
    every=st.integers(1, 9),
    lam=st.sampled_from([0.02, 0.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_pegasos_equals_the_loop(project, decay, rule, steps, every, lam, seed):
    X, y = problem(7, 3, seed)
    order = torch.randint(7, (25,), generator=stream(seed, "order"))
    told = []

    def keep(k, i, margin, norm):
        told.append((k, i, margin, norm))
        return rule == "some" and (k * 7 + i) % 3 > 0

    rule_or_none, (offset, scale) = None if rule == "none" else keep, steps
    path = pegasos(
        X, y, lam, order, keep=rule_or_none, decay_on_skip=decay, project=project,
        step_offset=offset, step_scale=scale, record_every=every,
    )  # fmt: skip
    heard, options = list(told), {"decay": decay, "project": project}
    expected, wanted, updates = naive_pegasos(
        X, y, lam, order.tolist(), rule_or_none, offset=offset, scale=scale, **options
    )
    recorded = [k for k in range(26) if k % every == 0 or k == 25]
    assert path.steps == path.products == recorded
    assert path.updates == [updates[k] for k in recorded]
    for w, k in zip(path.weights, recorded, strict=True):
        torch.testing.assert_close(w, expected[k], rtol=1e-9, atol=1e-9)
    for got, want in zip(heard, wanted if rule_or_none else [], strict=True):
        assert got == pytest.approx(want[:4], rel=1e-8, abs=1e-8)
    assert path.largest_gradient == pytest.approx(max(c[4] for c in wanted), rel=1e-7)


@pytest.mark.oracle("aa.4")
@pytest.mark.parametrize("project", ["ball", "sphere", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threshold_zero_and_lossless_skipping_leave_every_iterate_of_sgd(project, dtype):
    X, y = (t.to(dtype) for t in breast_cancer())
    lam, order = 1e-2, epochs(len(X), 3)
    plain = pegasos(X, y, lam, order, project=project)
    zero = gradient_threshold(X, y, lam, constant_threshold(0.0))
    for keep, decay in ((zero, True), (zero, False), (violators(0.0, stream(0, "keep")), True)):
        path = pegasos(X, y, lam, order, keep=keep, decay_on_skip=decay, project=project)
        assert all(torch.equal(a, b) for a, b in zip(path.weights, plain.weights, strict=True))
        assert path.largest_gradient == plain.largest_gradient
    assert plain.updates[-1] == len(order)
    assert 0 < path.updates[-1] < 0.9 * len(order)  # the last saves


@pytest.mark.oracle("aa.4")
def test_what_loss_only_skipping_saves_is_lossless_and_lasting():
    (X, y), lam = breast_cancer(), 1e-2
    order, lossless = epochs(len(X), 15), violators(0.0, stream(0, "keep"))
    path = pegasos(X, y, lam, order, keep=lossless, record_every=569)
    assert path.updates[-1] < 0.6 * path.steps[-1]
    w = torch.stack(path.weights[-5:]).mean(0)
    best = float(svm_objective(optimum(lam), X, y, lam))
    assert 0 <= float(svm_objective(w, X, y, lam)) - best < 1e-3
    decaying = gradient_threshold(X, y, lam, decaying_threshold(1.0))
    slow = pegasos(X, y, lam, order, keep=decaying, record_every=569)
    assert slow.updates[-1] > 0.98 * slow.steps[-1]  # nothing saved: Proposition C


@pytest.mark.parametrize("rule", ["violators", "authors"])
def test_skipping_the_decay_too_solves_the_problem_with_less_of_it(rule):
    """Proposition C: lambda times the share kept, a self-consistent equation."""
    (X, y), lam, g = breast_cancer(), 1e-2, stream(0, "keep")
    keep = violators(0.3, g) if rule == "violators" else authors_rule(X.norm(dim=1), 0.3, 1.0, g)
    path = pegasos(X, y, lam, epochs(len(X), 40), keep=keep, decay_on_skip=False, record_every=100)
    half = len(path.steps) // 2
    w = torch.stack(path.weights[half:]).mean(0)
    share = (path.updates[-1] - path.updates[half]) / (path.steps[-1] - path.steps[half])
    violated = float((y * (X @ w) < 1).double().mean())
    assert share == pytest.approx(0.3 + 0.7 * violated, rel=0.02)
    moved = optimum(round(lam * share, 8))
    assert float((w - moved).norm() / moved.norm()) < 0.05  # of an average of iterates
    assert float((w - optimum(lam)).norm() / moved.norm()) > 0.2
    assert float(w.norm() / optimum(lam).norm()) == pytest.approx(1.34, abs=0.03)
    at = svm_objective(torch.stack([w, moved]), X, y, lam * share)
    assert 0 < float(at[0] - at[1]) < 2e-3


def test_on_the_sphere_every_iterate_has_the_norm_of_its_radius():
    (X, y), lam = breast_cancer(), 1e-2
    order, g = epochs(len(X), 3), stream(0, "draws")
    ours = pegasos(X, y, lam, order, project="sphere")
    for path in (ours, importance_pegasos(X, y, lam, 600, g, project="sphere")):
        norms = torch.stack(path.weights).norm(dim=1)
        assert float(norms[0]) == 0.0
        torch.testing.assert_close(norms[1:], torch.full_like(norms[1:], 10.0))
        gap = svm_objective(path.weights[-1], X, y, lam) - svm_objective(optimum(lam), X, y, lam)
        assert float(gap) > 0.3  # another problem
    inside = pegasos(X, y, lam, order, step_offset=0.0)  # first steps are long
    assert float(torch.stack(inside.weights).norm(dim=1).max()) <= 10 * (1 + 1e-12)


# --- rules


def test_rules_keep_at_their_rates():
    n, norms = 6_000, torch.tensor([0.0, 0.5, 1.0, 2.0])

    def rate(keep, *args):
        return sum(keep(*args) for _ in range(n)) / n

    def same(actual, p):
        return abs(actual - p) <= 4 * math.sqrt(p * (1 - p) / n)

    g = stream(0, "keep")
    for base in (0.0, 0.3, 1.0):
        assert rate(violators(base, g), 1, 0, 0.999, 1.0) == 1.0
        for margin in (1.0, 7.0):
            assert same(rate(violators(base, g), 1, 0, margin, 1.0), base)
    for i, margin, k in ((1, 0.9, 1), (1, 1.0, 1), (2, -3.0, 3), (3, 0.0, 9), (0, 0.0, 4)):
        second = min(1.0, max(0.0, float(norms[i]) * (margin < 1) - 0.4 / (k + 1)))
        keep = authors_rule(norms, 0.3, 0.4, g)
        assert same(rate(keep, k, i, margin, 1.0), 0.3 + 0.7 * second)


@given(st.integers(0, 99), st.floats(0, 3), st.sampled_from([0.02, 0.5]))
@settings(max_examples=40, deadline=None)
def test_the_gradient_threshold_is_on_the_norm_of_the_gradient(seed, scale, lam):
    X, y = problem(12, 3, seed)
    w = scale * X[1]
    norms = svm_gradients(w, X, y, lam).norm(dim=1).tolist()
    margins = (y * (X @ w)).tolist()
    for value in (0.0, 0.1, *(n * f for n in norms[:3] for f in (1 - 1e-6, 1 + 1e-6))):
        keep = gradient_threshold(X, y, lam, decaying_threshold(3 * value))
        for i in range(12):
            if abs(norms[i] - value) > 1e-9:
                assert keep(3, i, margins[i], float(w.norm())) == (norms[i] >= value)


# --- devices, bad input


def everything(X, y):
    order, g = torch.arange(8, device="cpu"), stream(0, "keep")
    keep = authors_rule(X.norm(dim=1), 0.3, 1.0, g)
    rules = keep, gradient_threshold(X, y, 0.1, constant_threshold(0.4))
    paths = [pegasos(X, y, 0.1, order, keep=rule, project="sphere") for rule in rules]
    paths += [importance_pegasos(X, y, 0.1, 9, g, utility=u) for u in ("loss", "gradient")]
    w = paths[0].weights[-1]
    return [paths, svm_objective(w, X, y, 0.1), svm_gradients(w, X, y, 0.1)]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, *problem(8, 3, 0))


@pytest.mark.gpu
def test_on_cuda_objective_and_gradients_are_the_same(same_on_cuda):
    parts = lambda X, y: [f(X[0], X, y, 0.1) for f in (svm_objective, svm_gradients)]  # noqa: E731
    same_on_cuda(parts, *problem(8, 3, 0))


def test_bad_input_is_refused():
    (X, y), order, g = problem(5, 2, 0), torch.arange(5), stream(0, "draws")
    for bad_x, bad_y in ((X[0], y), (X, y[:4]), (X[:0], y[:0])):
        with pytest.raises(ValueError, match=r"need X \(N, D\) and y \(N,\), got"):
            pegasos(bad_x, bad_y, 0.1, order)
    with pytest.raises(ValueError, match=r"labels must be -1 or \+1, got .*0\.5"):
        svm_objective(X[0], X, y / 2, 0.1)
    for lam in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match=f"lambda must be > 0, got {lam}"):
            importance_pegasos(X, y, lam, 3, g)
    for bad in (order + 1, order - 1, order[:0], order[None]):
        with pytest.raises(ValueError, match=r"(order|index) must be"):
            pegasos(X, y, 0.1, bad)
    for option, named in (
        ({"project": "box"}, r"project must be one of .*, got 'box'"),
        ({"record_every": 0}, "record_every=0"),
        ({"step_offset": 0.0, "step_scale": 1.5}, r"step_offset=0\.0"),
    ):
        with pytest.raises(ValueError, match=named):
            pegasos(X, y, 0.1, order, **option)
    wrong = {"utility": "margin", "project": "box", "refresh": 0, "record_every": 0, "floor": -1.0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=str(value)):
            importance_pegasos(X, y, 0.1, 3, g, **{name: value})
    with pytest.raises(ValueError, match="num_steps=0"):
        importance_pegasos(X, y, 0.1, 0, g)
    for make in (violators, lambda b, g: authors_rule(y, b, 1.0, g)):
        with pytest.raises(ValueError, match=r"got 1\.5"):
            make(1.5, g)


# --- tables with gaps, and other types


def calls(X, y):
    """Everything that takes a problem, as functions without arguments."""
    w, g = torch.ones(2, dtype=torch.float64), stream(0, "draws")
    return (
        lambda: pegasos(X, y, 0.1, torch.arange(5)),
        lambda: importance_pegasos(X, y, 0.1, 3, g),
        lambda: svm_objective(w, X, y, 0.1),
        lambda: svm_gradients(w, X, y, 0.1),
        lambda: gradient_threshold(X, y, 0.1, constant_threshold(1.0)),
    )


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_gaps_in_the_inputs_are_refused(bad):
    X, y = problem(5, 2, 0)
    X[3, 1] = bad
    for call in calls(X, y):
        with pytest.raises(ValueError, match=rf"X must be finite, row 3 holds {bad}"):
            call()
    with pytest.raises(ValueError, match="x_norms must be finite"):
        authors_rule(X.norm(dim=1), 0.3, 1.0, stream(0, "keep"))
    with pytest.raises(ValueError, match="threshold of iterate 1 is NaN"):
        gradient_threshold(*problem(5, 2, 0), 0.1, lambda k: NAN)(1, 0, 0.0, 1.0)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.float16, torch.bfloat16], ids=str
)
def test_inputs_of_other_types_are_refused_and_labels_are_signs(dtype):
    X, y = problem(5, 2, 0)
    for call in calls(X.abs().to(dtype), y):
        with pytest.raises(ValueError, match=f"X must be float32 or float64, got {dtype}"):
            call()
    for labels in (y > 0, y.clamp(min=0).to(dtype), y.cfloat()):
        for call in calls(X, labels):
            with pytest.raises(ValueError, match="labels must be"):
                call()
    for labels in (y.to(torch.int8), y.half()):
        want, got = pegasos(X, y, 0.1, torch.arange(5)), pegasos(X, labels, 0.1, torch.arange(5))
        assert all(map(torch.equal, got.weights, want.weights))
        for function in (svm_objective, svm_gradients):
            assert torch.equal(function(X[0], X, labels, 0.1), function(X[0], X, y, 0.1))
    for order in (torch.arange(5) / 1, torch.arange(5) > 1):
        with pytest.raises(ValueError, match="index must be"):
            pegasos(X, y, 0.1, order)
    with pytest.raises(TypeError, match=r"indices must be a tensor .*, got range"):
        pegasos(X, y, 0.1, range(5))
    for w in (X[0].to(dtype), X[0, :1], X):
        with pytest.raises(ValueError, match="weights must be"):
            svm_gradients(w, X, y, 0.1)
    assert torch.equal(pegasos(X, y, 0.1, torch.arange(5).byte()).weights[-1], want.weights[-1])


def test_weights_that_are_not_finite_show():
    X, y = problem(5, 2, 0)
    w = torch.tensor([NAN, 0.0], dtype=torch.float64)
    assert svm_objective(w, X, y, 0.1).isnan()
    assert svm_gradients(w, X, y, 0.1).isnan().any()


def test_rules_can_be_copied():
    X, y = problem(5, 2, 0)
    g = stream(0, "keep")
    threshold = gradient_threshold(X, y, 0.1, decaying_threshold(1.0))
    for rule in (violators(0.3, g), authors_rule(y, 0.3, 1.0, g), threshold):
        twin = copy.deepcopy(rule)
        asked = [(k, k % 5, 1.0, 0.5) for k in range(1, 20)]
        assert [twin(*each) for each in asked] == [rule(*each) for each in asked]


@pytest.mark.parametrize("offset", [-1.0, -0.5, math.inf, math.nan])
def test_importance_sampling_refuses_an_offset_that_makes_no_step(offset, randn):
    X, y = randn(0, 8, 3), torch.ones(8)
    with pytest.raises(ValueError, match="step_offset"):
        importance_pegasos(
            X, y, lam=0.1, num_steps=4, step_offset=offset, generator=torch.Generator()
        )
