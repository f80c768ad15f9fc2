"""Random features: a fixed hidden layer and a trained last one, over their number and the rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.gradient_clustering.problems import losses_of
from trainaug.methods.gradient_clustering import GradientClustering, total_distortion
from trainaug.training.randomness import initialise, stream

__all__ = ["cell_name", "run_grid", "train_cell"]

WIDTH, INPUTS, CLASSES = 200, 50, 10
BATCH, ITERATIONS, REFRESHES = 10, 3, 5
DECAY = 1e-4
POINTS = 5  # that the copies repeat
SNAPSHOTS = 40


def cell_name(tau: float, lr: float, teacher: int, copies: float = 0.0) -> str:
    """Name of a cell of the grid, as in the metrics."""
    name = f"{tau:g}/{lr:g}/{teacher}"
    return f"{name}/{copies:g}" if copies else name


def run_grid(settings: Mapping[str, Any], seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Train every cell of a grid and return its metrics and curves, named by cell."""
    metrics: dict[str, float] = {}
    curves: dict[str, Any] = {}
    for tau in settings["taus"]:
        for teacher in settings["teachers"]:
            for copies in settings["copies"]:
                for lr in settings["lrs"]:
                    steps = settings["steps"]
                    found, curve = train_cell(seed, tau, lr, teacher, copies, steps)
                    name = cell_name(tau, lr, teacher, copies)
                    metrics |= {f"{name}/{key}": value for key, value in found.items()}
                    if settings["curves"]:
                        curves |= {f"{name}/{key}": values for key, values in curve.items()}
    return metrics, curves


def _hidden(width: int, generator: torch.Generator) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(INPUTS, width)
    initialise(layer, generator)
    return layer


@torch.no_grad()
def _data(seed: int, n: int, teacher: int, copies: float) -> tuple[Tensor, Tensor]:
    """Features ``(N, WIDTH)`` and the teacher's classes; PyTorch's initial weights throughout."""
    g = stream(seed, "inputs")
    x = torch.randn(n + POINTS, INPUTS, generator=g)
    distinct = n - round(copies * n)
    x = x[torch.cat([POINTS + torch.arange(distinct), torch.arange(n - distinct) % POINTS])]
    hidden = _hidden(teacher, stream(seed, f"teacher/{teacher}"))
    top = torch.randn(teacher, CLASSES, generator=stream(seed, f"teacher/{teacher}/top"))
    y = (F.relu(hidden(x)) @ top).argmax(1)
    return F.relu(_hidden(WIDTH, stream(seed, "features"))(x)), y


def train_cell(
    seed: int, tau: float, lr: float, teacher: int, copies: float, steps: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Train the last layer by SGD and measure the variance of four estimators on the way.

    The means are over the last 70 % of the steps. GC and SVRG are refreshed five times and
    measured half-way between.

    Returns:
        Metrics ``sg``, ``gc``, ``svrg`` (logarithms of mean summed variances), ``norm`` (variance
        over second moment), ``norm_plugin`` (as the authors estimate it, ten draws), ``loss`` and
        ``half`` (steps until the loss has halved, at most all); curves of loss and variance.
    """
    n = max(CLASSES, round(WIDTH / tau))
    phi, y = _data(seed, n, teacher, copies)
    w = torch.zeros(CLASSES, WIDTH)
    g = stream(seed, "order")
    refresh = steps // REFRESHES
    spaced = (math.log1p(steps) * i / (SNAPSHOTS - 1) for i in range(SNAPSHOTS))
    at = sorted({round(math.expm1(value)) for value in spaced})
    at_set, middle = set(at), {refresh * k + refresh // 2 for k in range(REFRESHES)}
    curve: dict[str, list[float]] = {"loss": [], "sg": [], "step": []}
    parts: dict[str, list[float]] = {"sg": [], "gc": [], "svrg": [], "norm": [], "norm_plugin": []}
    assign, old = torch.zeros(n, dtype=torch.int64), torch.zeros(n, CLASSES)
    half = steps
    order: list[Tensor] = []
    for step in range(steps + 1):
        if step % refresh == 0 and step < steps:
            assign, old = _cluster(phi, y, w, seed), _errors(phi, y, w)
        if step in at_set or step in middle or step == steps:
            errors = _errors(phi, y, w)  # (N, C) gradients of the logits
            sg, second = _variance(phi, errors)
            loss = F.cross_entropy(phi @ w.T, y).item()
            if step in at_set:
                for name, value in (("step", step), ("loss", loss), ("sg", sg / BATCH)):
                    curve[name].append(float(value))
                if loss <= 0.5 * curve["loss"][0]:
                    half = min(half, step)
            if step in middle and step >= 0.3 * steps:
                gradients = (errors[:, :, None] * phi[:, None, :]).flatten(1)
                clusters = len(torch.unique(assign))
                gc = total_distortion(gradients, assign).item() / n**2 * clusters / BATCH
                parts["sg"].append(sg / BATCH)
                parts["gc"].append(gc)
                parts["svrg"].append(_variance(phi, errors - old)[0] / BATCH)
                parts["norm"].append(sg / BATCH / (sg / BATCH + second))
                parts["norm_plugin"].append(_plugin(phi, errors, seed, step))
        if step == steps:
            break
        if not order:
            order = list(torch.split(torch.randperm(n, generator=g), BATCH))
        rows = order.pop()
        batch = phi[rows]
        errors = _errors(batch, y[rows], w)
        w -= lr * (errors.T @ batch / len(rows) + DECAY * w)
    metrics = {name: math.fsum(values) / len(values) for name, values in parts.items()}
    for name in ("sg", "gc", "svrg"):
        metrics[name] = math.log(max(metrics[name], 1e-30))
    return metrics | {"loss": curve["loss"][-1], "half": float(half)}, curve


def _errors(phi: Tensor, y: Tensor, w: Tensor) -> Tensor:
    errors = torch.softmax(phi @ w.T, 1)
    errors[torch.arange(len(y)), y] -= 1.0
    return errors


def _variance(phi: Tensor, errors: Tensor) -> tuple[float, float]:
    """Variance of one draw summed over the coordinates, and the squared length of the mean."""
    lengths = (phi.square().sum(1) * errors.square().sum(1)).double().mean()
    mean = (errors.T.double() @ phi.double() / len(phi)).square().sum()
    return max((lengths - mean).item(), 0.0), mean.item()


def _cluster(phi: Tensor, y: Tensor, w: Tensor, seed: int) -> Tensor:
    model = nn.Linear(WIDTH, CLASSES, bias=False, device="meta")
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.weight.copy_(w)
    rows = torch.split(torch.arange(len(phi)), BATCH)
    batches = [(phi[r], y[r], r) for r in rows]
    clusters = min(BATCH, len(phi))
    clustering = GradientClustering(
        model, losses_of, clusters, generator=stream(seed, "clusters"), rule="running"
    )
    return clustering.fit(batches, ITERATIONS).assign


def _plugin(phi: Tensor, errors: Tensor, seed: int, step: int, draws: int = 10) -> float:
    """The authors' normalised variance from two sets of ten drawn batches."""
    g = stream(seed, f"measure/{step}")
    rows = torch.randint(len(phi), (2, draws, BATCH), generator=g)
    gradients = torch.einsum("stbc,stbi->stci", errors[rows], phi[rows]).flatten(2) / BATCH
    mean, fresh = gradients[0].mean(0), gradients[1]
    ratio = (fresh - mean).square().sum(0) / (fresh.square().sum(0) + 1e-7)
    return ratio.mean().item()
