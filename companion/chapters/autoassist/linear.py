"""Linear SVMs: what shrinking saves and moves, against importance sampling and liblinear."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor

from companion.chapters.autoassist.problems import CONTENT, Optimum, svm_optimum, svm_problem
from companion.lab.arms import Settings
from companion.lab.results import Result, make_result
from trainaug.data.registry import content_hash
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

__all__ = ["THRESHOLDS", "Rules", "Theorem", "run_rules", "run_theorem"]

THRESHOLDS = (0.0, 1.0, 10.0, 100.0)  # c of c/k
Metrics = dict[str, float]
Curves = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Rules(Settings):
    """Rules of what to skip on one linear SVM, and what they are compared with.

    Attributes:
        data: ``breast_cancer``, ``digits`` or ``fashion``.
        lam: Weight of the regulariser.
        passes: Over the examples.
        base: Base pass rate of the authors' rule.
        eps: Their epsilon.
        constant: Threshold that does not fall.
        decaying: c of the thresholds c/k.
        exact_steps: Updates of exact importance sampling, each of which scores all examples.
        floor_loss: Floor of importance sampling by the loss, the best of six on seeds 5 to 7.
        floor_gradient: The same by the gradient.
        gap: Of the objective, to which work is counted.
        gap_floor: Least gap: liblinear's optimum is not more exact.
        evaluations: Recorded iterates of a pass.
        num_pair: Pictures of a pair that are kept, where there are more.
        most_passes: Of dual coordinate descent.
        curve_points: Points that a record keeps of each curve, at most.
    """

    data: str = "breast_cancer"
    lam: float = 1e-2
    passes: int = 60
    base: float = 0.3
    eps: float = 1.0
    constant: float = 0.3
    decaying: tuple[float, ...] = (1.0, 100.0)
    exact_steps: int = 600
    floor_loss: float = 1.0
    floor_gradient: float = 0.3
    gap: float = 1e-3
    gap_floor: float = 1e-9
    evaluations: int = 20
    num_pair: int = 2000
    most_passes: int = 200
    curve_points: int = 60

    @property
    def data_hash(self) -> str:
        return content_hash(CONTENT[self.data])

    def shortened(self, share: float) -> Self:
        return replace(self, passes=max(2, round(self.passes * share)))

    def tiny(self) -> Self:
        return replace(self, passes=4, exact_steps=20, gap=0.05, num_pair=160, most_passes=20)


@dataclass(frozen=True, kw_only=True)
class Theorem(Settings):
    """Theorem A on a real SVM, for thresholds c/k.

    Attributes:
        data: As in `Rules`.
        lam: Weight of the regulariser.
        passes: Draws, in numbers of examples.
        thresholds: Each c.
        repeats: Orders whose mean stands for the expectation.
        base: Base pass rate of the decisions whose bias is enumerated.
        num_pair: As in `Rules`.
        curve_points: Recorded iterates.
    """

    passes: int  # no default: records have always stated it
    data: str = "breast_cancer"
    lam: float = 1e-2
    thresholds: tuple[float, ...] = THRESHOLDS
    repeats: int = 20
    base: float = 0.3
    num_pair: int = 2000
    curve_points: int = 60

    @property
    def data_hash(self) -> str:
        return content_hash(CONTENT[self.data])

    def shortened(self, share: float) -> Self:
        return replace(self, passes=max(1, round(self.passes * share)))

    def tiny(self) -> Self:
        return replace(self, passes=2, repeats=2, num_pair=160)


def run_rules(settings: Rules, seed: int) -> Result:
    """Run every rule on one data set with the same order of examples.

    Metrics ``<rule>/<what>``: ``gap`` of the objective at the end (mean of the last pass),
    ``kept``, the share of iterations that gave a gradient, ``norm`` over the optimum's,
    ``products`` and ``updates`` until the gap was first reached (all of the run if never),
    ``reached``; and curves of the gap over inner products.
    """
    X, y = svm_problem(settings.data, seed, most=settings.num_pair)
    best = svm_optimum(X, y, settings.lam)
    num_steps = settings.passes * len(X)
    paths = _skipping_paths(settings, X, y, seed)
    paths |= _importance_paths(settings, X, y, seed, num_steps)
    metrics: Metrics = {"optimum": best.value, "optimum_norm": float(best.w.norm())}
    curves: Curves = {}
    for name, path in paths.items():
        gaps = svm_objective(torch.stack(path.weights), X, y, settings.lam) - best.value
        measured, drawn = _measure_path(settings, path, gaps.clamp(min=settings.gap_floor), best)
        metrics |= {f"{name}/{what}": value for what, value in measured.items()}
        curves |= {f"{name}/{what}": values for what, values in drawn.items()}
    metrics["random/kept"] = paths["random"].updates[-1] / num_steps
    metrics |= _moved(X, y, settings.lam, paths["decay_skipped"], settings.evaluations)
    metrics |= _dual_passes(X, y, settings.lam, best, settings.gap, settings.most_passes)
    return make_result(metrics, curves)


def _record_every(settings: Rules, num_examples: int) -> int:
    return max(1, num_examples // settings.evaluations)


def _skipping_paths(settings: Rules, X: Tensor, y: Tensor, seed: int) -> dict[str, Path]:
    """Paths of all rules on the same order of examples."""
    lam, base, n, g = settings.lam, settings.base, len(X), partial(stream, seed)
    order_of = g("order")
    order = torch.cat([torch.randperm(n, generator=order_of) for _ in range(settings.passes)])
    draws = torch.randint(n, (len(order),), generator=g("draws"))
    norms = X.norm(dim=1)
    run = partial(pegasos, X, y, lam, record_every=_record_every(settings, n))
    by_authors = authors_rule(norms, base, settings.eps, g("authors"))
    paths = {
        "sgd": run(order),
        "with_replacement": run(draws),
        "loss_only": run(order, keep=violators(0.0, g("loss_only"))),
        "decay_skipped": run(order, keep=violators(base, g("decay_skipped")), decay_on_skip=False),
        "authors": run(order, keep=by_authors, decay_on_skip=False),
        "sphere": run(order, project="sphere"),
    }
    for c in settings.decaying:
        rule = gradient_threshold(X, y, lam, decaying_threshold(c))
        paths[f"decaying_{c:g}"] = run(order, keep=rule, decay_on_skip=False)
    rule = gradient_threshold(X, y, lam, constant_threshold(settings.constant))
    paths["constant"] = run(order, keep=rule, decay_on_skip=False)
    # As many gradients as loss-only shrinking computed: random skipping is a shorter run.
    paths["random"] = run(order[: paths["loss_only"].updates[-1]])
    return paths


def _importance_paths(
    settings: Rules, X: Tensor, y: Tensor, seed: int, num_steps: int
) -> dict[str, Path]:
    """Paths of importance sampling by stale scores, and by exact ones, which cost N each."""
    every = _record_every(settings, len(X))
    paths: dict[str, Path] = {}
    floors: dict[Literal["loss", "gradient"], float] = {
        "loss": settings.floor_loss,
        "gradient": settings.floor_gradient,
    }
    for utility, floor in floors.items():
        run = partial(importance_pegasos, X, y, settings.lam, utility=utility, floor=floor)
        stale, exact = f"{utility}_stale", f"{utility}_exact"
        paths[stale] = run(num_steps, stream(seed, stale), record_every=every)
        paths[exact] = run(settings.exact_steps, stream(seed, exact), refresh=1)
    return paths


def _measure_path(
    settings: Rules, path: Path, gaps: Tensor, best: Optimum
) -> tuple[Metrics, Curves]:
    """Metrics and curves of one path, from the gaps of its iterates."""
    hits = (gaps <= settings.gap).nonzero()
    first = int(hits[0]) if len(hits) else -1
    metrics = {
        "gap": float(gaps[-settings.evaluations :].mean()),
        "kept": path.updates[-1] / path.steps[-1],
        "norm": float(path.weights[-1].norm() / best.w.norm()),
        "reached": float(len(hits) > 0),
        "products": float(path.products[first]),
        "updates": float(path.updates[first]),
    }
    step = max(1, -(-len(gaps) // settings.curve_points))
    products = [float(p) for p in path.products[::step]]
    return metrics, {"gap": gaps[::step].tolist(), "products": products}


def _moved(X: Tensor, y: Tensor, lam: float, path: Path, last: int) -> Metrics:
    """Where skipped decay ends by Proposition C: the optimum for the kept share of lambda.

    ``last``: recorded iterates at the end whose mean is compared with it.
    """
    half = len(path.steps) // 2
    kept = (path.updates[-1] - path.updates[half]) / (path.steps[-1] - path.steps[half])
    predicted = svm_optimum(X, y, lam * kept).w
    w = torch.stack(path.weights[-last:]).mean(0)
    return {
        "decay_skipped/predicted_norm": float(predicted.norm()),
        "decay_skipped/found_norm": float(w.norm()),
        "decay_skipped/distance": float((w - predicted).norm() / predicted.norm()),
    }


def _dual_passes(X: Tensor, y: Tensor, lam: float, best: Optimum, gap: float, most: int) -> Metrics:
    """Inner products of liblinear's dual coordinate descent until the gap, N a pass at most."""
    n = len(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for passes in range(1, most + 1):
            solver = LinearSVC(
                loss="hinge", fit_intercept=False, C=1 / (lam * n), tol=1e-12, max_iter=passes,
                random_state=0,
            )  # fmt: skip
            w = torch.from_numpy(solver.fit(X.numpy(), y.numpy()).coef_[0])
            if float(svm_objective(w, X, y, lam)) - best.value <= gap:
                return {"liblinear/products": float(passes * n), "liblinear/reached": 1.0}
    return {"liblinear/products": float(most * n), "liblinear/reached": 0.0}


def run_theorem(settings: Theorem, seed: int) -> Result:
    r"""Theorem A on a real SVM: mean $\|w_k-w^\star\|^2$ over orders, for thresholds c/k.

    For each c the largest ``ratio`` of the mean to the bound, ``slope`` of its logarithm on that
    of k over the last nine tenths, the objective's ``gap`` at the end, ``kept``; the error of the
    bias identity by enumeration; and the curves.
    """
    lam, points = settings.lam, settings.curve_points
    X, y = svm_problem(settings.data, seed, most=settings.num_pair)
    best, g = svm_optimum(X, y, lam), stream(seed, "order")
    num_steps = len(X) * settings.passes
    orders = [torch.randint(len(X), (num_steps,), generator=g) for _ in range(settings.repeats)]
    metrics: Metrics = {"bias_error": _bias_error(X, y, lam, seed, settings.base)}
    curves: Curves = {}
    for c in settings.thresholds:
        rule = gradient_threshold(X, y, lam, decaying_threshold(c))
        paths = [
            pegasos(
                X, y, lam, order, keep=rule, decay_on_skip=False, project="none",
                step_offset=1.0, step_scale=2.0, record_every=num_steps // points,
            )
            for order in orders
        ]  # fmt: skip
        distances = torch.stack([(torch.stack(p.weights) - best.w).square().sum(1) for p in paths])
        mean = distances.mean(0)[1:].tolist()
        steps = [k + 1 for k in paths[0].steps[1:]]  # w_{k+1}
        largest = max(path.largest_gradient for path in paths)
        bounds = [distance_bound(k, largest, c, lam) for k in steps]
        late = len(steps) // 10
        gaps = svm_objective(torch.stack([p.weights[-1] for p in paths]), X, y, lam) - best.value
        metrics |= {
            f"{c:g}/ratio": max(a / b for a, b in zip(mean, bounds, strict=True)),
            f"{c:g}/slope": _slope(steps[late:], mean[late:]),
            f"{c:g}/gap": float(gaps.mean()),
            f"{c:g}/kept": sum(p.updates[-1] / p.steps[-1] for p in paths) / len(paths),
        }
        curves[f"{c:g}/distance"] = mean[:points]
        curves[f"{c:g}/bound"] = bounds[:points]
        curves["k"] = [float(k) for k in steps[:points]]
    return make_result(metrics, curves)


def _slope(steps: Sequence[int], means: Sequence[float]) -> float:
    """Slope of the least-squares line of the logarithms."""
    points = [(math.log(k), math.log(mean)) for k, mean in zip(steps, means, strict=True)]
    centre = math.fsum(x for x, _ in points) / len(points)
    return math.fsum((x - centre) * v for x, v in points) / math.fsum(
        (x - centre) ** 2 for x, _ in points
    )


def _bias_error(X: Tensor, y: Tensor, lam: float, seed: int, base: float) -> float:
    """Largest error of the mean shrunk gradient's bias, draws and decisions enumerated."""
    g = stream(seed, "measure")
    w = torch.randn(X.shape[1], dtype=X.dtype, generator=g)
    gradients = svm_gradients(w, X, y, lam)  # (N, D)
    p = keep_probability(torch.rand(len(X), dtype=X.dtype, generator=g), base)
    mean = torch.zeros_like(w)
    for gradient, kept in zip(gradients, p.tolist(), strict=True):  # skipped: nothing is added
        mean += kept * gradient / len(X)
    return float((mean - gradients.mean(0) - shrinking_bias(gradients, p)).abs().max())
