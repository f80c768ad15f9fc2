"""Small exact checks, and what departures of the authors' code from the paper change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import SGD

from companion.chapters.gradient_clustering.problems import (
    KEEP_BYTES,
    PictureSettings,
    Problem,
    losses_of,
    make_model,
)
from companion.chapters.gradient_clustering.trajectory import stratified, variances
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.methods.gradient_clustering import (
    Factors,
    GradientCenters,
    GradientClustering,
    best_partition,
    enumerate_estimates,
    exact_moves,
    gram_matrix,
    layer_factors,
    per_example_gradients,
    stratified_variance,
    total_distortion,
)
from trainaug.training.loop import train
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = [
    "Departures",
    "Enumeration",
    "partitions",
    "published_sweeps",
    "rounded_centers",
    "run_departures",
    "run_enumeration",
]


def partitions(n: int, strata: int) -> Iterator[Tensor]:
    """Yield all labellings of ``n`` examples in which no stratum is empty."""
    for labels in itertools.product(range(strata), repeat=n):
        if len(set(labels)) == strata:
            yield torch.tensor(labels)


def published_sweeps(gradients: Tensor, assign: Tensor, strata: int, sweeps: int) -> list[Tensor]:
    """Follow the published sweeps from a partition, and return the partition after each.

    A sweep assigns all gradients while sizes and means are frozen, and then renews these. An empty
    stratum keeps its mean, and its size counts as one.
    """
    partitions_after = []
    means = torch.stack([gradients[assign == k].mean(0) for k in range(strata)])
    sizes = torch.bincount(assign, minlength=strata)
    for _ in range(sweeps):
        distances = torch.cdist(gradients, means).square()  # (N, K)
        assign = (sizes.clamp_min(1) * distances).argmin(1)
        sizes = torch.bincount(assign, minlength=strata)
        for k in sizes.nonzero().flatten().tolist():
            means[k] = gradients[assign == k].mean(0)
        partitions_after.append(assign)
    return partitions_after


@dataclass(frozen=True, kw_only=True)
class Enumeration(PictureSettings):
    """All partitions of a few gradients.

    Attributes:
        few: Number of gradients.
        strata: Number of strata, M.
        sweeps: Published sweeps that are followed.
    """

    few: int = 7
    strata: int = 3
    sweeps: int = 20


def run_enumeration(settings: Enumeration, seed: int) -> Result:
    """Check mean, variance and optimum of stratified sampling by enumeration of a few gradients.

    Errors are relative to the length of the mean and to the variance.
    """
    few, strata = settings.few, settings.strata
    data = settings.problem(seed).to(run_device())
    model = make_model("mlp", data, seed, hidden=settings.hidden).double()
    x, y = data.train.x[:few].double(), data.train.y[:few]
    # the partitions of so few gradients are enumerated on the CPU
    gradients = per_example_gradients(model, losses_of, x, y).cpu()
    errors, exact = _compare_all(gradients, strata)
    best, _ = best_partition(gradients, strata)
    least = min(exact.values())
    g = stream(seed, "start")
    start = torch.cat([torch.arange(strata), torch.randint(strata, (few - strata,), generator=g)])
    start = start[torch.randperm(few, generator=g)]
    sweeps = published_sweeps(gradients, start, strata, settings.sweeps)
    costs = [total_distortion(gradients, a).item() for a in (start, *sweeps)]
    rises = sum(after > before * (1 + 1e-9) for before, after in itertools.pairwise(costs))
    moved = exact_moves(gradients @ gradients.T, start, strata)
    # a single stratum: the variance of one uniform draw
    uniform = total_distortion(gradients, torch.zeros(few).long()).item() / few**2
    metrics = errors | {
        "optimum_error": exact[tuple(best.tolist())] / least - 1,
        "published_over_best": costs[-1] / few**2 / least,
        "moves_over_best": total_distortion(gradients, moved).item() / few**2 / least,
        "uniform_over_best": uniform / strata / least,
        "published_rises": rises / settings.sweeps,
    }
    return make_result(metrics)


def _compare_all(
    gradients: Tensor, strata: int
) -> tuple[dict[str, float], dict[tuple[int, ...], float]]:
    """Compare the formulas for mean and variance with all draws, for every partition.

    Returns:
        The largest errors, and the variance of each partition.
    """
    mean = gradients.mean(0)
    exact: dict[tuple[int, ...], float] = {}
    mean_error = 0.0
    variance_error = 0.0
    for assign in partitions(len(gradients), strata):
        draws = enumerate_estimates(gradients, assign)
        variance = (draws - draws.mean(0)).square().sum(1).mean().item()
        exact[tuple(assign.tolist())] = variance
        mean_error = max(mean_error, ((draws.mean(0) - mean).norm() / mean.norm()).item())
        predicted = stratified_variance(gradients, assign).item()
        variance_error = max(variance_error, abs(predicted / variance - 1))
    return {"mean_error": mean_error, "variance_error": variance_error}, exact


def rounded_centers(quantum: float) -> type[GradientCenters]:
    """Make centres with distances in multiples of a quantum, as in the authors' code."""

    # a class of its own, for a clustering makes its centres anew from their class
    class RoundedCenters(GradientCenters):
        """Centres of rounded distances."""

        def sq_distances(self, factors: Mapping[str, Factors]) -> Tensor:
            """Round the distances to the nearest multiple."""
            return (super().sq_distances(factors) / quantum).round() * quantum

    return RoundedCenters


@dataclass(frozen=True, kw_only=True)
class Departures(PictureSettings):
    """A training with and without departures of the authors' code.

    Attributes:
        lr: Learning rate.
        momentum: Momentum of SGD.
        decay: Weight decay.
        batch: Examples in a batch.
        clusters: K.
        iterations: Passes of a clustering.
        steps: Updates.
        dropout: Share of hidden units that are dropped.
        views: Dropout masks of each example that are measured.
        quantum: Distances are rounded to multiples of this.
        mean_over: Batch size of the mean loss whose gradients are clustered.
    """

    lr: float = 0.05
    momentum: float = 0.5
    decay: float = 5e-4
    batch: int = 32
    clusters: int = 32
    iterations: int = 10
    steps: int = 2000
    dropout: float = 0.5
    views: int = 8
    quantum: float = 1e-7
    mean_over: int = 128

    def shortened(self, share: float) -> Self:
        return replace(self, steps=round(self.steps * share))

    def tiny(self) -> Self:
        return replace(self, num_train=160, clusters=8, iterations=2, steps=20)


def run_departures(settings: Departures, seed: int) -> Result:
    """Compare variances, over that of uniform draws, with the authors' departures and without."""
    data = settings.problem(seed).to(run_device())
    return make_result(_rounding(settings, data, seed) | _dropout(settings, data, seed))


def _clusters(
    settings: Departures, data: Problem, model: nn.Module, seed: int, *, rounded: bool = False
) -> Tensor:
    """Cluster the gradients as they are under a mean loss; return the strata, ``(N,)``."""
    rows = torch.split(torch.arange(len(data.train)), settings.batch)
    batches = [(data.train.x[r], data.train.y[r], r) for r in rows]
    clustering = GradientClustering(
        model,
        lambda logits, y: losses_of(logits, y) / settings.mean_over,
        settings.clusters,
        generator=stream(seed, "clusters"),
    )
    if rounded:
        clustering.centers = rounded_centers(settings.quantum)(settings.clusters)
    return clustering.fit(batches, settings.iterations, keep_bytes=KEEP_BYTES).assign


def _fit(settings: Departures, data: Problem, model: nn.Module, seed: int) -> None:
    """Train a model in place by SGD."""
    optimizer = SGD(model.parameters(), settings.lr, settings.momentum, weight_decay=settings.decay)
    sampler = RandomBatchSampler(len(data.train), settings.batch, stream(seed, "order"))
    train(model, data.train, sampler, losses_of, optimizer, max_steps=settings.steps)


def _rounding(settings: Departures, data: Problem, seed: int) -> dict[str, float]:
    """Log variance ratios with clusters by exact and rounded distances, untrained and trained."""
    metrics: dict[str, float] = {}
    model = make_model("mlp", data, seed, hidden=settings.hidden)
    for when in ("start", "end"):
        factors = layer_factors(model, losses_of, data.train.x, data.train.y)
        gram = gram_matrix(factors, factors)
        uniform = variances(gram)[0] / settings.batch
        for name, rounded in (("exact", False), ("rounded", True)):
            assign = _clusters(settings, data, model, seed, rounded=rounded)
            ratio = stratified(gram, assign, settings.batch) / uniform
            metrics[f"rounding/{when}/{name}"] = math.log(ratio)
            metrics[f"rounding/{when}/{name}_strata"] = float(len(torch.unique(assign)))
        if when == "start":
            _fit(settings, data, model, seed)
    return metrics


def _dropout(settings: Departures, data: Problem, seed: int) -> dict[str, float]:
    """Log variance ratios of clusters made in eval mode and in train mode, under dropout.

    ``dropout/without`` is the ratio of the former without dropout.
    """
    x, y, batch, views = data.train.x, data.train.y, settings.batch, settings.views
    g = stream(seed, "init")
    model = MLP(x[0].numel(), settings.hidden, 10, g, dropout=settings.dropout).to(x.device)
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout draws from the global generator
        _fit(settings, data, model, seed)
        train_strata = _clusters(settings, data, model.train(), seed)
        eval_strata = _clusters(settings, data, model.eval(), seed)
        factors = layer_factors(model.train(), losses_of, x.repeat(views, 1, 1, 1), y.repeat(views))
    gram = gram_matrix(factors, factors)
    uniform = variances(gram)[0] / batch
    metrics: dict[str, float] = {}
    for name, assign in (("eval", eval_strata), ("train", train_strata)):
        ratio = stratified(gram, assign.repeat(views), batch) / uniform
        metrics[f"dropout/{name}"] = math.log(ratio)
    undropped = layer_factors(model.eval(), losses_of, x, y)
    gram = gram_matrix(undropped, undropped)
    ratio = stratified(gram, eval_strata, batch) / (variances(gram)[0] / batch)
    metrics["dropout/without"] = math.log(ratio)
    return metrics
