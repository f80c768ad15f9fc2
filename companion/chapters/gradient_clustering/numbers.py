"""Numbers of chapter 2's claims that are more than arithmetic: functions of records of one seed.

Log ratios are natural logarithms: below zero the first is smaller. The estimators are ``sg``
(SG-B, the mean of a batch of B uniform draws), ``gc`` (gradient clustering) and ``svrg``. Records
of random features have logarithms of variances, by cell: features per example, learning rate and
width of the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from companion.chapters.gradient_clustering.grids import (
    RATES,
    SWEPT_RATES,
    SWEPT_TAUS,
    TAUS,
    TEACHERS,
)
from companion.lab.records import Record

__all__ = [
    "equal_loss_slope",
    "gc_over_sg",
    "late_log_ratio",
    "rank_correlation",
    "rate_slope",
    "second_half",
    "second_quarter",
    "svrg_over_sg",
    "svrg_slope",
    "teacher_spread",
    "worst_gc_over_sg",
    "worst_svrg_over_sg",
]

FLOOR = -math.log(1000)  # of a log ratio: a variance of zero counts as a thousandth
SWEPT_TEACHER = 2000


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    centre = _mean([x for x, _ in points])
    return math.fsum((x - centre) * y for x, y in points) / math.fsum(
        (x - centre) ** 2 for x, _ in points
    )


# --- variance along ordinary SGD ------------------------------------------------------------------


def late_log_ratio(arm: Record, one: str, other: str, factor: float = 1.0) -> float:
    """Log ratio of a curve to ``factor`` times another, mean after the run's first quarter."""
    late = [arm["curves"][name] for name in (one, other)]
    pairs = zip(*(values[len(values) // 4 :] for values in late), strict=True)
    return _mean([max(FLOOR, math.log(max(a, 1e-300) / (factor * b))) for a, b in pairs])


def second_half(arm: Record, curve: str) -> float:
    """Mean of a curve over the second half of the run."""
    values = arm["curves"][curve]
    return _mean(values[len(values) // 2 :])


def second_quarter(arm: Record, curve: str) -> float:
    """Mean of a curve over the second quarter of the run."""
    values = arm["curves"][curve]
    return _mean(values[len(values) // 4 : len(values) // 2])


# --- random features: slopes on the learning rate -------------------------------------------------


def rate_slope(rates: Record) -> float:
    """Slope of log variance on log learning rate at equal steps, mean over sizes of the data."""
    metrics = rates["metrics"]
    slopes = []
    for tau in SWEPT_TAUS:
        names = {lr: _cell(tau, lr, SWEPT_TEACHER) for lr in SWEPT_RATES}
        slopes.append(_slope([(math.log(lr), metrics[f"{name}/sg"]) for lr, name in names.items()]))
    return _mean(slopes)


def equal_loss_slope(rates: Record) -> float:
    """Slope of log variance on log learning rate at equal training loss, mean over the sizes.

    Every run is read where it first has the loss with which the slowest one ends.
    """
    curves = rates["curves"]
    slopes = []
    for tau in SWEPT_TAUS:
        names = {lr: _cell(tau, lr, SWEPT_TEACHER) for lr in SWEPT_RATES}
        target = max(curves[f"{name}/loss"][-1] for name in names.values())
        points = [(math.log(lr), at_loss(curves, name, target)) for lr, name in names.items()]
        slopes.append(_slope(points))
    return _mean(slopes)


def at_loss(curves: Mapping[str, Sequence[float]], name: str, target: float) -> float:
    """Log variance of a cell where its loss first falls to a target, interpolated in the loss."""
    losses, variances = curves[f"{name}/loss"], curves[f"{name}/sg"]
    after = next(i for i, loss in enumerate(losses) if loss <= target)
    share = 0.0
    if after > 0 and losses[after - 1] > losses[after]:
        share = (losses[after - 1] - target) / (losses[after - 1] - losses[after])
    before = math.log(variances[max(0, after - 1)])
    return before + share * (math.log(variances[after]) - before)


# --- random features: the whole grid --------------------------------------------------------------


def _cell(tau: float, lr: float, teacher: int) -> str:
    return f"{tau:g}/{lr:g}/{teacher}"  # as `features.cell_name`, which would load PyTorch


def _values(grid: Record, name: str) -> dict[tuple[float, float, int], float]:
    """A metric of the cells of the whole grid, by features per example, rate and teacher."""
    metrics = grid["metrics"]
    cells = [(tau, lr, h) for tau in TAUS for lr in RATES for h in TEACHERS]
    return {cell: float(metrics[f"{_cell(*cell)}/{name}"]) for cell in cells}


def _over_sg(grid: Record, name: str) -> dict[tuple[float, float, int], float]:
    sg = _values(grid, "sg")
    return {cell: value - sg[cell] for cell, value in _values(grid, name).items()}


def gc_over_sg(grid: Record) -> float:
    """Log ratio of GC to SG-B, mean over the grid."""
    return _mean([max(FLOOR, ratio) for ratio in _over_sg(grid, "gc").values()])


def worst_gc_over_sg(grid: Record) -> float:
    """Log ratio of GC to SG-B, largest of the grid."""
    return max(FLOOR, *_over_sg(grid, "gc").values())


def svrg_over_sg(grid: Record, tau: float) -> float:
    """Log ratio of SVRG to SG-B, mean over the cells with ``tau`` features per example."""
    return _mean([ratio for (t, _, _), ratio in _over_sg(grid, "svrg").items() if t == tau])


def worst_svrg_over_sg(grid: Record, lr: float) -> float:
    """Log ratio of SVRG to SG-B, largest of the cells with this learning rate."""
    return max(ratio for (_, rate, _), ratio in _over_sg(grid, "svrg").items() if rate == lr)


def svrg_slope(grid: Record) -> float:
    """Slope of the log ratio of SVRG to SG-B on the log of the features per example."""
    return _slope([(math.log(t), ratio) for (t, _, _), ratio in _over_sg(grid, "svrg").items()])


def teacher_spread(grid: Record) -> float:
    """Mean distance of log variance between the two teachers in the same cell."""
    values, (one, other) = _values(grid, "sg"), TEACHERS
    return _mean([abs(values[t, lr, one] - values[t, lr, other]) for t in TAUS for lr in RATES])


def rank_correlation(grid: Record, name: str, lr: float | None = None) -> float:
    """Spearman's correlation over the grid of a variance with the steps to half of the loss.

    Args:
        grid: The record of the grid.
        name: Which variance.
        lr: The learning rate of the cells that count, if not all.
    """
    both = [_values(grid, what).items() for what in (name, "half")]
    selected = [[v for (_, rate, _), v in cells if lr in (None, rate)] for cells in both]
    one, other = map(_centred_ranks, selected)
    size = math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
    products = sum(a * b for a, b in zip(one, other, strict=True))
    return products / size if size else math.nan


def _centred_ranks(values: Sequence[float]) -> list[int]:
    """Twice the distance of each rank from the mean rank; ties share the mean of their ranks."""
    return [sum(v < value for v in values) - sum(v > value for v in values) for value in values]
