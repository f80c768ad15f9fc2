"""Timings of mixes (against torchvision, with more samples, in a step), and rows of a cascade."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from ordering import _paired
from torch import Tensor, nn
from torchvision.transforms.v2 import MixUp

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.cascading_sum import CascadeSchedule, SumMix
from trainaug.training.loop import Batch, train
from trainaug.training.networks import ResNet8

BATCH, CLASSES = 128, 10
Shape = tuple[int, int, int]


def _batch(shape: Shape) -> tuple[Tensor, Tensor]:
    """A batch of random pictures and labels; sets one thread."""
    torch.set_num_threads(1)
    # once such a block is freed, the allocator reuses blocks of this size, as it does in training
    torch.zeros(1 << 22)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, *shape, generator=generator)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def _mix(k: int, **options: Any) -> SumMix:
    generator = torch.Generator().manual_seed(1)
    return SumMix(k, num_classes=CLASSES, generator=generator, mode="pairing", **options)


def against_mixup(shape: Shape, pairs: int = 400) -> dict[str, Any]:
    """Time mixes of two, with equal and with drawn weights, against torchvision's ``MixUp``."""
    x, y = _batch(shape)
    equal = _mix(2)
    drawn = _mix(2, alpha=1.0)
    theirs = MixUp(alpha=1.0, num_classes=CLASSES)
    ratio = _paired(lambda: equal(x, y), lambda: theirs(x, y), pairs)
    also = _paired(lambda: drawn(x, y), lambda: theirs(x, y), pairs)
    return ratio | {"ratio_with_drawn_weights": also["ratio"]}


def eight_against_two(shape: Shape, pairs: int = 400) -> dict[str, Any]:
    """Time mixes of eight samples against as many mixes of two."""
    x, y = _batch(shape)
    two, eight = _mix(2), _mix(8)
    return _paired(lambda: eight(x, y), lambda: two(x, y), pairs)


def share_of_a_step(steps: int = 20) -> dict[str, Any]:
    """Time mixes of four samples as a share of whole training steps of a ResNet-8."""
    x, y = _batch((3, 32, 32))
    mix = _mix(4)
    model = ResNet8(CLASSES, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    mixing, whole = [], []
    for _ in range(steps + 2):
        start = time.perf_counter()
        mixed, soft = mix(x, y)
        mixing.append(time.perf_counter() - start)
        optimizer.zero_grad()
        F.cross_entropy(model(mixed), soft).backward()
        optimizer.step()
        whole.append(time.perf_counter() - start)
    alone, step = statistics.median(mixing[2:]), statistics.median(whole[2:])  # two warm up
    return {"share": alone / step, "mixing_seconds": alone, "step_seconds": step}


def rows_of_a_cascade(total_steps: int = 24, rows: int = 8) -> dict[str, Any]:
    """Count the rows that a cascade passes through a model; no timing.

    Every step mixes K groups of ``rows`` examples. A mixed example stands for K drawn ones, so
    the rows must be the drawn examples over the K of their step, to the last one.

    Returns:
        The distance of their ratio from 1 under ``gap``, and the counters.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=generator)
    dataset = IndexedDataset(x, torch.randint(3, (96,), generator=generator))
    schedule = CascadeSchedule([(4, 1 / 3), (2, 1 / 3), (1, 1 / 3)], total_steps)
    counts = [schedule.k(step) for step in range(total_steps)]
    batches = [torch.randperm(96, generator=generator)[: rows * k].tolist() for k in counts]
    mix = SumMix(num_classes=3, generator=generator, mode="groups", remainder="error")
    steps = itertools.count()

    def mixed(batch: Batch) -> Batch:
        mix.num_groups = schedule.k(next(steps))
        return mix(batch)

    model = nn.Linear(5, 3)
    history = train(
        model,
        dataset,
        batches,
        lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
        torch.optim.SGD(model.parameters(), 0.1),
        max_steps=total_steps,
        batch_transform=mixed,
    )
    equivalents = sum(len(batch) / k for batch, k in zip(batches, counts, strict=True))
    ratio = history.forward_examples / equivalents
    return {
        "gap": abs(ratio - 1),
        "ratio": ratio,
        "forward_examples": history.forward_examples,
        "backward_examples": history.backward_examples,
        "drawn_examples": history.examples,
        "drawn_over_k": equivalents,
    }


if __name__ == "__main__":
    print(json.dumps({"rows": rows_of_a_cascade(), "share": share_of_a_step(5)}, indent=1))
