"""The arms of chapter 4: what each trains, and whose step length it has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "BASE",
    "COUNTS",
    "EXTENDED",
    "HEADLINE",
    "LATER_EPOCHS",
    "ORDERS",
    "ORDER_LRS",
    "PROBLEMS",
    "SCORES",
    "TUNED",
    "settings_of",
    "tuned",
]

TUNED = Path(__file__).with_name("tuned.yaml")

BASE: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    # a score, random, random_more, ascending, descending, random_list, grab, fixed
    "order": "random",
    "candidates": 8,
    "pool": "partition",  # or resampled
    "steps": 320,
    "noise": 0.0,
}
SCORES = ("min_loss", "delta_abs", "delta_target")  # one of each family of the source
PROBLEMS = {"digits": 1.0, "fashion_mnist": 3.0}  # relative costs
COUNTS = (2, 4, 16)
SECONDS = {"random": 0.3, "min_loss": 0.35, "max_loss": 0.35}  # the others: 0.75
MODEL_COST = {"linear": 0.8, "mlp": 1.0, "cnn": 4.0, "cnn_bn": 5.0}

# Arm: what differs from BASE, predicted core-seconds, arm whose tuned step length it has
Arm = tuple[dict[str, Any], float, str]


def _seconds(order: str, data: str, model: str, candidates: int = 8) -> float:
    return SECONDS.get(order, 0.75) * PROBLEMS[data] * MODEL_COST[model] * (0.5 + candidates / 16)


def _headline() -> dict[str, Arm]:
    """Random reshuffling and three scores: at its step length, and at their own."""
    arms: dict[str, Arm] = {}
    for data in PROBLEMS:
        base = f"{data}_random"
        arms[base] = {"data": data}, _seconds("random", data, "mlp"), base
        for score in SCORES:
            more, seconds = {"data": data, "order": score}, _seconds(score, data, "mlp")
            arms[f"{data}_{score}"] = more, seconds, base
            arms[f"{data}_{score}_tuned"] = more, seconds, f"{data}_{score}_tuned"
    return arms


def _extended() -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for score in ("max_loss", "delta_rel", "grad_align"):
        arms[f"digits_{score}"] = (
            {"order": score},
            _seconds(score, "digits", "mlp"),
            "digits_random",
        )
    for score in SCORES:
        for count in COUNTS:
            more = {"order": score, "candidates": count}
            seconds = _seconds(score, "digits", "mlp", count)
            arms[f"digits_{score}_{count}"] = more, seconds, "digits_random"
    resampled = {"order": "min_loss", "pool": "resampled"}
    arms["digits_min_loss_resampled"] = resampled, 1.2, "digits_random"
    for data in PROBLEMS:
        more = {"data": data, "order": "random_more"}
        seconds = _seconds("random", data, "mlp")
        arms[f"{data}_random_more"] = more, seconds, f"{data}_random"
    for model in ("linear", "cnn", "cnn_bn"):
        base = f"digits_{model}_random"
        for order in ("random", *SCORES):
            seconds = _seconds(order, "digits", model)
            arms[f"digits_{model}_{order}"] = {"model": model, "order": order}, seconds, base
    kinds: dict[str, dict[str, Any]] = {"short": {"steps": 32}, "noisy": {"noise": 0.4}}
    for kind, changes in kinds.items():
        for order in ("random", "ascending", "descending", "random_list"):
            arm = f"paced_{kind}_{order}"
            arms[arm] = {"data": "fashion_mnist", "order": order, **changes}, 1.0, arm
    for order in ("fixed", "grab"):
        arm = f"units_{order}"
        arms[arm] = {"model": "linear", "order": order, "steps": 640}, 2.0, arm
    return arms


HEADLINE, EXTENDED = _headline(), _extended()

# every order of six batches: the source's kind of network at the step length of the best mean in
# pilots, and an MLP at several, with the source's momentum and without
ORDERS: dict[str, dict[str, Any]] = {
    "orders_cnn_bn": {"model": "cnn_bn", "lr": 0.1, "momentum": 0.9},
    "orders_mlp_lr005": {"model": "mlp", "lr": 0.05, "momentum": 0.9},
    "orders_mlp_plain_lr005": {"model": "mlp", "lr": 0.05, "momentum": 0.0},
    "orders_mlp_lr010": {"model": "mlp", "lr": 0.1, "momentum": 0.9},
    "orders_mlp_plain_lr010": {"model": "mlp", "lr": 0.1, "momentum": 0.0},
    "orders_mlp_lr020": {"model": "mlp", "lr": 0.2, "momentum": 0.9},
    "orders_mlp_plain_lr020": {"model": "mlp", "lr": 0.2, "momentum": 0.0},
}
LATER_EPOCHS = {"epochs_cnn_bn": ORDERS["orders_cnn_bn"]}  # the same epoch by epoch
ORDER_LRS = tuple(dict.fromkeys(o["lr"] for o in ORDERS.values() if o["model"] == "mlp"))


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
    found = (HEADLINE | EXTENDED).get(arm)
    if found is None:
        raise ValueError(f"unknown arm {arm!r}")
    changes, seconds, owner = found
    return BASE | changes, seconds, owner
