"""Numbers of chapter 4's claims that are more than arithmetic: functions of records of one seed."""

from __future__ import annotations

import math

from companion.lab.records import Record

__all__ = ["last_lead", "slope_of_candidates"]

POSITIONS = 6
CANDIDATES = (1, 2, 4, 8, 16)


def last_lead(orders: Record) -> float:
    """Log ratio of the last position's share of variance to the largest other one.

    Zero where all orders end with the same accuracy: there is no variance, and no position leads.
    """
    metrics = orders["metrics"]
    if metrics["val_accuracy/max"] == metrics["val_accuracy/min"]:
        return 0.0
    shares = [metrics[f"share/accuracy/{p}"] for p in range(1, POSITIONS + 1)]
    return math.log(shares[-1] / max(shares[:-1]))


def slope_of_candidates(*arms: Record) -> float:
    """Slope of log steps to the target on log2 of the number of candidates.

    The arms are given in the order 1, 2, 4, 8 and 16 candidates.
    """
    x = [math.log2(count) for count in CANDIDATES]
    y = [math.log(arm["metrics"]["steps_to_target"]) for arm in arms]
    centre = math.fsum(x) / len(x)
    products = math.fsum((a - centre) * b for a, b in zip(x, y, strict=True))
    return products / math.fsum((a - centre) ** 2 for a in x)
