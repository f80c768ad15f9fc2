"""Timings: clustering against forward and backward, and the samplers' steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from companion.chapters.gradient_clustering.problems import losses_of
from companion.chapters.gradient_clustering.speed import Sampler, Sampling, train_sampler
from companion.lab.arms import Settings
from companion.lab.device import run_device, wait_for
from companion.lab.results import Result, make_result
from trainaug.methods.gradient_clustering import GradientCenters, layer_factors
from trainaug.training.networks import MLP, ResNet8
from trainaug.training.randomness import stream

__all__ = [
    "ResNetTiming",
    "SamplerTiming",
    "Timing",
    "interleaved",
    "make_network",
    "run_sampler_timing",
    "run_timing",
]

SAMPLERS: tuple[Sampler, ...] = ("uniform", "snooze", "random", "reweighted", "stratified")


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
        return _DefaultLayout(ResNet8(10, g, in_channels=1, batch_norm=False))
    return MLP(784, (1024, 1024), 10, g)


@dataclass(frozen=True, kw_only=True)
class Timing(Settings):
    """Seconds of clustering one batch.

    Attributes:
        model: ``mlp`` or ``resnet8``.
        batch: Examples in the batch.
        counts: Numbers of clusters.
        repeats: Measurements of each, of which the median counts.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    model: str = "mlp"
    batch: int = 128
    counts: tuple[int, ...] = (32, 128)
    repeats: int = 5

    @property
    def data_hash(self) -> str:
        return "drawn from the seed"


@dataclass(frozen=True, kw_only=True)
class ResNetTiming(Timing):
    """`Timing` with the convolutional network."""

    model: str = field()  # no default: its records have always stated it
    repeats: int = 2


def run_timing(settings: Timing, seed: int) -> Result:
    """Time forward and backward, assigning to clusters, and assigning with collecting, in turn."""
    device = run_device()
    torch.zeros(7 << 20)  # once freed, blocks of such a size are used again, as in training
    batch = settings.batch
    model, g = make_network(settings.model, seed).to(device), stream(seed, "batch")
    x = torch.rand(batch, 1, 28, 28, generator=g).to(device)
    y = torch.randint(10, (batch,), generator=g).to(device)
    half = torch.arange(batch, device=device) % 2

    def plain() -> None:
        model.zero_grad()
        losses_of(model(x), y).mean().backward()  # type: ignore[no-untyped-call]

    tasks: dict[str, Callable[[], None]] = {"plain": plain}
    for count in settings.counts:
        centers = GradientCenters(count)
        centers.append(layer_factors(model, losses_of, x[:count], y[:count]))

        def assign(centers: GradientCenters = centers) -> None:
            # unverified: a pass verifies its first batch only
            factors = layer_factors(model, losses_of, x, y, verify=False)
            centers.sq_distances(factors).argmin(1)

        def both(centers: GradientCenters = centers) -> None:
            factors = layer_factors(model, losses_of, x, y, verify=False)
            centers.add(factors, centers.sq_distances(factors).argmin(1), half)

        tasks |= {f"assign/{count}": assign, f"pass/{count}": both}
    return make_result(interleaved(tasks, settings.repeats, seed, device))


@dataclass(frozen=True, kw_only=True)
class SamplerTiming(Sampling):
    """Seconds of the updates with each sampler in turn.

    Attributes:
        timed_steps: Updates that are timed, whatever ``steps`` says.
        warm_up: Updates before those.
    """

    timed_steps: int = 300
    warm_up: int = 10

    def shortened(self, share: float) -> Self:
        return self


def run_sampler_timing(settings: SamplerTiming, seed: int) -> Result:
    """Time some updates with each sampler, clustering included, without evaluations."""
    warm = replace(settings, sampler="stratified", steps=settings.warm_up)
    train_sampler(warm, seed, measured=False)
    metrics: dict[str, float] = {}
    for name in SAMPLERS if seed % 2 else reversed(SAMPLERS):
        timed = replace(settings, sampler=name, steps=settings.timed_steps)
        trained = train_sampler(timed, seed, measured=False)
        metrics[f"seconds/{name}"] = trained.seconds  # without the drawing of parts
    return make_result(metrics)


def interleaved(
    tasks: Mapping[str, Callable[[], None]],
    repeats: int,
    seed: int,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Median seconds of each task, on the CPU by default; even seeds reverse the order."""
    device = torch.device("cpu") if device is None else device
    names = list(tasks) if seed % 2 else list(tasks)[::-1]
    for name in names:  # warm up
        tasks[name]()
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name in names:
            wait_for(device)
            start = time.perf_counter()
            tasks[name]()
            wait_for(device)
            taken[name].append(time.perf_counter() - start)
    return {f"seconds/{name}": statistics.median(values) for name, values in taken.items()}
