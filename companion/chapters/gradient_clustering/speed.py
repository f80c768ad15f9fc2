"""Do samplers that know redundancy save anything? Examples and seconds to a target accuracy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from companion.chapters.gradient_clustering.problems import Problem, losses_of, make_model, problem
from trainaug.methods.gradient_clustering import (
    GradientClustering,
    RandomSnoozeSampler,
    SnoozeSampler,
    StratifiedSampler,
)
from trainaug.training.loop import train
from trainaug.training.models import evaluate
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["EVERY", "TARGETS", "Trained", "train_sampler"]

# Validation accuracy, by share of copies or for wrong labels, that a tuned uniform run reaches.
TARGETS = {"0": 0.84, "50": 0.82, "90": 0.77, "noise": 0.83}
EVERY = 20  # steps between two looks at the validation part
SMOOTHED = 5  # looks that are averaged


@dataclass
class Trained:
    """A run: validation accuracy, with the examples spent until then, extras included."""

    accuracy: list[float] = field(default_factory=list)
    examples: list[float] = field(default_factory=list)  # through forward and backward
    extra: list[float] = field(default_factory=list)  # of them, for clustering
    seconds: float = 0.0
    test: float = 0.0
    active_counts: list[int] = field(default_factory=list)

    def reached(self, target: float) -> int | None:
        """Look at which the mean of the last ones first reached the target, or ``None``."""
        for end in range(SMOOTHED, len(self.accuracy) + 1):
            if sum(self.accuracy[end - SMOOTHED : end]) >= SMOOTHED * target:
                return end - 1
        return None


class _Clustered:
    """A stratified sampler that clusters anew every few epochs, after a first one without."""

    def __init__(self, model: nn.Module, data: Problem, settings: Mapping[str, Any], seed: int):
        n = len(data.train)
        self.sampler = StratifiedSampler(n, settings["batch"], stream(seed, "order"))
        self.clustering = GradientClustering(
            model, losses_of, settings["clusters"], generator=stream(seed, "clusters")
        )
        rows = torch.split(torch.arange(n), settings["batch"])
        self.batches = [(data.train.x[r], data.train.y[r], r) for r in rows]
        self.settings, self.epoch, self.extra = settings, 0, 0
        self.weights = self.sampler.weights

    def __iter__(self) -> Any:
        first = self.epoch == 1
        if self.epoch > 0 and (self.epoch - 1) % self.settings["refresh"] == 0:
            passes = self.settings["iterations"] if first else 1
            found = self.clustering.fit(self.batches, passes)
            started = self.clustering.num_clusters if first else 0  # the first centres
            self.extra += passes * len(found.assign) + started
            self.sampler.set_clusters(found.assign)
        self.epoch += 1
        return iter(self.sampler)


def train_sampler(
    settings: Mapping[str, Any],
    seed: int,
    *,
    counts: Sequence[int] | None = None,
    steps: int | None = None,
    measured: bool = True,
) -> Trained:
    """Train with one sampler.

    Args:
        settings: As in `arms.SPEED`, with ``lr``.
        seed: Seed of parts, weights, order.
        counts: Active examples of each epoch, of the control of ``sampler="random"``.
        steps: Updates, if other than the settings'.
        measured: Whether the validation part is looked at; off in timings.
    """
    shares = {"copies": settings["copies"], "noise": settings["noise"]}
    data = problem(settings["data"], seed, settings["num_train"], **shares)
    model = make_model("mlp", data, seed)
    decay, momentum = settings["decay"], settings["momentum"]
    optimizer = SGD(model.parameters(), settings["lr"], momentum=momentum, weight_decay=decay)
    sampler = _sampler(settings, data, model, seed, counts)
    found, steps = Trained(), settings["steps"] if steps is None else steps
    drawn = 0

    def look(model: nn.Module) -> dict[str, float]:
        if not measured:
            return {}
        accuracy = evaluate(model, data.val, "val")["val/accuracy"]
        found.accuracy.append(accuracy)
        found.extra.append(float(getattr(sampler, "extra", 0)))
        found.examples.append(drawn + found.extra[-1])
        return {}

    def count(index: Tensor, losses: Tensor) -> None:
        nonlocal drawn
        drawn += len(index)
        if isinstance(sampler, SnoozeSampler):
            sampler.update(index, losses)

    started = time.perf_counter()
    train(
        model,
        data.train,
        sampler,
        losses_of,
        optimizer,
        max_steps=steps,
        weights=getattr(sampler, "weights", None),
        feedback=count,
        evaluate=look,
        evaluate_every=EVERY if measured else steps,
    )
    found.seconds = time.perf_counter() - started
    found.test = evaluate(model, data.test, "test")["test/accuracy"] if measured else 0.0
    found.active_counts = list(getattr(sampler, "active_counts", []))
    return found


def _sampler(
    settings: Mapping[str, Any],
    data: Problem,
    model: nn.Module,
    seed: int,
    counts: Sequence[int] | None,
) -> Any:
    n, batch, g = len(data.train), settings["batch"], stream(seed, "order")
    name = settings["sampler"]
    if name == "uniform":
        return RandomBatchSampler(n, batch, g)
    if name in ("snooze", "reweighted"):
        rule, tau = settings["rule"], settings["tau"]
        return SnoozeSampler(n, batch, g, rule=rule, tau=tau, reweight=name == "reweighted")
    if name == "random":
        return RandomSnoozeSampler(n, batch, g, counts=counts or [n])
    if name == "stratified":
        return _Clustered(model, data, settings, seed)
    raise ValueError(f"unknown sampler {name!r}")
