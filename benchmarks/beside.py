"""The methods against what a user would write or install instead: paired ratios with intervals.

    python benchmarks/beside.py [NAME ...]

It prints each ratio with its 95 % interval and its target; `make bench` stores the ratios with the
other benchmarks. Canonical mode is not used, because users do not use it.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from paired import paired_blocks
from torch import Tensor, nn
from torchvision.transforms.v2 import MixUp
from training import loop_against_by_hand

from companion.chapters.gradient_clustering.timing import make_network
from trainaug.methods.attacks import pgd
from trainaug.methods.cascading_sum import SumMix
from trainaug.methods.gradient_clustering import GradientCenters, layer_factors
from trainaug.methods.hard_negatives import MaxOfHinges, SumOfHinges, cosine_scores

SLACK = 1.1  # the upper end of an interval may exceed the target by this factor


def _embeddings(size: int, dim: int = 1024) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, captions = F.normalize(torch.randn(2, size, dim, generator=generator), dim=2)
    return images.requires_grad_(True), captions


def hinge_against_library(size: int = 1024) -> dict[str, Any]:
    """Scores and maximum, against batch-hard triplets of pytorch-metric-learning in both roles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning import distances, losses, miners, reducers
    images, captions = _embeddings(size)
    distance = distances.CosineSimilarity()
    theirs = losses.TripletMarginLoss(0.2, distance=distance, reducer=reducers.SumReducer())
    miner = miners.BatchHardMiner(distance=distance)
    labels = torch.arange(size)
    ours = MaxOfHinges()

    def library() -> None:
        total = images.new_zeros(())
        for queries, gallery in ((images, captions), (captions, images)):
            triplets = miner(queries, labels, gallery, labels.clone())
            total = total + theirs(queries, labels, triplets, gallery, labels.clone())
        images.grad = None
        total.backward()

    def mine() -> None:
        images.grad = None
        ours(images, captions).backward()

    return paired_blocks(mine, library, repeats=1)


def hinge_against_sum(size: int = 1024) -> dict[str, Any]:
    """Forward and backward of the maximum on a matrix of scores, against the sum."""
    scores = cosine_scores(*_embeddings(size)).detach().requires_grad_(True)

    def step(loss: nn.Module) -> None:
        scores.grad = None
        loss(scores).backward()

    first, second = (functools.partial(step, make()) for make in (MaxOfHinges, SumOfHinges))
    return paired_blocks(first, second, repeats=10)


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def assignment(network: str, batch: int = 128) -> dict[str, Any]:
    """Forward, backward and assignment to 128 clusters, against forward and backward."""
    # once such a block is freed, the allocator reuses blocks of this size, as it does in training
    torch.zeros(7 << 20)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 1, 28, 28, generator=generator)
    y = torch.randint(10, (batch,), generator=generator)
    model = make_network(network, 0)
    centers = GradientCenters(batch)
    centers.append(layer_factors(model, _losses, x, y))

    def assigned() -> None:
        centers.sq_distances(layer_factors(model, _losses, x, y, verify=False)).argmin(1)

    def plain() -> None:
        model.zero_grad()
        _losses(model(x), y).mean().backward()

    return paired_blocks(assigned, plain, repeats=20 if network == "mlp" else 2)


def mixing(k: int, shape: tuple[int, int, int], batch: int = 128) -> dict[str, Any]:
    """As many mixes of K samples as there are samples, against torchvision's `MixUp`."""
    torch.zeros(1 << 22)  # for the allocator, as in `assignment`
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *shape, generator=generator)
    y = torch.randint(10, (batch,), generator=generator)
    ours = SumMix(k, num_classes=10, mode="pairing", generator=torch.Generator().manual_seed(1))
    theirs = MixUp(alpha=1.0, num_classes=10)
    return paired_blocks(lambda: ours(x, y), lambda: theirs(x, y), repeats=100)


def attack(steps: int = 20, batch: int = 128) -> dict[str, Any]:
    """PGD of twenty steps, against twenty plain gradients with respect to the input; ResNet-8."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 1, 28, 28, generator=generator)
    model = make_network("resnet8", 0)
    y = model(x).argmax(1)
    pgd_of = functools.partial(pgd, model, norm="linf", eps=0.1, steps=steps, generator=generator)

    def gradients() -> None:
        for _ in range(steps):
            inputs = x.clone().requires_grad_(True)
            F.cross_entropy(model(inputs), y).backward()

    return paired_blocks(lambda: pgd_of(x, y), gradients, repeats=1)


GREY, COLOUR = (1, 28, 28), (3, 32, 32)
TARGETS: dict[str, tuple[Callable[[], dict[str, Any]], float]] = {
    "hinge max, B = 1024, against pytorch-metric-learning": (hinge_against_library, 0.24),
    "hinge max, B = 1024, against the sum": (hinge_against_sum, 1.0),
    "cluster assignment against a plain step, MLP": (lambda: assignment("mlp"), 1.01),
    "cluster assignment against a plain step, ResNet-8": (lambda: assignment("resnet8"), 1.6),
    "PGD, 20 steps, against 20 plain gradients": (attack, 0.9),
    "train against a loop by hand, tiny MLP": (loop_against_by_hand, 1.3),
} | {
    f"SumMix, K = {k}, against v2.MixUp, {name}": (functools.partial(mixing, k, shape), 1.0)
    for k in (2, 4, 8)
    for name, shape in (("1 x 28 x 28", GREY), ("3 x 32 x 32", COLOUR))
}


def main() -> None:
    """Measure the ratios whose names contain a word of the command line, or all without words."""
    for name, (measure, target) in TARGETS.items():
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        result = measure()
        interval = f"{result['ratio']:.3f} [{result['lower']:.3f}, {result['upper']:.3f}]"
        verdict = "ok" if result["upper"] <= target * SLACK else "MISSED"
        print(f"{name}: {interval}, target {target} + 10 %: {verdict}", flush=True)


if __name__ == "__main__":
    main()
