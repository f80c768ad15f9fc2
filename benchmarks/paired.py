"""Ratios of the seconds of two calls, timed alternately in one process, with an interval."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from scipy import stats


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def paired_blocks(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    blocks: int = 20,
    repeats: int = 10,
) -> dict[str, Any]:
    """Time two calls alternately on one thread, and compare the first with the second.

    A block times one call ``repeats`` times and then the other; blocks alternate which comes first.

    Returns:
        ``ratio``, the geometric mean over blocks of first / second; ``lower`` and ``upper``, its
        95 % interval by Student's t on logarithms; ``ratios`` and the ``seconds`` of one call of
        each kind, by block.
    """
    torch.set_num_threads(1)
    ratios, seconds = [], []
    for number in range(blocks + 2):  # the first two warm up
        spent = {}
        for call in (first, second) if number % 2 else (second, first):
            spent[call] = _seconds(call, repeats) / repeats
        if number >= 2:
            ratios.append(spent[first] / spent[second])
            seconds.append([spent[first], spent[second]])
    logs = [math.log(ratio) for ratio in ratios]
    mean, spread = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(blocks)
    half = float(stats.t.ppf(0.975, blocks - 1)) * spread
    return {
        "ratio": math.exp(mean),
        "lower": math.exp(mean - half),
        "upper": math.exp(mean + half),
        "ratios": ratios,
        "seconds": seconds,
    }
