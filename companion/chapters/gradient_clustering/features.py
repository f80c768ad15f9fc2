"""Random features: a fixed random hidden layer and a trained last one, on a grid of settings.

A *teacher*, another random network, gives the classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.gradient_clustering.problems import KEEP_BYTES, losses_of
from companion.lab.arms import Settings
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.methods.gradient_clustering import GradientClustering, total_distortion
from trainaug.training.randomness import initialise, stream

__all__ = [
    "Cell",
    "Features",
    "cell_name",
    "closed_form_errors",
    "closed_form_variance",
    "draw_features",
    "plugin_variance",
    "run_features",
    "train_cell",
]


@dataclass(frozen=True)
class Cell:
    """One training of a grid.

    Attributes:
        tau: Features per example.
        lr: Learning rate.
        teacher: Width of the teacher.
        copies: Share of exact copies.
    """

    tau: float
    lr: float
    teacher: int
    copies: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Features(Settings):
    """A grid of trainings of a last layer by SGD.

    Attributes:
        taus: Features per example.
        lrs: Learning rates.
        teachers: Widths of the teacher.
        copies: Shares of exact copies.
        steps: Updates.
        curves: Whether the record has curves.
        width: Number of features.
        inputs: Numbers in an input, from which the features are computed.
        classes: Number of classes that the teacher tells apart.
        points: Number of examples that the copies repeat.
        batch: Examples in a batch, and clusters.
        iterations: Passes of a clustering.
        refreshes: Clusterings of a training, and snapshots of SVRG.
        decay: Weight decay.
        burn_in: Share of the steps, at the start, that the means leave out.
        draws: Batches in each of the two sets of the authors' statistic.
        snapshots: Points of the curves, dense at the start.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    taus: tuple[float, ...] = (0.5, 2.0, 10.0)
    lrs: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003, 0.001)
    teachers: tuple[int, ...] = (2000,)
    copies: tuple[float, ...]  # no default: the records have always stated it
    steps: int  # nor has this one
    curves: bool = False
    width: int = 200
    inputs: int = 50
    classes: int = 10
    points: int = 5
    batch: int = 10
    iterations: int = 3
    refreshes: int = 5
    decay: float = 1e-4
    burn_in: float = 0.3
    draws: int = 10
    snapshots: int = 40

    @property
    def data_hash(self) -> str:
        return "drawn from the seed"

    def shortened(self, share: float) -> Self:
        return replace(self, steps=max(50, round(self.steps * share)))

    def tiny(self) -> Self:
        # few features per example mean many examples: they cost most and cover no other code
        taus = tuple(tau for tau in self.taus if tau >= 1)[-2:]
        return replace(self, taus=taus, lrs=self.lrs[::4], steps=60)

    def cells(self) -> Iterator[Cell]:
        """Yield all trainings; those that differ in the learning rate only follow each other."""
        for tau, teacher, copies, lr in itertools.product(
            self.taus, self.teachers, self.copies, self.lrs
        ):
            yield Cell(tau, lr, teacher, copies)


def cell_name(tau: float, lr: float, teacher: int, copies: float = 0.0) -> str:
    """Name of a cell of the grid, as in the metrics."""
    name = f"{tau:g}/{lr:g}/{teacher}"
    return f"{name}/{copies:g}" if copies else name


def run_features(settings: Features, seed: int) -> Result:
    """Train every cell of a grid; metrics and curves are named by cell."""
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for cell in settings.cells():
        name = cell_name(cell.tau, cell.lr, cell.teacher, cell.copies)
        values, curve = train_cell(settings, cell, seed)
        metrics |= {f"{name}/{key}": value for key, value in values.items()}
        if settings.curves:
            curves |= {f"{name}/{key}": row for key, row in curve.items()}
    return make_result(metrics, curves)


def _hidden(inputs: int, width: int, generator: torch.Generator) -> nn.Linear:
    """Make a hidden layer with PyTorch's initial weights, drawn from a generator."""
    with torch.device("meta"):
        layer = nn.Linear(inputs, width)
    initialise(layer, generator)
    return layer


@torch.no_grad()
def draw_features(settings: Features, cell: Cell, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the features ``(N, width)`` of all examples, and the classes that the teacher gives.

    All is drawn on the CPU, and then moved to the device of the run and computed there.
    """
    device = run_device()
    n = max(settings.classes, round(settings.width / cell.tau))
    points = settings.points
    teacher = cell.teacher
    x = torch.randn(n + points, settings.inputs, generator=stream(seed, "inputs"))
    distinct = n - round(cell.copies * n)
    rows = torch.cat([points + torch.arange(distinct), torch.arange(n - distinct) % points])
    x = x[rows].to(device)
    hidden = _hidden(settings.inputs, teacher, stream(seed, f"teacher/{teacher}")).to(device)
    g = stream(seed, f"teacher/{teacher}/top")
    top = torch.randn(teacher, settings.classes, generator=g).to(device)
    y = (F.relu(hidden(x)) @ top).argmax(1)
    features = _hidden(settings.inputs, settings.width, stream(seed, "features")).to(device)
    return F.relu(features(x)), y


def train_cell(
    settings: Features, cell: Cell, seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Train the last layer by SGD and measure the variance of four estimators on the way.

    The means are over the last 70 % of the steps. GC and SVRG are refreshed five times and
    measured half-way between.

    Returns:
        Metrics ``sg``, ``gc``, ``svrg`` (logarithms of mean summed variances), ``norm`` (variance
        over second moment), ``norm_plugin`` (as the authors estimate it, ten draws), ``loss`` and
        ``half`` (steps until the loss has halved, at most all); curves of loss and variance.
    """
    phi, y = draw_features(settings, cell, seed)
    w = torch.zeros(settings.classes, settings.width, device=phi.device)
    g = stream(seed, "order")
    watch = _Watch(settings, phi, y, seed)
    order: list[Tensor] = []
    for step in range(settings.steps):
        watch.observe(w, step)
        if not order:
            order = list(torch.split(torch.randperm(len(phi), generator=g), settings.batch))
        rows = order.pop()
        batch = phi[rows]
        errors = closed_form_errors(batch, y[rows], w)
        w -= cell.lr * (errors.T @ batch / len(rows) + settings.decay * w)
    watch.observe(w, settings.steps)
    return watch.metrics(), watch.curve


class _Watch:
    """Cluster and measure before the updates of some steps, and after the last."""

    def __init__(self, settings: Features, phi: Tensor, y: Tensor, seed: int) -> None:
        self.settings, self.phi, self.y, self.seed = settings, phi, y, seed
        steps, last = settings.steps, settings.snapshots - 1
        self.refresh = steps // settings.refreshes
        spaced = (math.log1p(steps) * i / last for i in range(settings.snapshots))
        self.snapshots = {round(math.expm1(value)) for value in spaced}
        half = self.refresh // 2
        self.middles = {self.refresh * k + half for k in range(settings.refreshes)}
        self.assign = torch.zeros(len(phi), dtype=torch.int64)
        self.old = torch.zeros(len(phi), settings.classes, device=phi.device)
        self.curve: dict[str, list[float]] = {"loss": [], "sg": [], "step": []}
        names = ("sg", "gc", "svrg", "norm", "norm_plugin")
        self.parts: dict[str, list[float]] = {name: [] for name in names}
        self.half = steps

    def observe(self, w: Tensor, step: int) -> None:
        """Refresh and measure at the steps for which it is due; ``w`` is ``(C, width)``."""
        steps = self.settings.steps
        if step % self.refresh == 0 and step < steps:
            self.assign = self._cluster(w)
            self.old = closed_form_errors(self.phi, self.y, w)
        if step not in self.snapshots | self.middles | {steps}:
            return
        errors = closed_form_errors(self.phi, self.y, w)  # (N, C) gradients of the logits
        one_draw, squared_mean = closed_form_variance(self.phi, errors)
        sg = one_draw / self.settings.batch
        loss = F.cross_entropy(self.phi @ w.T, self.y).item()
        if step in self.snapshots:
            for name, value in (("step", step), ("loss", loss), ("sg", sg)):
                self.curve[name].append(float(value))
            if loss <= 0.5 * self.curve["loss"][0]:
                self.half = min(self.half, step)
        if step in self.middles and step >= self.settings.burn_in * steps:
            self._measure(errors, sg, squared_mean, step)

    def metrics(self) -> dict[str, float]:
        """Return the means of what was measured, variances as logarithms, as a record has them."""
        metrics = {name: math.fsum(values) / len(values) for name, values in self.parts.items()}
        for name in ("sg", "gc", "svrg"):
            metrics[name] = math.log(max(metrics[name], 1e-30))
        return metrics | {"loss": self.curve["loss"][-1], "half": float(self.half)}

    def _measure(self, errors: Tensor, sg: float, squared_mean: float, step: int) -> None:
        """Measure the other estimators; ``sg`` and the mean's squared length are known."""
        n, batch = len(self.phi), self.settings.batch
        gradients = (errors[:, :, None] * self.phi[:, None, :]).flatten(1)
        clusters = len(torch.unique(self.assign))
        gc = total_distortion(gradients, self.assign).item() / n**2 * clusters / batch
        svrg = closed_form_variance(self.phi, errors - self.old)[0] / batch
        plugin = plugin_variance(self.settings, self.phi, errors, self.seed, step)
        self.parts["sg"].append(sg)
        self.parts["gc"].append(gc)
        self.parts["svrg"].append(svrg)
        self.parts["norm"].append(sg / (sg + squared_mean))
        self.parts["norm_plugin"].append(plugin)

    def _cluster(self, w: Tensor) -> Tensor:
        """Cluster the gradients of the last layer at the weights ``w``; return the strata, (N,)."""
        settings, phi = self.settings, self.phi
        model = nn.Linear(settings.width, settings.classes, bias=False, device="meta")
        model.to_empty(device=phi.device)
        with torch.no_grad():
            model.weight.copy_(w)
        rows = torch.split(torch.arange(len(phi)), settings.batch)
        batches = [(phi[r], self.y[r], r) for r in rows]
        clusters = min(settings.batch, len(phi))
        generator = stream(self.seed, "clusters")
        clustering = GradientClustering(
            model, losses_of, clusters, generator=generator, rule="running"
        )
        return clustering.fit(batches, settings.iterations, keep_bytes=KEEP_BYTES).assign


def closed_form_errors(phi: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Gradients ``(N, C)`` of the losses with respect to the logits."""
    errors = torch.softmax(phi @ w.T, 1)
    errors[torch.arange(len(y), device=y.device), y] -= 1.0
    return errors


def closed_form_variance(phi: Tensor, errors: Tensor) -> tuple[float, float]:
    """Variance of one draw summed over the coordinates, and the squared length of the mean."""
    lengths = (phi.square().sum(1) * errors.square().sum(1)).double().mean()
    mean = (errors.T.double() @ phi.double() / len(phi)).square().sum()
    return max((lengths - mean).item(), 0.0), mean.item()


def plugin_variance(settings: Features, phi: Tensor, errors: Tensor, seed: int, step: int) -> float:
    """The normalised variance of Faghri's thesis, from two sets of drawn batches.

    It is the summed squared deviations of batch gradients from the mean of the other set, over
    their summed squares, averaged over the coordinates.
    """
    g = stream(seed, f"measure/{step}")
    batch = settings.batch
    rows = torch.randint(len(phi), (2, settings.draws, batch), generator=g)
    gradients = torch.einsum("stbc,stbi->stci", errors[rows], phi[rows]).flatten(2) / batch
    mean, fresh = gradients[0].mean(0), gradients[1]
    ratio = (fresh - mean).square().sum(0) / (fresh.square().sum(0) + 1e-7)
    return ratio.mean().item()
