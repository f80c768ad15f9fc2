"""Train one arm of chapter 5. Nothing in here takes the test part."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.cascading_sum import (
    CascadeSchedule,
    PixelMix,
    SingleLabelMix,
    SumMix,
    begin_stage,
    stage_boundaries,
)
from trainaug.training.loop import Batch, train
from trainaug.training.models import evaluate
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["BATCH", "JoinedBatches", "Trained", "released_weights", "train_classifier"]

Observer = Callable[[nn.Module, int, Tensor, Tensor], object]
BATCH = 50  # mixed examples of a step; the source's for small subsets
MEASURE_EVERY = 30  # steps
SMOOTHING = 0.1


@dataclass
class Trained:
    """What was noted while training, and what it cost."""

    step: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)  # on the validation part, clean
    switches: list[float] = field(default_factory=list)  # the same right after a restart
    examples: int = 0  # taken from the training part
    forward_examples: int = 0  # mixes passed through the model


def released_weights(schedule: CascadeSchedule, step: int) -> Tensor:
    """Weights that the source's gradual cascade really used (note, section 2.4).

    Its correction within a stage is divided by n - 1 where continuity needs a product, n the first
    K: the weights hardly move within a stage and jump at its end. ``schedule`` has the stages
    n, n - 1, ..., 1 and mode ``step``.
    """
    n, stage = schedule.counts[0], schedule.stage(step)
    m = schedule.counts[stage]
    if m == 1:
        return torch.ones(1)
    start = 0 if stage == 0 else schedule.boundaries[stage - 1]
    u = (step - start) / (schedule.boundaries[stage] - start) / (n - 1) ** 2
    return torch.tensor([1 / m + u / (m * (m - 1))] * (m - 1) + [(1 - u) / m])


class JoinedBatches:
    """Loader batches of several plain ones, as many as ``count()`` says."""

    def __init__(self, batches: RandomBatchSampler, count: Callable[[], int]) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[list[int]]:
        joined: list[int] = []
        parts = 0
        for batch in self.batches:
            joined, parts = joined + batch, parts + 1
            if parts >= self.count():
                yield joined
                joined, parts = [], 0
        while joined:  # a training part smaller than a loader batch goes on with its next epoch
            for batch in self.batches:
                joined, parts = joined + batch, parts + 1
                if parts >= self.count():
                    yield joined
                    return


class _Mixer:
    """The batch transform of an arm: counts the steps and mixes what its settings say."""

    def __init__(
        self, settings: dict[str, Any], train_x: Tensor, num_classes: int, seed: int
    ) -> None:
        from torchvision.transforms.v2 import CutMix

        self.settings, self.num_classes = settings, num_classes
        self.generator = stream(seed, "mix")
        self.step = 0
        self.mixed = 1  # samples in a mix of the last batch
        shares = [share for _, share in settings["stages"]]
        if settings["grouping"] == "groups":  # a mix of K uses up K examples: 1/K of the steps
            parts = [share / k for k, share in settings["stages"]]
            self.total = round(settings["steps"] * sum(parts))
            shares = [part / sum(parts) for part in parts]
        else:
            self.total = settings["steps"]
        self.ends = stage_boundaries(shares, self.total)
        self.counts: list[int] = [k for k, _ in settings["stages"]]
        self.shares = torch.tensor(shares)
        self.schedule = None
        if settings["weights"] in ("smooth", "jump"):
            self.schedule = CascadeSchedule(
                settings["stages"],
                self.total,
                mode="smooth" if settings["weights"] == "smooth" else "step",
            )
        kind = {"pixel": PixelMix}.get(settings["weights"], SumMix)
        self.mix = (SingleLabelMix if settings["labels"] == "first" else kind)(
            num_classes=num_classes,
            generator=self.generator,
            alpha=settings["alpha"],
            mode="pairing" if settings["grouping"] == "pairing" else "groups",
            rescale=settings["rescale"],
            mean=train_x.mean(0),
        )
        self.cutmix = CutMix(num_classes=num_classes) if settings["mixer"] == "cutmix" else None

    @property
    def k(self) -> int:
        """Samples in a mix of the next batch."""
        stage = sum(self.step >= end for end in self.ends)
        return self.counts[min(stage, len(self.counts) - 1)]

    def loader_batches(self) -> int:
        """Plain batches that the next loader batch is made of."""
        grouping = self.settings["grouping"]
        return self.k if grouping == "groups" else 2 if grouping == "growing" else 1

    def __call__(self, batch: Batch) -> Batch:
        k = self.k
        if self.settings["order"] == "random":
            k = self.counts[int(torch.multinomial(self.shares, 1, generator=self.generator))]
        self.mix.num_groups = self.mixed = k
        if self.schedule is not None:
            jump = self.settings["weights"] == "jump"
            weights = self.schedule.weights(self.step)
            self.mix.set_weights(released_weights(self.schedule, self.step) if jump else weights)
        self.step += 1
        if self.cutmix is None:
            return self.mix(batch)  # type: ignore[no-any-return]
        x, y, index = batch
        with torch.random.fork_rng([]):  # torchvision draws from the global generator
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=self.generator)))
            return (*self.cutmix(x, y), index)


def train_classifier(
    model: nn.Module,
    train_part: IndexedDataset,
    val_part: IndexedDataset,
    settings: dict[str, Any],
    num_classes: int,
    seed: int,
    *,
    curve: bool = True,
    observers: Sequence[Observer] = (),
) -> Trained:
    """Train a model in place as the settings of an arm say, and note the validation accuracy.

    Without ``curve`` it is noted at the end only, unless the arm chooses its weights by it.

    With ``restart`` every stage starts from the best weights of the one before (by validation
    accuracy), without momentum and on a cosine of its own, and the run ends with the best ones of
    its last stage; otherwise one cosine spans the run, and it ends with the last weights.

    Raises:
        ValueError: If the settings do not fit together.
    """
    mixer = _Mixer(settings, train_part.x, num_classes, seed)
    batches = RandomBatchSampler(len(train_part), BATCH, stream(seed, "order"), drop_last=True)
    optimizer = SGD(
        model.parameters(), lr=settings["lr"], momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    found = Trained()

    def criterion(logits: Tensor, y: Tensor) -> Tensor:
        if settings["loss"] == "bce" and mixer.mixed > 1:  # the source's: mean over classes
            return F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(1)
        smoothing = SMOOTHING if settings["labels"] == "smoothed" else 0.0
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)

    stages = [(0, mixer.total)]
    if settings["restart"]:
        stages = list(zip((0, *mixer.ends[:-1]), mixer.ends, strict=True))
    for start, end in stages:
        best: tuple[float, dict[str, Tensor]] = (-math.inf, {})

        def measure(asked: nn.Module) -> dict[str, float]:
            nonlocal best
            accuracy = evaluate(asked, val_part, "val")["val/accuracy"]
            found.step.append(mixer.step)
            found.accuracy.append(accuracy)
            if settings["restart"] and accuracy > best[0]:
                best = accuracy, copy.deepcopy(asked.state_dict())
            return {}

        history = train(
            model,
            train_part,
            JoinedBatches(batches, mixer.loader_batches),
            criterion,
            optimizer,
            max_steps=end - start,
            scheduler=LambdaLR(optimizer, _cosine(end - start)),
            batch_transform=mixer,
            observers=observers,
            evaluate=measure,
            evaluate_every=MEASURE_EVERY if curve or settings["restart"] else end - start,
        )
        found.examples += history.examples
        found.forward_examples += history.forward_examples
        if settings["restart"]:
            begin_stage(model, optimizer, lr=settings["lr"], weights=best[1], reset_optimizer=True)
            found.switches.append(evaluate(model, val_part, "val")["val/accuracy"])
    return found


def _cosine(steps: int) -> Callable[[int], float]:
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
