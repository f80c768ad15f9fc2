"""The arms of chapter 3: what each trains, and whose learning rate it has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from companion.chapters.autoassist.translation import TRANSLATION

__all__ = [
    "EXTENDED",
    "HEADLINE",
    "IMAGES",
    "LARGE",
    "PAPER",
    "SVM",
    "SVM_SETS",
    "TARGETS",
    "TRANSLATION_ARMS",
    "TRANSLATION_PAPER",
    "TUNED",
    "Arm",
    "control_of",
    "settings_of",
    "translation_settings",
    "tuned",
    "tuned_arm",
]

TUNED = Path(__file__).with_name("tuned.yaml")
Arm = tuple[dict[str, Any], float]  # what differs from the defaults, predicted core-seconds

# --- linear SVM -----------------------------------------------------------------------------------

SVM: dict[str, Any] = {
    "data": "breast_cancer",
    "lam": 1.0e-2,
    "passes": 60,
    "base": 0.3,  # base pass rate and epsilon of the authors' rule
    "eps": 1.0,
    "exact_steps": 600,  # updates of exact importance sampling, which scores N examples each
    "floor_loss": 1.0,  # of importance sampling, the best of six on seeds 5 to 7
    "floor_gradient": 0.3,
    "gap": 1.0e-3,  # of the objective, to which work is counted
}
SVM_SETS: dict[str, Arm] = {
    "svm_breast_cancer": ({}, 3.5),
    "svm_digits": ({"data": "digits"}, 2.7),
    "svm_fashion": ({"data": "fashion", "passes": 15, "exact_steps": 200}, 6.0),
}

# --- pictures -------------------------------------------------------------------------------------

IMAGES: dict[str, Any] = {
    "data": "fashion",
    "model": "cnn",
    "num_train": 10_000,
    "noise": 0.0,
    "rotated": False,
    "sampler": "uniform",
    "batch": 64,
    "momentum": 0.9,
    "decay": 1.0e-4,
    "steps": 1200,
    "base": 0.3,
    "shuffle": True,
    "assistant_lr": 0.01,
    "assistant_decay": 1.0e-3,
    "beta": 1.0,  # of selective backprop
    "pace_epochs": 2,  # passes until self-paced learning has all; the authors take 5 of 100
    "ahead": 0,  # updates between the decision on a batch and its use
}
# Validation accuracy, by problem, that a tuned uniform run reaches in about half of its steps.
TARGETS = {
    "0": 0.86,
    "noise": 0.83,
    "rotated": 0.73,
    "large": 0.89,
    "resnet8": 0.78,
    "cifar10": 0.85,
}
PROBLEMS: dict[str, dict[str, Any]] = {
    "0": {},
    "noise": {"noise": 0.2},
    "rotated": {"rotated": True},
    "large": {"num_train": 50_000, "steps": 2400},
    "resnet8": {"model": "resnet8", "steps": 600},
    "cifar10": {"data": "cifar10", "model": "resnet8", "num_train": 45_000, "steps": 30_000},
}
SECONDS = {"uniform": 11.5, "assist": 24.0, "selfpaced": 12.0, "screener": 25.0}
SECONDS |= {"selective": 17.0, "pruned": 12.0}


def _arm(problem: str, sampler: str, scale: float = 1.0, **changes: Any) -> Arm:
    settings = PROBLEMS[problem] | {"sampler": sampler} | changes
    return settings, scale * SECONDS[sampler]


HEADLINE: dict[str, Arm] = {
    f"images_0_{sampler}": _arm("0", sampler) for sampler in ("uniform", "assist")
}
EXTENDED: dict[str, Arm] = {
    f"images_0_{sampler}": _arm("0", sampler)
    for sampler in ("selfpaced", "screener", "selective", "pruned")
}
for _problem in ("noise", "rotated"):
    for _sampler in ("uniform", "assist"):
        EXTENDED[f"images_{_problem}_{_sampler}"] = _arm(_problem, _sampler)
EXTENDED["images_0_ahead"] = _arm("0", "assist", 0.5, ahead=20)
EXTENDED["images_0_unshuffled"] = _arm("0", "assist", 0.5, shuffle=False)
for _base in (0.0, 0.6):
    EXTENDED[f"images_0_base{100 * _base:g}"] = _arm("0", "assist", 0.5, base=_base)
LARGE: dict[str, Arm] = {
    f"images_{problem}_{sampler}": _arm(problem, sampler, scale)
    for problem, scale in {"large": 2.1, "resnet8": 5.2}.items()
    for sampler in ("uniform", "assist")
}
PAPER: dict[str, Arm] = {
    f"images_cifar10_{sampler}": _arm("cifar10", sampler, 400.0)
    for sampler in ("uniform", "assist")
}

# --- translation ----------------------------------------------------------------------------------

# arm: what differs, predicted core-seconds; budgets are target tokens of the Boss
TRANSLATION_ARMS: dict[str, Arm] = {
    "translation_uniform": ({"sampler": "uniform"}, 115.0),
    "translation_assist": ({"sampler": "assist"}, 235.0),
    "translation_assist70": ({"sampler": "assist", "tokens": 420_000}, 95.0),
}
TRANSLATION_PAPER: dict[str, Arm] = {
    f"translation_{data}_{sampler}": (
        {"sampler": sampler, "data": data, "max_words": 100, "vocabulary": 10_000}
        | {"tokens": 100_000_000, "batch_tokens": 4000},
        50_000.0,
    )
    for data in ("iwslt14", "wmt14")
    for sampler in ("uniform", "assist")
}


@cache
def _choices() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TUNED.read_text(encoding="utf-8"))
    return found


def tuned_arm(arm: str) -> str:
    """Arm whose tuned learning rate an arm has: its own, or that of the arm it is a variant of."""
    if arm.startswith(("images_0_ahead", "images_0_unshuffled", "images_0_base")):
        return "images_0_assist"
    if arm == "translation_assist70" or arm in TRANSLATION_PAPER:
        return "translation_uniform" if arm.endswith("_uniform") else "translation_assist"
    return arm.replace("images_cifar10", "images_resnet8")


def control_of(arm: str) -> str:
    """Arm whose learning rate the control of an Assistant's arm has, tuned for it."""
    return tuned_arm(arm).replace("_assist", "_random")


def tuned(arm: str) -> float:
    """Learning rate that `tuning` chose for an arm."""
    return float(_choices()[tuned_arm(arm)]["lr"]["value"])


def settings_of(arm: str) -> Arm:
    """Settings of an arm on pictures and its predicted seconds.

    Raises:
        ValueError: If the arm is unknown.
    """
    known = HEADLINE | EXTENDED | LARGE | PAPER
    if arm not in known:
        raise ValueError(f"unknown arm {arm!r}")
    changes, seconds = known[arm]
    return IMAGES | changes, seconds


def translation_settings(arm: str) -> dict[str, Any]:
    """Settings of an arm of translation; a ValueError if it is unknown."""
    known = TRANSLATION_ARMS | TRANSLATION_PAPER
    if arm not in known:
        raise ValueError(f"unknown arm {arm!r}")
    return TRANSLATION | known[arm][0]
