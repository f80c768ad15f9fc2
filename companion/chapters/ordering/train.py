"""Train an arm of chapter 4 on its budget and note what it cost to reach the target accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from companion.chapters.ordering.problems import (
    Problem,
    Sizes,
    losses_of,
    make_model,
    problem,
    source_sgd,
)
from companion.lab.arms import Settings
from companion.lab.device import run_device, wait_for
from companion.lab.results import Result, make_result
from trainaug.data.indexed import IndexedDataset
from trainaug.data.registry import content_hash
from trainaug.methods.ordering import (
    BatchScorer,
    GraBSampler,
    PacedSampler,
    PerfectOrderingSampler,
    example_losses,
    linear_pacing,
)
from trainaug.methods.ordering.scores import Score
from trainaug.training.loop import train
from trainaug.training.models import evaluate
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["FashionTraining", "Trained", "Training", "run_training", "train_arm"]

Order = Literal[
    Score, "random", "random_more", "ascending", "descending", "random_list", "grab", "fixed"
]
FORWARDS = 3  # cost of a training step: one forward pass, and a backward pass that costs two


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """Training on digits in an order.

    Attributes:
        data: ``digits`` or ``fashion_mnist``.
        model: ``linear``, ``mlp``, ``cnn`` or ``cnn_bn``.
        order: A score by which batches are chosen, or another order; ``random_more`` also trains
            on the target part, with which the others only score.
        candidates: Batches to choose from.
        pool: Whether candidates are a ``partition`` of what remains, or ``resampled``.
        steps: Budget of updates; the learning rate falls linearly to zero over it.
        noise: Share of wrong training labels.
        lr: Learning rate.
        momentum: Nesterov momentum.
        weight_decay: Weight decay, of all weights.
        batch: Examples in a batch.
        hidden: Hidden units of the MLP.
        num_train: Examples of the training part; ``num_target`` to ``num_teacher`` are those of the
            other parts, see `Sizes`.
        target_accuracy: Validation accuracy whose first passing counts.
        pacing_a: Share of the steps after which a paced pool holds all examples.
        pacing_b: Share of the examples with which it begins.
        teacher_lr: Learning rate of the model whose losses sort a curriculum.
        teacher_epochs: Epochs of that model.
        entropy_steps: First steps over which the entropy of the batches' labels is averaged.
        curve_points: Points that a record keeps of each curve.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")

    data: str = "digits"
    model: str = "mlp"
    order: Order = "random"
    candidates: int = 8
    pool: Literal["partition", "resampled"] = "partition"
    steps: int = 320
    noise: float = 0.0
    lr: float = 0.35
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 64
    hidden: int = 64
    num_train: int = 1024
    num_target: int = 128
    num_val: int = 245
    num_test: int = 400
    num_teacher: int = 0
    target_accuracy: float = 0.9
    pacing_a: float = 0.5
    pacing_b: float = 0.2
    teacher_lr: float = 3e-3
    teacher_epochs: int = 20
    entropy_steps: int = 40
    curve_points: int = 60

    @property
    def data_hash(self) -> str:
        return content_hash(self.data)

    def shortened(self, share: float) -> Self:
        return replace(self, steps=max(1, round(self.steps * share)))

    def tiny(self) -> Self:
        return replace(
            self,
            steps=40 if self.steps > 320 else 20,
            num_train=512,
            num_target=64,
            num_val=100,
            num_test=100,
            num_teacher=min(64, self.num_teacher),
            target_accuracy=0.6,
        )

    def problem(self, seed: int) -> Problem:
        """Draw its data, on the device of the run."""
        sizes = Sizes(
            self.num_train, self.num_target, self.num_val, self.num_test, self.num_teacher
        )
        return problem(self.data, seed, noise=self.noise, sizes=sizes).to(run_device())

    def build(self, data: Problem, seed: int) -> tuple[nn.Module, Optimizer]:
        """Return its model with the initial weights of a seed, and its optimiser."""
        model = make_model(self.model, data, seed, hidden=self.hidden)
        return model, source_sgd(model, self.lr, self.momentum, self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class FashionTraining(Training):
    """`Training` on Fashion-MNIST, which is larger and harder."""

    data: str = field()  # no default: its records have always stated it
    num_train: int = 2048
    num_val: int = 1000
    num_test: int = 2000
    num_teacher: int = 512
    target_accuracy: float = 0.75

    def tiny(self) -> Self:
        return replace(super().tiny(), target_accuracy=0.55)


class _ReachedError(Exception):
    """The target is reached and nothing else was asked for."""


@dataclass
class Trained:
    """A run: its problem and model, and what was measured after each step."""

    data: Problem
    model: nn.Module
    accuracy: list[float] = field(default_factory=list)  # on the validation part
    forwards: list[float] = field(default_factory=list)  # spent so far, in batches
    train_loss: list[float] = field(default_factory=list)  # of the arms with fixed batches
    entropy: list[float] = field(default_factory=list)  # nats, of each batch's labels
    seconds: float = 0.0  # of the training, with whatever is measured during it

    def reached(self, target: float) -> int | None:
        """Number of steps after which the target was passed first; ``None`` if it never was."""
        return next((i + 1 for i, value in enumerate(self.accuracy) if value >= target), None)


class _Units:
    """The same batches in every epoch, in an order that GraB balances or that is reshuffled."""

    def __init__(self, data: Problem, batch: int, dim: int, balanced: bool, seed: int) -> None:
        g = stream(seed, "order")
        self.batches = torch.split(torch.randperm(len(data.train), generator=g), batch)
        self.grab = None
        if balanced:
            device = data.train.x.device
            self.grab = GraBSampler(len(self.batches), dim, generator=g, device=device)
        self.generator = g
        self.now = 0

    def __iter__(self) -> Iterator[list[int]]:
        count = len(self.batches)
        shuffled = torch.randperm(count, generator=self.generator).tolist()
        for unit in list(self.grab or shuffled):
            self.now = unit
            yield self.batches[unit].tolist()

    def observe(self, model: nn.Module, step: int, index: Tensor, losses: Tensor) -> None:
        """Hand the gradient of the present batch to GraB."""
        if self.grab is not None:
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            self.grab.update(self.now, torch.cat(grads))


def train_arm(
    settings: Training, seed: int, *, steps: int | None = None, early: bool = False
) -> Trained:
    """Train an arm.

    Args:
        settings: Those of the arm.
        seed: Draws the parts, the initial weights and the orders.
        steps: Stop after this number of steps and measure nothing, for timing.
        early: Stop when the target accuracy is reached.

    Returns:
        The problem, the trained model, and what was measured after each step.
    """
    device = run_device()
    data = settings.problem(seed)
    if settings.order == "random_more":  # a control: is it better to train on the target part?
        x = torch.cat([data.train.x, data.target.x])
        y = torch.cat([data.train.y, data.target.y])
        data = replace(data, train=IndexedDataset(x, y))
    model, optimizer = settings.build(data, seed)
    budget = settings.steps
    sampler, scorer = _sampler(settings, data, model, optimizer, seed)
    trained = Trained(data, model)

    def measure(model: nn.Module) -> dict[str, float]:
        trained.accuracy.append(evaluate(model, data.val, "val")["val/accuracy"])
        scored = 0 if scorer is None else scorer.forward_rows + 2 * scorer.backward_rows
        trained.forwards.append(FORWARDS * len(trained.accuracy) + scored / settings.batch)
        if isinstance(sampler, _Units):
            trained.train_loss.append(evaluate(model, data.train, "train")["train/loss"])
        if early and trained.accuracy[-1] >= settings.target_accuracy:
            raise _ReachedError
        return {}

    def note(index: Tensor, losses: Tensor) -> None:
        share = torch.bincount(data.train.y[index], minlength=10) / len(index)
        trained.entropy.append(float(torch.special.entr(share).sum()))

    wait_for(device)
    start = time.perf_counter()
    with suppress(_ReachedError):
        train(
            model,
            data.train,
            sampler,
            losses_of,
            optimizer,
            max_steps=budget if steps is None else steps,
            scheduler=LambdaLR(optimizer, lambda step: 1 - step / budget),  # linear to zero
            observers=[sampler.observe] if isinstance(sampler, _Units) else [],
            feedback=note if steps is None else None,
            evaluate=measure if steps is None else None,
            evaluate_every=1 if steps is None else None,
        )
    wait_for(device)
    trained.seconds = time.perf_counter() - start
    return trained


def _sampler(
    settings: Training, data: Problem, model: nn.Module, optimizer: Optimizer, seed: int
) -> tuple[Iterable[Sequence[int]], BatchScorer | None]:
    """Make the sampler of an arm, and its scorer if it scores batches."""
    order = settings.order
    if order in ("fixed", "grab"):
        dim = sum(p.numel() for p in model.parameters())
        return _Units(data, settings.batch, dim, order == "grab", seed), None
    if order == "ascending" or order == "descending" or order == "random_list":
        return _paced(settings, data, seed, "random" if order == "random_list" else order), None
    is_random = order in ("random", "random_more")
    if not is_random and order not in get_args(Score):
        raise ValueError(f"unknown order {order!r}")
    # random reshuffling has one candidate: the same permutations, nothing is scored
    score: Score = next((name for name in get_args(Score) if name == order), "min_loss")
    scorer = BatchScorer(
        score,
        model,
        losses_of,
        optimizer=optimizer,
        target=(data.target.x, data.target.y),
        independent=True,
    )
    sampler = PerfectOrderingSampler(
        data.train,
        settings.batch,
        scorer=scorer,
        num_candidates=1 if is_random else settings.candidates,
        candidates=settings.pool,
        generator=stream(seed, "order"),
        candidate_generator=stream(seed, "candidates"),
    )
    return sampler, scorer


def _paced(
    settings: Training,
    data: Problem,
    seed: int,
    order: Literal["ascending", "descending", "random"],
) -> PacedSampler:
    """Make a curriculum by the losses of a teacher that was trained on other, clean examples."""
    if data.teacher is None:
        raise ValueError(f"order {settings.order!r} needs num_teacher above 0")
    teacher = make_model(settings.model, data, seed, hidden=settings.hidden)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=settings.teacher_lr, fused=True)
    batches = RandomBatchSampler(len(data.teacher), settings.batch, stream(seed, "teacher"))
    epochs = settings.teacher_epochs
    train(teacher, data.teacher, batches, losses_of, optimizer, num_epochs=epochs)
    return PacedSampler(
        example_losses(teacher, losses_of, data.train.x, data.train.y),
        settings.batch,
        stream(seed, "order"),
        pacing=partial(linear_pacing, a=settings.pacing_a, b=settings.pacing_b),
        num_steps=settings.steps,
        order=order,
    )


def run_training(settings: Training, seed: int) -> Result:
    """Train an arm, and record what it cost to reach the target and how well it has learnt."""
    trained = train_arm(settings, seed)
    steps = len(trained.accuracy)
    steps_needed = trained.reached(settings.target_accuracy)
    entropy = trained.entropy[: settings.entropy_steps]
    metrics = evaluate(trained.model, trained.data.test, "test")
    metrics |= evaluate(trained.model, trained.data.train, "train")
    metrics |= {
        "val/accuracy": trained.accuracy[-1],
        "reached": float(steps_needed is not None),
        "steps_to_target": float(steps_needed or steps),
        "forwards_to_target": trained.forwards[(steps_needed or steps) - 1],
        "forwards": trained.forwards[-1],
        "entropy": sum(entropy) / len(entropy),
    }
    # dense at the start, where the target is reached
    points = settings.curve_points
    kept = sorted({round((steps - 1) * (i / (points - 1)) ** 2) for i in range(points)})
    curves = {
        "step": [float(i + 1) for i in kept],
        "accuracy": [trained.accuracy[i] for i in kept],
        "forwards": [trained.forwards[i] for i in kept],
    }
    if trained.train_loss:
        curves["train_loss"] = [trained.train_loss[i] for i in kept]
    return make_result(metrics, curves, {"steps": steps})
