"""Numbers of chapter 1's claims that are more than arithmetic: functions of records of one seed."""

from __future__ import annotations

import math

from companion.experiments.records import Record

__all__ = ["early_lead", "final_recall", "recall"]

DIRECTIONS = ("i2t", "t2i")
EARLY = 0.05  # share of the longer run's epochs
LAST = 5  # evaluations averaged at the end


def recall(arm: Record) -> float:
    """R@1 of the test part in per cent, averaged over both directions."""
    metrics = arm["metrics"]
    return float(sum(metrics[f"test/{direction}/r1"] for direction in DIRECTIONS) / 2)


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
    there = [
        next(v for e, v in zip(curve["epoch"], curve["val/r1"], strict=True) if e >= moment)
        for curve in curves
    ]
    return float(there[0] - there[1])
