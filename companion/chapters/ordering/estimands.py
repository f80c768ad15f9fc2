"""Estimands of chapter 4's tables and figures: functions of all records of one seed.

Ratios are natural logarithms of an arm over random reshuffling with the same seed: below zero the
arm is quicker. A run that never reached its target counts with its full budget. Tables show the
ratios as percent saved or as factors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from companion.lab.records import Estimand, Record, by_seed, find, metric

__all__ = [
    "accuracy_gain",
    "cost_ratio",
    "gain_by_balance",
    "metric",
    "ranked",
    "seconds_ratio",
    "share",
]


def share(arm: str, position: str, what: str = "accuracy") -> Estimand:
    """Make the estimand: share of variance over orders, of a position or a control."""
    return metric(arm, f"share/{what}/{position}")


def ranked(arm: str, score: str, what: str = "loss") -> Estimand:
    """Make the estimand: percentile of a greedy order among all 720; 0 is the best, 50 chance."""
    return metric(arm, f"rank/{score}/{what}")


def cost_ratio(arm: str, other: str, cost: str = "steps") -> Estimand:
    """Make the estimand: log ratio of ``steps`` or ``forwards`` to the target."""

    def estimand(records: Sequence[Record]) -> float:
        costs = [find(records, name)["metrics"][f"{cost}_to_target"] for name in (arm, other)]
        return math.log(costs[0] / costs[1])

    return estimand


def seconds_ratio(data: str, order: str) -> Estimand:
    """Make the estimand: log ratio of seconds to the target, which were timed in turn."""

    def estimand(records: Sequence[Record]) -> float:
        metrics = find(records, f"timing_{data}")["metrics"]
        return math.log(metrics[f"seconds/{order}"] / metrics["seconds/random"])

    return estimand


def accuracy_gain(arm: str, other: str) -> Estimand:
    """Make the estimand: difference of test accuracy in points."""
    first, second = metric(arm, "test/accuracy", 100), metric(other, "test/accuracy", 100)
    return lambda records: first(records) - second(records)


def gain_by_balance(records: Sequence[Record], arm: str) -> dict[float, tuple[float, int]]:
    """Accuracy of the orders that end in a batch, minus that of all orders, by the batch's labels.

    Args:
        records: Records of any number of seeds.
        arm: An exhaustive study.

    Returns:
        By share of the second class in the last batch: the mean, in points, over the batches of all
        seeds with that share, and the number of these batches.
    """
    gains: dict[float, list[float]] = defaultdict(list)
    for seed in by_seed(records, arm):
        metrics = find(seed, arm)["metrics"]
        for name in metrics:
            if name.startswith("last/") and name.endswith("/balance"):
                gain = metrics[name.replace("balance", "accuracy")] - metrics["val_accuracy/mean"]
                gains[metrics[name]].append(gain)
    return {
        share: (math.fsum(values) / len(values), len(values))
        for share, values in sorted(gains.items())
    }
