"""Train one arm of chapter 5. Nothing here reads the test part.

*The source* is the thesis (Simionescu 2022) with its released code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from companion.chapters.cascading_sum.problems import (
    HELD_OUT,
    RESERVED,
    Problem,
    data_hash,
    make_model,
    problem,
)
from companion.lab.arms import Settings
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

__all__ = [
    "CifarTraining",
    "DigitsTraining",
    "EmojiTraining",
    "JoinedBatches",
    "Mixer",
    "Stages",
    "Trained",
    "Training",
    "make_optimizer",
    "released_weights",
    "train_classifier",
]

Observer = Callable[[nn.Module, int, Tensor, Tensor], object]  # model, step, index, losses
Stages = tuple[tuple[int, float], ...]  # samples in a mix, share of the steps


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """Training of a classifier on Fashion-MNIST, and what is measured of it.

    Attributes:
        data: ``digits``, ``fashion``, ``emoji``, ``cifar10`` or ``cifar100``.
        per_class: Training pictures of each class.
        held_out: Pictures of the validation and the test part.
        reserved: Pictures of each class that are kept for training where the data have no official
            test set.
        model: ``conv``, ``resnet8`` or ``wrn28_10``.
        depth: Depth of the wide residual network.
        width: Width of the wide residual network.
        device: Where it is trained and measured; ``auto`` takes a GPU if the machine has one.
        stages: How many samples are averaged, and for which share of the steps; plain training is
            one stage with one sample in a mix.
        order: Whether the stages follow each other as ``listed``, or each batch draws its number
            of samples at ``random`` from them by their shares.
        weights: Weights of the samples in a mix: ``equal``, ``smooth`` over a stage, ``jump`` as in
            the released code, drawn from a ``dirichlet`` law, or drawn for each ``pixel``.
        labels: Labels of ``all`` samples of a mix, of its ``first``, or ``smoothed``.
        mixer: ``sum`` averages pictures, ``cutmix`` pastes them.
        grouping: ``pairing`` mixes a batch with permutations of itself; with ``groups`` a mix of K
            uses up K examples, and the run has fewer steps, so as to use equally many examples;
            ``growing`` takes groups of a batch twice as large.
        alpha: Strength of drawn weights.
        loss: ``ce``, or ``bce`` on mixes: the mean of the binary cross-entropies over classes.
        rescale: Whether the contrast that averaging takes away is restored.
        restart: Whether each stage starts from the best weights of the one before.
        k0: If above 0, the first number of samples of a cascade whose stages end by plateaus.
        steps: Updates.
        lr: Learning rate.
        momentum: Nesterov momentum.
        weight_decay: Weight decay, of all weights.
        batch: Mixed examples in a step; the default is the source's for small subsets.
        measure_every: Steps between two evaluations on the validation part.
        smoothing: Strength of smoothed labels.
        patience: Epochs of a plateau at K = 1 before the learning rate is halved, as in the source
            for small subsets.
        stop_patience: Epochs of a plateau at K = 1 before a stage ends, likewise.
        last_rate: Factor of the learning rate of the clean stage after a cascade by plateaus.
        lowest_rate: Learning rate below which plateaus do not halve it.
        max_steps: Updates of a training by plateaus, at most.
        images: Test pictures that are attacked and corrupted.
        eps: Radius of the attacks. In pilots on Fashion-MNIST, plain training had no accuracy left
            at 0.1, the radius on digits.
        pgd_steps: Steps of PGD.
        pgd_restarts: Random starts of PGD.
        pgd_step: Step size of PGD, as a share of the radius.
        ece_bins: Bins of the expected calibration error.
        rho: Radius of the sharpness.
        landscape_examples: Training pictures on which the loss landscape is measured, at most.
        curvature_iterations: Power iterations for the curvature of a trained model.
        lipschitz_radius: Radius of the estimate of the gradient's Lipschitz constant.
        lipschitz_draws: Random directions of that estimate.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    data: str = "fashion"
    per_class: int = 100
    held_out: tuple[int, int] = HELD_OUT["fashion"]
    reserved: int = RESERVED
    model: str = "conv"
    depth: int = 28
    width: int = 10
    device: str = "cpu"
    stages: Stages = ((1, 1.0),)
    order: Literal["listed", "random"] = "listed"
    weights: Literal["equal", "smooth", "jump", "dirichlet", "pixel"] = "equal"
    labels: Literal["all", "first", "smoothed"] = "all"
    mixer: Literal["sum", "cutmix"] = "sum"
    grouping: Literal["pairing", "groups", "growing"] = "pairing"
    alpha: float | None = None
    loss: Literal["ce", "bce"] = "ce"
    rescale: bool = False
    restart: bool = False
    k0: int = 0
    steps: int = 600
    lr: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 50
    measure_every: int = 30
    smoothing: float = 0.1
    patience: int = 10
    stop_patience: int = 35
    last_rate: float = 0.2
    lowest_rate: float = 5e-5
    max_steps: int = 8000
    images: int = 300
    eps: float = 8 / 255
    pgd_steps: int = 20
    pgd_restarts: int = 2
    pgd_step: float = 0.25
    ece_bins: int = 15
    rho: float = 0.05
    landscape_examples: int = 200
    curvature_iterations: int = 20
    lipschitz_radius: float = 0.1
    lipschitz_draws: int = 5

    @property
    def data_hash(self) -> str:
        return data_hash(self.data)

    def shortened(self, share: float) -> Self:
        steps = max(60, round(self.steps * share))  # enough for every stage and two evaluations
        if not self.k0:
            return replace(self, steps=steps)
        return replace(self, steps=steps, max_steps=self.max_steps * steps // self.steps)

    def tiny(self) -> Self:
        return replace(
            self,
            steps=60 if self.model == "conv" else 24,
            held_out=(100, 100),
            batch=20,
            measure_every=5,
            patience=1,
            stop_patience=2,
            max_steps=120,
            images=8,
            pgd_steps=4,
        )

    def problem(self, seed: int) -> Problem:
        """Draw its data."""
        return problem(
            self.data, self.per_class, seed, held_out=self.held_out, reserved=self.reserved
        )

    def build(self, data: Problem, seed: int) -> nn.Module:
        """Return its model with the initial weights of a seed."""
        return make_model(self.model, data, seed, depth=self.depth, width=self.width)


@dataclass(frozen=True, kw_only=True)
class DigitsTraining(Training):
    """`Training` on digits."""

    data: str = field()  # no default: its records have always stated it
    held_out: tuple[int, int] = HELD_OUT["digits"]
    eps: float = 0.1


@dataclass(frozen=True, kw_only=True)
class EmojiTraining(Training):
    """`Training` on emoji in colour; nearly equal concepts are held out together."""

    data: str = field()
    held_out: tuple[int, int] = HELD_OUT["emoji"]
    eps: float = 2 / 255


@dataclass(frozen=True, kw_only=True)
class CifarTraining(Training):
    """`Training` on CIFAR, with the source's network."""

    data: str = field()
    held_out: tuple[int, int] = HELD_OUT["cifar10"]
    device: str = "auto"

    def tiny(self) -> Self:
        return replace(
            super().tiny(),
            per_class=3 if self.per_class == 100 else 5,
            held_out=(40, 40) if self.data == "cifar10" else (100, 100),
            depth=10,
            width=1,
            device="cpu",
        )


@dataclass
class Trained:
    """What was noted while training, and what it cost."""

    step: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)  # on the validation part, clean
    switches: list[float] = field(default_factory=list)  # the same right after a restart
    examples: int = 0  # taken from the training part
    forward_examples: int = 0  # mixes passed through the model


def released_weights(schedule: CascadeSchedule, step: int) -> Tensor:
    """Weights ``(K,)`` that the gradual cascade of the released code really used.

    Its correction within a stage is divided by n - 1, n the first K, where continuity needs a
    product (docs/sources/simionescu_thesis.md): the weights hardly move within a stage and jump at
    its end. ``schedule`` has the stages n, n - 1, ..., 1 and mode ``step``.
    """
    n = schedule.counts[0]
    stage = schedule.stage(step)
    m = schedule.counts[stage]
    if m == 1:
        return torch.ones(1)
    start = 0 if stage == 0 else schedule.boundaries[stage - 1]
    u = (step - start) / (schedule.boundaries[stage] - start) / (n - 1) ** 2
    return torch.tensor([1 / m + u / (m * (m - 1))] * (m - 1) + [(1 - u) / m])


class JoinedBatches:
    """Join the batches of a sampler into larger ones, of as many parts as ``count()`` says."""

    def __init__(self, batches: RandomBatchSampler, count: Callable[[], int]) -> None:
        self.batches = batches
        self.count = count

    def __iter__(self) -> Iterator[list[int]]:
        joined: list[int] = []
        parts = 0
        for batch in self.batches:
            joined = joined + batch
            parts += 1
            if parts >= self.count():
                yield joined
                joined = []
                parts = 0
        while joined:  # the last one is incomplete: fill it from the next epoch
            for batch in self.batches:
                joined = joined + batch
                parts += 1
                if parts >= self.count():
                    yield joined
                    return


class Mixer:
    """The batch transform of an arm: count the steps and mix each batch as the settings say."""

    def __init__(self, settings: Training, train_x: Tensor, num_classes: int, seed: int) -> None:
        from torchvision.transforms.v2 import CutMix

        self.settings = settings
        self.generator = stream(seed, "mix")
        self.step = 0
        self.mixed = 1  # samples in a mix of the last batch
        self.total = settings.steps
        shares = [share for _, share in settings.stages]
        if settings.grouping == "groups":  # a mix of K uses up K examples: 1/K of the steps
            parts = [share / k for k, share in settings.stages]
            self.total = round(settings.steps * sum(parts))
            shares = [part / sum(parts) for part in parts]
        self.ends = stage_boundaries(shares, self.total)
        self.counts = [k for k, _ in settings.stages]
        self.shares = torch.tensor(shares)
        self.schedule = None
        if settings.weights in ("smooth", "jump"):
            mode: Literal["smooth", "step"] = "smooth" if settings.weights == "smooth" else "step"
            self.schedule = CascadeSchedule(settings.stages, self.total, mode=mode)
        self.mix = self._make_mix(train_x, num_classes)
        self.cutmix = CutMix(num_classes=num_classes) if settings.mixer == "cutmix" else None

    def _make_mix(self, train_x: Tensor, num_classes: int) -> SumMix:
        """Make the mixing transform; ``train_x`` gives the mean picture for ``rescale``."""
        kind = PixelMix if self.settings.weights == "pixel" else SumMix
        if self.settings.labels == "first":
            kind = SingleLabelMix
        return kind(
            num_classes=num_classes,
            generator=self.generator,
            alpha=self.settings.alpha,
            mode="pairing" if self.settings.grouping == "pairing" else "groups",
            rescale=self.settings.rescale,
            mean=train_x.mean(0),
        )

    @property
    def k(self) -> int:
        """Samples in a mix of the next batch."""
        stage = sum(self.step >= end for end in self.ends)
        return self.counts[min(stage, len(self.counts) - 1)]

    def loader_batches(self) -> int:
        """Batches of the sampler that the next batch of the loader is made of."""
        if self.settings.grouping == "groups":
            return self.k
        return 2 if self.settings.grouping == "growing" else 1

    def __call__(self, batch: Batch) -> Batch:
        """Mix a batch and count the step."""
        k = self.k
        if self.settings.order == "random":
            k = self.counts[int(torch.multinomial(self.shares, 1, generator=self.generator))]
        self.mix.num_groups = k
        self.mixed = k
        if self.schedule is not None:
            is_released = self.settings.weights == "jump"
            weights = self.schedule.weights(self.step)
            self.mix.set_weights(
                released_weights(self.schedule, self.step) if is_released else weights
            )
        self.step += 1
        if self.cutmix is None:
            return self.mix(batch)  # type: ignore[no-any-return]
        x, y, index = batch
        with torch.random.fork_rng([]):  # torchvision draws from the global generator
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=self.generator)))
            return (*self.cutmix(x, y), index)

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Loss of each example of the last batch, ``(B,)``."""
        if self.settings.loss == "bce" and self.mixed > 1:  # as in the source, mean over classes
            return F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(1)
        smoothing = self.settings.smoothing if self.settings.labels == "smoothed" else 0.0
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)


class _Validation:
    """Note the validation accuracy of a stage, and keep its best weights if stages restart."""

    def __init__(self, part: IndexedDataset, mixer: Mixer, trained: Trained) -> None:
        self.part = part
        self.mixer = mixer
        self.trained = trained
        self.best = -math.inf
        self.weights: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        accuracy = evaluate(model, self.part, "val")["val/accuracy"]
        self.trained.step.append(self.mixer.step)
        self.trained.accuracy.append(accuracy)
        if self.mixer.settings.restart and accuracy > self.best:
            self.best = accuracy
            self.weights = copy.deepcopy(model.state_dict())
        return {}  # everything is noted in `trained`


def make_optimizer(model: nn.Module, settings: Training) -> SGD:
    """Make the optimiser of an arm."""
    return SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )


def train_classifier(
    model: nn.Module,
    train_part: IndexedDataset,
    val_part: IndexedDataset,
    settings: Training,
    num_classes: int,
    seed: int,
    *,
    curve: bool = True,
    observers: Sequence[Observer] = (),
) -> Trained:
    """Train a model in place as the settings of an arm say, and note the validation accuracy.

    Without ``curve`` it is noted at the end only, unless the arm chooses its weights by it.

    With ``restart`` every stage starts from the best weights of the one before (by validation
    accuracy), without momentum and with a new cosine schedule, and the run ends with the best
    weights of its last stage. Otherwise one cosine spans the run, which ends with its last weights.

    Raises:
        ValueError: If the settings do not fit together.
    """
    mixer = Mixer(settings, train_part.x, num_classes, seed)
    order = stream(seed, "order")
    batches = RandomBatchSampler(len(train_part), settings.batch, order, drop_last=True)
    optimizer = make_optimizer(model, settings)
    trained = Trained()
    stages = [(0, mixer.total)]
    if settings.restart:
        stages = list(zip((0, *mixer.ends[:-1]), mixer.ends, strict=True))
    for start, end in stages:
        validation = _Validation(val_part, mixer, trained)
        history = train(
            model,
            train_part,
            JoinedBatches(batches, mixer.loader_batches),
            mixer.losses,
            optimizer,
            max_steps=end - start,
            scheduler=LambdaLR(optimizer, _cosine(end - start)),
            batch_transform=mixer,
            observers=observers,
            evaluate=validation,
            evaluate_every=settings.measure_every if curve or settings.restart else end - start,
        )
        trained.examples += history.examples
        trained.forward_examples += history.forward_examples
        if settings.restart:
            best = validation.weights
            begin_stage(model, optimizer, lr=settings.lr, weights=best, reset_optimizer=True)
            trained.switches.append(evaluate(model, val_part, "val")["val/accuracy"])
    return trained


def _cosine(steps: int) -> Callable[[int], float]:
    """Make the factor of the learning rate by step: half a cosine, from 1 to 0."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
