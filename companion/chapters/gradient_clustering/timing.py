"""Timings: clustering against forward and backward, and the samplers' steps."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from companion.chapters.gradient_clustering.problems import losses_of, plain_resnet8
from companion.chapters.gradient_clustering.speed import train_sampler
from trainaug.methods.gradient_clustering import GradientCenters, layer_factors
from trainaug.training.randomness import initialise, stream

__all__ = ["COUNTS", "NETWORKS", "make_network", "time_clustering", "time_samplers"]

BATCH = 128
COUNTS = (32, 128)  # clusters
NETWORKS = ("mlp", "resnet8")
REPEATS = {"mlp": 5, "resnet8": 2}
STEPS = 300


class _DefaultLayout(nn.Module):
    """A ResNet-8 in PyTorch's default memory layout: its own forward asks for channels last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network.to(memory_format=torch.contiguous_format)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        features = self.network.stages(torch.relu(self.network.stem(x)))
        return self.network.head(features.mean((2, 3)))  # type: ignore[no-any-return]


def make_network(name: str, seed: int) -> nn.Module:
    """Build the paper's MLP 784-1024-1024-10, or ResNet-8 without BatchNorm for 28x28 pictures."""
    g = stream(seed, "init")
    if name == "resnet8":
        return _DefaultLayout(plain_resnet8(g, in_channels=1))
    with torch.device("meta"):
        sizes = (784, 1024, 1024, 10)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    initialise(model, g)
    return model


def time_clustering(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Seconds of forward and backward, of assigning, and of assigning and collecting, in turn."""
    torch.zeros(7 << 20)  # once freed, blocks of such a size are used again, as in training
    model, g = make_network(settings["model"], seed), stream(seed, "batch")
    x, y = torch.rand(BATCH, 1, 28, 28, generator=g), torch.randint(10, (BATCH,), generator=g)
    half = torch.arange(BATCH) % 2

    def plain() -> None:
        model.zero_grad()
        losses_of(model(x), y).mean().backward()  # type: ignore[no-untyped-call]

    tasks: dict[str, Callable[[], None]] = {"plain": plain}
    for count in COUNTS:
        centers = GradientCenters(count)
        centers.append(layer_factors(model, losses_of, x[:count], y[:count]))

        def assign(centers: GradientCenters = centers) -> None:
            factors = layer_factors(model, losses_of, x, y, verify=False)  # as a pass has it
            centers.sq_distances(factors).argmin(1)

        def both(centers: GradientCenters = centers) -> None:
            factors = layer_factors(model, losses_of, x, y, verify=False)
            centers.add(factors, centers.sq_distances(factors).argmin(1), half)

        tasks |= {f"assign/{count}": assign, f"pass/{count}": both}
    return _interleaved(tasks, REPEATS[settings["model"]], seed)


def time_samplers(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Seconds for 300 updates with each sampler, clustering included, without measuring."""
    settings = dict(settings) | {"steps": STEPS}
    tasks: dict[str, Callable[[], float]] = {}
    for name in ("uniform", "snooze", "random", "reweighted", "stratified"):

        def run(name: str = name) -> float:
            counts = [settings["num_train"]]
            of = train_sampler(settings | {"sampler": name}, seed, counts=counts, measured=False)
            return of.seconds  # of the updates, without the drawing of parts

        tasks[name] = run
    train_sampler(settings | {"sampler": "stratified"}, seed, steps=10, measured=False)
    names = list(tasks) if seed % 2 else list(tasks)[::-1]
    return {f"seconds/{name}": tasks[name]() for name in names}


def _interleaved(
    tasks: Mapping[str, Callable[[], None]], repeats: int, seed: int
) -> dict[str, float]:
    """Median seconds of each task; the order turns round with the seed."""
    names = list(tasks) if seed % 2 else list(tasks)[::-1]
    for name in names:  # warm up
        tasks[name]()
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name in names:
            start = time.perf_counter()
            tasks[name]()
            taken[name].append(time.perf_counter() - start)
    return {f"seconds/{name}": statistics.median(values) for name, values in taken.items()}
