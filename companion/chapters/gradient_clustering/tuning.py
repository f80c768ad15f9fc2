"""Learning rates of chapter 2's samplers and the snoozing threshold: one grid, pilot seeds.

``make reproduce TUNE=1 CHAPTERS=2`` writes ``results/standard/02/tuning.csv`` and ``tuned.yaml``.
An arm is scored by minus the logarithm of the examples it spends to the target accuracy on the
validation part; the test part is never looked at. The control that snoozes at random is tuned after
the others, with the numbers of active examples of the tuned snooze.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import joblib
import torch
import yaml

from companion.chapters.gradient_clustering.arms import (
    SPEED_EXTENDED,
    SPEED_HEADLINE,
    TUNED,
    settings_of,
)
from companion.chapters.gradient_clustering.speed import TARGETS, train_sampler
from companion.evidence.store import write_atomic
from companion.lab import trials
from trainaug.training.loop import NonFiniteLossError

__all__ = ["GRID", "SEEDS", "TAUS", "read_trials", "tune", "tuned_arms", "tuning_table"]

SEEDS = (0, 1, 2)
GRID = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
TAUS = (0.125, 0.25, 0.5, 1.0)  # thresholds, as multiples of the mean loss


def tuned_arms() -> list[str]:
    """Arms that have a learning rate of their own, the controls last."""
    arms = list(SPEED_HEADLINE | SPEED_EXTENDED)
    return arms + [arm.replace("_snooze", "_random") for arm in arms if arm.endswith("_snooze")]


def _variants(arm: str) -> list[tuple[str, float]]:
    """The names under which an arm is tried, with the threshold."""
    if arm.endswith(("_snooze", "_reweighted")):
        return [(f"{arm}@{tau:g}", tau) for tau in TAUS]
    return [(arm, 1.0)]


def _score_one(task: tuple[str, str, float, float, int, dict[str, Any] | None]) -> dict[str, Any]:
    torch.set_num_threads(1)
    name, arm, tau, lr, seed, snooze = task
    settings = settings_of(arm.replace("_random", "_snooze"))[0] | {"tau": tau, "lr": lr}
    counts = None
    if snooze is not None:
        counts = train_sampler(settings | snooze, seed, measured=False).active_counts
        settings |= {"sampler": "random"}
    try:
        found = train_sampler(settings, seed, counts=counts)
    except NonFiniteLossError:
        return trials.trial(name, lr, seed, -math.log(settings["steps"] * settings["batch"]))
    look = found.reached(TARGETS[arm.split("_")[1]])
    spent = found.examples[-1 if look is None else look]  # all, if the target is never reached
    return trials.trial(name, lr, seed, -math.log(spent))


def tune(workers: int, say: Callable[[str], None]) -> None:
    """Score every arm on its grid, write the curves and the chosen values."""
    rows: list[dict[str, Any]] = []
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    arms = tuned_arms()
    controls = [arm for arm in arms if arm.endswith("_random")]
    chosen: dict[str, Any] = {}
    for these in ([arm for arm in arms if arm not in controls], controls):
        tasks = []
        for arm in these:
            snooze = None
            if arm in controls:
                own = chosen[arm.replace("_random", "_snooze")]["lr"]
                snooze = {"lr": own["value"], "tau": own["tau"], "sampler": "snooze"}
            tasks += [
                (name, arm, tau, lr, seed, snooze)
                for name, tau in _variants(arm)
                for lr in GRID
                for seed in SEEDS
            ]
        for done, row in enumerate(parallel(joblib.delayed(_score_one)(t) for t in tasks), 1):
            rows.append(row)
            if done % 50 == 0 or done == len(tasks):
                say(f"trials {done}/{len(tasks)}")
        chosen = choose_thresholds(rows, trials.choose(rows))
    trials.write_choice("02", rows, TUNED)
    write_atomic(TUNED, yaml.safe_dump(chosen, sort_keys=False))


def choose_thresholds(
    rows: Sequence[dict[str, Any]], chosen: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Keep of an arm's thresholds the one whose best mean score is the highest."""
    kept: dict[str, dict[str, Any]] = {}
    scores: dict[str, float] = {}
    for name, entry in chosen.items():
        arm, _, tau = name.partition("@")
        score = max(trials.mean_curve(rows, name).values())
        if arm in kept and score <= scores[arm]:
            continue
        kept[arm], scores[arm] = {"lr": entry["lr"] | ({"tau": float(tau)} if tau else {})}, score
    return kept


def read_trials() -> list[dict[str, Any]]:
    """Read the committed ``tuning.csv``."""
    return trials.read_trials("02")


def tuning_table() -> str:
    """Text of the tuning curves: arm, chosen learning rate, score at every value tried."""
    return trials.trials_table("02", "learning rate: mean score", 2)
