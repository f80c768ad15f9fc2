"""Do samplers that know redundancy save anything? Examples and seconds to a target accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import SGD

from companion.chapters.gradient_clustering.problems import (
    HELD_OUT,
    PictureSettings,
    Problem,
    losses_of,
    make_model,
)
from companion.lab.device import run_device, wait_for
from companion.lab.results import Result, make_result
from trainaug.methods.gradient_clustering import (
    GradientClustering,
    RandomSnoozeSampler,
    SnoozeSampler,
    StratifiedSampler,
)
from trainaug.methods.gradient_clustering.snooze import Rule
from trainaug.training.loop import train
from trainaug.training.models import evaluate
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = [
    "HalfCopies",
    "MostlyCopies",
    "Sampler",
    "Sampling",
    "Trained",
    "WrongLabels",
    "counts_of_snooze",
    "run_sampling",
    "train_sampler",
]

Sampler = Literal["uniform", "snooze", "reweighted", "random", "stratified"]


@dataclass(frozen=True, kw_only=True)
class Sampling(PictureSettings):
    """Training an MLP with a sampler of batches.

    Settings without a default are stated by all records.

    Attributes:
        sampler: ``uniform`` batches; ``snooze``, where examples of small loss sleep for some
            epochs; ``reweighted``, a snooze with weights that keep the mean right; ``random``, its
            control, where as many sleep at random; or ``stratified`` by clusters of gradients.
        lr: Learning rate.
        control_lr: Learning rate of the control that is run after a snooze.
        momentum: Momentum of SGD.
        decay: Weight decay.
        batch: Examples in a batch.
        steps: Updates.
        rule: What the threshold of a snooze is measured by, such as the ``mean`` loss.
        tau: Threshold of a snooze, as a multiple of that.
        clusters: K.
        iterations: Passes of the first clustering; later ones have one.
        refresh: Epochs between two clusterings.
        target_accuracy: Validation accuracy that is to be reached, which a tuned uniform run does.
        evaluate_every: Steps between two evaluations on the validation part.
        window: Evaluations that are averaged.
        curve_points: Points that a record keeps of each curve.
    """

    data: str = field()
    num_train: int = field()
    num_val: int = HELD_OUT["fashion"][0]
    num_test: int = HELD_OUT["fashion"][1]
    sampler: Sampler = "uniform"
    lr: float = 0.05
    control_lr: float = 0.04
    momentum: float = field()
    decay: float = field()
    batch: int = field()
    steps: int = field()
    rule: Rule = "mean"
    tau: float = 0.5
    clusters: int = field()
    iterations: int = field()
    refresh: int = field()
    target_accuracy: float = 0.84
    evaluate_every: int = 20
    window: int = 5
    curve_points: int = 60

    @classmethod
    def usual(cls, *, copies: float = 0.0, noise: float = 0.0) -> Self:
        """Return the settings of the chapter's arms."""
        return cls(
            data="fashion",
            num_train=10_000,
            copies=copies,
            noise=noise,
            momentum=0.9,
            decay=1e-4,
            batch=64,
            steps=2400,
            clusters=64,
            iterations=3,
            refresh=2,
        )

    def control(self) -> Self:
        """Return the settings of a snooze's control."""
        return replace(self, sampler="random", lr=self.control_lr)

    def shortened(self, share: float) -> Self:
        # five evaluations: as many as are averaged
        return replace(self, steps=max(100, round(self.steps * share)))

    def tiny(self) -> Self:
        return replace(
            self,
            num_train=640,
            steps=80,
            clusters=8,
            iterations=2,
            evaluate_every=5,
            target_accuracy=0.62,
        )


@dataclass(frozen=True, kw_only=True)
class HalfCopies(Sampling):
    """`Sampling` where half of the training examples are copies."""

    target_accuracy: float = 0.82

    def tiny(self) -> Self:
        return replace(super().tiny(), target_accuracy=0.6)


@dataclass(frozen=True, kw_only=True)
class MostlyCopies(Sampling):
    """`Sampling` where 90 per cent of the training examples are copies."""

    target_accuracy: float = 0.77

    def tiny(self) -> Self:
        return replace(super().tiny(), target_accuracy=0.47)


@dataclass(frozen=True, kw_only=True)
class WrongLabels(Sampling):
    """`Sampling` with a tenth of wrong training labels."""

    target_accuracy: float = 0.83

    def tiny(self) -> Self:
        return replace(super().tiny(), target_accuracy=0.6)


@dataclass
class Trained:
    """A run: accuracy at each evaluation, and what was spent until then."""

    accuracy: list[float] = field(default_factory=list)  # on the validation part
    examples: list[float] = field(default_factory=list)  # through forward and backward, all
    extra: list[float] = field(default_factory=list)  # those of them that clustering took
    seconds: float = 0.0  # of the training
    test: float = 0.0  # accuracy at the end
    active_counts: list[int] = field(default_factory=list)  # examples awake in each epoch

    def reached(self, target: float, window: int) -> int | None:
        """First evaluation at which the mean of the last ones reaches the target, or ``None``."""
        for end in range(window, len(self.accuracy) + 1):
            if sum(self.accuracy[end - window : end]) >= window * target:
                return end - 1
        return None


class _Clustered:
    """A stratified sampler that clusters anew every few epochs; its first epoch is uniform."""

    def __init__(self, model: nn.Module, data: Problem, settings: Sampling, seed: int) -> None:
        n = len(data.train)
        self.sampler = StratifiedSampler(n, settings.batch, stream(seed, "order"))
        self.clustering = GradientClustering(
            model, losses_of, settings.clusters, generator=stream(seed, "clusters")
        )
        rows = torch.split(torch.arange(n), settings.batch)
        self.batches = [(data.train.x[r], data.train.y[r], r) for r in rows]
        self.settings = settings
        self.epoch = 0
        self.extra = 0
        self.weights = self.sampler.weights

    def __iter__(self) -> Iterator[list[int]]:
        is_first = self.epoch == 1
        if self.epoch > 0 and (self.epoch - 1) % self.settings.refresh == 0:
            passes = self.settings.iterations if is_first else 1
            strata = self.clustering.fit(self.batches, passes).assign
            # the first centres are gradients of as many examples
            initial = self.clustering.num_clusters if is_first else 0
            self.extra += passes * len(strata) + initial
            self.sampler.set_clusters(strata)
        self.epoch += 1
        return iter(self.sampler)


AnySampler = RandomBatchSampler | SnoozeSampler | RandomSnoozeSampler | _Clustered


def train_sampler(
    settings: Sampling,
    seed: int,
    *,
    counts: Sequence[int] | None = None,
    measured: bool = True,
) -> Trained:
    """Train with one sampler.

    Args:
        settings: Those of the arm, or of a snooze's control.
        seed: Seed of parts, weights, order.
        counts: Examples awake in each epoch, for the control of a snooze.
        measured: Whether accuracy is evaluated; off in timings.
    """
    device = run_device()
    data = settings.problem(seed).to(device)
    model = make_model("mlp", data, seed, hidden=settings.hidden)
    optimizer = SGD(
        model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.decay
    )
    sampler = _sampler(settings, data, model, seed, counts)
    trained = Trained()
    drawn = 0

    def measure(model: nn.Module) -> dict[str, float]:
        if measured:
            trained.accuracy.append(evaluate(model, data.val, "val")["val/accuracy"])
            trained.extra.append(float(getattr(sampler, "extra", 0)))
            trained.examples.append(drawn + trained.extra[-1])
        return {}

    def count(index: Tensor, losses: Tensor) -> None:
        nonlocal drawn
        drawn += len(index)
        if isinstance(sampler, SnoozeSampler):
            sampler.update(index, losses)

    wait_for(device)
    started = time.perf_counter()
    train(
        model,
        data.train,
        sampler,
        losses_of,
        optimizer,
        max_steps=settings.steps,
        weights=getattr(sampler, "weights", None),
        feedback=count,
        evaluate=measure,
        evaluate_every=settings.evaluate_every if measured else settings.steps,
    )
    wait_for(device)
    trained.seconds = time.perf_counter() - started
    trained.test = evaluate(model, data.test, "test")["test/accuracy"] if measured else 0.0
    trained.active_counts = list(getattr(sampler, "active_counts", []))
    return trained


def _sampler(
    settings: Sampling,
    data: Problem,
    model: nn.Module,
    seed: int,
    counts: Sequence[int] | None,
) -> AnySampler:
    """Make the sampler of an arm."""
    n, batch, g = len(data.train), settings.batch, stream(seed, "order")
    name = settings.sampler
    if name == "uniform":
        return RandomBatchSampler(n, batch, g)
    if name in ("snooze", "reweighted"):
        reweight = name == "reweighted"
        return SnoozeSampler(n, batch, g, rule=settings.rule, tau=settings.tau, reweight=reweight)
    if name == "random":
        return RandomSnoozeSampler(n, batch, g, counts=counts or [n])
    if name == "stratified":
        return _Clustered(model, data, settings, seed)
    raise ValueError(f"unknown sampler {name!r}")


def counts_of_snooze(settings: Sampling, seed: int) -> list[int]:
    """Number of examples awake in each epoch of a snooze, with which its control is tuned."""
    return train_sampler(settings, seed, measured=False).active_counts


def run_sampling(settings: Sampling, seed: int) -> Result:
    """Train with a sampler, and after a snooze its control, which has as many awake at random."""
    runs = {"": train_sampler(settings, seed)}
    if settings.sampler == "snooze":
        counts = runs[""].active_counts
        runs["random/"] = train_sampler(settings.control(), seed, counts=counts)
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for prefix, trained in runs.items():
        reached = trained.reached(settings.target_accuracy, settings.window)
        last = -1 if reached is None else reached
        metrics |= {
            f"{prefix}reached": float(reached is not None),
            f"{prefix}examples": trained.examples[last],
            f"{prefix}extra": trained.extra[last],
            f"{prefix}test/accuracy": trained.test,
        }
        every = max(1, -(-len(trained.accuracy) // settings.curve_points))
        curves[f"{prefix}accuracy"] = trained.accuracy[::every]
        curves[f"{prefix}drawn"] = trained.examples[::every]
        if trained.active_counts:
            awake = trained.active_counts[: settings.curve_points]
            curves[f"{prefix}active"] = [float(count) for count in awake]
    return make_result(metrics, curves)
