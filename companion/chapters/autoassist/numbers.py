"""Numbers of chapter 3's claims that are more than arithmetic: functions of records of one seed."""

from __future__ import annotations

import math

from companion.lab.records import Record

__all__ = ["mean_auc", "saved_until_equal"]


def mean_auc(arm: Record, curve: str) -> float:
    """Mean of a curve of AUCs over the probes; 0.5 where a run was too short to judge a guess."""
    values = arm["curves"][curve]
    return math.fsum(values) / len(values) if values else 0.5


def saved_until_equal(method: Record, baseline: Record, spent: str) -> float:
    """Log ratio of what a baseline and a method spend until the lowest loss that both reach.

    Both reach it, so neither has to count with its whole budget.

    Args:
        method: Record of a run, with the curves ``val_loss`` and ``spent``.
        baseline: Record of another run, with the same curves.
        spent: Curve of what was spent until each evaluation, increasing.

    Returns:
        Above zero if the method spends less.
    """
    common = max(min(arm["curves"]["val_loss"]) for arm in (method, baseline))
    return math.log(_spent_until(baseline, spent, common) / _spent_until(method, spent, common))


def _spent_until(arm: Record, spent: str, loss: float) -> float:
    """What was spent when the loss first was this low, linearly between two evaluations."""
    points = list(zip(arm["curves"][spent], arm["curves"]["val_loss"], strict=True))
    number = next(number for number, (_, value) in enumerate(points) if value <= loss)
    now, low = points[number]
    if number == 0:
        return float(now)
    before, high = points[number - 1]
    return float(before + (now - before) * (high - loss) / (high - low))
