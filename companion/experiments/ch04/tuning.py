"""Step lengths of chapter 4: the same grid and trials for every arm, on pilot seeds.

``make reproduce TUNE=1 CHAPTERS=4`` writes ``results/standard/04/tuning.csv`` and ``tuned.yaml``.
The test part is never looked at: an arm is scored by what it was made for on the validation part,
arms with fixed batches by their training loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import joblib
import torch

from companion.experiments import trials
from companion.experiments.ch04.arms import EXTENDED, HEADLINE, TUNED, settings_of
from companion.experiments.ch04.training import TARGETS, train_arm

__all__ = ["GRID", "SEEDS", "read_trials", "tune", "tuned_arms", "tuning_table"]

SEEDS = (0, 1, 2)
GRID = (0.015, 0.03, 0.06, 0.09, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 2.0, 4.0, 8.0)


def tuned_arms() -> list[str]:
    """Arms that have a step length of their own."""
    return [arm for arm, (_, _, owner) in (HEADLINE | EXTENDED).items() if owner == arm]


def _score_one(task: tuple[str, float, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    arm, lr, seed = task
    settings = settings_of(arm)[0] | {"lr": lr}
    found = train_arm(settings, seed)
    if arm.startswith("paced"):
        score = found.accuracy[-1]
    elif arm.startswith("units"):
        score = -math.log(found.train_loss[-1])
    else:
        score = -math.log(found.reached(TARGETS[settings["data"]]) or settings["steps"])
    return trials.trial(arm, lr, seed, score)


def tune(workers: int, say: Callable[[str], None]) -> None:
    """Score every arm on its grid, write the curves and the chosen values."""
    tasks = [(arm, lr, seed) for arm in tuned_arms() for lr in GRID for seed in SEEDS]
    rows = []
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    for row in parallel(joblib.delayed(_score_one)(task) for task in tasks):
        rows.append(row)
        if len(rows) % 20 == 0 or len(rows) == len(tasks):
            say(f"trials {len(rows)}/{len(tasks)}")
    trials.write_choice("04", rows, TUNED)


def read_trials() -> list[dict[str, Any]]:
    """Read the committed ``tuning.csv``."""
    return trials.read_trials("04")


def tuning_table() -> str:
    """Text of the tuning curves: arm, chosen step length, mean score at every value tried."""
    return trials.trials_table("04", "step length: mean score", 2)
