"""What the scores of batches are correlated with, and what they cost in seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self, get_args

import torch
from torch import Tensor

from companion.chapters.ordering.problems import losses_of
from companion.chapters.ordering.train import FashionTraining, Order, Training, train_arm
from companion.lab.arms import Settings
from companion.lab.results import Result, make_result
from trainaug.data.registry import content_hash
from trainaug.methods.ordering import BatchScorer, batch_losses, train_in_order
from trainaug.methods.ordering.scores import Score
from trainaug.training.randomness import stream

__all__ = ["SNAPSHOTS", "Selection", "Timing", "run_selection", "run_timing"]

SNAPSHOTS = (0, 4, 16, 64, 256)
TIMED: tuple[Order, ...] = ("random", "min_loss", "delta_abs", "delta_target")


@dataclass(frozen=True, kw_only=True)
class Selection(Training):
    """Ordinary training on digits, before some steps of which all batches are scored.

    Attributes:
        snapshots: Steps before which the scores of all batches are compared.
    """

    snapshots: tuple[int, ...] = SNAPSHOTS

    def shortened(self, share: float) -> Self:
        return self

    def tiny(self) -> Self:
        return replace(
            self,
            num_train=512,
            num_target=64,
            num_val=100,
            num_test=100,
            snapshots=(0, 4, 12),
        )


def run_selection(settings: Selection, seed: int) -> Result:
    """Train in random order, and compare the scores of batches before some steps.

    Metrics ``<score>/<quantity>/<step>`` are rank correlations, over the batches of a fresh
    permutation, with the batch's loss, the norm of its gradient and its alignment with the target.
    """
    data = settings.problem(seed)
    model, optimizer = settings.build(data, seed)
    count, batch = len(data.train), settings.batch
    g = stream(seed, "order")
    metrics: dict[str, float] = {}
    for step in range(max(settings.snapshots) + 1):
        position = step % (count // batch)
        if position == 0:
            indices = torch.split(torch.randperm(count, generator=g), batch)
        if step in settings.snapshots:
            order = torch.stack(torch.split(torch.randperm(count, generator=g), batch))
            x, y = data.train.x[order], data.train.y[order]  # (M, B, ...)
            scores = {}
            for name in get_args(Score):
                scorer = BatchScorer(
                    name,
                    model,
                    losses_of,
                    optimizer=optimizer,
                    target=(data.target.x, data.target.y),
                    independent=True,
                )
                scores[name] = scorer(x, y)
            loss = batch_losses(model, losses_of, x, y, independent=True)
            norm = _gradient_norms(model, x, y)
            quantities = {"loss": loss, "norm": norm, "align": scores["grad_align"]}
            for name in ("delta_abs", "delta_rel", "delta_target", "grad_align"):
                for quantity, values in quantities.items():
                    metrics[f"{name}/{quantity}/{step}"] = _rank_correlation(scores[name], values)
            metrics[f"loss/norm/{step}"] = _rank_correlation(loss, norm)
        index = indices[position]
        one_batch = [(data.train.x[index], data.train.y[index])]
        train_in_order(model, optimizer, losses_of, one_batch, [0])
    return make_result(metrics, counters={"steps": max(settings.snapshots) + 1})


def _gradient_norms(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Norm of the gradient of each batch's mean loss, ``(M,)``."""
    norms = []
    for number in range(len(x)):
        loss = losses_of(model(x[number]), y[number]).mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(torch.cat([g.flatten() for g in grads]).norm())
    return torch.stack(norms)


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    # on the CPU, which has float64 whatever the device of the run
    ranks = torch.stack([a, b]).cpu().argsort(1).argsort(1).double()
    return float(torch.corrcoef(ranks)[0, 1])


@dataclass(frozen=True, kw_only=True)
class Timing(Settings):
    """Seconds to the target on a data set, every headline order at the learning rate of `random`.

    Attributes:
        data: ``digits`` or ``fashion_mnist``.
        lr: Learning rate.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    data: str = "digits"
    lr: float = 0.35

    @property
    def data_hash(self) -> str:
        return content_hash(self.data)

    def training(self, order: Order) -> Training:
        """Return the training that is timed."""
        kind = Training if self.data == "digits" else FashionTraining
        return kind(data=self.data, order=order, lr=self.lr)


def run_timing(settings: Timing, seed: int) -> Result:
    """Time every headline order over the steps that it needs to the target, in turn.

    A first training finds that number of steps; the timed one evaluates nothing.
    """
    needed: dict[str, int] = {}
    for order in TIMED:
        training = settings.training(order)
        reached = train_arm(training, seed, early=True).reached(training.target_accuracy)
        needed[order] = reached or training.steps
    metrics: dict[str, float] = {}
    for order in TIMED if seed % 2 else reversed(TIMED):
        timed = train_arm(settings.training(order), seed, steps=needed[order])
        metrics[f"seconds/{order}"] = timed.seconds
        metrics[f"steps/{order}"] = float(needed[order])
    return make_result(metrics, digits=6)
