"""Linear SVMs: what shrinking saves and moves, against importance sampling and liblinear."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor

from companion.chapters.autoassist.problems import Optimum, svm_optimum, svm_problem
from trainaug.methods.autoassist import (
    Path,
    authors_rule,
    constant_threshold,
    decaying_threshold,
    distance_bound,
    gradient_threshold,
    importance_pegasos,
    keep_probability,
    pegasos,
    shrinking_bias,
    svm_gradients,
    svm_objective,
    violators,
)
from trainaug.training.randomness import stream

__all__ = ["FLOOR", "THRESHOLDS", "compare_rules", "theorem"]

LOOKS = 20  # recorded iterates a pass
CURVE = 60  # points
FLOOR = 1e-9  # of a gap: liblinear's optimum is not more exact
MOST_PASSES = 200  # of dual coordinate descent
THRESHOLDS = (0.0, 1.0, 10.0, 100.0)  # c of c/k
REPEATS = 20  # orders whose mean stands for the expectation


def shuffled_passes(n: int, passes: int, generator: torch.Generator) -> Tensor:
    """Indices of some passes, each a fresh permutation, ``(passes * n,)``."""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(passes)])


def compare_rules(
    settings: Mapping[str, Any], seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Run every rule on one data set with the same order of examples.

    Returns:
        Metrics ``<rule>/<what>``: ``gap`` of the objective at the end (mean of the last pass),
        ``kept``, the share of iterations that gave a gradient, ``norm`` over the optimum's,
        ``products`` and ``updates`` until the gap was first reached (all of the run if never),
        ``reached``; and curves of the gap over inner products.
    """
    lam = settings["lam"]
    X, y = svm_problem(settings["data"], seed)
    best, n = svm_optimum(X, y, lam), len(X)
    order = shuffled_passes(n, settings["passes"], stream(seed, "order"))
    draws = torch.randint(n, (len(order),), generator=stream(seed, "draws"))
    every, norms = max(1, n // LOOKS), X.norm(dim=1)

    def run(rows: Tensor = order, **given: Any) -> Path:
        return pegasos(X, y, lam, rows, record_every=every, **given)

    def g(name: str) -> torch.Generator:
        return stream(seed, name)

    base, eps = settings["base"], settings["eps"]
    paths = {
        "sgd": run(),
        "with_replacement": run(draws),
        "loss_only": run(keep=violators(0.0, g("loss_only"))),
        "decay_skipped": run(keep=violators(base, g("decay_skipped")), decay_on_skip=False),
        "authors": run(keep=authors_rule(norms, base, eps, g("authors")), decay_on_skip=False),
        "sphere": run(project="sphere"),
    }
    for c in (1.0, 100.0):
        rule = gradient_threshold(X, y, lam, decaying_threshold(c))
        paths[f"decaying_{c:g}"] = run(keep=rule, decay_on_skip=False)
    rule = gradient_threshold(X, y, lam, constant_threshold(0.3))
    paths["constant"] = run(keep=rule, decay_on_skip=False)
    # As many gradients as loss-only shrinking computed: random skipping is a shorter run.
    paths["random"] = run(order[: paths["loss_only"].updates[-1]])
    for utility in ("loss", "gradient"):
        given: Any = {"utility": utility, "floor": settings[f"floor_{utility}"]}
        paths[f"{utility}_stale"] = importance_pegasos(
            X, y, lam, len(order), g(f"{utility}_stale"), record_every=every, **given
        )
        paths[f"{utility}_exact"] = importance_pegasos(
            X, y, lam, settings["exact_steps"], g(f"{utility}_exact"), refresh=1, **given
        )
    metrics: dict[str, float] = {"optimum": best.value, "optimum_norm": float(best.w.norm())}
    curves: dict[str, list[float]] = {}
    for name, path in paths.items():
        gaps = (svm_objective(torch.stack(path.weights), X, y, lam) - best.value).clamp(min=FLOOR)
        found = (gaps <= settings["gap"]).nonzero()
        place = int(found[0]) if len(found) else -1
        metrics |= {
            f"{name}/gap": float(gaps[-LOOKS:].mean()),
            f"{name}/kept": path.updates[-1] / path.steps[-1],
            f"{name}/norm": float(path.weights[-1].norm() / best.w.norm()),
            f"{name}/reached": float(len(found) > 0),
            f"{name}/products": float(path.products[place]),
            f"{name}/updates": float(path.updates[place]),
        }
        step = max(1, -(-len(gaps) // CURVE))
        curves[f"{name}/gap"] = gaps[::step].tolist()
        curves[f"{name}/products"] = [float(p) for p in path.products[::step]]
    metrics["random/kept"] = paths["random"].updates[-1] / len(order)
    metrics |= _moved(X, y, lam, paths["decay_skipped"])
    metrics |= _dual_passes(X, y, lam, best, settings["gap"])
    return metrics, curves


def _moved(X: Tensor, y: Tensor, lam: float, path: Path) -> dict[str, float]:
    """Where skipped decay ends by Proposition C: the optimum for the kept share of lambda."""
    half = len(path.steps) // 2
    kept = (path.updates[-1] - path.updates[half]) / (path.steps[-1] - path.steps[half])
    other, w = svm_optimum(X, y, lam * kept), torch.stack(path.weights[-LOOKS:]).mean(0)
    return {
        "decay_skipped/predicted_norm": float(other.w.norm()),
        "decay_skipped/found_norm": float(w.norm()),
        "decay_skipped/distance": float((w - other.w).norm() / other.w.norm()),
    }


def _dual_passes(X: Tensor, y: Tensor, lam: float, best: Optimum, gap: float) -> dict[str, float]:
    """Inner products of liblinear's dual coordinate descent until the gap, N a pass at most."""
    n = len(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for passes in range(1, MOST_PASSES + 1):
            solver = LinearSVC(
                loss="hinge", fit_intercept=False, C=1 / (lam * n), tol=1e-12, max_iter=passes,
                random_state=0,
            )  # fmt: skip
            w = torch.from_numpy(solver.fit(X.numpy(), y.numpy()).coef_[0])
            if float(svm_objective(w, X, y, lam)) - best.value <= gap:
                return {"liblinear/products": float(passes * n), "liblinear/reached": 1.0}
    return {"liblinear/products": float(MOST_PASSES * n), "liblinear/reached": 0.0}


def theorem(
    settings: Mapping[str, Any], seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    r"""Theorem A on a real SVM: mean $\|w_k-w^\star\|^2$ over orders, for thresholds c/k.

    Returns:
        For each c the largest ``ratio`` of the mean to the bound, ``slope`` of its logarithm on
        that of k over the last nine tenths, the objective's ``gap`` at the end, ``kept``; the
        error of the bias identity by enumeration; and the curves.
    """
    lam, passes = settings["lam"], settings["passes"]
    X, y = svm_problem(settings["data"], seed)
    best, n, g = svm_optimum(X, y, lam), len(X), stream(seed, "order")
    orders = [torch.randint(n, (n * passes,), generator=g) for _ in range(REPEATS)]
    every = n * passes // CURVE
    metrics: dict[str, float] = {"bias_error": _bias_error(X, y, lam, seed)}
    curves: dict[str, list[float]] = {}
    for c in THRESHOLDS:
        rule = gradient_threshold(X, y, lam, decaying_threshold(c))
        paths = [
            pegasos(
                X, y, lam, order, keep=rule, decay_on_skip=False, project="none",
                step_offset=1.0, step_scale=2.0, record_every=every,
            )
            for order in orders
        ]  # fmt: skip
        distances = torch.stack([(torch.stack(p.weights) - best.w).square().sum(1) for p in paths])
        mean, steps = distances.mean(0)[1:], [k + 1 for k in paths[0].steps[1:]]  # w_{k+1}
        largest = max(path.largest_gradient for path in paths)
        bounds = [distance_bound(k, largest, c, lam) for k in steps]
        late = len(steps) // 10
        logs = [(math.log(k), math.log(a)) for k, a in zip(steps, mean.tolist(), strict=True)]
        gaps = svm_objective(torch.stack([p.weights[-1] for p in paths]), X, y, lam) - best.value
        metrics |= {
            f"{c:g}/ratio": max(a / b for a, b in zip(mean.tolist(), bounds, strict=True)),
            f"{c:g}/slope": _slope(logs[late:]),
            f"{c:g}/gap": float(gaps.mean()),
            f"{c:g}/kept": sum(p.updates[-1] / p.steps[-1] for p in paths) / len(paths),
        }
        curves[f"{c:g}/distance"] = mean.tolist()[:CURVE]
        curves[f"{c:g}/bound"] = bounds[:CURVE]
        curves["k"] = [float(k) for k in steps[:CURVE]]
    return metrics, curves


def _slope(points: list[tuple[float, float]]) -> float:
    centre = math.fsum(x for x, _ in points) / len(points)
    return math.fsum((x - centre) * v for x, v in points) / math.fsum(
        (x - centre) ** 2 for x, _ in points
    )


def _bias_error(X: Tensor, y: Tensor, lam: float, seed: int) -> float:
    """Largest error of the mean shrunk gradient's bias, draws and decisions enumerated."""
    g = stream(seed, "measure")
    w = torch.randn(X.shape[1], dtype=X.dtype, generator=g)
    gradients = svm_gradients(w, X, y, lam)  # (N, D)
    p = keep_probability(torch.rand(len(X), dtype=X.dtype, generator=g), 0.3)
    mean = torch.zeros_like(w)
    for gradient, kept in zip(gradients, p.tolist(), strict=True):  # skipped: nothing is added
        mean += kept * gradient / len(X)
    return float((mean - gradients.mean(0) - shrinking_bias(gradients, p)).abs().max())
