"""The runs of chapter 3: their list and what each computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from companion.chapters.autoassist.arms import (
    EXTENDED,
    HEADLINE,
    IMAGES,
    LARGE,
    PAPER,
    SVM,
    SVM_SETS,
    TARGETS,
    TRANSLATION_ARMS,
    TRANSLATION_PAPER,
    control_of,
    settings_of,
    translation_settings,
    tuned,
)
from companion.chapters.autoassist.config import Config
from companion.chapters.autoassist.corpora import FOLDERS
from companion.chapters.autoassist.images import GUESSERS, train_images
from companion.chapters.autoassist.linear import compare_rules, theorem
from companion.chapters.autoassist.problems import CIFAR, CONTENT
from companion.chapters.autoassist.timing import time_translation, time_updates
from companion.chapters.autoassist.translation import train_translation
from companion.evidence.store import Run, rounded
from trainaug.data.registry import content_hash

__all__ = ["execute", "plan"]

CURVE = 60  # points


def plan(config: Config) -> list[Run]:
    """List the runs of a configuration; each names its arm, settings and predicted seconds."""
    runs: list[Run] = []
    data = {name: content_hash(entry) for name, entry in CONTENT.items()}
    data |= {"cifar10": CIFAR, "libreoffice": content_hash("libreoffice_help")}
    data |= {name: name for name in FOLDERS}

    def add(arm: str, settings: dict[str, Any], seeds: int, spent: float, **more: Any) -> None:
        of = data[settings.get("data", "libreoffice")]
        for seed in range(config.first_seed, config.first_seed + seeds):
            runs.append(Run("03", arm, settings, seed, of, spent, **more))

    share = config.budget
    cost = 0.2 + 0.8 * share
    for arm, (changes, seconds) in SVM_SETS.items():
        settings = SVM | changes
        passes = max(2, round(settings["passes"] * share))
        add(arm, settings | {"passes": passes}, config.seeds, seconds * cost)
    settings = {name: SVM[name] for name in ("data", "lam")}
    add("theorem", settings | {"passes": max(1, round(10 * share))}, config.seeds, 3.0 * cost)
    for arms, seeds in (
        (HEADLINE, config.image_seeds),
        (EXTENDED, config.extended_seeds),
        (LARGE, config.large_seeds),
        (PAPER, config.paper_seeds),
    ):
        for arm in arms:
            settings, seconds = settings_of(arm)
            steps = max(60, round(settings["steps"] * share))
            settings |= {"lr": tuned(arm), "steps": steps}
            if _has_control(arm):
                settings["control_lr"] = tuned(control_of(arm))
            add(arm, settings, seeds, seconds * cost)
    for arms, seeds in (
        (TRANSLATION_ARMS, config.deep_seeds),
        (TRANSLATION_PAPER, config.paper_seeds),
    ):
        for arm, (_, seconds) in arms.items():
            settings = translation_settings(arm) | {"lr": tuned(arm)}
            settings["tokens"] = round(settings["tokens"] * share)
            if arm == "translation_assist":
                settings["control_lr"] = tuned(control_of(arm))
            add(arm, settings, seeds, seconds * cost)
    settings = translation_settings("translation_uniform") | {"lr": tuned("translation_uniform")}
    add("translation_timing", settings, config.deep_seeds, 20.0, deterministic=False)
    settings = IMAGES | {"lr": tuned("images_0_uniform")}
    add("timing", settings, config.timing_blocks, 6.0, deterministic=False)
    return runs


def _has_control(arm: str) -> bool:
    return arm.endswith("_assist")


def execute(run: Run) -> dict[str, Any]:
    """Compute one run.

    Raises:
        ValueError: If the arm is unknown.
    """
    settings = dict(run.config)
    metrics: dict[str, float]
    curves: dict[str, list[float]]
    if run.arm in SVM_SETS:
        metrics, curves = compare_rules(settings, run.seed)
    elif run.arm == "theorem":
        metrics, curves = theorem(settings, run.seed)
    elif run.arm == "timing":
        metrics, curves = time_updates(settings, run.seed)
    elif run.arm == "translation_timing":
        metrics, curves = time_translation(settings, run.seed), {}
    elif run.arm in TRANSLATION_ARMS | TRANSLATION_PAPER:
        metrics, curves = _translation(settings, run.seed)
    else:
        metrics, curves = _images(run.arm, settings, run.seed)
    return {
        "metrics": {name: rounded(value, 9) for name, value in metrics.items()},
        "curves": {name: [rounded(v, 6) for v in values] for name, values in curves.items()},
        "counters": {},
    }


def _images(
    arm: str, settings: dict[str, Any], seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Train an arm; one with an Assistant also with its control, which skips as many at random."""
    settings_of(arm)
    target = TARGETS[arm.split("_")[1]]
    found = {"": train_images(settings, seed)}
    if "control_lr" in settings:
        control = settings | {"sampler": "random", "lr": settings["control_lr"]}
        found["random/"] = train_images(control, seed, keep_rates=found[""].keep_rates)
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for prefix, of in found.items():
        look = of.reached(target)
        place = -1 if look is None else look
        metrics |= {
            f"{prefix}reached": float(look is not None),
            f"{prefix}examples": of.examples[place],
            f"{prefix}work": of.work[place],
            f"{prefix}scanned": of.scanned[place],
        } | {f"{prefix}{name}": value for name, value in of.metrics.items()}
        every = max(1, -(-len(of.accuracy) // CURVE))
        for name in ("accuracy", "examples", "scanned"):
            curves[f"{prefix}{name}"] = getattr(of, name)[::every]
        curves[f"{prefix}keep_rates"] = of.keep_rates[:CURVE]
        for name in GUESSERS if settings["sampler"] == "assist" and not prefix else ():
            curves[f"{prefix}auc/{name}"] = [judged[name] for judged in of.auc]
    return metrics, curves


def _translation(
    settings: Mapping[str, Any], seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Train an arm; one with an Assistant also with its control, at its shares kept."""
    settings = dict(settings)
    control_lr = settings.pop("control_lr", None)
    found = train_translation(settings, seed)
    metrics, curves = dict(found["metrics"]), dict(found["curves"])
    if control_lr is not None:
        control = settings | {"sampler": "random", "lr": control_lr}
        of = train_translation(control, seed, keep_rates=curves["keep_rates"])
        metrics |= {f"random/{name}": value for name, value in of["metrics"].items()}
        curves |= {f"random/{name}": values for name, values in of["curves"].items()}
    return metrics, curves
