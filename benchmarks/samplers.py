"""Timings of the samplers at the size of ImageNet: milliseconds per batch, averaged over epochs."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from trainaug.batches import EpochBatchSampler
from trainaug.methods.gradient_clustering import (
    RandomSnoozeSampler,
    SnoozeSampler,
    StratifiedSampler,
)
from trainaug.methods.hard_negatives import DistinctGroupBatchSampler
from trainaug.methods.ordering import PacedSampler, linear_pacing
from trainaug.training.randomness import RandomBatchSampler, stream

BATCH, EXAMPLES, CLUSTERS = 256, 1_281_167, 128


def _plain(n: int) -> EpochBatchSampler:
    return RandomBatchSampler(n, BATCH, stream(0, "order"))


def _groups(n: int) -> EpochBatchSampler:
    return DistinctGroupBatchSampler(torch.arange(n) // 5, BATCH, stream(0, "order"))


def _reshuffled(n: int) -> EpochBatchSampler:
    return StratifiedSampler(n, BATCH, stream(0, "order"))


def _strata(n: int) -> EpochBatchSampler:
    sampler = StratifiedSampler(n, BATCH, stream(0, "order"))
    sampler.set_clusters(torch.arange(n) % CLUSTERS)
    return sampler


def _snooze(n: int) -> EpochBatchSampler:
    sampler = SnoozeSampler(n, BATCH, stream(0, "order"), reweight=True)
    sampler.update(torch.arange(n), torch.rand(n, generator=stream(0, "losses")))
    return sampler


def _random_snooze(n: int) -> EpochBatchSampler:
    return RandomSnoozeSampler(n, BATCH, stream(0, "order"), counts=[n, n // 2])


def _paced(n: int) -> EpochBatchSampler:
    pacing = partial(linear_pacing, a=0.5, b=0.2)
    scores = torch.arange(n)
    return PacedSampler(scores, BATCH, stream(0, "order"), pacing=pacing, num_steps=-(-n // BATCH))


MAKE = {
    "RandomBatchSampler": _plain,
    "DistinctGroupBatchSampler": _groups,
    "StratifiedSampler before the first clustering": _reshuffled,
    f"StratifiedSampler with {CLUSTERS} clusters": _strata,
    "SnoozeSampler": _snooze,
    "RandomSnoozeSampler": _random_snooze,
    "PacedSampler, growing": _paced,
}


def slowest_batch(examples: int = EXAMPLES) -> dict[str, Any]:
    """Time two epochs of every sampler that runs no model.

    Returns:
        ``milliseconds`` per batch of the slowest sampler, and those of each under ``samplers``.
    """
    torch.set_num_threads(1)
    milliseconds = {}
    for name, make in MAKE.items():
        sampler = make(examples)
        started = time.perf_counter()
        batches = sum(1 for _ in range(2) for _ in sampler)
        milliseconds[name] = 1e3 * (time.perf_counter() - started) / batches
    return {"milliseconds": max(milliseconds.values()), "samplers": milliseconds}
