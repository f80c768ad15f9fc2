"""Chapter 3: rules on linear SVMs against plain loops, products, first hits, and the theorem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.chapters.autoassist import linear
from companion.chapters.autoassist.linear import Rules, Theorem, run_rules, run_theorem
from companion.chapters.autoassist.problems import svm_optimum, svm_problem
from companion.lab.results import Result
from trainaug.methods.autoassist import Path
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

N, LAM = 60, 0.05
SMALL = Rules(lam=LAM, passes=6, exact_steps=25, gap=0.02)


def toy(data: str = "toy", seed: int = 0, *, most: int = 2000) -> tuple[Tensor, Tensor]:
    g = stream(seed, "candidates")
    X = torch.randn(N, 5, generator=g, dtype=torch.float64)
    y = (X[:, 0] + 0.7 * torch.randn(N, generator=g, dtype=torch.float64)).sign()
    return X / X.norm(dim=1, keepdim=True), y


@pytest.fixture(scope="module", autouse=True)
def _toy() -> Iterator[None]:
    """A small problem; scikit-learn is imported before the random states are watched."""
    svm_optimum(*toy(), LAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "svm_problem", toy)
        yield


@pytest.fixture(scope="module")
def compared() -> Result:
    return run_rules(SMALL, 3)


def gap_of(w: Tensor) -> float:
    X, y = toy(seed=3)
    value = sum(max(0.0, 1 - b * float(w @ a)) for a, b in zip(X, y.tolist(), strict=True)) / N
    excess = LAM / 2 * float(w @ w) + value - svm_optimum(X, y, LAM).value
    return max(SMALL.gap_floor, excess)


def naive_path(rule: str) -> tuple[list[Tensor], list[int]]:
    """Iterates of a pass in 20 parts, and the gradients until then; written out."""
    X, y = toy(seed=3)
    order_of, draws = stream(3, "order"), stream(3, "draws")
    order = [i for _ in range(6) for i in torch.randperm(N, generator=order_of).tolist()]
    if rule == "with_replacement":
        order = torch.randint(N, (6 * N,), generator=draws).tolist()
    if rule == "random":
        order = order[: naive_path("loss_only")[1][-1]]
    w, updates = torch.zeros(5, dtype=torch.float64), 0
    path = [w], [0]
    for k, i in enumerate(order, 1):
        step, margin = 1 / (LAM * (k + 100)), float(y[i] * (w @ X[i]))
        gradient = LAM * w - (y[i] * X[i] if margin < 1 else 0)
        length = float(gradient.norm())
        kept = {
            "loss_only": margin < 1,
            "decaying_1": length >= 1 / k,
            "decaying_100": length >= 100 / k,
            "constant": length >= 0.3,
        }.get(rule, True)
        updates += kept
        if kept:
            w = w - step * gradient
        elif rule == "loss_only":  # the decay stays
            w = (1 - step * LAM) * w
        length = float(w.norm())
        if length > LAM**-0.5 or (rule == "sphere" and length > 0):
            w = w * LAM**-0.5 / length
        if k % 3 == 0 or k == len(order):
            path[0].append(w)
            path[1].append(updates)
    return path


RULES = ("sgd", "with_replacement", "loss_only", "decaying_1", "decaying_100", "constant")


@pytest.mark.parametrize("rule", [*RULES, "sphere", "random"])
def test_metrics_of_a_rule_by_a_plain_loop(compared, rule):
    weights, updates = naive_path(rule)
    gaps = [gap_of(w) for w in weights]
    steps = [min(3 * number, 6 * N) for number in range(len(gaps))]
    if rule == "random":
        steps[-1] = naive_path("loss_only")[1][-1]
    hit = next((number for number, gap in enumerate(gaps) if gap <= SMALL.gap), None)
    first = -1 if hit is None else hit
    X, y = toy(seed=3)
    expected = {
        "gap": sum(gaps[-20:]) / 20,
        "kept": updates[-1] / (6 * N),  # of all iterations, skipped ones included
        "norm": float(weights[-1].norm() / svm_optimum(X, y, LAM).w.norm()),
        "reached": float(hit is not None),
        "products": float(steps[first]),  # one each, kept or not
        "updates": float(updates[first]),
    }
    for name, value in expected.items():
        assert compared.metrics[f"{rule}/{name}"] == pytest.approx(value, rel=1e-6), name
    every = math.ceil(len(gaps) / 60)
    # a record keeps six digits
    assert compared.curves[f"{rule}/gap"] == pytest.approx(gaps[::every], rel=1e-5)
    assert compared.curves[f"{rule}/products"] == steps[::every]


def test_of_the_loss_only_shrunk_every_number_is_sgd_s(compared):
    metrics, curves = compared.metrics, compared.curves
    for name in ("gap", "norm", "reached", "products"):
        assert metrics[f"loss_only/{name}"] == metrics[f"sgd/{name}"]
    for name in ("gap", "products"):
        assert curves[f"loss_only/{name}"] == curves[f"sgd/{name}"]
    assert metrics["loss_only/kept"] < metrics["sgd/kept"] == 1
    assert metrics["random/kept"] == metrics["loss_only/kept"]
    assert metrics["authors/gap"] != metrics["decay_skipped/gap"]
    assert metrics["optimum"] == pytest.approx(svm_optimum(*toy(seed=3), LAM).value, rel=1e-8)


def test_first_hits_and_products_of_planted_paths(monkeypatch):
    """What was spent until the first gap below the line is read off the path's own costs."""
    X, y = toy(seed=3)
    best = svm_optimum(X, y, LAM).w
    zero = torch.zeros_like(best)

    def planted(*given: Any, **more: Any) -> Path:
        weights = [zero, zero, best, zero, best]
        return Path(weights, [0, 1, 5, 6, 9], [0, 10, 50, 60, 90], [0, 2, 10, 12, 18])

    monkeypatch.setattr(linear, "pegasos", planted)
    never = Path([zero] * 3, [0, 4, 8], [0, 40, 80], [0, 5, 16])
    monkeypatch.setattr(linear, "importance_pegasos", lambda *_, **__: never)
    metrics = run_rules(SMALL, 3).metrics
    names = ("reached", "products", "updates", "kept")
    for rule in RULES:
        assert [metrics[f"{rule}/{name}"] for name in names] == [1.0, 50.0, 5.0, 0.5]
    for rule in ("loss_stale", "gradient_exact"):  # all of the run
        assert [metrics[f"{rule}/{name}"] for name in names] == [0.0, 80.0, 8.0, 0.5]


def test_scoring_is_counted(compared):
    curves = compared.curves
    for utility in ("loss", "gradient"):
        stale = curves[f"{utility}_stale/products"]
        assert stale[0] == 0
        # the scoring of all at the start of a pass, and one each
        every = math.ceil(len(range(0, 6 * N + 1, 3)) / 60)
        steps = list(range(0, 6 * N + 1, 3 * every))
        assert stale == [k + N * math.ceil(k / N) for k in steps]
        assert curves[f"{utility}_exact/products"] == [float(N * k) for k in range(26)]


def test_liblinear_stops_at_the_first_pass_that_is_good_enough():
    short = replace(SMALL, passes=2, exact_steps=2)
    passes: list[float] = []
    for gap in (10.0, 1e-3, 1e-6):
        metrics = run_rules(replace(short, gap=gap), 3).metrics
        assert metrics["liblinear/reached"] == 1.0
        passes.append(metrics["liblinear/products"] / N)
    assert passes[0] == 1.0
    assert passes == sorted(passes)
    assert all(count.is_integer() for count in passes)
    metrics = run_rules(replace(short, gap=1e-6, most_passes=1), 3).metrics
    assert (metrics["liblinear/products"], metrics["liblinear/reached"]) == (N, 0.0)


def test_skipped_decay_is_compared_with_the_optimum_of_the_kept_share(monkeypatch):
    X, y = toy(seed=3)
    w = svm_optimum(X, y, LAM * 0.25).w
    steps = list(range(0, 220, 10))
    updates = [*range(0, 60, 5), *(57 + 2 * k for k in range(9)), 80]  # of the second half 25 %
    for scale, distance in ((1.0, 0.0), (2.0, 1.0)):
        path = Path([0 * w] * 2 + [scale * w] * 20, updates, steps, steps)
        monkeypatch.setattr(linear, "pegasos", lambda *_, path=path, **__: path)
        metrics = run_rules(SMALL, 3).metrics
        assert metrics["decay_skipped/distance"] == pytest.approx(distance, abs=1e-5)
        assert metrics["decay_skipped/found_norm"] == pytest.approx(scale * float(w.norm()))
        assert metrics["decay_skipped/predicted_norm"] == pytest.approx(float(w.norm()), rel=1e-6)


# --- theorem --------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.0, 9.7])  # with 10, one gradient is on the threshold
def test_theorem_by_a_plain_loop(c):
    result = run_theorem(Theorem(lam=LAM, passes=2, repeats=3, thresholds=(c,)), 3)
    metrics, curves = result.metrics, result.curves
    X, y = toy(seed=3)
    best, g = svm_optimum(X, y, LAM), stream(3, "order")
    distances: dict[int, list[float]] = {}
    largest, kept = 0.0, 0
    ends: list[float] = []
    for _ in range(3):
        w = torch.zeros(5, dtype=torch.float64)
        for k, i in enumerate(torch.randint(N, (2 * N,), generator=g).tolist(), 1):
            gradient = LAM * w - (y[i] * X[i] if float(y[i] * (w @ X[i])) < 1 else 0)
            largest = max(largest, float(gradient.norm()))
            if float(gradient.norm()) >= c / k:
                w, kept = w - 2 / (LAM * (k + 1)) * gradient, kept + 1
            if k % 2 == 0:  # 60 on the way
                distances.setdefault(k + 1, []).append(float((w - best.w).square().sum()))
        ends.append(gap_of(w))
    means = {k: sum(values) / 3 for k, values in distances.items()}
    bounds = {k: 4 * (largest**2 + c**2) / (LAM**2 * (k + 1)) for k in means}
    assert curves["k"] == list(means)
    # a record keeps six digits
    assert curves[f"{c:g}/distance"] == pytest.approx(list(means.values()), rel=1e-5)
    assert curves[f"{c:g}/bound"] == pytest.approx(list(bounds.values()), rel=1e-5)
    ratio = max(means[k] / bounds[k] for k in means)
    assert metrics[f"{c:g}/ratio"] == pytest.approx(ratio, rel=1e-6)
    assert metrics[f"{c:g}/gap"] == pytest.approx(sum(ends) / 3, rel=1e-5)
    assert metrics[f"{c:g}/kept"] == pytest.approx(kept / (6 * N), rel=1e-8)
    late = [(math.log(k), math.log(means[k])) for k in list(means)[6:]]
    x = torch.tensor(late, dtype=torch.float64)
    design = torch.stack([x[:, 0], torch.ones(len(x), dtype=x.dtype)], 1)
    slope = float(torch.linalg.lstsq(design, x[:, 1:]).solution[0])
    assert metrics[f"{c:g}/slope"] == pytest.approx(slope, rel=1e-5)


def test_theorem_holds_on_a_real_problem(monkeypatch):
    monkeypatch.setattr(linear, "svm_problem", svm_problem)
    settings = Theorem(passes=1, repeats=2)
    metrics = run_theorem(settings, 0).metrics
    for c in settings.thresholds:
        assert 0 < metrics[f"{c:g}/ratio"] < 1
    assert metrics["bias_error"] < 1e-12  # rounding


def test_a_wrong_formula_of_the_bias_is_found_out(monkeypatch):
    monkeypatch.setattr(linear, "shrinking_bias", lambda g, p: -(p[:, None] * g).mean(0))
    settings = Theorem(lam=LAM, passes=1, repeats=1, thresholds=(0.0,))
    assert run_theorem(settings, 3).metrics["bias_error"] > 1e-3
