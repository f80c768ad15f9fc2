"""Step lengths of chapter 1: the same grid and trials for every arm, by the validation part.

``make reproduce TUNE=1 CHAPTERS=1`` writes ``results/standard/01/tuning.csv`` and ``tuned.yaml``,
arm by arm; started again after a kill it goes on from the trials in ``runs/tuning``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import joblib
import torch

from companion.chapters.hard_negatives.arms import (
    DEEP,
    EXTENDED,
    FACTORIAL,
    HEADLINE,
    TUNED,
    epochs_of,
    settings_of,
)
from companion.chapters.hard_negatives.config import Config
from companion.chapters.hard_negatives.problems import load_pairs
from companion.chapters.hard_negatives.training import train_pairs
from companion.evidence.digest import code_digest
from companion.evidence.store import write_atomic
from companion.lab import trials
from companion.paths import RUNS

__all__ = ["read_trials", "tune", "tuning_table"]

SEEDS = (0, 1)
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
DEEP_GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # for the picture CNN and the GRU, a minute a trial


def tuned_arms() -> list[str]:
    """Arms that have a step length of their own."""
    arms = {**HEADLINE, **FACTORIAL, **EXTENDED, **DEEP}
    return [arm for arm, (_, _, owner) in arms.items() if owner == arm]


def grid_of(arm: str) -> tuple[float, ...]:
    """Step lengths tried for an arm."""
    return DEEP_GRID if arm in DEEP else GRID


def _score_one(task: tuple[str, float, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    arm, lr, seed = task
    config = Config()
    settings = settings_of(arm)[0] | {"lr": lr, "batch_size": config.batch_size}
    settings |= {"patience": config.patience, "max_epochs": epochs_of(arm, config.max_epochs)}
    pairs = load_pairs(settings["split"], settings["encoder"], seed)
    best = max(train_pairs(settings, pairs, seed).validation)
    return trials.trial(arm, lr, seed, best)


def tune(workers: int, say: Callable[[str], None]) -> None:
    """Score every arm on its grid; write curves and chosen values of the arms that are complete."""
    log = RUNS / "tuning" / f"01-{code_digest(__name__)[:16]}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    tasks = [(arm, lr, seed) for arm in tuned_arms() for lr in grid_of(arm) for seed in SEEDS]
    done = {(row["arm"], row["value"], row["seed"]) for row in rows}
    missing = [task for task in tasks if task not in done]
    write_atomic(log, "".join(json.dumps(row) + "\n" for row in rows))
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator", pre_dispatch="all")
    for row in parallel(joblib.delayed(_score_one)(task) for task in missing):
        rows.append(row)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        say(f"trials {len(rows)}/{len(tasks)}")
        _write(rows)


def _write(rows: Sequence[dict[str, Any]]) -> None:
    counts = Counter(row["arm"] for row in rows)
    arms = [arm for arm in tuned_arms() if counts[arm] == len(grid_of(arm)) * len(SEEDS)]
    whole = [row for row in rows if row["arm"] in arms]
    whole.sort(key=lambda row: (arms.index(row["arm"]), row["value"], row["seed"]))
    trials.write_choice("01", whole, TUNED)


def read_trials() -> list[dict[str, Any]]:
    """Read the committed ``tuning.csv``."""
    return trials.read_trials("01")


def tuning_table() -> str:
    """Text of the tuning curves: arm, chosen step length, mean validation rsum at every value."""
    return trials.trials_table("01", "step length: validation rsum", 0)
