"""Numbers of chapter 5's figures and tables: functions from all records of one seed to one number.

Gains are differences of percentage points, arm minus another with the same parts, initial weights,
order of batches and number of steps. The numbers of the claims stand in ``claims/05.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from companion.lab.records import Estimand, Record, find, metric

__all__ = ["CONDITIONS", "gain", "log_ratio", "metric", "objective_ratio"]

CONDITIONS = ("digits_10", "fashion_100")  # data sets in which all arms are compared


def gain(arm: str, other: str, name: str = "test/accuracy", scale: float = 100.0) -> Estimand:
    """Make the estimand: a metric of ``arm`` minus that of ``other``, in points by default."""
    first, second = metric(arm, name, scale), metric(other, name, scale)
    return lambda records: first(records) - second(records)


def log_ratio(arm: str, other: str, name: str) -> Estimand:
    """Make the estimand: natural log of a positive metric of ``arm`` over that of ``other``."""
    first, second = metric(arm, name), metric(other, name)
    return lambda records: math.log(first(records) / second(records))


def objective_ratio(condition: str, measure: str, mix: str, moment: int) -> Estimand:
    """Make the estimand: logarithm of the ratio of a measure of an objective to that of K = 1.

    Args:
        condition: One of `CONDITIONS`.
        measure: ``curvature`` or ``lipschitz``.
        mix: Which objective, such as ``k4``.
        moment: Number of the snapshot, from 0.
    """

    def estimand(records: Sequence[Record]) -> float:
        curves = find(records, f"{condition}_objective")["curves"]
        first, second = (curves[f"{measure}/{name}"][moment] for name in (mix, "k1"))
        return math.log(abs(first) / abs(second))

    return estimand
