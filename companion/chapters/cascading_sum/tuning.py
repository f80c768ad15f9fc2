"""Learning rates of chapter 5, and the strength of mixup: one grid for every arm, pilot seeds.

``make reproduce TUNE=1 CHAPTERS=5`` writes ``results/standard/05/tuning.csv`` and ``tuned.yaml``.
An arm is scored by its validation accuracy at the end; the test part is never looked at. Curves are
flat and few pictures judge, so a value counts with its two neighbours on the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import joblib
import torch
import yaml

from companion.chapters.cascading_sum.arms import ALPHAS, EXTENDED, HEADLINE, TUNED, settings_of
from companion.chapters.cascading_sum.problems import make_model, problem
from companion.chapters.cascading_sum.training import train_classifier
from companion.evidence.store import write_atomic
from companion.lab import trials
from trainaug.training.loop import NonFiniteLossError

__all__ = ["GRID", "SEEDS", "neighbour_mean", "read_trials", "tune", "tuned_arms", "tuning_table"]

SEEDS = {"digits": range(6), "fashion": range(3), "emoji": range(3)}
GRID = (
    0.000375,
    0.00075,
    0.0015,
    0.003,
    0.00625,
    0.0125,
    0.025,
    0.05,
    0.1,
    0.2,
    0.4,
    0.8,
    1.6,
    3.2,
)


def tuned_arms() -> list[str]:
    """Arms that have a learning rate of their own."""
    return [arm for arm, (_, _, owner) in (HEADLINE | EXTENDED).items() if owner == arm]


def neighbour_mean(rows: Sequence[dict[str, Any]], arm: str) -> dict[float, float]:
    """Mean score of an arm at each value and the values beside it."""
    curve = trials.mean_curve(rows, arm)
    scores = list(curve.values())
    near = [scores[max(0, place - 1) : place + 2] for place in range(len(scores))]
    return {value: sum(s) / len(s) for value, s in zip(curve, near, strict=True)}


def _variants(arm: str) -> list[tuple[str, float | None]]:
    """The names under which an arm is tried, with the strength of mixup; one without any."""
    alpha = settings_of(arm)[0]["alpha"]
    return [(f"{arm}@{a:g}", a) for a in ALPHAS] if alpha == "best" else [(arm, alpha)]


def _score_one(task: tuple[str, str, float | None, float, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    name, arm, alpha, lr, seed = task
    settings = settings_of(arm)[0] | {"alpha": alpha, "lr": lr}
    data = problem(settings["data"], settings["per_class"], seed)
    model = make_model(settings["model"], data, seed)
    try:
        found = train_classifier(
            model, data.train, data.val, settings, data.num_classes, seed, curve=False
        )
    except NonFiniteLossError:
        return trials.trial(name, lr, seed, 0.0)
    return trials.trial(name, lr, seed, found.accuracy[-1])


def tune(workers: int, say: Callable[[str], None]) -> None:
    """Score every arm on its grid, write the curves and the chosen values."""
    tasks = [
        (name, arm, alpha, lr, seed)
        for arm in tuned_arms()
        for name, alpha in _variants(arm)
        for lr in GRID
        for seed in SEEDS[settings_of(arm)[0]["data"]]
    ]
    rows = []
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    for row in parallel(joblib.delayed(_score_one)(task) for task in tasks):
        rows.append(row)
        if len(rows) % 50 == 0 or len(rows) == len(tasks):
            say(f"trials {len(rows)}/{len(tasks)}")
    trials.write_choice("05", rows, TUNED, neighbour_mean)
    chosen = choose_strengths(rows, yaml.safe_load(TUNED.read_text(encoding="utf-8")))
    write_atomic(TUNED, yaml.safe_dump(chosen, sort_keys=False))


def choose_strengths(
    rows: Sequence[dict[str, Any]], chosen: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Keep of an arm's variants the one whose best mean score is the highest, with its alpha."""
    kept: dict[str, dict[str, Any]] = {}
    scores: dict[str, float] = {}
    for name, entry in chosen.items():
        arm, _, alpha = name.partition("@")
        score = max(neighbour_mean(rows, name).values())
        if arm in kept and score <= scores[arm]:
            continue
        lr = entry["lr"] | ({"alpha": float(alpha)} if alpha else {})
        kept[arm], scores[arm] = {"lr": lr}, score
    return kept


def read_trials() -> list[dict[str, Any]]:
    """Read the committed ``tuning.csv``."""
    return trials.read_trials("05")


def tuning_table() -> str:
    """Text of the tuning curves: arm, chosen learning rate, score at every value tried."""
    head = "learning rate: mean validation accuracy, with both neighbours"
    return trials.trials_table("05", head, 3, neighbour_mean)
