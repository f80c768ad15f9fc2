"""Numbers of chapter 1's claims that are more than arithmetic: functions of records of one seed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from companion.lab.records import Record

__all__ = ["early_lead", "final_recall", "item_values", "recall"]

DIRECTIONS = ("i2t", "t2i")
EARLY = 0.05  # share of the longer run's epochs
LAST = 5  # evaluations averaged at the end


def recall(arm: Record) -> float:
    """R@1 of the test part in per cent, averaged over both directions."""
    metrics = arm["metrics"]
    return float(sum(metrics[f"test/{direction}/r1"] for direction in DIRECTIONS) / 2)


def item_values(arm: Record, metric: str) -> NDArray[np.float64] | None:
    """R@1 of each concept of the test part in per cent, over the galleries that contain it.

    Returns:
        Shape ``(N,)``, the same concepts for every seed, NaN for one in no gallery; ``None`` for
        another metric, or where the record has no concepts.
    """
    direction = metric.removeprefix("test/").removesuffix("/r1")
    if metric != f"test/{direction}/r1" or direction not in arm.get("hits", {}):
        return None
    hits, galleries = (_digits(text) for text in (arm["hits"][direction], arm["galleries"]))
    shares = np.full(len(hits), np.nan)
    np.divide(100 * hits, galleries, out=shares, where=galleries > 0)
    return shares


def _digits(text: str) -> NDArray[np.float64]:
    """Read a text of digits, one for each concept, as numbers."""
    return np.frombuffer(text.encode("ascii"), np.uint8).astype(np.float64) - ord("0")


def final_recall(arm: Record) -> float:
    """Validation R@1, averaged over the last five recorded evaluations."""
    values = arm["curves"]["val/r1"][-LAST:]
    return math.fsum(values) / len(values)


def early_lead(one: Record, other: Record) -> float:
    """Validation R@1 of one arm minus that of the other at a twentieth of the longer run.

    Each arm's first recorded evaluation from that epoch on counts.
    """
    curves = [one["curves"], other["curves"]]
    moment = math.ceil(EARLY * max(curve["epoch"][-1] for curve in curves))
    values = [
        next(v for e, v in zip(curve["epoch"], curve["val/r1"], strict=True) if e >= moment)
        for curve in curves
    ]
    return float(values[0] - values[1])
