"""Estimands of chapter 5: functions from all records of one seed to one number.

Gains are differences of percentage points, arm minus another with the same parts, initial weights,
order of batches and number of steps.
"""

from __future__ import annotations

import math

from companion.experiments.records import Estimand, metric

__all__ = ["ESTIMANDS", "PLACES", "gain", "log_ratio", "metric"]

PLACES = {"digits_10": "digits", "fashion_100": "fashion"}  # where arms are compared
FEWER_MORE = {"digits": ("digits_10", "digits_100"), "fashion": ("fashion_10", "fashion_500")}


def gain(arm: str, other: str, name: str = "test/accuracy", scale: float = 100.0) -> Estimand:
    """Make the estimand: difference of a metric, in points unless ``scale`` says else."""
    first, second = metric(arm, name, scale), metric(other, name, scale)
    return lambda records: first(records) - second(records)


def log_ratio(arm: str, other: str, name: str) -> Estimand:
    """Make the estimand: natural logarithm of the ratio of a positive metric."""
    first, second = metric(arm, name), metric(other, name)
    return lambda records: math.log(first(records) / second(records))


def _contrast(fewer: str, more: str) -> Estimand:
    small, large = (gain(f"{place}_csa4", f"{place}_erm") for place in (fewer, more))
    return lambda records: small(records) - large(records)


def _test_time(place: str, model: str, first: str, second: str) -> Estimand:
    a = metric(f"{place}_radii", f"{model}/{first}", 100)
    b = metric(f"{place}_radii", f"{model}/{second}", 100)
    return lambda records: a(records) - b(records)


ESTIMANDS: dict[str, Estimand] = {}
for _place, _name in PLACES.items():
    _csa, _erm = f"{_place}_csa4", f"{_place}_erm"
    ESTIMANDS[f"{_name}_over_erm"] = gain(_csa, _erm)
    for _other in ("mixup", "mixup_clean", "csa2", "constant2", "random4", "reversed4"):
        ESTIMANDS[f"{_name}_over_{_other}"] = gain(_csa, f"{_place}_{_other}")
    ESTIMANDS[f"{_name}_restarts"] = gain(f"{_place}_csa4_restart", f"{_place}_erm_restart")
    ESTIMANDS[f"{_name}_mix_only_loss"] = gain(_erm, f"{_place}_constant8")
    ESTIMANDS[f"{_name}_csa8_over_erm"] = gain(f"{_place}_csa8", _erm)
    for _key in ("curvature", "lipschitz"):
        for _kind in ("k4", "k4_rescaled"):
            ESTIMANDS[f"{_name}_{_key}_{_kind}"] = metric(f"{_place}_objective", f"{_key}/{_kind}")
    ESTIMANDS[f"{_name}_source_recipe"] = gain(f"{_place}_source4", f"{_place}_source1")
    ESTIMANDS[f"{_name}_sharpness"] = log_ratio(_csa, _erm, "sharpness")
    for _attack in ("fgsm", "pgd"):
        ESTIMANDS[f"{_name}_{_attack}_gain"] = gain(_csa, _erm, _attack)
    ESTIMANDS[f"{_name}_corrupt_gain"] = gain(_csa, _erm, "corrupt/mean")
    ESTIMANDS[f"{_name}_ece_rise"] = gain(_csa, _erm, "test/ece")
    ESTIMANDS[f"{_name}_nll_rise"] = gain(_csa, _erm, "test/nll", 1.0)
    ESTIMANDS[f"{_name}_tta_stopped"] = _test_time(_place, "constant2", "clean/mixed", "clean/bare")
    ESTIMANDS[f"{_name}_tta_finished"] = _test_time(_place, "csa2", "clean/mixed", "clean/bare")
    ESTIMANDS[f"{_name}_tta_adaptive"] = _test_time(_place, "constant2", "pgd/adaptive", "pgd/bare")
    ESTIMANDS[f"{_name}_tta_unaware"] = _test_time(_place, "constant2", "pgd/unaware", "pgd/bare")
for _name, (_fewer, _more) in FEWER_MORE.items():
    ESTIMANDS[f"{_name}_small_data"] = _contrast(_fewer, _more)
for _other in ("erm", "csa2", "mixup_clean"):
    ESTIMANDS[f"emoji_over_{_other}"] = gain("emoji_100_csa4", f"emoji_100_{_other}")
ESTIMANDS["emoji_restarts"] = gain("emoji_100_csa4_restart", "emoji_100_erm_restart")
for _attack in ("fgsm", "pgd"):
    ESTIMANDS[f"emoji_{_attack}_gain"] = gain("emoji_100_csa4", "emoji_100_erm", _attack)
for _other in ("erm", "mixup_clean"):
    ESTIMANDS[f"resnet8_over_{_other}"] = gain("resnet8_csa4", f"resnet8_{_other}")
