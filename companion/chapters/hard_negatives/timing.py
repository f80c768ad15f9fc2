"""Seconds of the two losses alone, and of whole training steps with each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from companion.chapters.hard_negatives.problems import load_pairs
from companion.chapters.hard_negatives.train import Training, build_model
from companion.lab.arms import Settings
from companion.lab.device import run_device, wait_for
from companion.lab.results import Result, make_result
from trainaug.data.registry import content_hash
from trainaug.methods.hard_negatives import (
    DistinctGroupBatchSampler,
    MaxOfHinges,
    SumOfHinges,
    cosine_scores,
)
from trainaug.training.randomness import stream

__all__ = ["Timing", "run_timing", "time_steps"]


@dataclass(frozen=True, kw_only=True)
class Timing(Settings):
    """Seconds of forward and backward of the losses in turn, and of training steps.

    Attributes:
        shapes: Batch sizes and embedding sizes at which the losses are timed alone.
        repeats: Repetitions at each shape.
        warm_up: First repetitions, and first steps, that do not count.
        batch_size: Pairs in the batch of a training step.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")

    shapes: tuple[tuple[int, int], ...] = ((128, 1024), (1024, 1024))
    repeats: tuple[int, ...] = (40, 4)
    warm_up: int = 2
    batch_size: int = 128

    @property
    def data_hash(self) -> str:
        return content_hash("emoji_captions")


def run_timing(settings: Timing, seed: int) -> Result:
    """Time forward and backward of the losses in turn, and whole training steps."""
    metrics: dict[str, float] = {}
    generator = stream(seed, "timing")
    losses = {"sum": SumOfHinges(), "max": MaxOfHinges()}
    for (size, dim), repeats in zip(settings.shapes, settings.repeats, strict=True):
        images, texts = torch.randn(2, size, dim, generator=generator).to(run_device())
        scores = cosine_scores(images, texts)
        for name, seconds in _interleaved(losses, scores, repeats, settings.warm_up).items():
            metrics[f"{name}/B={size}/d={dim}"] = seconds
    metrics |= time_steps(settings, seed)
    return make_result(metrics, digits=6)


def _interleaved(
    losses: Mapping[str, nn.Module], scores: Tensor, repeats: int, warm_up: int
) -> dict[str, float]:
    """Median seconds of forward and backward of each loss; first one loss begins, then another."""
    spent: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(repeats + warm_up):
        for name in _turn(list(losses), number):
            leaf = scores.detach().clone().requires_grad_(True)
            wait_for(leaf.device)
            start = time.perf_counter()
            losses[name](leaf).backward()
            wait_for(leaf.device)
            if number >= warm_up:
                spent[name].append(time.perf_counter() - start)
    return {name: _median(seconds) for name, seconds in spent.items()}


def time_steps(settings: Timing, seed: int) -> dict[str, float]:
    """Median seconds of a whole training step with each loss, on the split by new concepts."""
    training = Training(batch_size=settings.batch_size)
    device = run_device()
    pairs = load_pairs(training, seed).to(device)
    dataset = training.dataset(pairs, seed)
    order = stream(seed, "order")
    batches = DistinctGroupBatchSampler(pairs.train[:, 0], training.batch_size, order)
    losses = {
        "sum": SumOfHinges(training.margin, "mean"),
        "max": MaxOfHinges(training.margin, "mean"),
    }
    models = {name: build_model(training, pairs, seed).to(device) for name in losses}
    optimizers = {
        name: torch.optim.Adam(model.parameters(), lr=training.lr, fused=True)
        for name, model in models.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in losses}
    for number, indices in enumerate(batches):
        for name in _turn(list(losses), number):
            model, optimizer = models[name], optimizers[name]
            wait_for(device)
            start = time.perf_counter()
            x, _, _ = dataset[indices]
            losses[name](model(x)).backward()
            optimizer.step()
            wait_for(device)
            spent[name].append(time.perf_counter() - start)
            optimizer.zero_grad()
    return {f"step/{name}": _median(seconds[settings.warm_up :]) for name, seconds in spent.items()}


def _median(seconds: Sequence[float]) -> float:
    """The upper median, which is one of the measured times."""
    return sorted(seconds)[len(seconds) // 2]


def _turn(names: Sequence[str], number: int) -> Iterator[str]:
    """The names in order in odd rounds, in reverse order in even ones."""
    return iter(names if number % 2 else reversed(names))
