"""Fewer examples to the same accuracy? Training on pictures, with an Assistant or its rivals.

The *Boss* is the network that is wanted; the *Assistant* decides which examples it trains on. The
sampler and the learner of an arm together are its *station*.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from companion.chapters.autoassist.measures import (
    GUESSERS,
    count_macs,
    judge_guesses,
    measure_end,
    present_losses,
)
from companion.chapters.autoassist.problems import (
    Pictures,
    data_hash,
    losses_of,
    make_model,
    pictures,
)
from companion.lab.arms import Settings
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    ImageAssistant,
    LossTable,
    RandomSkip,
    ScreenerWeights,
    SelectiveBackprop,
    SelfPacedWeights,
)
from trainaug.training.loop import train
from trainaug.training.models import evaluate
from trainaug.training.networks import TwoConvNet
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = [
    "CifarTraining",
    "LargeTraining",
    "NoisyTraining",
    "ResNetTraining",
    "RotatedTraining",
    "Trained",
    "Training",
    "assisted",
    "decide_ahead",
    "run_images",
    "run_with_control",
    "train_images",
]

Sampler = Literal["uniform", "assist", "random", "selective", "pruned", "selfpaced", "screener"]
FORWARDS = 3  # cost of a training step: one forward pass, and a backward pass that costs two


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """Training on ten classes of pictures.

    Attributes:
        data: ``fashion`` or ``cifar10``.
        model: ``cnn`` or ``resnet8``.
        num_train: Examples of the training part.
        num_val: Examples of the validation part, which gives the cost to the target.
        num_test: Examples of the test part.
        noise: Share of wrong training labels.
        rotated: Turn each picture, once and for all.
        sampler: How examples are chosen or weighted; ``random`` is the control of an Assistant.
        batch: Examples in a batch.
        lr: Learning rate of the Boss.
        momentum: Momentum of the Boss.
        decay: Weight decay of the Boss.
        steps: Updates of the Boss, so that every arm trains on as many examples at most.
        base: Base pass rate of the Assistant.
        shuffle: Scan in random order; without, in file order as the authors' code does.
        assistant_lr: Learning rate of the Assistant.
        assistant_decay: Weight decay of the Assistant.
        ahead: Updates between the decision on a batch and its use.
        control_lr: Learning rate of the control, which skips as many at random; only where an arm
            trains one.
        beta: Exponent of selective backprop; larger keeps fewer.
        low_kept: Share of the examples below the mean loss that pruning keeps in a pass.
        pace_epochs: Passes until self-paced learning has all; the authors take 5 of 100.
        screener_lr: Learning rate of ScreenerNet.
        target: Validation accuracy until which examples are counted, as a mean of the last
            evaluations. A tuned uniform run reaches it in about half of its steps.
        smoothed: Evaluations that are averaged.
        every: Steps between two evaluations.
        probe: Training examples that the Assistant's guesses are judged on.
        probe_every: Steps between a guess and its judgement.
        bins: Bins of confidence, for the calibration error.
        norm_batch: Examples whose moments are estimated at once for the norms at the end.
        curve_points: Points that a record keeps of each curve.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    data: str  # no default: records have always stated it
    model: str = "cnn"
    num_train: int = 10_000
    num_val: int = 2000
    num_test: int = 4000
    noise: float = 0.0
    rotated: bool = False
    sampler: Sampler = "uniform"
    batch: int = 64
    lr: float = 0.08
    momentum: float = 0.9
    decay: float = 1e-4
    steps: int = 1200
    base: float = 0.3
    shuffle: bool = True
    assistant_lr: float = 0.01
    assistant_decay: float = 1e-3
    ahead: int = 0
    control_lr: float = 0.04
    beta: float = 1.0
    low_kept: float = 0.5
    pace_epochs: int = 2
    screener_lr: float = 1e-3
    target: float = 0.86
    smoothed: int = 5
    every: int = 30
    probe: int = 1000
    probe_every: int = 150
    bins: int = 15
    norm_batch: int = 500
    curve_points: int = 60

    tiny_target: ClassVar[float] = 0.5

    @property
    def data_hash(self) -> str:
        return data_hash(self.data)

    def shortened(self, share: float) -> Self:
        return replace(self, steps=max(60, round(self.steps * share)))

    def tiny(self) -> Self:
        return replace(
            self,
            num_train=320,
            num_val=200,
            num_test=200,
            batch=16,
            steps=24 if self.model == "resnet8" else 60,
            ahead=self.ahead // 4,
            every=3,
            probe=60,
            probe_every=12,
            target=self.tiny_target,
        )

    def control(self) -> Self:
        """Return the settings of its control."""
        return replace(self, sampler="random", lr=self.control_lr)

    def draw(self, seed: int) -> Pictures:
        """Draw the parts of its data, on the device of the run."""
        drawn = pictures(
            self.data,
            seed,
            self.num_train,
            num_val=self.num_val,
            num_test=self.num_test,
            noise=self.noise,
            rotated=self.rotated,
        )
        return drawn.to(run_device())


@dataclass(frozen=True, kw_only=True)
class NoisyTraining(Training):
    """Training with wrong labels."""

    target: float = 0.83
    tiny_target: ClassVar[float] = 0.4


@dataclass(frozen=True, kw_only=True)
class RotatedTraining(Training):
    """Training on turned pictures."""

    target: float = 0.73
    tiny_target: ClassVar[float] = 0.2


@dataclass(frozen=True, kw_only=True)
class LargeTraining(Training):
    """Training on five times the data."""

    target: float = 0.89


@dataclass(frozen=True, kw_only=True)
class ResNetTraining(Training):
    """Training of a residual network."""

    target: float = 0.78
    tiny_target: ClassVar[float] = 0.2


@dataclass(frozen=True, kw_only=True)
class CifarTraining(Training):
    """Training on CIFAR-10, whose archive you put into the data cache."""

    num_val: int = 5000
    num_test: int = 10_000
    target: float = 0.85
    tiny_target: ClassVar[float] = 0.2

    def tiny(self) -> Self:
        return replace(super().tiny(), num_val=40, num_test=40)


@dataclass
class Trained:
    """A run: validation accuracy at each evaluation, with what was spent until then."""

    accuracy: list[float] = field(default_factory=list)
    examples: list[float] = field(default_factory=list)  # through the Boss, forward and backward
    work: list[float] = field(default_factory=list)  # of all, in forward passes of the Boss
    scanned: list[float] = field(default_factory=list)  # examples that the sampler went through
    auc: list[dict[str, float]] = field(default_factory=list)  # of the guessers, at each probe
    keep_rates: list[float] = field(default_factory=list)  # of each pass
    metrics: dict[str, float] = field(default_factory=dict)  # at the end

    def reached(self, target: float, smoothed: int = 5) -> int | None:
        """Evaluation at which the mean of the last ones first reached the target, or ``None``."""
        for end in range(smoothed, len(self.accuracy) + 1):
            if sum(self.accuracy[end - smoothed : end]) >= smoothed * target:
                return end - 1
        return None


def assisted(
    data: Pictures, settings: Training, seed: int
) -> tuple[AssistedSampler, AssistantTrainer]:
    """Build the Assistant on normalised pixels and labels, and the sampler that asks it."""
    flat = data.train.x.flatten(1)
    pixels = (flat - flat.mean()) / flat.std()  # one mean and deviation for all pixels
    device = pixels.device
    assistant = ImageAssistant(flat.shape[1], 10, stream(seed, "assistant")).to(device)
    labels = data.train.y

    def features_of(index: Tensor) -> tuple[Tensor, Tensor]:
        rows = index.to(device)  # the trainer asks with numbers on the CPU
        return pixels.index_select(0, rows), labels.index_select(0, rows)

    trainer = AssistantTrainer(
        assistant,
        features_of,
        lr=settings.assistant_lr,
        weight_decay=settings.assistant_decay,
    )
    sampler = AssistedSampler(
        len(labels),
        settings.batch,
        trainer.predict,
        stream(seed, "order"),
        stream(seed, "keep"),
        base=settings.base,
        shuffle=settings.shuffle,
    )
    return sampler, trainer


@dataclass
class _Station:
    """What gives an arm its batches, and what learns from the losses.

    Attributes:
        sampler: Gives the batches.
        feedback: Is given the numbers and losses of each batch.
        weights: Gives the weights of a batch's losses.
        extra: Gives the work besides training the Boss, in its forward passes, from the number of
            examples that were trained on.
        trainer: That of the Assistant.
    """

    sampler: Iterable[Sequence[int]]
    feedback: Callable[[Tensor, Tensor], object] | None = None
    weights: Callable[[Tensor], Tensor] | None = None
    extra: Callable[[int], float] = lambda examples: 0.0
    trainer: AssistantTrainer | None = None

    def scanned(self, examples: int) -> int:
        """Number of examples that the sampler went through for those that were trained on."""
        return self.sampler.scanned if isinstance(self.sampler, AssistedSampler) else examples


def decide_ahead(sampler: Iterable[Sequence[int]], updates: int) -> Iterator[Sequence[int]]:
    """Yield the batches of pass after pass, each decided ``updates`` updates before its use."""
    ready: deque[Sequence[int]] = deque()
    while True:
        for batch in sampler:
            ready.append(batch)
            if len(ready) > updates:
                yield ready.popleft()


def _station(
    settings: Training,
    data: Pictures,
    model: nn.Module,
    seed: int,
    keep_rates: Sequence[float],
) -> _Station:
    """Make the station of an arm; ``keep_rates`` are those of a random control."""
    n, batch = len(data.train), settings.batch
    plain = RandomBatchSampler(n, batch, stream(seed, "order"))
    match settings.sampler:
        case "uniform":
            return _Station(plain)
        case "assist":
            return _assistant_station(settings, data, model, seed)
        case "selfpaced":
            paced = SelfPacedWeights(n, -(-n // batch), epochs=settings.pace_epochs)
            return _Station(plain, paced.update, paced.weights)
        case "screener":
            return _screener_station(settings, data, model, seed, plain)
        case "random" | "selective" | "pruned":
            return _skipping_station(settings, data, model, seed, keep_rates)
    raise ValueError(f"unknown sampler {settings.sampler!r}")


def _assistant_station(settings: Training, data: Pictures, model: nn.Module, seed: int) -> _Station:
    sampler, trainer = assisted(data, settings, seed)
    boss = count_macs(model, data.train.x)
    d = data.train.x[0].numel()  # per example a guess costs d, a step of the Assistant 2d
    return _Station(
        sampler,
        trainer.update,
        extra=lambda examples: d * (sampler.scanned + 2 * examples) / boss,
        trainer=trainer,
    )


def _screener_station(
    settings: Training, data: Pictures, model: nn.Module, seed: int, plain: RandomBatchSampler
) -> _Station:
    """Make the station of ScreenerNet: plain batches whose losses a second network weights."""
    net = TwoConvNet(1, stream(seed, "screener"), in_channels=data.train.x.shape[1])
    net = net.to(data.train.x.device)
    share = count_macs(net, data.train.x) / count_macs(model, data.train.x)
    optimizer = Adam(net.parameters(), settings.screener_lr, fused=True)
    weighing = ScreenerWeights(net, lambda index: data.train.x[index], optimizer)
    # one forward pass gives the weights; learning takes another, and a backward pass that costs two
    return _Station(
        plain, weighing.update, weighing.weights, extra=lambda examples: 4 * share * examples
    )


def _skipping_station(
    settings: Training,
    data: Pictures,
    model: nn.Module,
    seed: int,
    keep_rates: Sequence[float],
) -> _Station:
    """Make the station of an arm that leaves examples out without an Assistant."""
    n, order, keep_draws = len(data.train), stream(seed, "order"), stream(seed, "keep")

    def skipping(
        utility_of: Callable[[Tensor], Tensor],
        base: float = 0.0,
        on_pass: Callable[[], object] | None = None,
    ) -> AssistedSampler:
        return AssistedSampler(
            n, settings.batch, utility_of, order, keep_draws, base=base, on_pass=on_pass
        )

    if settings.sampler == "random":
        skip = RandomSkip(keep_rates)
        return _Station(skipping(skip.predict, on_pass=skip.on_pass))
    if settings.sampler == "selective":
        chosen = SelectiveBackprop(present_losses(model, data), beta=settings.beta)
        sampler = skipping(chosen.predict)
        # a forward pass for each candidate
        return _Station(sampler, extra=lambda examples: float(sampler.scanned))
    table = LossTable(n, settings.low_kept)
    sampler = skipping(table.predict, table.base, table.on_pass)
    return _Station(sampler, table.update, table.weights)


class _Notes:
    """Watch a training: what it spent, its accuracy, and the Assistant's guesses."""

    def __init__(
        self, settings: Training, data: Pictures, station: _Station, trained: Trained, seed: int
    ) -> None:
        self.settings, self.data, self.station, self.trained = settings, data, station, trained
        self.examples = 0
        self.wrong = 0
        order = torch.randperm(len(data.train), generator=stream(seed, "measure"))
        self.probe = order[: settings.probe]
        self.guesses: tuple[Tensor, Tensor] | None = None  # guesses and losses at the last probe

    def count(self, index: Tensor, losses: Tensor) -> None:
        """Count a batch that was trained on, and hand its losses on."""
        self.examples += len(index)
        self.wrong += int(self.data.wrong[index.cpu()].sum())
        if self.station.feedback is not None:
            self.station.feedback(index, losses)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Note the validation accuracy and what was spent; at some evaluations judge guesses."""
        trained, examples, settings = self.trained, self.examples, self.settings
        trained.accuracy.append(evaluate(model, self.data.val, "val")["val/accuracy"])
        trained.examples.append(float(examples))
        trained.work.append(FORWARDS * examples + self.station.extra(examples))
        trained.scanned.append(float(self.station.scanned(examples)))
        step = len(trained.accuracy) * settings.every
        if self.station.trainer is not None and step % settings.probe_every == 0:
            self._probe(model, self.station.trainer)
        return {}

    def _probe(self, model: nn.Module, trainer: AssistantTrainer) -> None:
        """Judge the guesses of the last probe by the present losses, and take new ones."""
        losses = present_losses(model, self.data)(self.probe)
        if self.guesses is not None:
            judged = judge_guesses(*self.guesses, losses, self.data.train.y[self.probe])
            self.trained.auc.append(judged)
        self.guesses = (trainer.predict(self.probe), losses)


def train_images(settings: Training, seed: int, *, keep_rates: Sequence[float] = ()) -> Trained:
    """Train one arm.

    Args:
        settings: Those of the arm.
        seed: Draws parts, weights, order, decisions.
        keep_rates: Share kept in each pass, for ``sampler="random"``.

    Returns:
        What was measured at the evaluations, and the metrics of the end.
    """
    data = settings.draw(seed)
    model = make_model(settings.model, data, seed)
    optimizer = SGD(
        model.parameters(),
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.decay,
    )
    station = _station(settings, data, model, seed, keep_rates)
    sampler, trained = station.sampler, Trained()
    notes = _Notes(settings, data, station, trained, seed)
    train(
        model,
        data.train,
        decide_ahead(sampler, settings.ahead) if settings.ahead else sampler,
        losses_of,
        optimizer,
        max_steps=settings.steps,
        weights=station.weights,
        feedback=notes.count,
        evaluate=notes.evaluate,
        evaluate_every=settings.every,
    )
    trained.metrics = measure_end(model, data, bins=settings.bins, norm_batch=settings.norm_batch)
    trained.metrics["wrong"] = notes.wrong / notes.examples
    if isinstance(sampler, AssistedSampler):
        trained.keep_rates = sampler.rates_so_far()
        trained.metrics["kept"] = sampler.kept / sampler.scanned
    if station.trainer is not None:
        share = station.extra(notes.examples) / (FORWARDS * notes.examples)
        trained.metrics["positives"] = station.trainer.positives
        trained.metrics["assistant_share"] = share
    return trained


def run_images(settings: Training, seed: int) -> Result:
    """Train an arm, and record what it cost to reach the target and how well it has learnt."""
    return _result(settings, {"": train_images(settings, seed)})


def run_with_control(settings: Training, seed: int) -> Result:
    """Train an arm with an Assistant, then its control, which skips as many at random."""
    trained = train_images(settings, seed)
    control = train_images(settings.control(), seed, keep_rates=trained.keep_rates)
    return _result(settings, {"": trained, "random/": control})


def _result(settings: Training, runs: Mapping[str, Trained]) -> Result:
    """Make the record of runs, each with the prefix of its metrics and curves."""
    points = settings.curve_points
    metrics: dict[str, float] = {}
    curves: dict[str, Sequence[float]] = {}
    for prefix, trained in runs.items():
        first = trained.reached(settings.target, settings.smoothed)
        evaluation = -1 if first is None else first  # its whole budget if it was never reached
        metrics |= {
            f"{prefix}reached": float(first is not None),
            f"{prefix}examples": trained.examples[evaluation],
            f"{prefix}work": trained.work[evaluation],
            f"{prefix}scanned": trained.scanned[evaluation],
        }
        metrics |= {f"{prefix}{name}": value for name, value in trained.metrics.items()}
        step = max(1, -(-len(trained.accuracy) // points))
        curves[f"{prefix}accuracy"] = trained.accuracy[::step]
        curves[f"{prefix}examples"] = trained.examples[::step]
        curves[f"{prefix}scanned"] = trained.scanned[::step]
        curves[f"{prefix}keep_rates"] = trained.keep_rates[:points]
    if settings.sampler == "assist":
        for name in GUESSERS:
            curves[f"auc/{name}"] = [judged[name] for judged in runs[""].auc]
    return make_result(metrics, curves)
