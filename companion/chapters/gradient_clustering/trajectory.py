"""Variance of four estimators along ordinary SGD, exact from the inner products of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from companion.chapters.gradient_clustering.problems import (
    HELD_OUT,
    KEEP_BYTES,
    PictureSettings,
    Problem,
    losses_of,
    make_model,
)
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.methods.gradient_clustering import (
    Clustering,
    Factors,
    GradientClustering,
    gram_matrix,
    layer_factors,
)
from trainaug.methods.gradient_clustering.centers import CenterKind
from trainaug.methods.gradient_clustering.clustering import Rule
from trainaug.training.loop import Batch, train
from trainaug.training.models import evaluate
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = [
    "CifarTrajectory",
    "FashionTrajectory",
    "Trajectory",
    "cluster",
    "run_trajectory",
    "shifted",
    "stratified",
    "variances",
]

# Centres and rules that are compared on the same gradients: name, centres, rule
VARIANTS: tuple[tuple[str, CenterKind, Rule], ...] = (
    ("means", "means", "running"),
    ("svd", "svd", "running"),
    ("full", "full", "running"),
    ("plain", "means", "plain"),
    ("frozen", "means", "frozen"),
    ("exact", "means", "exact"),
)


@dataclass(frozen=True, kw_only=True)
class Trajectory(PictureSettings):
    """Ordinary SGD on digits, along which variances are measured.

    Attributes:
        model: ``mlp``, ``cnn`` or ``resnet8``.
        augment: Whether it trains on random shifts and flips.
        lr: Learning rate.
        drop: Factor of the learning rate at half of the steps.
        momentum: Momentum of SGD.
        decay: Weight decay.
        batch: Examples in a batch.
        clusters: K.
        steps: Updates.
        refresh: Steps between two clusterings, and between two snapshots of SVRG.
        iterations: Passes of a clustering.
        variants: Whether other centres and rules are compared too.
        measured: Examples that are clustered and measured, if not all.
        views: Views of each picture that are measured, where pictures are augmented.
        shift: Pixels by which a picture is shifted at most.
        device: ``cpu``, or ``auto`` for the best that the machine has.
    """

    model: str = "mlp"
    augment: bool = False
    lr: float = 0.05
    drop: float | None = None
    momentum: float = 0.5
    decay: float = 5e-4
    batch: int = 32
    clusters: int = 32
    steps: int = 2000
    refresh: int = 125
    iterations: int = 10
    variants: bool = False
    measured: int | None = None
    views: int = 4
    shift: int = 2
    device: Literal["auto", "cpu"] = "cpu"

    def shortened(self, share: float) -> Self:
        # at least two clusterings, so that something is measured
        return replace(self, steps=max(2 * self.refresh, round(self.steps * share)))

    def tiny(self) -> Self:
        return replace(
            self,
            num_train=120,
            batch=16,
            clusters=8,
            iterations=2,
            refresh=6,
            steps=18,
            measured=None if self.measured is None else 60,
        )


@dataclass(frozen=True, kw_only=True)
class FashionTrajectory(Trajectory):
    """`Trajectory` on Fashion-MNIST."""

    data: str = field()  # no default: its records have always stated it
    num_val: int = HELD_OUT["fashion"][0]
    num_test: int = HELD_OUT["fashion"][1]


@dataclass(frozen=True, kw_only=True)
class CifarTrajectory(Trajectory):
    """`Trajectory` on CIFAR-10, for a GPU."""

    data: str = field()  # no default: its records have always stated it
    num_val: int = HELD_OUT["cifar10"][0]
    num_test: int = HELD_OUT["cifar10"][1]
    device: Literal["auto", "cpu"] = "auto"

    def tiny(self) -> Self:
        return replace(super().tiny(), num_val=40, num_test=40, device="cpu")


def variances(gram: Tensor) -> tuple[float, float]:
    """Variance of one uniform draw, and squared length of the mean gradient.

    ``gram`` has the inner products of the gradients, ``(N, N)``.
    """
    mean = gram.mean().item()
    return max(gram.diagonal().mean().item() - mean, 0.0), mean


def stratified(gram: Tensor, assign: Tensor, batch: int) -> float:
    r"""Variance of the stratified estimator with B / M draws from each of M strata.

    From $N^2\mathbb V=\sum_kN_kS_k$, $S_k=\sum_{a_i=k}G_{ii}-\frac1{N_k}\sum_{a_i=a_j=k}G_{ij}$ for
    one draw from each stratum, with inner products $G$ and stratum $a_i$ of size $N_{a_i}$.
    """
    labels, numbers = torch.unique(assign.to(gram.device), return_inverse=True)
    sizes = torch.bincount(numbers).double()
    member = torch.nn.functional.one_hot(numbers, len(labels)).double()  # (N, M)
    inside = ((gram @ member) * member).sum(0)  # (M,)
    scatter = member.T @ gram.diagonal() - inside / sizes
    total = (sizes * scatter).sum().clamp_min(0.0).item()
    return total / len(assign) ** 2 * len(labels) / batch


def shifted(x: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
    """Flip each picture left to right with probability 1/2; shift it by at most ``most`` pixels."""
    flips = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flips[:, None, None, None].to(x.device), x.flip(3), x)
    moves = torch.randint(-most, most + 1, (len(x), 2), generator=generator)
    padded = nn.functional.pad(x, (most, most, most, most))
    height, width = x.shape[2:]
    rows = most + moves[:, :1] + torch.arange(height)  # (B, H)
    columns = most + moves[:, 1:] + torch.arange(width)
    picture = torch.arange(len(x))[:, None, None].to(x.device)
    rows, columns = rows.to(x.device), columns.to(x.device)
    return (
        padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    )


def cluster(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: Trajectory,
    seed: int,
    *,
    centers: CenterKind = "means",
    rule: Rule = "running",
) -> Clustering:
    """Cluster the gradients of pictures; every call with a seed draws from the same stream."""
    parts = torch.split(torch.arange(len(x)), settings.batch)
    batches = [(x[rows], y[rows], rows) for rows in parts]
    generator = stream(seed, "clusters")
    clustering = GradientClustering(
        model, losses_of, settings.clusters, generator=generator, centers=centers, rule=rule
    )
    return clustering.fit(batches, settings.iterations, keep_bytes=KEEP_BYTES)


def run_trajectory(settings: Trajectory, seed: int) -> Result:
    """Train one network, and measure variances on the way without disturbing the training.

    Every ``refresh`` steps the gradients are clustered and SVRG takes its snapshot. The variances
    are measured then (``fresh``), half-way to the next refresh (``mid``) and just before it
    (``old``). With augmentation the clusters come from the plain pictures, and the variance is that
    of shifted and flipped views; ``still`` is the variance of the plain ones.
    """
    data = settings.problem(seed).to(run_device(settings.device))
    model = make_model(settings.model, data, seed, hidden=settings.hidden)
    optimizer = SGD(
        model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.decay
    )
    scheduler = None
    if settings.drop:
        scheduler = MultiStepLR(optimizer, [settings.steps // 2], gamma=settings.drop)
    views = stream(seed, "augment")

    def augment(batch: Batch) -> Batch:
        x, y, index = batch
        return shifted(x, views, settings.shift), y, index

    observer = _Observer(data, settings, seed)
    train(
        model,
        data.train,
        RandomBatchSampler(len(data.train), settings.batch, stream(seed, "order")),
        losses_of,
        optimizer,
        max_steps=settings.steps,
        scheduler=scheduler,
        batch_transform=augment if settings.augment else None,
        observers=[observer.observe],
        evaluate=lambda model: {},
        evaluate_every=settings.steps,
    )
    metrics = evaluate(model, data.val, "val") | evaluate(model, data.test, "test")
    return make_result(metrics, observer.curves, {"steps": settings.steps})


@dataclass(frozen=True)
class _Snapshot:
    """What is kept of a refresh: strata, and gradients of all views with their inner products."""

    assign: Tensor
    factors: Mapping[str, Factors]
    gram: Tensor


class _Observer:
    """Cluster and measure along a training, before the updates of some steps."""

    def __init__(self, data: Problem, settings: Trajectory, seed: int) -> None:
        self.data, self.settings, self.seed = data, settings, seed
        self.curves: dict[str, list[float]] = {}
        self.snapshot: _Snapshot | None = None
        self.x = data.train.x[: settings.measured]
        self.y = data.train.y[: settings.measured]
        self.views = self.x
        if settings.augment:
            g = stream(seed, "views")
            drawn = [shifted(self.x, g, settings.shift) for _ in range(settings.views)]
            self.views = torch.cat(drawn)
        self.copies = len(self.views) // len(self.x)
        self.labels = self.y.repeat(self.copies)

    def observe(self, model: nn.Module, step: int, index: Tensor, losses: Tensor) -> None:
        """Refresh and measure at the steps for which it is due; an observer of `train`."""
        age = step % self.settings.refresh
        if age == self.settings.refresh - 1 and self.snapshot is not None:
            self._measure(model, self.snapshot, "old")
        if age == 0:
            self.snapshot = self._refresh(model, step)
        if age == self.settings.refresh // 2 and self.snapshot is not None:
            self._add("step", step)
            mean = self._measure(model, self.snapshot, "mid")
            self._add("mid/second", mean)
            train_part = self.data.train
            self._add("loss", losses_of(model(train_part.x), train_part.y).mean().item())

    def _add(self, name: str, value: float) -> None:
        self.curves.setdefault(name, []).append(float(value))

    def _refresh(self, model: nn.Module, step: int) -> _Snapshot:
        """Cluster, measure, and return what later measurements need of these weights."""
        batch = self.settings.batch
        clustering = cluster(model.eval(), self.x, self.y, self.settings, self.seed)
        factors = layer_factors(model, losses_of, self.views, self.labels)
        gram = gram_matrix(factors, factors)
        fresh = stratified(gram, clustering.assign.repeat(self.copies), batch)
        self._add("fresh/sg", variances(gram)[0] / batch)
        self._add("fresh/gc", fresh)
        self._add("refresh", step)
        if self.settings.augment:
            still = layer_factors(model, losses_of, self.x, self.y)
            still_gram = gram_matrix(still, still)
            self._add("still/sg", variances(still_gram)[0] / batch)
            self._add("still/gc", stratified(still_gram, clustering.assign, batch))
        if self.settings.variants:
            self._compare(model, gram)
        return _Snapshot(clustering.assign, factors, gram)

    def _measure(self, model: nn.Module, snapshot: _Snapshot, age: str) -> float:
        """Measure the estimators with the clusters and gradients of a snapshot.

        Returns:
            The squared length of the mean gradient.
        """
        batch = self.settings.batch
        factors = layer_factors(model.eval(), losses_of, self.views, self.labels)
        gram = gram_matrix(factors, factors)
        one_draw, mean = variances(gram)
        self._add(f"{age}/sg", one_draw / batch)
        self._add(f"{age}/gc", stratified(gram, snapshot.assign.repeat(self.copies), batch))
        # SVRG's variance is that of the difference of each gradient from the snapshot's
        cross = gram_matrix(factors, snapshot.factors)
        lengths = gram.diagonal() - 2 * cross.diagonal() + snapshot.gram.diagonal()
        moved = gram.mean() - 2 * cross.mean() + snapshot.gram.mean()
        self._add(f"{age}/svrg", max((lengths.mean() - moved).item(), 0.0) / batch)
        return mean

    def _compare(self, model: nn.Module, gram: Tensor) -> None:
        """Measure the stratified estimator with other centres and rules, and random strata."""
        x, settings = self.x, self.settings
        for name, centers, rule in VARIANTS:
            clustering = cluster(model, x, self.y, settings, self.seed, centers=centers, rule=rule)
            strata = clustering.assign
            self._add(f"variant/{name}", stratified(gram, strata, settings.batch))
        equal = torch.arange(len(x)) % settings.clusters
        random = equal[torch.randperm(len(x), generator=stream(self.seed, "random strata"))]
        self._add("variant/random", stratified(gram, random, settings.batch))
