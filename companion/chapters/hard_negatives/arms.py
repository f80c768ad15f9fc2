"""The arms of chapter 1: what each trains, and how long it takes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "BASE",
    "DEEP",
    "DEMONSTRATIONS",
    "EXTENDED",
    "FACTORIAL",
    "HEADLINE",
    "TUNED",
    "epochs_of",
    "settings_of",
    "tuned",
]

TUNED = Path(__file__).with_name("tuned.yaml")

BASE: dict[str, Any] = {
    "split": "family",
    "encoder": "features",
    "captions": "bag",
    "score": "cosine",
    "loss": "sum",
    "crops": True,
    "siblings": "none",  # none: no two drawings of a concept in a batch; masked; negatives
    "negatives": 0,  # candidates of each query, 0 for all
    "warmup": 0,  # epochs with the sum before the maximum
    "reset": True,  # forget the optimiser's averages at that switch
    "clip": 0.0,  # largest norm of the gradient, 0 for any
    "reduction": "mean",
}
LOSSES = ("sum", "max")

# Arm: what differs from BASE, predicted core-seconds at standard, arm whose step length it shares
Arm = tuple[dict[str, Any], float, str]


def _losses(score: str, name: str) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for split, seconds in (("family", 5.5), ("vendor", 11.5)):
        for loss in LOSSES:
            arm = f"{split}{name}_{loss}"
            arms[arm] = {"split": split, "score": score, "loss": loss}, seconds, arm
    return arms


def _extended() -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    vendor = {"split": "vendor"}
    for loss in LOSSES:
        own = f"vendor_{loss}"
        fixed, order = f"vendor_fixed_{loss}", f"family_order_{loss}"
        arms[fixed] = {**vendor, "loss": loss, "crops": False}, 13.0, fixed
        arms[order] = {"score": "order", "loss": loss}, 40.0, order
        for count in (2, 8, 32):
            name = f"vendor_negatives_{count}_{loss}"
            arms[name] = {**vendor, "loss": loss, "negatives": count}, 15.0, own
        for siblings in ("negatives", "masked"):
            name = f"family_siblings_{siblings}_{loss}"
            arms[name] = {"loss": loss, "siblings": siblings}, 8.0, f"family_{loss}"
        for reduction in ("sum", "mean"):
            name = f"family_clip_{reduction}_{loss}"
            more = {"loss": loss, "clip": 2.0, "reduction": reduction}
            arms[name] = more, 8.0, f"family_{loss}"
    average = "vendor_average"
    arms[average] = {**vendor, "loss": "average"}, 13.0, average
    for warmup in (1, 5):
        name = f"vendor_warmup_{warmup}"
        arms[name] = {**vendor, "loss": "max", "warmup": warmup}, 13.0, "vendor_max"
    trap = {**vendor, "loss": "max", "warmup": 1, "reset": False}
    arms["vendor_warmup_1_no_reset"] = trap, 13.0, "vendor_max"
    return arms


def _deep() -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for loss, warmup in (("sum", 0), ("max", 0), ("max", 3)):
        name = f"family_cnn_{loss}" if not warmup else f"family_cnn_warmup_{warmup}"
        arms[name] = {"encoder": "cnn", "loss": loss, "warmup": warmup}, 60.0, name
    for loss in LOSSES:
        name = f"family_gru_{loss}"
        arms[name] = {"captions": "gru", "loss": loss}, 40.0, name
    return arms


SLOW = {"order": 40, "gru": 20, "cnn": 30}  # epochs at most, for arms that are dear


def epochs_of(arm: str, most: int) -> int:
    """Longest training of an arm."""
    kind = arm.split("_")[1]
    return min(most, SLOW.get(kind, most))


HEADLINE, FACTORIAL = _losses("cosine", ""), _losses("product", "_product")
EXTENDED, DEEP = _extended(), _deep()
DEMONSTRATIONS = ("family_gru_max", "family_cnn_max", "vendor_warmup_1_no_reset")


@cache
def _tuned_values() -> dict[str, float]:
    chosen = yaml.safe_load(TUNED.read_text(encoding="utf-8"))
    return {arm: float(settings["lr"]["value"]) for arm, settings in chosen.items()}


def tuned(arm: str) -> float:
    """Step length that `tuning` chose for an arm."""
    return _tuned_values()[arm]


def settings_of(arm: str) -> tuple[dict[str, Any], float, str]:
    """Settings of an arm without its step length, predicted seconds, and where that is tuned.

    Raises:
        ValueError: If the arm is unknown.
    """
    for group in (HEADLINE, FACTORIAL, EXTENDED, DEEP):
        if arm in group:
            changes, seconds, owner = group[arm]
            return BASE | changes, seconds, owner
    raise ValueError(f"unknown arm {arm!r}")
