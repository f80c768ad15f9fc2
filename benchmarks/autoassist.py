"""Timings of AutoAssist: what filtering costs the Boss, in its own process and in a worker.

The Boss, the network that is trained, is a `StridedConvNet` with B = 128 and pictures of
Fashion-MNIST's size, on one thread. Each process needs a core of its own.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
import torch.nn.functional as F
from ordering import _paired
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    AsyncBatches,
    ImageAssistant,
)
from trainaug.training.loop import train
from trainaug.training.networks import StridedConvNet
from trainaug.training.randomness import RandomBatchSampler

N, BATCH, CLASSES, BASE = 10_000, 128, 10, 0.3
SHAPE = (1, 28, 28)


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def build(
    assistant: ImageAssistant, x: Tensor, y: Tensor, attempt: int
) -> tuple[AssistedSampler, AssistantTrainer]:
    """Make sampler and Assistant, in the worker or in this process.

    It stands at the top of the module, because the worker receives it by its name. ``attempt`` is
    the number of restarts; it enters the seeds, so that a new worker draws other numbers.
    """
    features = x.flatten(1)  # rows are gathered faster by `index_select` than by an index
    trainer = AssistantTrainer(
        assistant, lambda index: (features.index_select(0, index), y.index_select(0, index))
    )
    order, decisions = (torch.Generator().manual_seed(2 * attempt + i) for i in (0, 1))
    sampler = AssistedSampler(
        len(x), BATCH, trainer.predict, order, decisions, base=BASE, drop_last=True
    )
    return sampler, trainer


class _Boss:
    """A network with data and optimiser, trained for a block of steps at a time."""

    def __init__(self, n: int) -> None:
        torch.set_num_threads(1)
        g = torch.Generator().manual_seed(0)
        self.x = torch.rand(n, *SHAPE, generator=g)
        self.y = torch.randint(CLASSES, (n,), generator=g)
        self.dataset = IndexedDataset(self.x, self.y)
        self.model = StridedConvNet(CLASSES, g)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9)
        self.assistant = ImageAssistant(self.x[0].numel(), CLASSES, g).share_memory()

    def batches(self, synchronous: bool) -> AsyncBatches:
        args = (self.assistant, self.x, self.y)
        sizes = {"num_examples": len(self.x), "batch_size": BATCH}
        return AsyncBatches(build, args, **sizes, synchronous=synchronous)

    def run(self, batches: Any, steps: int) -> float:
        """Train for so many steps and return their seconds."""
        start = time.perf_counter()
        parts = self.model, self.dataset, batches, _losses, self.optimizer
        train(*parts, max_steps=steps, feedback=getattr(batches, "update", None))
        return time.perf_counter() - start


@functools.cache
def step_against_plain(
    synchronous: bool, steps: int = 60, pairs: int = 20, n: int = N
) -> dict[str, Any]:
    """Time blocks of steps with AutoAssist against blocks with the plain sampler, alternately.

    A block is three times as long as the queue, so that most of its batches are formed meanwhile.

    Returns:
        ``ratio`` of seconds; ``waiting_share``, the share of its time that the Boss waited;
        ``scans``, the examples that were scanned for each one kept; the numbers of dropped
        feedbacks and of the Assistant's steps.
    """
    boss = _Boss(n)
    plain = RandomBatchSampler(n, BATCH, torch.Generator().manual_seed(1), drop_last=True)
    spent = 0.0
    with boss.batches(synchronous) as batches:

        def assisted() -> None:
            nonlocal spent
            spent += boss.run(batches, steps)

        next(iter(batches))  # waits for the start of the worker, which is not timed
        ratio = _paired(assisted, lambda: boss.run(plain, steps), pairs)
        return ratio | {
            "waiting_share": batches.waited_seconds / spent,
            "scans": batches.scanned / batches.kept,
            "dropped_feedback": batches.dropped_feedback,
            "assistant_steps": batches.counters.get("num_steps", 0),
        }


def assistant_share(n: int = BATCH) -> dict[str, Any]:
    """Count the multiply-adds of the Assistant against those of the Boss, per example of the Boss.

    The Boss's are those of forward and backward. For each of these examples the Assistant scans at
    most 1 / base examples, and then learns from it, forward and backward.
    """
    boss = _Boss(n)
    with FlopCounterMode(display=False) as counter:
        _losses(boss.model(boss.x), boss.y).mean().backward()
    boss_adds = counter.get_total_flops() / 2 / n
    features = boss.x[0].numel()
    assistant_adds = features / BASE + 2 * features
    return {"share": assistant_adds / boss_adds, "boss": boss_adds, "assistant": assistant_adds}
