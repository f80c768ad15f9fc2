"""Estimands of chapter 4: functions from all records of one seed to one number.

Ratios are natural logarithms of an arm over random reshuffling with the same seed: below zero the
arm is quicker. A run that never reached its target counts with its full budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from companion.experiments.records import Estimand, Record, find, metric

__all__ = [
    "ESTIMANDS",
    "POSITIONS",
    "accuracy_gain",
    "cost_ratio",
    "metric",
    "ranked",
    "share",
]

POSITIONS = 6
ORDERS, LATER = "orders_cnn_bn", "epochs_cnn_bn"
ONE_PICTURE = 100 / 138  # the finest difference of validation accuracy in the exhaustive study


# --- every order: ord.1 to ord.5 ------------------------------------------------------------------


def spread(records: Sequence[Record]) -> float:
    """Best minus worst validation accuracy of the 720 orders of the first epoch, points."""
    found = find(records, ORDERS)["metrics"]
    return float(found["val_accuracy/max"] - found["val_accuracy/min"])


def range_decay(records: Sequence[Record]) -> float:
    """Log ratio of that spread in the last epoch replayed, mean over start states, to the first."""
    found = find(records, LATER)["curves"]["range"]
    return math.log(max(found[-1], ONE_PICTURE) / found[0])


def persistence(records: Sequence[Record]) -> float:
    """Correlation of a state's loss with the mean loss an epoch later, mean over the epochs."""
    found = find(records, LATER)["curves"]["persistence"]
    return math.fsum(found) / len(found)


def share(arm: str, place: str, what: str = "accuracy") -> Estimand:
    """Make the estimand: share of variance over orders, of a position or a control."""
    return metric(arm, f"share/{what}/{place}")


def last_lead(arm: str) -> Estimand:
    """Make the estimand: log ratio of the last position's share to the largest other one."""

    def estimand(records: Sequence[Record]) -> float:
        shares = [share(arm, str(p))(records) for p in range(1, POSITIONS + 1)]
        return math.log(shares[-1] / max(shares[:-1]))

    return estimand


def ranked(arm: str, score: str, what: str = "loss") -> Estimand:
    """Make the estimand: percentile of a greedy order among the 720, 0 the best, chance 50."""
    return metric(arm, f"rank/{score}/{what}")


# --- trained arms: ord.6 to ord.12 ----------------------------------------------------------------


def cost_ratio(arm: str, other: str, cost: str = "steps") -> Estimand:
    """Make the estimand: log ratio of ``steps`` or ``forwards`` to the target."""

    def estimand(records: Sequence[Record]) -> float:
        costs = [find(records, name)["metrics"][f"{cost}_to_target"] for name in (arm, other)]
        return math.log(costs[0] / costs[1])

    return estimand


def seconds_ratio(data: str, order: str) -> Estimand:
    """Make the estimand: log ratio of seconds to the target, timed in turn."""

    def estimand(records: Sequence[Record]) -> float:
        found = find(records, f"timing_{data}")["metrics"]
        return math.log(found[f"seconds/{order}"] / found["seconds/random"])

    return estimand


def accuracy_gain(arm: str, other: str) -> Estimand:
    """Make the estimand: difference of test accuracy in points."""
    first, second = metric(arm, "test/accuracy", 100), metric(other, "test/accuracy", 100)
    return lambda records: first(records) - second(records)


def attempts_slope(score: str) -> Estimand:
    """Make the estimand: slope of log steps to the target on log2 of the candidates, 1 to 16."""
    arms = {1: "digits_random", 8: f"digits_{score}"}
    arms |= {count: f"digits_{score}_{count}" for count in (2, 4, 16)}

    def estimand(records: Sequence[Record]) -> float:
        points = [
            (math.log2(count), math.log(find(records, arm)["metrics"]["steps_to_target"]))
            for count, arm in arms.items()
        ]
        centre = math.fsum(x for x, _ in points) / len(points)
        return math.fsum((x - centre) * y for x, y in points) / math.fsum(
            (x - centre) ** 2 for x, _ in points
        )

    return estimand


SCORES, DATA = ("min_loss", "delta_abs", "delta_target"), ("digits", "fashion_mnist")
LISTS = {"reshuffling": "random", "random_list": "random_list"}

ESTIMANDS: dict[str, Estimand] = {
    "spread": spread,
    "range_decay": range_decay,
    "persistence": persistence,
    "repeat": metric(LATER, "repeat"),
    "last_share": share(ORDERS, str(POSITIONS)),
    "last_lead": last_lead(ORDERS),
    "mlp_005_last_share": share("orders_mlp_lr005", str(POSITIONS)),
    "mlp_01_last_share": share("orders_mlp_lr010", str(POSITIONS)),
    "mlp_02_last_share": share("orders_mlp_lr020", str(POSITIONS)),
}
for _score in SCORES:
    ESTIMANDS[f"{_score}_rank"] = ranked(ORDERS, _score)
    ESTIMANDS[f"{_score}_rank_mlp"] = ranked("orders_mlp_lr020", _score)
    ESTIMANDS[f"{_score}_slope"] = attempts_slope(_score)
    for _data in DATA:
        _arm, _base = f"{_data}_{_score}", f"{_data}_random"
        ESTIMANDS[f"{_arm}_steps"] = cost_ratio(_arm, _base)
        ESTIMANDS[f"{_arm}_forwards"] = cost_ratio(_arm, _base, "forwards")
        ESTIMANDS[f"{_arm}_seconds"] = seconds_ratio(_data, _score)
        ESTIMANDS[f"{_arm}_accuracy"] = accuracy_gain(_arm, _base)
        ESTIMANDS[f"{_arm}_tuned_steps"] = cost_ratio(f"{_arm}_tuned", _base)
    for _model in ("linear", "cnn", "cnn_bn"):
        ESTIMANDS[f"{_model}_{_score}_steps"] = cost_ratio(
            f"digits_{_model}_{_score}", f"digits_{_model}_random"
        )
for _kind in ("short", "noisy"):
    for _name, _list in LISTS.items():
        ESTIMANDS[f"{_kind}_over_{_name}"] = accuracy_gain(
            f"paced_{_kind}_ascending", f"paced_{_kind}_{_list}"
        )
