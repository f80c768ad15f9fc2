"""Timings of the hinge losses: maximum against sum, against a library, in a step, in chunks."""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.chapters.hard_negatives.timing import Timing, time_steps
from trainaug.methods.hard_negatives import (
    MaxOfHinges,
    SumOfHinges,
    chunked_max_of_hinges,
    cosine_scores,
)

DIM = 1024


def _seconds(compute: Callable[[], Tensor], leaf: Tensor) -> float:
    """Seconds of forward and backward of a loss, whose gradient goes to ``leaf``."""
    leaf.grad = None
    start = time.perf_counter()
    compute().backward()
    return time.perf_counter() - start


def _paired(first: Callable[[], Tensor], second: Callable[[], Tensor], leaf: Tensor, pairs: int):
    """Median of the ratios first / second of ``pairs`` alternate timings of `_seconds`."""
    ratios, seconds = [], []
    for number in range(pairs + 2):
        order = (first, second) if number % 2 else (second, first)
        spent = {compute: _seconds(compute, leaf) for compute in order}
        if number >= 2:  # the first two warm up
            ratios.append(spent[first] / spent[second])
            seconds.append([spent[first], spent[second]])
    return {"ratio": statistics.median(ratios), "ratios": ratios, "seconds": seconds}


def max_against_sum(size: int) -> dict[str, Any]:
    """Time forward and backward of both losses on one matrix of scores; maximum over sum."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    scores = cosine_scores(*torch.randn(2, size, DIM, generator=generator)).requires_grad_(True)
    total, hardest = SumOfHinges(), MaxOfHinges()
    pairs = 200 if size < 512 else 30
    return _paired(lambda: hardest(scores), lambda: total(scores), scores, pairs)


def max_against_library(size: int) -> dict[str, Any]:
    """Time scores and maximum against batch-hard triplets of pytorch-metric-learning.

    The library's loss is taken twice, with images as queries and with captions as queries.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning import distances, losses, miners, reducers
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images, captions = F.normalize(torch.randn(2, size, DIM, generator=generator), dim=2)
    images.requires_grad_(True)
    distance = distances.CosineSimilarity()
    theirs = losses.TripletMarginLoss(0.2, distance=distance, reducer=reducers.SumReducer())
    miner, labels = miners.BatchHardMiner(distance=distance), torch.arange(size)
    ours = MaxOfHinges()

    def library() -> Tensor:
        losses = []
        for queries, gallery in ((images, captions), (captions, images)):
            triplets = miner(queries, labels, gallery, labels.clone())
            losses.append(theirs(queries, labels, triplets, gallery, labels.clone()))
        return losses[0] + losses[1]

    def mine() -> Tensor:
        return ours(cosine_scores(images, captions))

    assert abs(float(mine() - library())) < 1e-2 * size**0.5  # both compute the same loss
    return _paired(mine, library, images, 30 if size < 512 else 8)


def share_of_a_step() -> dict[str, Any]:
    """Time the maximum at B = 128 against a whole training step of the chapter's model."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    scores = cosine_scores(*torch.randn(2, 128, DIM, generator=generator)).requires_grad_(True)
    loss = MaxOfHinges()
    alone = statistics.median(_seconds(lambda: loss(scores), scores) for _ in range(200))
    step = time_steps(Timing(), 0)["step/max"]
    return {"share": alone / step, "loss_seconds": alone, "step_seconds": step}


def chunked_memory() -> dict[str, Any]:
    """Peak memory that the chunked maximum adds at B = 16 384, d = 256, in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def _measure_memory() -> dict[str, float]:
    """Peak memory, in GiB, and seconds of forward and backward of the chunked maximum."""
    torch.set_num_threads(1)
    images, captions = F.normalize(torch.randn(2, 16_384, 256), dim=2)
    images.requires_grad_(True)
    before = _peak_kibibytes()
    start = time.perf_counter()
    chunked_max_of_hinges(images, captions, chunk_size=1024).sum().backward()
    seconds = time.perf_counter() - start
    return {"gibibytes": (_peak_kibibytes() - before) / 2**20, "seconds": seconds}


def _peak_kibibytes() -> int:
    """Largest resident memory of this process in KiB; ``ru_maxrss`` would start at the parent's."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))
    assert match is not None
    return int(match[1])


if __name__ == "__main__":
    if "--memory" in sys.argv:
        print(json.dumps(_measure_memory()))
    else:
        print(json.dumps({"max_against_sum": max_against_sum(128)}, indent=1))
