"""Estimands of chapter 1: functions from all records of one seed to one number.

Recalls and their differences are in percentage points of the test part; *mean* ones average
picture-to-caption and caption-to-picture retrieval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from companion.experiments.records import Estimand, Record, find, metric

__all__ = [
    "CATEGORIES",
    "ESTIMANDS",
    "chosen_loss",
    "chosen_over_ridge",
    "collapse",
    "concept_differences",
    "difference",
    "mean_length",
    "met_plateau",
    "metric_of",
    "recall",
    "step_slowdown",
]

DIRECTIONS = ("i2t", "t2i")
EARLY = 0.05  # share of the longer run's epochs
LAST = 5  # epochs averaged at the end
FULL_SET = "all"
CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)


def metric_of(arm: str, name: str) -> Estimand:
    """Make the estimand: one test metric of an arm, say ``"i2t/r1"``."""
    return metric(arm, f"test/{name}")


def met_plateau(arm: str) -> Estimand:
    """Make the estimand: whether the run of an arm met its plateau rule."""
    return lambda records: bool(find(records, arm)["plateau"])


def mean_length(arm: str) -> Estimand:
    """Make the estimand: length of the mean picture embedding at the end of training."""
    return metric(arm, "final_norm")


def recall(records: Sequence[Record], arm: str, metric: str = "r1") -> float:
    """A test metric averaged over both directions."""
    metrics = find(records, arm)["metrics"]
    return float(sum(metrics[f"test/{d}/{metric}"] for d in DIRECTIONS) / 2)


def difference(arm: str, other: str, name: str) -> Estimand:
    """Make the estimand: a test metric of one arm minus that of another."""
    first, second = metric_of(arm, name), metric_of(other, name)
    return lambda records: first(records) - second(records)


def _loss_effect(records: Sequence[Record], prefix: str, metric: str = "r1") -> float:
    return recall(records, f"{prefix}_max", metric) - recall(records, f"{prefix}_sum", metric)


# --- vse.3: who leads when -----------------------------------------------------------------------


def _lead(split: str, *, early: bool) -> Estimand:
    """Validation R@1 of the maximum minus that of the sum, early or at the end of each run."""

    def estimand(records: Sequence[Record]) -> float:
        curves = [find(records, f"{split}_{loss}")["curves"] for loss in ("max", "sum")]
        if not early:
            ends = [c["val/r1"][-LAST:] for c in curves]
            return math.fsum(ends[0]) / len(ends[0]) - math.fsum(ends[1]) / len(ends[1])
        moment = math.ceil(EARLY * max(c["epoch"][-1] for c in curves))
        there = [
            next(v for e, v in zip(c["epoch"], c["val/r1"], strict=True) if e >= moment)
            for c in curves
        ]
        return float(there[0] - there[1])

    return estimand


# --- vse.8: loss or normalisation ----------------------------------------------------------------


def _norm_effect(split: str) -> Estimand:
    """What unit pictures add to the sum of hinges."""
    return lambda records: recall(records, f"{split}_sum") - recall(records, f"{split}_product_sum")


def _loss_over_norm(split: str) -> Estimand:
    """Main effect of the loss minus main effect of the normalisation in the 2x2 design."""

    def estimand(records: Sequence[Record]) -> float:
        plain = {loss: recall(records, f"{split}_{loss}") for loss in ("sum", "max")}
        product = {loss: recall(records, f"{split}_product_{loss}") for loss in ("sum", "max")}
        loss = (plain["max"] - plain["sum"] + product["max"] - product["sum"]) / 2
        norm = (plain["max"] - product["max"] + plain["sum"] - product["sum"]) / 2
        return loss - norm

    return estimand


# --- vse.9: mean rank -----------------------------------------------------------------------------


def _rank_ratio(split: str) -> Estimand:
    """Log ratio of mean ranks, maximum over sum; above zero the maximum ranks worse."""
    return lambda records: math.log(
        recall(records, f"{split}_max", "mean_r") / recall(records, f"{split}_sum", "mean_r")
    )


def _mean_gain(split: str) -> Estimand:
    return lambda records: _loss_effect(records, split)


# --- extended ------------------------------------------------------------------------------------


def crop_gain(records: Sequence[Record]) -> float:
    """What crops add to the gain of the maximum (vse.2)."""
    return _loss_effect(records, "vendor") - _loss_effect(records, "vendor_fixed")


def _warmup(epochs: int) -> Estimand:
    return lambda records: (
        recall(records, f"vendor_warmup_{epochs}") - recall(records, "vendor_max")
    )


def _by_size(records: Sequence[Record], loss: str) -> dict[str, float]:
    found = {str(n): recall(records, f"vendor_negatives_{n}_{loss}") for n in (2, 8, 32)}
    return found | {FULL_SET: recall(records, f"vendor_{loss}")}


def negatives_trend(records: Sequence[Record]) -> float:
    """What all negatives of the batch add to two, for the maximum (vse.5)."""
    found = _by_size(records, "max")
    return found[FULL_SET] - found["2"]


def negatives_saturation(records: Sequence[Record]) -> float:
    """Gain from two to eight negatives minus gain from 32 to all, for the maximum."""
    found = _by_size(records, "max")
    return (found["8"] - found["2"]) - (found[FULL_SET] - found["32"])


def negatives_steeper(records: Sequence[Record]) -> float:
    """Trend of the maximum minus trend of the sum."""
    found = _by_size(records, "sum")
    return negatives_trend(records) - (found[FULL_SET] - found["2"])


# --- vse.6: time ----------------------------------------------------------------------------------


def _time_ratio(size: int) -> Estimand:
    """Log ratio of the seconds of forward and backward, maximum over sum, in one block."""

    def estimand(records: Sequence[Record]) -> float:
        metrics = find(records, "timing")["metrics"]
        return math.log(metrics[f"max/B={size}/d=1024"] / metrics[f"sum/B={size}/d=1024"])

    return estimand


def step_slowdown(records: Sequence[Record]) -> float:
    """By how many per cent a whole training step is slower with the maximum, in one block."""
    metrics = find(records, "timing")["metrics"]
    return float(100 * (metrics["step/max"] / metrics["step/sum"] - 1))


# --- collapse, outside the claims -----------------------------------------------------------------


def collapse(arm: str, margin: float = 0.2) -> dict[str, Estimand]:
    """Make the columns that show whether an arm collapsed.

    Loss of a pair at the end over twice the margin (collapsed: one for the maximum, the number of
    negatives for the sum), length of the mean picture embedding there (collapsed: one), test R@1
    of the best validation epoch, and whether the plateau rule was met.
    """
    return {
        "loss / 2 margins": lambda records: float(
            find(records, arm)["metrics"]["final_loss"] / (2 * margin)
        ),
        "mean picture": mean_length(arm),
        "R@1 i2t": metric_of(arm, "i2t/r1"),
        "R@1 t2i": metric_of(arm, "t2i/r1"),
        "met the plateau rule": met_plateau(arm),
    }


# --- ridge ----------------------------------------------------------------------------------------


def chosen_loss(records: Sequence[Record]) -> str:
    """The loss whose run has the higher validation rsum on new concepts."""
    values = {
        loss: find(records, f"family_{loss}")["metrics"]["val/rsum"] for loss in ("sum", "max")
    }
    return max(values, key=lambda loss: values[loss])


def chosen_over_ridge(name: str) -> Estimand:
    """Make the estimand: a test metric of the loss chosen on validation minus the ridge's."""
    return lambda records: difference(f"family_{chosen_loss(records)}", "family_ridge", name)(
        records
    )


def concept_differences(
    records: Sequence[Record], direction: str, tested: Callable[[int], Sequence[int]]
) -> list[float]:
    """R@1 of the chosen loss minus the ridge's, in points, one value a test concept.

    Args:
        records: All records of the chapter.
        direction: ``i2t`` or ``t2i``.
        tested: Concepts of a seed's test part, in the order of the records' digits.
    """
    right: dict[int, list[float]] = {}
    for seed in sorted({record["seed"] for record in records if record["arm"] == "family_ridge"}):
        group = [record for record in records if record["seed"] == seed]
        chosen, ridge = find(group, f"family_{chosen_loss(group)}"), find(group, "family_ridge")
        digits = zip(
            tested(seed),
            chosen["hits"][direction],
            ridge["hits"][direction],
            chosen["galleries"],
            strict=True,
        )
        for concept, ours, theirs, count in digits:
            if int(count):
                difference = 100 * (int(ours) - int(theirs)) / int(count)
                right.setdefault(concept, []).append(difference)
    return [math.fsum(values) / len(values) for _, values in sorted(right.items())]


ESTIMANDS: dict[str, Estimand] = {
    "crop_gain": crop_gain,
    "warmup_1_gain": _warmup(1),
    "warmup_5_gain": _warmup(5),
    "negatives_trend": negatives_trend,
    "negatives_saturation": negatives_saturation,
    "negatives_steeper": negatives_steeper,
    "time_128": _time_ratio(128),
    "time_1024": _time_ratio(1024),
}
for _direction in DIRECTIONS:
    ESTIMANDS[f"order_{_direction}_gain"] = difference(
        "family_order_max", "family_order_sum", f"{_direction}/r1"
    )
for _split in ("family", "vendor"):
    for _direction in DIRECTIONS:
        ESTIMANDS[f"{_split}_{_direction}_gain"] = difference(
            f"{_split}_max", f"{_split}_sum", f"{_direction}/r1"
        )
    ESTIMANDS |= {
        f"{_split}_early_lead": _lead(_split, early=True),
        f"{_split}_final_lead": _lead(_split, early=False),
        f"{_split}_norm_effect": _norm_effect(_split),
        f"{_split}_loss_over_norm": _loss_over_norm(_split),
        f"{_split}_mean_gain": _mean_gain(_split),
        f"{_split}_rank_ratio": _rank_ratio(_split),
    }
