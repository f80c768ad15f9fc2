"""The source's first recipe: a stage ends when validation stalls, not after a number of updates."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.cascading_sum.train import (
    JoinedBatches,
    Trained,
    Training,
    make_optimizer,
)
from trainaug.data.indexed import IndexedDataset
from trainaug.methods.cascading_sum import PlateauCascade, SumMix, begin_stage
from trainaug.training.loop import train
from trainaug.training.models import evaluate
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["train_by_plateaus"]


def _losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example with hard or soft labels, ``(B,)``."""
    return F.cross_entropy(logits, y, reduction="none")


def train_by_plateaus(
    model: nn.Module,
    train_part: IndexedDataset,
    val_part: IndexedDataset,
    settings: Training,
    num_classes: int,
    seed: int,
) -> Trained:
    """Train a model in place by the source's first cascade, or its plain baseline if ``k0`` is 1.

    K is halved from stage to stage. A plateau of the validation accuracy (the source took the test
    set) halves the learning rate; a longer one ends the stage. The next stage goes on from the best
    weights of the one before, without momentum, and the model ends with its best weights.
    """
    batch = settings.batch
    cascade = PlateauCascade(
        settings.k0, patience=settings.patience, stop_patience=settings.stop_patience
    )
    mix = SumMix(num_classes=num_classes, generator=stream(seed, "mix"), mode="groups")
    batches = RandomBatchSampler(len(train_part), batch, stream(seed, "order"), drop_last=True)
    optimizer = make_optimizer(model, settings)
    trained = Trained()
    best = copy.deepcopy(model.state_dict())
    while not cascade.has_finished and trained.forward_examples < settings.max_steps * batch:
        mix.num_groups = cascade.k
        history = train(
            model,
            train_part,
            JoinedBatches(batches, lambda: cascade.k),
            _losses_of,
            optimizer,
            max_steps=max(1, len(train_part) // (batch * cascade.k)),  # an epoch: a mix uses K
            batch_transform=mix,
        )
        trained.examples += history.examples
        trained.forward_examples += history.forward_examples
        event = cascade.step(evaluate(model, val_part, "val")["val/accuracy"])
        if event == "improved":
            best = copy.deepcopy(model.state_dict())
        elif event == "reduce_lr":
            for group in optimizer.param_groups:
                group["lr"] = max(settings.lowest_rate, group["lr"] / 2)
        elif event == "next_stage":
            lr = settings.lr * (settings.last_rate if cascade.k == 1 else 1.0)
            begin_stage(model, optimizer, lr=lr, weights=best, reset_optimizer=True)
            trained.switches.append(evaluate(model, val_part, "val")["val/accuracy"])
    model.load_state_dict(best)
    trained.step.append(trained.forward_examples // batch)
    trained.accuracy.append(evaluate(model, val_part, "val")["val/accuracy"])
    return trained
