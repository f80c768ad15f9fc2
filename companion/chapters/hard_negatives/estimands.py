"""What tables and figures of chapter 1 show: functions from all records of one seed to one number.

Recalls and their differences are in percentage points of the test part. The numbers of the claims
stand in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from companion.chapters.hard_negatives import numbers
from companion.lab.records import Estimand, Record, find, metric

__all__ = [
    "CATEGORIES",
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


def recall(records: Sequence[Record], arm: str) -> float:
    """R@1 of an arm averaged over both directions."""
    return numbers.recall(find(records, arm))


def difference(arm: str, other: str, name: str) -> Estimand:
    """Make the estimand: a test metric of one arm minus that of another."""
    first, second = metric_of(arm, name), metric_of(other, name)
    return lambda records: first(records) - second(records)


def step_slowdown(records: Sequence[Record]) -> float:
    """By how many per cent a whole training step is slower with the maximum, in one block."""
    metrics = find(records, "timing")["metrics"]
    return float(100 * (metrics["step/max"] / metrics["step/sum"] - 1))


# --- collapse, outside the claims -----------------------------------------------------------------


def collapse(arm: str, margin: float = 0.2) -> dict[str, Estimand]:
    """Make the columns that show whether an arm collapsed: gave all pictures one embedding.

    They are the loss of a pair at the end over twice the margin (after a collapse 1 for the
    maximum, the number of negatives for the sum), the length of the mean picture embedding at the
    end (1 after a collapse), test R@1 of the best validation epoch, and whether the plateau rule
    was met.
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
    """R@1 of the chosen loss minus that of the ridge regression, in points, by test concept.

    Args:
        records: All records of the chapter.
        direction: ``i2t`` or ``t2i``.
        tested: Concepts of a seed's test part, in the order of the records' digits.
    """
    differences: dict[int, list[float]] = {}
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
                differences.setdefault(concept, []).append(difference)
    return [math.fsum(values) / len(values) for _, values in sorted(differences.items())]
