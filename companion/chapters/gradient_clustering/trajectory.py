"""Variance of four estimators along ordinary SGD, exact from the inner products of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from companion.chapters.gradient_clustering.problems import Problem, losses_of, make_model, problem
from trainaug.methods.gradient_clustering import (
    Clustering,
    Factors,
    GradientClustering,
    gram_matrix,
    layer_factors,
)
from trainaug.training.devices import pick_device
from trainaug.training.loop import Batch, train
from trainaug.training.models import evaluate
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["VARIANTS", "Trajectory", "cluster", "follow", "shifted", "stratified", "variances"]

# Centres and rules that are compared on the same gradients: name, centres, rule
VARIANTS = (
    ("means", "means", "running"),
    ("svd", "svd", "running"),
    ("full", "full", "running"),
    ("plain", "means", "plain"),
    ("frozen", "means", "frozen"),
    ("exact", "means", "exact"),
)
VIEWS = 4  # of each picture, where pictures are augmented


@dataclass
class Trajectory:
    """What was measured: curves by name; metrics of single places."""

    curves: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, name: str, value: float) -> None:
        """Append to a curve."""
        self.curves.setdefault(name, []).append(float(value))


def variances(gram: Tensor) -> tuple[float, float]:
    """Variance of one uniform draw and the squared length of the mean, of inner products."""
    mean = gram.mean().item()
    return max(gram.diagonal().mean().item() - mean, 0.0), mean


def stratified(gram: Tensor, assign: Tensor, batch: int) -> float:
    r"""Variance of the stratified estimator with B / M draws from each of M strata.

    From $N^2\mathbb V=\sum_kN_kS_k$, $S_k=\sum_{a_i=k}G_{ii}-\frac1{N_k}\sum_{a_i=a_j=k}G_{ij}$.
    """
    labels, numbers = torch.unique(assign, return_inverse=True)
    sizes = torch.bincount(numbers).double()
    member = torch.nn.functional.one_hot(numbers, len(labels)).double()  # (N, M)
    inside = ((gram @ member) * member).sum(0)  # (M,)
    scatter = member.T @ gram.diagonal() - inside / sizes
    total = (sizes * scatter).sum().clamp_min(0.0).item()
    return total / len(assign) ** 2 * len(labels) / batch


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flip pictures left to right with probability 1/2 and shift them by up to two pixels."""
    flips = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flips[:, None, None, None].to(x.device), x.flip(3), x)
    moves = torch.randint(-2, 3, (len(x), 2), generator=generator)
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    height, width = x.shape[2:]
    rows = 2 + moves[:, :1] + torch.arange(height)  # (B, H)
    columns = 2 + moves[:, 1:] + torch.arange(width)
    each = torch.arange(len(x))[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def cluster(
    model: nn.Module, x: Tensor, y: Tensor, settings: Mapping[str, Any], seed: int, **kind: Any
) -> Clustering:
    """Cluster the gradients of pictures in a run's own random stream."""
    parts = torch.split(torch.arange(len(x)), settings["batch"])
    batches = [(x[rows], y[rows], rows) for rows in parts]
    clustering = GradientClustering(
        model, losses_of, settings["clusters"], generator=stream(seed, "clusters"), **kind
    )
    return clustering.fit(batches, settings["iterations"])


def follow(settings: Mapping[str, Any], seed: int) -> Trajectory:
    """Train one network and measure, without disturbing it.

    Every ``refresh`` steps the gradients are clustered and SVRG takes its snapshot; all four
    variances are measured half-way to the next refresh and, as *old*, just before it. With
    augmentation the clusters come from one view of each picture and the variance is that of
    others. An observer runs before the update of its step.
    """
    data = problem(
        settings["data"],
        seed,
        settings["num_train"],
        copies=settings["copies"],
        noise=settings["noise"],
    )
    device = pick_device() if settings["data"] == "cifar10" else torch.device("cpu")
    data, model = data.to(device), make_model(settings["model"], data, seed).to(device)
    optimizer = SGD(
        model.parameters(),
        settings["lr"],
        momentum=settings["momentum"],
        weight_decay=settings["decay"],
    )
    steps = settings["steps"]
    scheduler = None
    if settings["drop"]:
        scheduler = MultiStepLR(optimizer, [steps // 2], gamma=settings["drop"])
    found = Trajectory(steps=steps)
    observe = _observer(data, settings, seed, found)

    def augment(batch: Batch) -> Batch:
        x, y, index = batch
        return shifted(x, views), y, index

    views = stream(seed, "augment")
    train(
        model,
        data.train,
        RandomBatchSampler(len(data.train), settings["batch"], stream(seed, "order")),
        losses_of,
        optimizer,
        max_steps=steps,
        scheduler=scheduler,
        batch_transform=augment if settings["augment"] else None,
        observers=[observe],
        evaluate=lambda model: {},
        evaluate_every=steps,
    )
    found.metrics |= evaluate(model, data.val, "val") | evaluate(model, data.test, "test")
    return found


def _observer(
    data: Problem, settings: Mapping[str, Any], seed: int, found: Trajectory
) -> Callable[[nn.Module, int, Tensor, Tensor], None]:
    x, y, batch, refresh = data.train.x, data.train.y, settings["batch"], settings["refresh"]
    x, y = x[: settings["measured"]], y[: settings["measured"]]
    views = x
    if settings["augment"]:
        g = stream(seed, "views")
        views = torch.cat([shifted(x, g) for _ in range(VIEWS)])
    copies = len(views) // len(x)
    many = y.repeat(copies)
    state: dict[str, Any] = {}

    def measure(model: nn.Module, name: str) -> Tensor:
        now = layer_factors(model.eval(), losses_of, views, many)
        gram = gram_matrix(now, now)
        draw, mean = variances(gram)
        found.add(f"{name}/sg", draw / batch)
        found.add(f"{name}/gc", stratified(gram, state["assign"].repeat(copies), batch))
        old: dict[str, Factors] = state["factors"]
        own = state["gram"]
        cross = gram_matrix(now, old)
        lengths = (gram.diagonal() - 2 * cross.diagonal() + own.diagonal()).mean()
        moved = gram.mean() - 2 * cross.mean() + own.mean()
        found.add(f"{name}/svrg", max((lengths - moved).item(), 0.0) / batch)
        if name == "mid":
            found.add("mid/second", mean)
        return gram

    def observe(model: nn.Module, step: int, index: Tensor, losses: Tensor) -> None:
        place = step % refresh
        if place == refresh - 1 and "assign" in state:
            measure(model, "old")
        if place == 0:
            clustering = cluster(model.eval(), x, y, settings, seed)
            state["assign"] = clustering.assign
            state["factors"] = layer_factors(model, losses_of, views, many)
            state["gram"] = gram_matrix(state["factors"], state["factors"])
            fresh = stratified(state["gram"], clustering.assign.repeat(copies), batch)
            found.add("fresh/sg", variances(state["gram"])[0] / batch)
            found.add("fresh/gc", fresh)
            found.add("refresh", step)
            if settings["augment"]:
                still = layer_factors(model, losses_of, x, y)
                gram = gram_matrix(still, still)
                found.add("still/sg", variances(gram)[0] / batch)
                found.add("still/gc", stratified(gram, clustering.assign, batch))
            if settings["variants"]:
                _compare(model, x, y, state["gram"], settings, seed, found)
        if place == refresh // 2:
            found.add("step", step)
            gram = measure(model, "mid")
            found.add("loss", losses_of(model(data.train.x), data.train.y).mean().item())
            del gram

    return observe


def _compare(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    gram: Tensor,
    settings: Mapping[str, Any],
    seed: int,
    found: Trajectory,
) -> None:
    """Variance of the stratified estimator at age 0 for other centres and rules."""
    for name, centers, rule in VARIANTS:
        clustering = cluster(model, x, y, settings, seed, centers=centers, rule=rule)
        found.add(f"variant/{name}", stratified(gram, clustering.assign, settings["batch"]))
    equal = torch.arange(len(x)) % settings["clusters"]
    random = equal[torch.randperm(len(x), generator=stream(seed, "random strata"))]
    found.add("variant/random", stratified(gram, random, settings["batch"]))
