"""Timing of the training loop against the same loop by hand, on a model whose steps are short."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from paired import paired_blocks
from torch import nn

from trainaug.data.indexed import IndexedDataset
from trainaug.training.loop import train
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, stream

BATCH, EXAMPLES, EPOCHS = 64, 1024, 4
SIZES = (64, 32, 10)  # pixels of an 8x8 picture, units of the hidden layer, classes


def loop_against_by_hand() -> dict[str, Any]:
    """Time `train` against the loop that anyone would write; both must give equal weights.

    Returns:
        The outcome of `paired_blocks`.
    """
    torch.set_num_threads(1)
    features, hidden, classes = SIZES
    x = torch.randn(EXAMPLES, features, generator=stream(0, "x"))
    y = torch.randint(classes, (EXAMPLES,), generator=stream(0, "y"))
    data = IndexedDataset(x, y)
    criterion = functools.partial(F.cross_entropy, reduction="none")

    def ours() -> nn.Module:
        model = MLP(features, hidden, classes, stream(0, "init"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sampler = RandomBatchSampler(EXAMPLES, BATCH, stream(0, "order"))
        train(model, data, sampler, criterion, optimizer, num_epochs=EPOCHS)
        return model

    def by_hand() -> nn.Module:
        model = MLP(features, hidden, classes, stream(0, "init"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = stream(0, "order")
        losses = []
        model.train()
        for _ in range(EPOCHS):
            for index in torch.randperm(EXAMPLES, generator=generator).split(BATCH):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[index]), y[index])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return model

    for a, b in zip(ours().parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(a, b)
    return paired_blocks(ours, by_hand, repeats=1)
