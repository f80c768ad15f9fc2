"""Costs of gradient clustering: assignment, passes, memory, growth with examples and clusters."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from ordering import _paired
from torch import Tensor, nn

from companion.chapters.gradient_clustering.timing import make_network
from trainaug.methods.gradient_clustering import (
    GradientCenters,
    GradientClustering,
    choose_route,
    layer_factors,
)

BATCH = CLUSTERS = 128


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _setting(name: str, n: int = BATCH) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with ``n`` random pictures and labels; sets one thread."""
    torch.set_num_threads(1)
    # once such a block is freed, the allocator reuses blocks of this size, as it does in training
    torch.zeros(7 << 20)
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 1, 28, 28, generator=g), torch.randint(10, (n,), generator=g)
    return make_network(name, 0), x, y


def _plain(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    losses_of(model(x), y).mean().backward()


def assignment(name: str, pairs: int = 20) -> dict[str, Any]:
    """Time the assignment of a batch, forward and backward included, against these two alone.

    Returns:
        The ratio, and the route of each layer.
    """
    model, x, y = _setting(name)
    centers = GradientCenters(CLUSTERS)
    factors = layer_factors(model, losses_of, x, y)
    centers.append(factors)
    ratio = _paired(
        lambda: centers.sq_distances(
            # in a pass of clustering only the first batch is verified
            layer_factors(model, losses_of, x, y, verify=False)
        ).argmin(1),
        lambda: _plain(model, x, y),
        pairs,
    )
    sizes = {layer: f.sizes[1:] for layer, f in factors.items()}
    return ratio | {"routes": {k: choose_route(BATCH, CLUSTERS, *v) for k, v in sizes.items()}}


def full_pass(name: str, batches: int = 6, pairs: int = 5) -> dict[str, Any]:
    """Time a pass of clustering against an epoch of SGD on the same batches."""
    model, x, y = _setting(name, BATCH * batches)
    parts = [(x[r], y[r], r) for r in torch.arange(len(x)).split(BATCH)]
    clustering = GradientClustering(
        model, losses_of, CLUSTERS, generator=torch.Generator().manual_seed(0)
    )
    clustering.fit(parts, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.5)

    def epoch() -> None:
        for inputs, targets, _ in parts:
            _plain(model, inputs, targets)
            optimizer.step()

    return _paired(lambda: clustering.fit(parts, 1), epoch, pairs)


def memory() -> dict[str, Any]:
    """Count the numbers that clustering an MLP keeps, against those of its examples' gradients.

    Kept are the factors of a batch, the centres, the sums for the next centres (two halves per
    cluster) and the distances. The alternative would materialise one gradient for each example of
    the batch, and these alone are counted.
    """
    model, x, y = _setting("mlp")
    factors = layer_factors(model, losses_of, x, y)
    centers = GradientCenters(CLUSTERS)
    centers.append(factors)
    centers.add(factors, torch.arange(BATCH) % CLUSTERS, torch.zeros(BATCH, dtype=torch.int64))
    kept = sum(f.x.numel() + f.z_grad.numel() for f in factors.values())
    for tensors in (centers.centers, centers._sums):
        kept += sum(values.numel() for parts in tensors.values() for values in parts)
    kept += BATCH * CLUSTERS * 2 * len(factors)  # distances; a float64 counts as two numbers
    made = BATCH * sum(p.numel() for p in model.parameters())
    return {"ratio": made / kept, "numbers_kept": kept, "numbers_materialised": made}


def growth(what: str, repeats: int = 7) -> dict[str, Any]:
    """Measure how the seconds grow with the examples of a pass, or of the distances with K.

    Args:
        what: ``examples`` or ``clusters``.
        repeats: Timings of each size, of which the least counts.

    Returns:
        The exponent between the smallest and the largest size, 1 if the cost is linear, and the
        seconds by size.
    """
    points = {}
    for size in (1024, 2048, 4096) if what == "examples" else (256, 512, 1024):
        model, x, y = _setting("mlp", size if what == "examples" else BATCH)
        if what == "examples":
            parts = [(x[r], y[r], r) for r in torch.arange(size).split(BATCH)]
            clustering = GradientClustering(
                model, losses_of, 32, generator=torch.Generator().manual_seed(0)
            )
            clustering.fit(parts, 1)
            call: Any = lambda c=clustering, p=parts: c.fit(p, 1)  # noqa: E731
        else:
            factors = layer_factors(model, losses_of, x, y)
            centers = GradientCenters(size)
            for _ in range(size // BATCH):
                centers.append(factors)
            call = lambda c=centers, f=factors: c.sq_distances(f)  # noqa: E731
        call()
        spent = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            spent.append(time.perf_counter() - start)
        points[size] = min(spent)
    (a, low), *_, (b, high) = points.items()
    return {"exponent": math.log(high / low) / math.log(b / a), "seconds": points}
