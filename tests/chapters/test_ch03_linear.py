"""Chapter 3: rules on linear SVMs against plain loops, products, first hits, and the theorem."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.chapters.autoassist import linear
from companion.chapters.autoassist.arms import SVM
from companion.chapters.autoassist.linear import THRESHOLDS, compare_rules, theorem
from companion.chapters.autoassist.problems import Optimum, svm_optimum, svm_problem
from trainaug.methods.autoassist import Path
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

N, LAM = 60, 0.05
SMALL = SVM | {"lam": LAM, "passes": 6, "exact_steps": 25, "gap": 0.02}


def toy(data: str = "toy", seed: int = 0) -> tuple[Tensor, Tensor]:
    g = stream(seed, "candidates")
    X = torch.randn(N, 5, generator=g, dtype=torch.float64)
    y = (X[:, 0] + 0.7 * torch.randn(N, generator=g, dtype=torch.float64)).sign()
    return X / X.norm(dim=1, keepdim=True), y


@pytest.fixture(scope="module", autouse=True)
def _toy() -> Any:
    """A small problem; scikit-learn is imported before the random states are watched."""
    svm_optimum(*toy(), LAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "svm_problem", toy)
        yield


@pytest.fixture(scope="module")
def compared() -> tuple[dict[str, float], dict[str, list[float]]]:
    return compare_rules(SMALL, 3)


def gap_of(w: Tensor, lam: float = LAM) -> float:
    X, y = toy(seed=3)
    value = sum(max(0.0, 1 - b * float(w @ a)) for a, b in zip(X, y.tolist(), strict=True)) / N
    return max(linear.FLOOR, lam / 2 * float(w @ w) + value - svm_optimum(X, y, lam).value)


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
    found = [w], [0]
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
            found[0].append(w)
            found[1].append(updates)
    return found


RULES = ("sgd", "with_replacement", "loss_only", "decaying_1", "decaying_100", "constant")


@pytest.mark.parametrize("rule", [*RULES, "sphere", "random"])
def test_metrics_of_a_rule_by_a_plain_loop(compared, rule):
    metrics, curves = compared
    weights, updates = naive_path(rule)
    gaps = [gap_of(w) for w in weights]
    steps = [min(3 * place, 6 * N) for place in range(len(gaps))]
    if rule == "random":
        steps[-1] = naive_path("loss_only")[1][-1]
    hit = next((place for place, gap in enumerate(gaps) if gap <= SMALL["gap"]), None)
    place = -1 if hit is None else hit
    X, y = toy(seed=3)
    expected = {
        "gap": sum(gaps[-20:]) / 20,
        "kept": updates[-1] / (6 * N),  # of all iterations, skipped ones included
        "norm": float(weights[-1].norm() / svm_optimum(X, y, LAM).w.norm()),
        "reached": float(hit is not None),
        "products": float(steps[place]),  # one each, kept or not
        "updates": float(updates[place]),
    }
    for name, value in expected.items():
        assert metrics[f"{rule}/{name}"] == pytest.approx(value, rel=1e-6), name
    every = math.ceil(len(gaps) / 60)
    assert curves[f"{rule}/gap"] == pytest.approx(gaps[::every], rel=1e-6)
    assert curves[f"{rule}/products"] == steps[::every]
    assert len(curves[f"{rule}/gap"]) <= 60


def test_of_the_loss_only_shrunk_every_number_is_sgd_s(compared):
    metrics, curves = compared
    for name in ("gap", "norm", "reached", "products"):
        assert metrics[f"loss_only/{name}"] == metrics[f"sgd/{name}"]
    for name in ("gap", "products"):
        assert curves[f"loss_only/{name}"] == curves[f"sgd/{name}"]
    assert metrics["loss_only/kept"] < metrics["sgd/kept"] == 1
    assert metrics["random/kept"] == metrics["loss_only/kept"]
    assert metrics["authors/gap"] != metrics["decay_skipped/gap"]
    assert metrics["optimum"] == pytest.approx(svm_optimum(*toy(seed=3), LAM).value, rel=1e-12)


def test_first_hits_and_products_of_planted_paths(monkeypatch):
    """The place of the first gap below the line is looked up in the path's own costs."""
    X, y = toy(seed=3)
    best = svm_optimum(X, y, LAM).w
    zero = torch.zeros_like(best)

    def planted(*given: Any, **more: Any) -> Path:
        weights = [zero, zero, best, zero, best]
        return Path(weights, [0, 1, 5, 6, 9], [0, 10, 50, 60, 90], [0, 2, 10, 12, 18])

    monkeypatch.setattr(linear, "pegasos", planted)
    never = Path([zero] * 3, [0, 4, 8], [0, 40, 80], [0, 5, 16])
    monkeypatch.setattr(linear, "importance_pegasos", lambda *_, **__: never)
    metrics, _ = compare_rules(SMALL, 3)
    for rule in RULES:
        found = [metrics[f"{rule}/{name}"] for name in ("reached", "products", "updates", "kept")]
        assert found == [1.0, 50.0, 5.0, 0.5]
    for rule in ("loss_stale", "gradient_exact"):  # all of the run
        found = [metrics[f"{rule}/{name}"] for name in ("reached", "products", "updates", "kept")]
        assert found == [0.0, 80.0, 8.0, 0.5]


def test_scoring_is_counted(compared):
    metrics, curves = compared
    for utility in ("loss", "gradient"):
        stale = curves[f"{utility}_stale/products"]
        assert stale[0] == 0
        # the scoring of all at the start of a pass, and one each
        every = math.ceil(len(range(0, 6 * N + 1, 3)) / 60)
        steps = list(range(0, 6 * N + 1, 3 * every))
        assert stale == [k + N * math.ceil(k / N) for k in steps]
        assert curves[f"{utility}_exact/products"] == [float(N * k) for k in range(26)]
    dual = metrics["liblinear/products"]
    assert dual % N == 0
    assert N <= dual <= linear.MOST_PASSES * N


def test_liblinear_stops_at_the_first_pass_that_is_good_enough():
    X, y = toy(seed=3)
    best = svm_optimum(X, y, LAM)
    passes = [linear._dual_passes(X, y, LAM, best, gap) for gap in (10.0, 1e-3, 1e-6)]
    assert passes[0] == {"liblinear/products": float(N), "liblinear/reached": 1.0}
    assert sorted(p["liblinear/products"] for p in passes) == [
        p["liblinear/products"] for p in passes
    ]
    never = linear._dual_passes(X, y, LAM, Optimum(best.w, best.value - 1), 1e-3)
    assert never == {"liblinear/products": 200.0 * N, "liblinear/reached": 0.0}


def test_moved_compares_with_the_optimum_of_the_kept_share():
    X, y = toy(seed=3)
    w = svm_optimum(X, y, LAM * 0.25).w
    steps = [0, 10, 20, 30, 40, 50]
    path = Path([0 * w] * 2 + [w] * 20, [0, 10, 20, 20, 22, 25], steps, steps)
    found = linear._moved(X, y, LAM, path)  # of the second half, 5 of 20
    assert found["decay_skipped/distance"] < 1e-6
    assert found["decay_skipped/found_norm"] == pytest.approx(float(w.norm()), rel=1e-12)
    assert found["decay_skipped/predicted_norm"] == pytest.approx(float(w.norm()), rel=1e-6)
    path.weights[-20:] = [2 * w] * 20
    assert linear._moved(X, y, LAM, path)["decay_skipped/distance"] == pytest.approx(1, rel=1e-5)


# --- theorem --------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.0, 9.7])  # with 10, one gradient is on the threshold
def test_theorem_by_a_plain_loop(monkeypatch, c):
    monkeypatch.setattr(linear, "REPEATS", 3)
    monkeypatch.setattr(linear, "THRESHOLDS", (c,))
    metrics, curves = theorem({"data": "toy", "lam": LAM, "passes": 2}, 3)
    X, y = toy(seed=3)
    best, g = svm_optimum(X, y, LAM), stream(3, "order")
    distances: dict[int, list[float]] = {}
    largest, kept, ends = 0.0, 0, []
    for _ in range(3):
        w = torch.zeros(5, dtype=torch.float64)
        for k, i in enumerate(torch.randint(N, (2 * N,), generator=g).tolist(), 1):
            gradient = LAM * w - (y[i] * X[i] if float(y[i] * (w @ X[i])) < 1 else 0)
            largest = max(largest, float(gradient.norm()))
            if float(gradient.norm()) >= c / k:
                w, kept = w - 2 / (LAM * (k + 1)) * gradient, kept + 1
            if k % 2 == 0:  # 60 places on the way
                distances.setdefault(k + 1, []).append(float((w - best.w).square().sum()))
        ends.append(gap_of(w))
    means = {k: sum(of) / 3 for k, of in distances.items()}
    bounds = {k: 4 * (largest**2 + c**2) / (LAM**2 * (k + 1)) for k in means}
    assert curves["k"] == list(means)
    assert curves[f"{c:g}/distance"] == pytest.approx(list(means.values()), rel=1e-6)
    assert curves[f"{c:g}/bound"] == pytest.approx(list(bounds.values()), rel=1e-6)
    ratio = max(means[k] / bounds[k] for k in means)
    assert metrics[f"{c:g}/ratio"] == pytest.approx(ratio, rel=1e-6)
    assert metrics[f"{c:g}/gap"] == pytest.approx(sum(ends) / 3, rel=1e-5)
    assert metrics[f"{c:g}/kept"] == pytest.approx(kept / (6 * N), rel=1e-12)
    late = [(math.log(k), math.log(means[k])) for k in list(means)[6:]]
    x = torch.tensor(late, dtype=torch.float64)
    design = torch.stack([x[:, 0], torch.ones(len(x), dtype=x.dtype)], 1)
    slope = float(torch.linalg.lstsq(design, x[:, 1:]).solution[0])
    assert metrics[f"{c:g}/slope"] == pytest.approx(slope, rel=1e-5)


def test_theorem_holds_on_a_real_problem(monkeypatch):
    monkeypatch.setattr(linear, "svm_problem", svm_problem)
    monkeypatch.setattr(linear, "REPEATS", 2)
    metrics, curves = theorem({"data": "breast_cancer", "lam": 1e-2, "passes": 1}, 0)
    for c in THRESHOLDS:
        assert 0 < metrics[f"{c:g}/ratio"] < 1
        assert len(curves[f"{c:g}/distance"]) == len(curves["k"]) == 60
    assert metrics["bias_error"] < 1e-12
    assert [
        m for m in metrics if not re.match(r"bias_error|[\d.]+/(ratio|slope|gap|kept)$", m)
    ] == []


def test_a_wrong_formula_of_the_bias_is_found_out(monkeypatch):
    X, y = toy(seed=3)
    assert linear._bias_error(X, y, LAM, 3) < 1e-12  # rounding
    monkeypatch.setattr(linear, "shrinking_bias", lambda g, p: -(p[:, None] * g).mean(0))
    assert linear._bias_error(X, y, LAM, 3) > 1e-3
