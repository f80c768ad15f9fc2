"""Learning rates of chapter 3's arms on pictures and in translation: pilot seeds, validation part.

``make reproduce TUNE=1 CHAPTERS=3`` writes ``results/standard/03/tuning.csv`` and ``tuned.yaml``.
An arm on pictures is scored by minus the logarithm of the examples that the Boss trains on until
the target accuracy, one of translation by minus its validation loss at the end; test parts are
never looked at. The control is tuned with one share kept, of the first pilots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import joblib
import torch

from companion.chapters.autoassist.arms import (
    EXTENDED,
    HEADLINE,
    LARGE,
    TARGETS,
    TRANSLATION_ARMS,
    TUNED,
    control_of,
    settings_of,
    translation_settings,
    tuned_arm,
)
from companion.chapters.autoassist.images import Trained, train_images
from companion.chapters.autoassist.translation import fit_translation
from companion.lab import trials

__all__ = ["CONTROL_RATE", "GRID", "read_trials", "score", "tune", "tuned_arms", "tuning_table"]

GRID = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
TRANSLATION_GRID = (0.002, 0.004, 0.008)
TRANSLATION_TOKENS = 700_000
CONTROL_RATE = 0.43
SEEDS = {"images_0": (0, 1, 2), "images_resnet8": (0,), "translation": (0,)}  # others: 0, 1
RESNET_GRID = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)


def tuned_arms() -> list[str]:
    """Arms that have a learning rate of their own, the controls last."""
    known = HEADLINE | EXTENDED | LARGE | TRANSLATION_ARMS
    arms = [arm for arm in known if tuned_arm(arm) == arm]
    return arms + [control_of(arm) for arm in arms if arm.endswith("_assist")]


def grid_of(arm: str) -> tuple[float, ...]:
    """Learning rates that an arm is tried with."""
    if arm.startswith("translation"):
        return TRANSLATION_GRID
    return RESNET_GRID if arm.startswith("images_resnet8") else GRID


def seeds_of(arm: str) -> tuple[int, ...]:
    """Pilot seeds of an arm."""
    return next((seeds for name, seeds in SEEDS.items() if arm.startswith(name)), (0, 1))


def score(arm: str, found: Trained) -> float:
    """Score a run on pictures; one that never reaches the target spent all it had."""
    look = found.reached(TARGETS[arm.split("_")[1]])
    return -math.log(found.examples[-1 if look is None else look])


def _score_one(arm: str, lr: float, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    of = arm.replace("_random", "_assist")
    control = {"sampler": "random"} if of != arm else {}
    rates = [CONTROL_RATE] if control else None
    if arm.startswith("translation"):
        settings = translation_settings(of) | control | {"lr": lr, "tokens": TRANSLATION_TOKENS}
        fitted = fit_translation(settings, seed, keep_rates=rates)
        return trials.trial(arm, lr, seed, -fitted.metrics["val/loss"])
    settings = settings_of(of)[0] | control | {"lr": lr}
    try:
        return trials.trial(
            arm, lr, seed, score(arm, train_images(settings, seed, keep_rates=rates))
        )
    except FloatingPointError:  # of the loss, or at the end
        return trials.trial(arm, lr, seed, -math.log(settings["steps"] * settings["batch"]))


def tune(workers: int, say: Callable[[str], None]) -> None:
    """Score every arm on its grid, write the curves and the chosen values."""
    tasks = [(arm, lr, s) for arm in tuned_arms() for lr in grid_of(arm) for s in seeds_of(arm)]
    rows = []
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    for done, row in enumerate(parallel(joblib.delayed(_score_one)(*t) for t in tasks), 1):
        rows.append(row)
        if done % 20 == 0 or done == len(tasks):
            say(f"trials {done}/{len(tasks)}")
    trials.write_choice("03", rows, TUNED)


def read_trials() -> list[dict[str, Any]]:
    """Read the committed ``tuning.csv``."""
    return trials.read_trials("03")


def tuning_table() -> str:
    """Text of the tuning curves: arm, chosen learning rate, score at every value tried."""
    return trials.trials_table("03", "learning rate: mean score", 2)
