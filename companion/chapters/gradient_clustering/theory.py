"""Small exact checks, and what three departures of the authors' code change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from companion.chapters.gradient_clustering.problems import losses_of, make_model, problem
from companion.chapters.gradient_clustering.trajectory import stratified, variances
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
from trainaug.training.randomness import RandomBatchSampler, initialise, stream

__all__ = ["departures", "enumeration", "published_sweeps"]

FEW, STRATA = 7, 3
SWEEPS = 20
HIDDEN, DROPOUT, VIEWS = 64, 0.5, 8
QUANTUM = 1.0e-7  # that the authors' code rounds distances to


def _partitions(n: int, strata: int) -> Iterator[Tensor]:
    for labels in itertools.product(range(strata), repeat=n):
        if len(set(labels)) == strata:
            yield torch.tensor(labels)


def published_sweeps(gradients: Tensor, assign: Tensor, strata: int, sweeps: int) -> list[Tensor]:
    """Partitions after each published sweep: all assigned with frozen sizes, then the means.

    A stratum that got nothing keeps its mean, and counts as one.
    """
    found = []
    means = torch.stack([gradients[assign == k].mean(0) for k in range(strata)])
    sizes = torch.bincount(assign, minlength=strata)
    for _ in range(sweeps):
        distances = torch.cdist(gradients, means).square()  # (N, K)
        assign = (sizes.clamp_min(1) * distances).argmin(1)
        sizes = torch.bincount(assign, minlength=strata)
        for k in sizes.nonzero().flatten().tolist():
            means[k] = gradients[assign == k].mean(0)
        found.append(assign)
    return found


def enumeration(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Check mean, variance and optimum on seven real gradients in three strata, over all draws.

    Errors are shares of the mean's length and of the variance.
    """
    data = problem("digits", seed, settings["num_train"])
    model = make_model("mlp", data, seed).double()
    x, y = data.train.x[:FEW].double(), data.train.y[:FEW]
    gradients = per_example_gradients(model, losses_of, x, y)
    mean = gradients.mean(0)
    exact: dict[tuple[int, ...], float] = {}
    mean_error = variance_error = 0.0
    for assign in _partitions(FEW, STRATA):
        draws = enumerate_estimates(gradients, assign)
        variance = (draws - draws.mean(0)).square().sum(1).mean().item()
        exact[tuple(assign.tolist())] = variance
        mean_error = max(mean_error, ((draws.mean(0) - mean).norm() / mean.norm()).item())
        predicted = stratified_variance(gradients, assign).item()
        variance_error = max(variance_error, abs(predicted / variance - 1))
    best, _ = best_partition(gradients, STRATA)
    least = min(exact.values())
    g = stream(seed, "start")
    start = torch.cat([torch.arange(STRATA), torch.randint(STRATA, (FEW - STRATA,), generator=g)])
    start = start[torch.randperm(FEW, generator=g)]
    sweeps = published_sweeps(gradients, start, STRATA, SWEEPS)
    costs = [total_distortion(gradients, a).item() for a in (start, *sweeps)]
    rises = sum(after > before * (1 + 1e-9) for before, after in itertools.pairwise(costs))
    moved = exact_moves(gradients @ gradients.T, start, STRATA)
    one = sampling_of_one(gradients)
    return {
        "mean_error": mean_error,
        "variance_error": variance_error,
        "optimum_error": exact[tuple(best.tolist())] / least - 1,
        "published_over_best": costs[-1] / FEW**2 / least,
        "moves_over_best": total_distortion(gradients, moved).item() / FEW**2 / least,
        "uniform_over_best": one / STRATA / least,
        "published_rises": rises / SWEEPS,
    }


def sampling_of_one(gradients: Tensor) -> float:
    """Variance of one uniform draw."""
    return (
        total_distortion(gradients, torch.zeros(len(gradients)).long()).item() / len(gradients) ** 2
    )


class _RoundedCenters(GradientCenters):
    """Distances in multiples of 1e-7, as in the authors' code."""

    def sq_distances(self, factors: Mapping[str, Factors]) -> Tensor:
        """Round the distances to the nearest multiple."""
        return (super().sq_distances(factors) / QUANTUM).round() * QUANTUM


def _with_dropout(seed: int, pixels: int) -> nn.Module:
    with torch.device("meta"):
        first, last = nn.Linear(pixels, HIDDEN), nn.Linear(HIDDEN, 10)
    layers = (nn.Flatten(), first, nn.ReLU(), nn.Dropout(DROPOUT), last)
    model = nn.Sequential(*layers)
    initialise(model, stream(seed, "init"))
    return model


def departures(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Variance over that of uniform draws, with a departure of the authors' code and without.

    Rounding is measured under a mean loss of batches of 128, before and after training; dropout
    on clusters of the network in eval mode and on those of its own masks.
    """
    data = problem("digits", seed, settings["num_train"])
    x, y, n = data.train.x, data.train.y, len(data.train)
    rows = torch.split(torch.arange(n), settings["batch"])
    batches = [(x[r], y[r], r) for r in rows]

    def clusters(model: nn.Module, rounded: bool) -> Tensor:
        clustering = GradientClustering(
            model,
            lambda logits, y: losses_of(logits, y) / 128,  # a mean
            settings["clusters"],
            generator=stream(seed, "clusters"),
        )
        if rounded:
            clustering.centers = _RoundedCenters(settings["clusters"])
        return clustering.fit(batches, settings["iterations"]).assign

    def fit(model: nn.Module) -> None:
        optimizer = SGD(
            model.parameters(), settings["lr"], settings["momentum"], weight_decay=settings["decay"]
        )
        sampler = RandomBatchSampler(n, settings["batch"], stream(seed, "order"))
        train(model, data.train, sampler, losses_of, optimizer, max_steps=settings["steps"])

    metrics: dict[str, float] = {}
    model = make_model("mlp", data, seed)
    for when in ("start", "end"):
        factors = layer_factors(model, losses_of, x, y)
        gram = gram_matrix(factors, factors)
        uniform = variances(gram)[0] / settings["batch"]
        for name, rounded in (("exact", False), ("rounded", True)):
            assign = clusters(model, rounded)
            found = stratified(gram, assign, settings["batch"]) / uniform
            metrics[f"rounding/{when}/{name}"] = math.log(found)
            metrics[f"rounding/{when}/{name}_strata"] = float(len(torch.unique(assign)))
        if when == "start":
            fit(model)
    noisy = _with_dropout(seed, x[0].numel())
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)  # dropout has no generator of its own
        fit(noisy)
        own = clusters(noisy.train(), False)
        quiet = clusters(noisy.eval(), False)
        factors = layer_factors(noisy.train(), losses_of, x.repeat(VIEWS, 1, 1, 1), y.repeat(VIEWS))
    gram = gram_matrix(factors, factors)
    uniform = variances(gram)[0] / settings["batch"]
    for name, assign in (("eval", quiet), ("train", own)):
        found = stratified(gram, assign.repeat(VIEWS), settings["batch"]) / uniform
        metrics[f"dropout/{name}"] = math.log(found)
    still = layer_factors(noisy.eval(), losses_of, x, y)
    gram = gram_matrix(still, still)
    found = stratified(gram, quiet, settings["batch"]) / (variances(gram)[0] / settings["batch"])
    metrics["dropout/without"] = math.log(found)
    return metrics
