"""Estimands of chapter 2's tables and figures: functions of all records of one seed.

Comparisons of variances and of costs are natural logarithms of ratios: below zero the first is
smaller. Along a run they are means over the measurements after its first quarter. Curves named
``mid/...`` are measured half-way between two clusterings, ``fresh/...`` at one and ``old/...`` just
before the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from companion.chapters.gradient_clustering import numbers
from companion.lab.records import Estimand, Record, find, metric

__all__ = [
    "accuracy_gain",
    "cell",
    "change",
    "cost_ratio",
    "drawn_ratio",
    "drop_effect",
    "equal_loss_effect",
    "metric",
    "overhead",
    "rank_correlation",
    "rate_effect",
    "rise",
    "seconds_ratio",
    "seconds_to_target",
    "variance_ratio",
]


# --- variance along ordinary SGD ------------------------------------------------------------------


def variance_ratio(arm: str, one: str, other: str, factor: float = 1.0) -> Estimand:
    """Make the estimand: mean log ratio of two curves, the second times a factor."""
    return lambda records: numbers.late_log_ratio(find(records, arm), one, other, factor)


def rise(arm: str) -> Estimand:
    """Make the estimand: log ratio of variances, last measurement to first."""

    def estimand(records: Sequence[Record]) -> float:
        curve = find(records, arm)["curves"]["mid/sg"]
        return math.log(curve[-1] / curve[0])

    return estimand


def change(arm: str) -> Estimand:
    """Make the estimand: log ratio of mean variances, second half to second quarter of a run."""

    def estimand(records: Sequence[Record]) -> float:
        run = find(records, arm)
        return math.log(numbers.second_half(run, "mid/sg") / numbers.second_quarter(run, "mid/sg"))

    return estimand


def drop_effect(data: str) -> Estimand:
    """Make the estimand: log ratio of the second half's variance with the drop to that without."""

    def estimand(records: Sequence[Record]) -> float:
        drop, same = find(records, f"{data}_drop"), find(records, f"{data}_0")
        return math.log(numbers.second_half(drop, "mid/sg") / numbers.second_half(same, "mid/sg"))

    return estimand


# --- random features ------------------------------------------------------------------------------


def cell(arm: str, name: str, one: str, other: str) -> Estimand:
    """Make the estimand: log ratio of two variances of a cell, whose metrics are logarithms."""

    def estimand(records: Sequence[Record]) -> float:
        metrics = find(records, arm)["metrics"]
        first, second = (float(metrics[f"{name}/{which}"]) for which in (one, other))
        return max(numbers.FLOOR, first - second)

    return estimand


def rate_effect(records: Sequence[Record]) -> float:
    """Log ratio of the variance at a tenth of a learning rate to that at it, after equal steps."""
    return -math.log(10) * numbers.rate_slope(find(records, "features_rates"))


def equal_loss_effect(records: Sequence[Record]) -> float:
    """As `rate_effect`, but at equal training loss."""
    return -math.log(10) * numbers.equal_loss_slope(find(records, "features_rates"))


def rank_correlation(which: str, lr: float | None = None) -> Estimand:
    """Make the estimand: Spearman's correlation of a variance with the steps to half the loss.

    Args:
        which: Which variance.
        lr: The learning rate of the runs that count, if not all.
    """
    return lambda records: numbers.rank_correlation(find(records, "features_grid"), which, lr)


# --- samplers and timings -------------------------------------------------------------------------


def cost_ratio(problem: str, sampler: str, other: str) -> Estimand:
    """Make the estimand: log ratio of the examples spent to the target, clustering included."""
    first, second = _cost(problem, sampler), _cost(problem, other)
    return lambda records: math.log(first(records) / second(records))


def drawn_ratio(problem: str, sampler: str, other: str) -> Estimand:
    """Make the estimand: log ratio of the examples drawn until the target, clustering left out."""

    def drawn(name: str) -> Estimand:
        examples, extra = _cost(problem, name), _cost(problem, name, "extra")
        return lambda records: examples(records) - extra(records)

    first, second = drawn(sampler), drawn(other)
    return lambda records: math.log(first(records) / second(records))


def accuracy_gain(problem: str, sampler: str, other: str) -> Estimand:
    """Make the estimand: difference of test accuracy after the whole budget, in points."""
    first, second = (_cost(problem, name, "test/accuracy") for name in (sampler, other))
    return lambda records: 100 * (first(records) - second(records))


def _cost(problem: str, sampler: str, name: str = "examples") -> Estimand:
    """Make the estimand: a metric of the run of a sampler on a problem."""
    if sampler == "random":  # the control is a part of the snooze's record
        return metric(f"speed_{problem}_snooze", f"random/{name}")
    return metric(f"speed_{problem}_{sampler}", name)


def seconds_to_target(problem: str, sampler: str) -> Estimand:
    """Make the estimand: seconds to the target, from its examples and the sampler's own rate.

    The rate comes from 300 updates alone on the machine; a clustering costs what 300 updates with
    the stratified sampler take longer than 300 with the uniform one, per example clustered.
    """

    def estimand(records: Sequence[Record]) -> float:
        times = find(records, "timing_samplers")["metrics"]
        drawn = 300 * 64  # examples in the timed updates
        examples = _cost(problem, sampler)(records)
        if sampler != "stratified":
            return float(times[f"seconds/{sampler}"]) * examples / drawn
        extra = _cost(problem, sampler, "extra")(records)
        per_example = float(times["seconds/uniform"]) / drawn
        clustered = 3 * 10_000 + 64  # in the timed run: three passes, and the first centres
        return per_example * (examples - extra) + extra * (
            max(0.0, float(times["seconds/stratified"]) - per_example * drawn) / clustered
        )

    return estimand


def seconds_ratio(problem: str, sampler: str) -> Estimand:
    """Make the estimand: log ratio of the seconds to the target to those of uniform draws."""
    one, uniform = seconds_to_target(problem, sampler), seconds_to_target(problem, "uniform")
    return lambda records: math.log(one(records) / uniform(records))


def overhead(model: str, what: str, count: int) -> Estimand:
    """Make the estimand: log ratio of the time of clustering a batch to forward and backward.

    ``what`` is ``assign`` or ``pass`` (assign and collect), ``count`` the number of clusters.
    """

    def estimand(records: Sequence[Record]) -> float:
        metrics = find(records, f"timing_{model}")["metrics"]
        return math.log(metrics[f"seconds/{what}/{count}"] / metrics["seconds/plain"])

    return estimand
