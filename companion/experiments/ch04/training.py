"""Train one arm of chapter 4 on its budget and note what it cost to reach the target accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from companion.experiments.ch04.problems import (
    Problem,
    losses_of,
    make_model,
    problem,
    source_sgd,
)
from trainaug.data.indexed import IndexedDataset
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

__all__ = ["BATCH", "TARGETS", "Trained", "train_arm"]

BATCH = 64
TARGETS = {"digits": 0.9, "fashion_mnist": 0.75}  # validation accuracy whose first passing counts
PACING = {"a": 0.5, "b": 0.2}
FORWARDS = 3  # a training step: one forward pass, and a backward pass that costs two


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
    """Fixed batches in an order of their own: balanced by GraB, or reshuffled every epoch."""

    def __init__(self, data: Problem, dim: int, balanced: bool, seed: int) -> None:
        g = stream(seed, "order")
        self.batches = torch.split(torch.randperm(len(data.train), generator=g), BATCH)
        self.grab = GraBSampler(len(self.batches), dim, generator=g) if balanced else None
        self.generator = g
        self.now = 0

    def __iter__(self) -> Iterator[list[int]]:
        count = len(self.batches)
        shuffled = torch.randperm(count, generator=self.generator).tolist()
        for unit in list(self.grab or shuffled):
            self.now = unit
            yield self.batches[unit].tolist()

    def observe(self, model: nn.Module, step: int, index: Tensor, losses: Tensor) -> None:
        """Hand the gradient of the batch to GraB."""
        if self.grab is not None:
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            self.grab.update(self.now, torch.cat(grads))


def train_arm(
    settings: dict[str, Any], seed: int, *, steps: int | None = None, early: bool = False
) -> Trained:
    """Train an arm.

    Args:
        settings: Those of the arm with its step length ``lr``.
        seed: Draws the parts, the initial weights and the orders.
        steps: Stop after so many steps and measure nothing, for timing.
        early: Stop when the target accuracy is reached.
    """
    data = problem(settings["data"], seed, noise=settings["noise"])
    if settings["order"] == "random_more":  # a control: trained on what the others only look at
        x, y = (torch.cat([getattr(part, k) for part in (data.train, data.target)]) for k in "xy")
        data = replace(data, train=IndexedDataset(x, y))
    model = make_model(settings["model"], data, seed)
    optimizer = source_sgd(model, settings["lr"])
    budget = settings["steps"]
    sampler, scorer = _sampler(settings, data, model, optimizer, seed)
    found = Trained(data, model)

    def measure(model: nn.Module) -> dict[str, float]:
        found.accuracy.append(evaluate(model, data.val, "val")["val/accuracy"])
        scored = 0 if scorer is None else scorer.forward_rows + 2 * scorer.backward_rows
        found.forwards.append(FORWARDS * len(found.accuracy) + scored / BATCH)
        if isinstance(sampler, _Units):
            found.train_loss.append(evaluate(model, data.train, "train")["train/loss"])
        if early and found.accuracy[-1] >= TARGETS[settings["data"]]:
            raise _ReachedError
        return {}

    def note(index: Tensor, losses: Tensor) -> None:
        share = torch.bincount(data.train.y[index], minlength=10) / len(index)
        found.entropy.append(float(torch.special.entr(share).sum()))

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
    found.seconds = time.perf_counter() - start
    return found


def _sampler(
    settings: dict[str, Any], data: Problem, model: nn.Module, optimizer: Optimizer, seed: int
) -> tuple[Iterable[Sequence[int]], BatchScorer | None]:
    order = settings["order"]
    if order in ("fixed", "grab"):
        dim = sum(p.numel() for p in model.parameters())
        return _Units(data, dim, order == "grab", seed), None
    if order in ("ascending", "descending", "random_list"):
        return _paced(settings, data, seed), None
    random = order in ("random", "random_more")
    if not random and order not in get_args(Score):
        raise ValueError(f"unknown order {order!r}")
    # random reshuffling has one candidate: the same permutations, nothing is scored
    target = data.target.x, data.target.y
    score: Score = "min_loss" if random else order
    scorer = BatchScorer(
        score, model, losses_of, optimizer=optimizer, target=target, independent=True
    )
    sampler = PerfectOrderingSampler(
        data.train,
        BATCH,
        scorer=scorer,
        num_candidates=1 if random else settings["candidates"],
        candidates=settings["pool"],
        generator=stream(seed, "order"),
        candidate_generator=stream(seed, "candidates"),
    )
    return sampler, scorer


def _paced(settings: dict[str, Any], data: Problem, seed: int) -> PacedSampler:
    """A curriculum by the losses of a teacher that was trained on other, clean examples."""
    assert data.teacher is not None
    teacher = make_model(settings["model"], data, seed)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3, fused=True)
    batches = RandomBatchSampler(len(data.teacher), BATCH, stream(seed, "teacher"))
    train(teacher, data.teacher, batches, losses_of, optimizer, num_epochs=20)
    order = settings["order"]
    return PacedSampler(
        example_losses(teacher, losses_of, data.train.x, data.train.y),
        BATCH,
        stream(seed, "order"),
        pacing=partial(linear_pacing, **PACING),
        num_steps=settings["steps"],
        order="random" if order == "random_list" else order,
    )
