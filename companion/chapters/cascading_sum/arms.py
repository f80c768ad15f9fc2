"""The arms of chapter 5: what each mixes when, and whose learning rate it has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "ALPHAS",
    "BASE",
    "CONDITIONS",
    "EXTENDED",
    "HEADLINE",
    "PAPER",
    "SIZES",
    "STEPS",
    "TUNED",
    "Arm",
    "best_alpha",
    "settings_of",
    "tuned",
]

TUNED = Path(__file__).with_name("tuned.yaml")

STEPS = 600
# Clean training is one stage with one sample in a mix.
BASE: dict[str, Any] = {
    "model": "conv",
    "stages": [[1, 1.0]],
    "order": "listed",  # or random: K of each batch drawn from the stages by their shares
    "weights": "equal",  # or smooth, jump (the released code), dirichlet, pixel
    "labels": "all",  # or first, or smoothed
    "mixer": "sum",  # or cutmix
    "grouping": "pairing",  # or groups, growing
    "alpha": None,
    "loss": "ce",  # or bce
    "rescale": False,
    "restart": False,
    "k0": 0,  # above 0: stages end by plateaus, from this K on
    "steps": STEPS,
}
THIRD = 1 / 3
CASCADE = [[4, THIRD], [2, THIRD], [1, THIRD]]
CLEANED = [[2, 2 * THIRD], [1, THIRD]]  # the last stage of the cascade: clean for a third
ALPHAS = (0.2, 0.4, 1.0)  # of mixup, chosen on the validation part

# Problem and training pictures of a class where the arms are compared, and core-seconds of a run.
CONDITIONS = {"digits_10": 1.2, "fashion_100": 3.9}
SIZES = {
    "digits_50": 1.2,
    "digits_100": 1.2,
    "fashion_10": 3.9,
    "fashion_50": 3.9,
    "fashion_500": 3.9,
    "emoji_100": 5.0,
}

# Arm: what differs from BASE, predicted core-seconds, arm whose tuned learning rate it has
Arm = tuple[dict[str, Any], float, str]

CHANGES_HEADLINE: dict[str, dict[str, Any]] = {
    "erm": {},
    "csa4": {"stages": CASCADE},
    "csa2": {"stages": CLEANED},
    "mixup_clean": {"stages": CLEANED, "weights": "dirichlet", "alpha": "best"},
    "erm_restart": {"stages": [[1, THIRD]] * 3, "restart": True},
    "csa4_restart": {"stages": CASCADE, "restart": True},
}
CHANGES_EXTENDED: dict[str, dict[str, Any]] = {
    "smoothing": {"labels": "smoothed"},
    "mixup": {"stages": [[2, 1.0]], "weights": "dirichlet", "alpha": "best"},
    "cutmix": {"stages": [[2, 1.0]], "mixer": "cutmix"},
    "constant2": {"stages": [[2, 1.0]]},
    "constant4": {"stages": [[4, 1.0]]},
    "constant8": {"stages": [[8, 1.0]]},
    "random4": {"stages": CASCADE, "order": "random"},
    "reversed4": {"stages": CASCADE[::-1]},
    "csa8": {"stages": [[8, 0.25], [4, 0.25], [2, 0.25], [1, 0.25]]},
    "smooth": {"stages": [[4, 0.25], [3, 0.25], [2, 0.25], [1, 0.25]], "weights": "smooth"},
    "jump": {"stages": [[4, 0.25], [3, 0.25], [2, 0.25], [1, 0.25]], "weights": "jump"},
    "dirichlet4": {"stages": CASCADE, "weights": "dirichlet", "alpha": 1.0},
    "single4": {"stages": CASCADE, "labels": "first"},
    "pixel2": {"stages": CLEANED, "weights": "pixel", "alpha": 0.4},
    "rescale4": {"stages": CASCADE, "rescale": True},
    "bce4": {"stages": CASCADE, "loss": "bce"},
    "growing4": {"stages": CASCADE, "grouping": "growing"},
    "examples4": {"stages": CASCADE, "grouping": "groups"},
    "source1": {"k0": 1},  # the source's recipe, by plateaus: its baseline and its cascade
    "source4": {"k0": 4},
    "longer": {"steps": 1284},  # the source's budget for K0 = 4: 2.14 times that of its baseline
}
COST = {"longer": 1.9, "examples4": 0.9, "source1": 2.0, "source4": 4.0}
OWNERS = {
    "jump": "smooth",
    "source1": "erm_restart",
    "source4": "csa4_restart",
}  # of a learning rate


def _arms(condition: str, changes: dict[str, dict[str, Any]], seconds: float) -> dict[str, Arm]:
    data, per_class = condition.rsplit("_", 1)
    problem = {"data": data, "per_class": int(per_class)}
    arms: dict[str, Arm] = {}
    for name, change in changes.items():
        arm = f"{condition}_{name}"
        owner = f"{condition}_{OWNERS.get(name, name)}"
        arms[arm] = problem | change, seconds * COST.get(name, 1.0), owner
    return arms


def _extended() -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for condition, seconds in CONDITIONS.items():
        arms |= _arms(condition, CHANGES_EXTENDED, seconds)
    for condition, seconds in SIZES.items():
        names = CHANGES_HEADLINE if condition.startswith("emoji") else ("erm", "csa4")
        arms |= _arms(condition, {name: CHANGES_HEADLINE[name] for name in names}, seconds)
    return arms


HEADLINE: dict[str, Arm] = {}
for _condition, _seconds in CONDITIONS.items():
    HEADLINE |= _arms(_condition, CHANGES_HEADLINE, _seconds)
EXTENDED = _extended()
# ResNet-8 has the learning rates of the small network: 20 times its cost forbids a grid.
for _name in ("erm", "csa4", "mixup_clean"):
    _arm = f"fashion_100_{_name}"
    EXTENDED[f"resnet8_{_name}"] = HEADLINE[_arm][0] | {"model": "resnet8"}, 40.0, _arm
# The source's data and network, for a GPU: its learning rate and about its steps at K = 1.
PAPER: dict[str, Arm] = {}
for _data in ("cifar10", "cifar100"):
    for _count in (100, 500):
        for _name, _change in CHANGES_HEADLINE.items():
            _given: dict[str, Any] = {
                "data": _data,
                "per_class": _count,
                "model": "wrn28_10",
                "steps": 12_000,
            }
            if _change.get("alpha") == "best":
                _given["alpha"] = 0.4
            PAPER[f"{_data}_{_count}_{_name}"] = _change | _given | {"lr": 0.05}, 7200.0, ""


@cache
def _choices() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TUNED.read_text(encoding="utf-8"))
    return found


def tuned(arm: str) -> float:
    """Learning rate that `tuning` chose for an arm."""
    return float(_choices()[arm]["lr"]["value"])


def best_alpha(arm: str) -> float:
    """Strength of mixup that `tuning` chose for an arm, at its best learning rate."""
    return float(_choices()[arm]["lr"]["alpha"])


def settings_of(arm: str) -> tuple[dict[str, Any], float, str]:
    """Settings of an arm without its learning rate, predicted seconds, and where that is tuned.

    An ``alpha`` of *best* stands for what tuning chooses.

    Raises:
        ValueError: If the arm is unknown.
    """
    found = (HEADLINE | EXTENDED | PAPER).get(arm)
    if found is None:
        raise ValueError(f"unknown arm {arm!r}")
    changes, seconds, owner = found
    return BASE | changes, seconds, owner
