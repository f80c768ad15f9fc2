"""What tables and figures of chapter 3 show: functions from all records of one seed to one number.

Comparisons of work, of gaps and of seconds are natural logarithms of ratios: below zero the first
is smaller. The numbers of the claims stand in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from companion.chapters.autoassist.arms import CLEAN
from companion.chapters.autoassist.numbers import mean_auc
from companion.lab.records import Estimand, Record, find, metric

__all__ = [
    "DATA",
    "accuracy_gain",
    "auc",
    "cost_ratio",
    "log_ratio",
    "metric",
    "reached",
    "seconds_ratio",
    "translation_auc",
    "translation_gain",
]

DATA = ["breast_cancer", "digits", "fashion"]  # of the linear SVMs


def log_ratio(arm: str, one: str, other: str) -> Estimand:
    """Make the estimand: log ratio of two metrics of an arm."""
    first, second = metric(arm, one), metric(arm, other)
    return lambda records: math.log(first(records) / second(records))


def _metric_of(group: str, sampler: str, name: str) -> Estimand:
    """Make the estimand: a metric of the run with a sampler, in a group of arms."""
    if sampler == "random":  # the control is a part of the Assistant's record
        return metric(f"{group}_assist", f"random/{name}")
    return metric(f"{group}_{sampler}", name)


# --- pictures -------------------------------------------------------------------------------------


def cost_ratio(problem: str, one: str, other: str, what: str = "examples") -> Estimand:
    """Make the estimand: log ratio of what two arms spend until the target accuracy.

    ``what`` is ``examples`` that the Boss trains on, ``work`` in forward passes of the Boss with
    all that the method adds, or ``scanned`` examples.
    """
    first, second = (_metric_of(f"images_{problem}", sampler, what) for sampler in (one, other))
    return lambda records: math.log(first(records) / second(records))


def accuracy_gain(problem: str, one: str, other: str, name: str = "test/accuracy") -> Estimand:
    """Make the estimand: difference of test accuracy, or of another share, in points."""
    first, second = (_metric_of(f"images_{problem}", sampler, name) for sampler in (one, other))
    return lambda records: 100 * (first(records) - second(records))


def auc(problem: str, guesser: str = "r") -> Estimand:
    """Make the estimand: AUC for being above the mean loss a pass later, mean over the probes."""
    return lambda records: mean_auc(find(records, f"images_{problem}_assist"), f"auc/{guesser}")


def reached(problem: str, sampler: str) -> Callable[[Sequence[Record]], bool]:
    """Make the function that says whether the run reached the target, for tables of counts."""
    is_reached = _metric_of(f"images_{problem}", sampler, "reached")
    return lambda records: is_reached(records) > 0


def _seconds_to_target(sampler: str) -> Estimand:
    """Seconds to the target, from its examples and the timed updates."""
    examples = _metric_of("images_0", sampler, "examples")
    timed = metric("timing", f"seconds/{'uniform' if sampler == 'random' else sampler}")
    return lambda records: examples(records) / CLEAN.batch * timed(records)


def seconds_ratio(one: str, other: str) -> Estimand:
    """Make the estimand: log ratio of the seconds to the target."""
    first, second = _seconds_to_target(one), _seconds_to_target(other)
    return lambda records: math.log(first(records) / second(records))


# --- translation ----------------------------------------------------------------------------------


def translation_gain(sampler: str, name: str) -> Estimand:
    """Make the estimand: a metric of a sampler's translation minus that of uniform draws."""
    first, second = (_metric_of("translation", each, name) for each in (sampler, "uniform"))
    return lambda records: first(records) - second(records)


def translation_auc(records: Sequence[Record]) -> float:
    """AUC for sentences above the mean loss a pass later, mean over the probes."""
    return mean_auc(find(records, "translation_assist"), "auc")
