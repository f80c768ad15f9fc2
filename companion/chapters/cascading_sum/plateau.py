"""The source's first recipe: plateaus end the stages, and nobody counts the updates."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from companion.chapters.cascading_sum.arms import STEPS
from companion.chapters.cascading_sum.training import BATCH, JoinedBatches, Trained
from trainaug.data.indexed import IndexedDataset
from trainaug.methods.cascading_sum import PlateauCascade, SumMix, begin_stage
from trainaug.training.loop import train
from trainaug.training.models import evaluate
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["train_by_plateaus"]

PATIENCE = {"patience": 10, "stop_patience": 35}  # epochs at K = 1; the source's for small subsets
LAST_RATE = 0.2  # factor of the clean stage after a cascade
LOWEST_RATE = 5e-5
MAX_STEPS = 8000  # at the full budget


def train_by_plateaus(
    model: nn.Module,
    train_part: IndexedDataset,
    val_part: IndexedDataset,
    settings: dict[str, Any],
    num_classes: int,
    seed: int,
) -> Trained:
    """Train a model in place by the source's geometric cascade; with ``k0`` 1 its plain baseline.

    Validation accuracy, where the source took that of the test set, halves the learning rate and
    ends the stages; each goes on from the best weights of the one before, without momentum.
    """
    cascade = PlateauCascade(settings["k0"], **PATIENCE)
    mix = SumMix(num_classes=num_classes, generator=stream(seed, "mix"), mode="groups")
    batches = RandomBatchSampler(len(train_part), BATCH, stream(seed, "order"), drop_last=True)
    optimizer = SGD(
        model.parameters(), lr=settings["lr"], momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    found, best = Trained(), copy.deepcopy(model.state_dict())
    most = MAX_STEPS * settings["steps"] // STEPS

    def criterion(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none")

    while not cascade.has_finished and found.forward_examples < most * BATCH:
        mix.num_groups = cascade.k
        history = train(
            model,
            train_part,
            JoinedBatches(batches, lambda: cascade.k),
            criterion,
            optimizer,
            max_steps=max(1, len(train_part) // (BATCH * cascade.k)),  # an epoch
            batch_transform=mix,
        )
        found.examples += history.examples
        found.forward_examples += history.forward_examples
        accuracy = evaluate(model, val_part, "val")["val/accuracy"]
        event = cascade.step(accuracy)
        if event == "improved":
            best = copy.deepcopy(model.state_dict())
        elif event == "reduce_lr":
            for group in optimizer.param_groups:
                group["lr"] = max(LOWEST_RATE, group["lr"] / 2)
        elif event == "next_stage":
            lr = settings["lr"] * (LAST_RATE if cascade.k == 1 else 1.0)
            begin_stage(model, optimizer, lr=lr, weights=best, reset_optimizer=True)
            found.switches.append(evaluate(model, val_part, "val")["val/accuracy"])
    model.load_state_dict(best)
    found.step.append(found.forward_examples // BATCH)
    found.accuracy.append(evaluate(model, val_part, "val")["val/accuracy"])
    return found
