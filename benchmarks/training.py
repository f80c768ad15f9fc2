"""Timing of the training loop against the same loop by hand, where a step is shortest."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trainaug.data.indexed import IndexedDataset
from trainaug.training.loop import train
from trainaug.training.models import MLP
from trainaug.training.randomness import RandomBatchSampler, stream

BATCH, EXAMPLES, EPOCHS, BLOCKS = 64, 1024, 4, 20
SIZES = (64, 32, 10)  # of a picture of 8x8, the hidden layer, the classes


def loop_against_by_hand() -> dict[str, Any]:
    """Time `train` against the loop that anyone would write, in pairs; both give equal weights.

    Returns:
        ``ratio``, the median over the pairs, with all ratios and the milliseconds of a step.
    """
    torch.set_num_threads(1)
    features, hidden, classes = SIZES
    x = torch.randn(EXAMPLES, features, generator=stream(0, "x"))
    y = torch.randint(classes, (EXAMPLES,), generator=stream(0, "y"))
    data, criterion = IndexedDataset(x, y), functools.partial(F.cross_entropy, reduction="none")

    def ours() -> nn.Module:
        model = MLP(features, hidden, classes, stream(0, "init"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sampler = RandomBatchSampler(EXAMPLES, BATCH, stream(0, "order"))
        train(model, data, sampler, criterion, optimizer, num_epochs=EPOCHS)
        return model

    def by_hand() -> nn.Module:
        model = MLP(features, hidden, classes, stream(0, "init"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator, losses = stream(0, "order"), []
        model.train()
        for _ in range(EPOCHS):
            for index in torch.randperm(EXAMPLES, generator=generator).split(BATCH):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[index]), y[index])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return model

    def seconds(run: Callable[[], nn.Module]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    for a, b in zip(ours().parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(a, b)
    ratios, steps = [], []
    for number in range(BLOCKS):
        order = (ours, by_hand) if number % 2 else (by_hand, ours)
        spent = {run: seconds(run) for run in order}
        ratios.append(spent[ours] / spent[by_hand])
        steps.append(1e3 * spent[ours] / (EPOCHS * EXAMPLES // BATCH))
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "milliseconds": statistics.median(steps),
    }
