"""The arms of chapter 2: what each trains and measures, and whose learning rate it has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "BASE",
    "COPIES",
    "EXTENDED",
    "GRIDS",
    "HEADLINE",
    "PAPER",
    "SAMPLERS",
    "SPEED",
    "SPEED_EXTENDED",
    "SPEED_HEADLINE",
    "TUNED",
    "Arm",
    "best_tau",
    "settings_of",
    "tuned",
]

TUNED = Path(__file__).with_name("tuned.yaml")
COPIES = (0.0, 0.9)  # shares of exact copies; half of them belongs to the extended arms
HALF = 0.5

# --- variance along ordinary SGD ------------------------------------------------------------------

BASE: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    "num_train": 1000,
    "copies": 0.0,
    "noise": 0.0,
    "augment": False,  # random shifts and flips
    "lr": 0.05,
    "drop": None,  # factor of the learning rate at half of the steps
    "momentum": 0.5,
    "decay": 5.0e-4,
    "batch": 32,
    "clusters": 32,
    "steps": 2000,
    "refresh": 125,  # steps between two clusterings, and between two snapshots of SVRG
    "iterations": 10,
    "variants": False,  # also other centres and rules
    "measured": None,  # examples that are clustered and measured, if not all
}
PROBLEMS: dict[str, tuple[dict[str, Any], float]] = {
    "digits_mlp": ({}, 4.5),
    "fashion_mlp": ({"data": "fashion", "num_train": 2000, "refresh": 250, "steps": 1500}, 6.8),
    "fashion_cnn": (
        {"data": "fashion", "model": "cnn", "num_train": 1000, "refresh": 250, "steps": 1500},
        20.0,
    ),
}
Arm = tuple[dict[str, Any], float]  # what differs from BASE, predicted core-seconds

HEADLINE: dict[str, Arm] = {}
for _name in ("digits_mlp", "fashion_mlp"):
    _given, _seconds = PROBLEMS[_name]
    for _copies in COPIES:
        HEADLINE[f"{_name}_{100 * _copies:g}"] = _given | {"copies": _copies}, _seconds
EXTENDED: dict[str, Arm] = {"fashion_cnn_0": PROBLEMS["fashion_cnn"]}
for _name in ("digits_mlp", "fashion_mlp"):
    _given, _seconds = PROBLEMS[_name]
    EXTENDED[f"{_name}_50"] = _given | {"copies": HALF}, _seconds
for _name, (_given, _seconds) in PROBLEMS.items():
    EXTENDED[f"{_name}_drop"] = _given | {"drop": 0.1}, _seconds
    EXTENDED[f"{_name}_noise"] = _given | {"noise": 0.1}, _seconds
    EXTENDED[f"{_name}_variants"] = _given | {"variants": True}, 3 * _seconds
EXTENDED["fashion_cnn_augment"] = (
    PROBLEMS["fashion_cnn"][0] | {"augment": True, "measured": 500},
    40.0,
)
EXTENDED["fashion_mlp_augment"] = (
    PROBLEMS["fashion_mlp"][0] | {"augment": True, "measured": 500},
    10.0,
)
_changes = {"augment": True, "copies": 0.9, "measured": 500}
EXTENDED["fashion_mlp_90_augment"] = PROBLEMS["fashion_mlp"][0] | _changes, 10.0
# The paper's network and schedule, for a GPU.
PAPER: dict[str, Arm] = {}
for _name, _change in {"0": {}, "noise": {"noise": 0.2}, "90": {"copies": 0.9}}.items():
    PAPER[f"cifar10_resnet8_{_name}"] = (
        (
            {
                "data": "cifar10",
                "model": "resnet8",
                "num_train": 45_000,
                "lr": 0.01,
                "momentum": 0.9,
            }
            | {"batch": 128, "clusters": 128, "steps": 80_000, "refresh": 20_000, "drop": 0.1}
            | {"measured": 5000}
            | _change
        ),
        40_000.0,
    )

# --- random features ------------------------------------------------------------------------------

TAUS = (0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0)
_GRID = {"copies": [0.0], "teachers": [2000], "steps": 5000, "curves": False}
# arm: settings, predicted core-seconds, whether it belongs to the standard profile
GRIDS: dict[str, tuple[dict[str, Any], float, bool]] = {
    "features_rates": (
        _GRID | {"taus": [0.5, 2.0, 10.0], "lrs": [0.1, 0.03, 0.01, 0.003, 0.001], "curves": True},
        3.8,
        True,
    ),
    "features_copies": (
        _GRID | {"taus": [0.1, 1.0, 2.0], "lrs": [0.01], "copies": [0.0, 0.5, 0.9]},
        5.2,
        True,
    ),
    "features_grid": (
        _GRID | {"taus": list(TAUS), "lrs": [0.1, 0.01, 0.001], "teachers": [20, 2000]},
        25.0,
        False,
    ),
}

# --- samplers -------------------------------------------------------------------------------------

SPEED: dict[str, Any] = {
    "data": "fashion",
    "num_train": 10_000,
    "copies": 0.0,
    "noise": 0.0,
    "sampler": "uniform",
    "batch": 64,
    "steps": 2400,
    "momentum": 0.9,
    "decay": 1.0e-4,
    "rule": "mean",
    "tau": 0.5,
    "clusters": 64,
    "iterations": 3,
    "refresh": 2,  # epochs
}
SAMPLERS = {"uniform": 2.1, "snooze": 4.6, "reweighted": 2.4, "stratified": 3.8}
SPEED_NOISY = 0.1  # share of wrong labels of the negative control


def _speed_arms(name: str, **problem: float) -> dict[str, Arm]:
    return {
        f"speed_{name}_{sampler}": ({"sampler": sampler} | problem, seconds)
        for sampler, seconds in SAMPLERS.items()
    }


SPEED_HEADLINE: dict[str, Arm] = {}
SPEED_EXTENDED: dict[str, Arm] = {}
for _copies in (*COPIES, HALF):
    for _name, _arm in _speed_arms(f"{100 * _copies:g}", copies=_copies).items():
        _extended = _copies == HALF or _name.endswith("_reweighted")
        (SPEED_EXTENDED if _extended else SPEED_HEADLINE)[_name] = _arm
for _name, _arm in _speed_arms("noise", noise=SPEED_NOISY).items():
    if _name.endswith(("_uniform", "_snooze")):
        SPEED_EXTENDED[_name] = _arm


@cache
def _choices() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TUNED.read_text(encoding="utf-8"))
    return found


def tuned(arm: str) -> float:
    """Learning rate that `tuning` chose for an arm."""
    return float(_choices()[arm]["lr"]["value"])


def best_tau(arm: str) -> float:
    """Threshold, as a multiple of the mean loss, that `tuning` chose for an arm."""
    return float(_choices()[arm]["lr"]["tau"])


def settings_of(arm: str) -> tuple[dict[str, Any], float]:
    """Settings of an arm of trained networks and its predicted seconds.

    Raises:
        ValueError: If the arm is unknown.
    """
    if arm in (speed := SPEED_HEADLINE | SPEED_EXTENDED):
        changes, seconds = speed[arm]
        return SPEED | changes, seconds
    if arm not in (known := HEADLINE | EXTENDED | PAPER):
        raise ValueError(f"unknown arm {arm!r}")
    changes, seconds = known[arm]
    return BASE | changes, seconds
