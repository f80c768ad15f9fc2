"""Tuning trials of a chapter: the committed file, mean curves, and the choice that follows.

A trial is one arm at one value of one setting with one pilot seed, and its score, larger is better.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from companion.evidence.store import reference_folder, write_atomic

__all__ = [
    "COLUMNS",
    "choose",
    "mean_curve",
    "read_trials",
    "trial",
    "trials_table",
    "write_choice",
]

COLUMNS = ("arm", "setting", "value", "seed", "score")
Trial = dict[str, Any]
Curve = Callable[[Sequence[Trial], str], dict[float, float]]


def trial(arm: str, lr: float, seed: int, score: float) -> Trial:
    """One trial of a step length."""
    return dict(zip(COLUMNS, (arm, "lr", lr, seed, float(f"{score:.6g}")), strict=True))


def mean_curve(rows: Sequence[Trial], arm: str) -> dict[float, float]:
    """Mean score of an arm at each value."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["arm"] == arm:
            found.setdefault(row["value"], []).append(row["score"])
    return {value: math.fsum(scores) / len(scores) for value, scores in sorted(found.items())}


def write_choice(
    chapter: str, rows: Sequence[Trial], tuned: Path, curve_of: Curve = mean_curve
) -> None:
    """Write ``tuning.csv`` of a chapter and the chosen values to ``tuned``."""
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    write_atomic(reference_folder("standard", chapter) / "tuning.csv", "\n".join(lines) + "\n")
    write_atomic(tuned, yaml.safe_dump(choose(rows, curve_of), sort_keys=False))


def read_trials(chapter: str) -> list[Trial]:
    """Read the committed ``tuning.csv`` of a chapter."""
    path = reference_folder("standard", chapter) / "tuning.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [
            row
            | {"value": float(row["value"]), "seed": int(row["seed"]), "score": float(row["score"])}
            for row in csv.DictReader(file)
        ]


def choose(rows: Sequence[Trial], curve_of: Curve = mean_curve) -> dict[str, Any]:
    """Take the best value of every arm's curve, in the form of ``tuned.yaml``."""
    chosen: dict[str, Any] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        curve = curve_of(rows, arm)
        best = max(curve, key=lambda value: curve[value])
        chosen[arm] = {"lr": {"value": best, "grid": list(curve)}}
    return chosen


def trials_table(chapter: str, head: str, digits: int, curve_of: Curve = mean_curve) -> str:
    """Text of a chapter's curves: arm, chosen step length, mean score at every value tried."""
    rows = read_trials(chapter)
    chosen = choose(rows, curve_of)
    width = max(map(len, chosen))
    lines = [f"{'arm':{width}} chosen   {head}"]
    for arm, settings in chosen.items():
        curve = curve_of(rows, arm)
        cells = " ".join(f"{value:g}: {score:.{digits}f}" for value, score in curve.items())
        lines.append(f"{arm:{width}} {settings['lr']['value']:>6g}   {cells}")
    return "\n".join(lines)
