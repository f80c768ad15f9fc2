"""Estimands of chapter 2: functions from all records of one seed to one number.

Comparisons of variances and of costs are natural logarithms of ratios: below zero the first is
smaller. Along a run they are means over the measurements after its first quarter, half-way between
two clusterings unless another age is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.stats import spearmanr

from companion.experiments.ch02.arms import EXTENDED, GRIDS, HEADLINE
from companion.experiments.ch02.features import cell_name
from companion.experiments.records import Estimand, Record, find, metric

__all__ = [
    "ESTIMANDS",
    "FLOOR",
    "accuracy_gain",
    "at_loss",
    "cell",
    "cost_ratio",
    "drawn_ratio",
    "late",
    "metric",
    "rank_correlation",
    "seconds_to_target",
    "variance_ratio",
]

FLOOR = -math.log(1000)  # of a log ratio: a variance of zero counts as a thousandth
TAUS, RATES = GRIDS["features_grid"][0]["taus"], GRIDS["features_grid"][0]["lrs"]
TEACHERS = GRIDS["features_grid"][0]["teachers"]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    centre = _mean([x for x, _ in points])
    return math.fsum((x - centre) * y for x, y in points) / math.fsum(
        (x - centre) ** 2 for x, _ in points
    )


# --- variance along ordinary SGD ------------------------------------------------------------------


def late(values: Sequence[float]) -> Sequence[float]:
    """The measurements after the first quarter."""
    return values[len(values) // 4 :]


def variance_ratio(arm: str, one: str, other: str, factor: float = 1.0) -> Estimand:
    """Make the estimand: mean log ratio of two curves, the second times a factor."""

    def estimand(records: Sequence[Record]) -> float:
        curves = find(records, arm)["curves"]
        pairs = zip(late(curves[one]), late(curves[other]), strict=True)
        return _mean([max(FLOOR, math.log(max(a, 1e-300) / (factor * b))) for a, b in pairs])

    return estimand


def copies_effect(data: str) -> Estimand:
    """Make the estimand: log of GC over SG-B with 90 % copies minus the same without."""
    with_copies = variance_ratio(f"{data}_90", "mid/gc", "mid/sg")
    without = variance_ratio(f"{data}_0", "mid/gc", "mid/sg")
    return lambda records: with_copies(records) - without(records)


def change(arm: str, name: str = "mid/sg") -> Estimand:
    """Make the estimand: log ratio of mean variances, second half to second quarter of a run."""

    def estimand(records: Sequence[Record]) -> float:
        values = find(records, arm)["curves"][name]
        half = len(values) // 2
        return math.log(_mean(values[half:]) / _mean(values[len(values) // 4 : half]))

    return estimand


def drop_effect(data: str) -> Estimand:
    """Make the estimand: log ratio of the second half's variance with the drop to that without."""

    def estimand(records: Sequence[Record]) -> float:
        halves = []
        for arm in (f"{data}_drop", f"{data}_0"):
            values = find(records, arm)["curves"]["mid/sg"]
            halves.append(_mean(values[len(values) // 2 :]))
        return math.log(halves[0] / halves[1])

    return estimand


# --- random features ------------------------------------------------------------------------------


def cell(arm: str, name: str, one: str, other: str, shift: float = 0.0) -> Estimand:
    """Make the estimand: difference of two logarithms of a cell."""

    def estimand(records: Sequence[Record]) -> float:
        found = find(records, arm)["metrics"]
        difference = float(found[f"{name}/{one}"]) - float(found[f"{name}/{other}"])
        return max(FLOOR, difference) + shift

    return estimand


def at_loss(curves: Mapping[str, Sequence[float]], name: str, target: float) -> float:
    """Log variance of a cell where its loss first falls to a target, interpolated in the loss."""
    losses, variances = curves[f"{name}/loss"], curves[f"{name}/sg"]
    after = next(i for i, loss in enumerate(losses) if loss <= target)
    share = 0.0
    if after > 0 and losses[after - 1] > losses[after]:
        share = (losses[after - 1] - target) / (losses[after - 1] - losses[after])
    before = math.log(variances[max(0, after - 1)])
    return before + share * (math.log(variances[after]) - before)


def rate_slope(records: Sequence[Record]) -> float:
    """Slope of log variance on log learning rate at equal steps, mean over the numbers of data."""
    settings = GRIDS["features_rates"][0]
    found = find(records, "features_rates")["metrics"]
    slopes = []
    for tau in settings["taus"]:
        lrs = settings["lrs"]
        points = [(math.log(lr), found[f"{cell_name(tau, lr, 2000)}/sg"]) for lr in lrs]
        slopes.append(_slope(points))
    return _mean(slopes)


def equal_loss_slope(records: Sequence[Record]) -> float:
    """The same slope where each run first has the training loss that the slowest one ends with."""
    settings = GRIDS["features_rates"][0]
    curves = find(records, "features_rates")["curves"]
    slopes = []
    for tau in settings["taus"]:
        names = {lr: cell_name(tau, lr, 2000) for lr in settings["lrs"]}
        target = max(curves[f"{name}/loss"][-1] for name in names.values())
        points = [(math.log(lr), at_loss(curves, name, target)) for lr, name in names.items()]
        slopes.append(_slope(points))
    return _mean(slopes)


def _cells(records: Sequence[Record]) -> list[tuple[float, float, int, dict[str, float]]]:
    found = find(records, "features_grid")["metrics"]
    names = ("sg", "gc", "svrg", "norm", "norm_plugin", "half")
    return [
        (t, lr, h, {name: found[f"{cell_name(t, lr, h)}/{name}"] for name in names})
        for t in TAUS
        for lr in RATES
        for h in TEACHERS
    ]


def teacher_share(records: Sequence[Record]) -> float:
    """Share of the variance of log variance over the grid that the teacher's width explains."""
    values: dict[int, list[float]] = {h: [] for h in TEACHERS}
    for _, _, h, found in _cells(records):
        values[h].append(found["sg"])
    everything = [v for of in values.values() for v in of]
    centre = _mean(everything)
    between = _mean([(_mean(of) - centre) ** 2 for of in values.values()])
    return between / _mean([(v - centre) ** 2 for v in everything])


def teacher_spread(records: Sequence[Record]) -> float:
    """Mean distance of log variance between the two teachers in the same cell."""
    found = {(t, lr, h): of["sg"] for t, lr, h, of in _cells(records)}
    one, other = TEACHERS
    return _mean([abs(found[t, lr, one] - found[t, lr, other]) for t in TAUS for lr in RATES])


def grid_ratio(one: str, other: str, *, worst: bool = False, shift: float = 0.0) -> Estimand:
    """Make the estimand: mean, or largest, log ratio of two variances over the grid."""

    def estimand(records: Sequence[Record]) -> float:
        values = [max(FLOOR, found[one] - found[other]) for _, _, _, found in _cells(records)]
        return (max(values) if worst else _mean(values)) + shift

    return estimand


def svrg_at(
    taus: Sequence[float], lrs: Sequence[float] = RATES, *, worst: bool = False
) -> Estimand:
    """Make the estimand: mean, or largest, log of SVRG over SG-B in some cells."""

    def estimand(records: Sequence[Record]) -> float:
        values = [
            found["svrg"] - found["sg"]
            for t, lr, _, found in _cells(records)
            if t in taus and lr in lrs
        ]
        return max(values) if worst else _mean(values)

    return estimand


def svrg_slope(records: Sequence[Record]) -> float:
    """Slope of log of SVRG over SG-B on log tau: above zero, the gain shrinks with width."""
    return _slope(
        [(math.log(t), found["svrg"] - found["sg"]) for t, _, _, found in _cells(records)]
    )


def convergence(which: str) -> Estimand:
    """Make the estimand: how much better a normalised variance orders the runs' speed than the raw.

    The size of Spearman's correlation with the steps until the loss has halved, minus the same of
    the raw variance, over the grid.
    """

    return lambda records: (
        abs(rank_correlation(which)(records)) - abs(rank_correlation("sg")(records))
    )


def rank_correlation(which: str) -> Estimand:
    """Make the estimand: Spearman's correlation of a variance with the steps to half the loss."""

    def estimand(records: Sequence[Record]) -> float:
        cells = [found for _, _, _, found in _cells(records)]
        values, steps = [found[which] for found in cells], [found["half"] for found in cells]
        return float(spearmanr(values, steps).statistic)

    return estimand


# --- samplers and timings -------------------------------------------------------------------------


def cost_ratio(problem: str, sampler: str, other: str) -> Estimand:
    """Make the estimand: log ratio of the examples to the target, passes of clustering included."""
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
        drawn = 300 * 64
        examples = _cost(problem, sampler)(records)
        if sampler != "stratified":
            return float(times[f"seconds/{sampler}"]) * examples / drawn
        extra = _cost(problem, sampler, "extra")(records)
        each = float(times["seconds/uniform"]) / drawn
        clustered = 3 * 10_000 + 64  # in the timed run
        return each * (examples - extra) + extra * (
            max(0.0, float(times["seconds/stratified"]) - each * drawn) / clustered
        )

    return estimand


def seconds_ratio(problem: str, sampler: str) -> Estimand:
    """Make the estimand: log ratio of the seconds to the target to those of uniform draws."""
    one, uniform = seconds_to_target(problem, sampler), seconds_to_target(problem, "uniform")
    return lambda records: math.log(one(records) / uniform(records))


def overhead(model: str, what: str, count: int) -> Estimand:
    """Make the estimand: log ratio of clustering a batch to its forward and backward pass."""

    def estimand(records: Sequence[Record]) -> float:
        found = find(records, f"timing_{model}")["metrics"]
        return math.log(found[f"seconds/{what}/{count}"] / found["seconds/plain"])

    return estimand


ESTIMANDS: dict[str, Estimand] = {
    "mean_error": metric("enumeration", "mean_error"),
    "variance_error": metric("enumeration", "variance_error"),
    "optimum_error": metric("enumeration", "optimum_error"),
    "rate_slope": rate_slope,
    "equal_loss_slope": equal_loss_slope,
    "teacher_share": teacher_share,
    "teacher_spread": teacher_spread,
    "features_gc_over_sg": grid_ratio("gc", "sg"),
    "features_gc_over_sg2": grid_ratio("gc", "sg", shift=math.log(2)),
    "features_gc_worst": grid_ratio("gc", "sg", worst=True),
    "svrg_few_features": svrg_at((0.1,)),
    "svrg_many_features": svrg_at((10.0,)),
    "svrg_slope": svrg_slope,
    "svrg_worst": svrg_at(TAUS, (0.1,), worst=True),
    "norm_convergence": convergence("norm"),
    "norm_plugin_convergence": convergence("norm_plugin"),
    "features_copies_gc_over_sg": cell("features_copies", "2/0.01/2000/0.9", "gc", "sg"),
    "features_copies_gc_over_svrg": cell("features_copies", "2/0.01/2000/0.9", "gc", "svrg"),
}
for _data in ("digits_mlp", "fashion_mlp", "fashion_cnn"):
    for _name in ("0", "50", "90", "noise", "drop", "augment", "90_augment"):
        _arm = f"{_data}_{_name}"
        if _arm not in HEADLINE | EXTENDED:
            continue
        ESTIMANDS[f"{_arm}_gc_over_sg"] = variance_ratio(_arm, "mid/gc", "mid/sg")
        ESTIMANDS[f"{_arm}_gc_over_sg2"] = variance_ratio(_arm, "mid/gc", "mid/sg", 0.5)
        ESTIMANDS[f"{_arm}_fresh_gc_over_sg"] = variance_ratio(_arm, "fresh/gc", "fresh/sg")
        ESTIMANDS[f"{_arm}_old_gc_over_sg"] = variance_ratio(_arm, "old/gc", "old/sg")
        if _arm.endswith("augment"):
            ESTIMANDS[f"{_arm}_still_gc_over_sg"] = variance_ratio(_arm, "still/gc", "still/sg")
        ESTIMANDS[f"{_arm}_svrg_over_sg"] = variance_ratio(_arm, "mid/svrg", "mid/sg")
        ESTIMANDS[f"{_arm}_gc_over_svrg"] = variance_ratio(_arm, "mid/gc", "mid/svrg")
        ESTIMANDS[f"{_arm}_change"] = change(_arm)
    if f"{_data}_90" in HEADLINE:
        ESTIMANDS[f"{_data}_copies_effect"] = copies_effect(_data)
    ESTIMANDS[f"{_data}_drop_effect"] = drop_effect(_data)
    for _name in ("svd", "full", "plain", "frozen", "exact", "random"):
        ESTIMANDS[f"{_data}_means_over_{_name}"] = variance_ratio(
            f"{_data}_variants", "variant/means", f"variant/{_name}"
        )
for _problem in ("0", "50", "90", "noise"):
    for _sampler in ("snooze", "random", "reweighted", "stratified"):
        if _problem == "noise" and _sampler in ("reweighted", "stratified"):
            continue
        ESTIMANDS[f"speed_{_problem}_{_sampler}"] = cost_ratio(_problem, _sampler, "uniform")
        ESTIMANDS[f"seconds_{_problem}_{_sampler}"] = seconds_ratio(_problem, _sampler)
    ESTIMANDS[f"speed_{_problem}_snooze_over_random"] = cost_ratio(_problem, "snooze", "random")
for _model in ("mlp", "resnet8"):
    for _count in (32, 128):
        ESTIMANDS[f"{_model}_assign_{_count}"] = overhead(_model, "assign", _count)
        ESTIMANDS[f"{_model}_pass_{_count}"] = overhead(_model, "pass", _count)
