"""What a setting is when a record does not state it, and the versions of the arms.

A record states only what differs from these defaults, so a new setting at its present value changes
no identity and orphans no record. For the same reason a default never changes: it would give every
record that leaves it out another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from companion.evidence.store import Run

__all__ = ["DEFAULTS", "VERSIONS", "arm_version", "completed", "config_of"]

VERSIONS = Path(__file__).with_name("versions.yaml")

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "01": {
        "split": "family",
        "encoder": "features",
        "captions": "bag",
        "score": "cosine",
        "loss": "sum",
        "crops": True,
        "siblings": "none",
        "negatives": 0,
        "warmup": 0,
        "reset": True,
        "clip": 0.0,
        "reduction": "mean",
        "batch_size": 128,
        "patience": 10,
        "max_epochs": 120,
        "lr": 0.001,
        "shapes": [[128, 1024], [1024, 1024]],
    },
    "02": {
        # variance along ordinary SGD
        "data": "digits",
        "model": "mlp",
        "num_train": 1000,
        "copies": 0.0,
        "noise": 0.0,
        "augment": False,
        "lr": 0.05,
        "drop": None,
        "momentum": 0.5,
        "decay": 5.0e-4,
        "batch": 32,
        "clusters": 32,
        "steps": 2000,
        "refresh": 125,
        "iterations": 10,
        "variants": False,
        "measured": None,
        # the grids of a teacher and a student
        "teachers": [2000],
        "curves": False,
        "taus": [0.5, 2.0, 10.0],
        "lrs": [0.1, 0.03, 0.01, 0.003, 0.001],
        # samplers
        "sampler": "uniform",
        "rule": "mean",
        "tau": 0.5,
        "control_lr": 0.04,
    },
    "03": {
        # the linear SVM
        "data": "breast_cancer",
        "lam": 0.01,
        "passes": 60,
        "base": 0.3,
        "eps": 1.0,
        "exact_steps": 600,
        "floor_loss": 1.0,
        "floor_gradient": 0.3,
        "gap": 0.001,
        # pictures
        "model": "cnn",
        "num_train": 10_000,
        "noise": 0.0,
        "rotated": False,
        "sampler": "uniform",
        "batch": 64,
        "momentum": 0.9,
        "decay": 1.0e-4,
        "steps": 1200,
        "shuffle": True,
        "assistant_lr": 0.01,
        "assistant_decay": 0.001,
        "beta": 1.0,
        "pace_epochs": 2,
        "ahead": 0,
        "lr": 0.08,
        "control_lr": 0.04,
        # translation
        "max_words": 12,
        "vocabulary": 2000,
        "tokens": 600_000,
        "batch_tokens": 800,
        "pool": 512,
        "warm_up": 200,
        "mean": "running",
    },
    "04": {
        "data": "digits",
        "model": "mlp",
        "order": "random",
        "candidates": 8,
        "pool": "partition",
        "steps": 320,
        "noise": 0.0,
        "lr": 0.35,
        "momentum": 0.9,
        "epochs": 1,
    },
    "05": {
        "data": "fashion",
        "per_class": 100,
        "model": "conv",
        "stages": [[1, 1.0]],
        "order": "listed",
        "weights": "equal",
        "labels": "all",
        "mixer": "sum",
        "grouping": "pairing",
        "alpha": None,
        "loss": "ce",
        "rescale": False,
        "restart": False,
        "k0": 0,
        "steps": 600,
        "lr": 0.025,
        "images": 300,
        "models": {},
    },
    "06": {
        # exact solutions and descents
        "data": "gaussian",
        "sizes": [3, 6, 10, 12, 25, 50, 100],
        "steps": 40_000,
        "step_size": 1.0,
        # networks, paths, adversarial training
        "depths": [1, 2, 3, 4],
        "lr": 1.0,
        "strengths": [0.5, 0.1, 0.01, 0.001, 0.0001, 0.00001],
        "fractions": [0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.05],
        # picture classifiers
        "examples": 10_000,
        "epochs": 2,
        "images": 100,
    },
}


@cache
def _versions(path: Path) -> dict[str, dict[str, int]]:
    versions: dict[str, dict[str, int]] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for chapter, arms in versions.items():
        for arm, number in arms.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(
                    f"{path.name}: version of {arm}, chapter {chapter}, must be a positive whole "
                    f"number, got {number!r}"
                )
    return versions


def arm_version(chapter: str, arm: str) -> int:
    """Present version of an arm; 1 unless its numbers were moved on purpose.

    Raises:
        ValueError: If the file of versions holds anything but positive whole numbers.
    """
    return _versions(VERSIONS).get(chapter, {}).get(arm, 1)


def config_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a record: those that it states, and the defaults of its chapter."""
    return {**DEFAULTS.get(record["chapter"], {}), **record["settings"]}


def completed(run: Run) -> Run:
    """Return the run with its arm's present version and its chapter's defaults.

    Every plan of a chapter passes through here; a run of an unknown chapter has no defaults.
    """
    return replace(
        run,
        version=arm_version(run.chapter, run.arm),
        defaults=DEFAULTS.get(run.chapter, {}),
    )
