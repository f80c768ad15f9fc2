"""The runs of chapter 2: their list and what each computes."""

from __future__ import annotations

from typing import Any

from companion.chapters.gradient_clustering.arms import (
    EXTENDED,
    GRIDS,
    HEADLINE,
    PAPER,
    SPEED,
    SPEED_EXTENDED,
    SPEED_HEADLINE,
    best_tau,
    settings_of,
    tuned,
)
from companion.chapters.gradient_clustering.config import Config
from companion.chapters.gradient_clustering.features import run_grid
from companion.chapters.gradient_clustering.problems import CIFAR, CONTENT
from companion.chapters.gradient_clustering.speed import TARGETS, train_sampler
from companion.chapters.gradient_clustering.theory import departures, enumeration
from companion.chapters.gradient_clustering.timing import NETWORKS, time_clustering, time_samplers
from companion.chapters.gradient_clustering.trajectory import follow
from companion.evidence.store import Run, rounded
from trainaug.data.registry import content_hash

__all__ = ["execute", "plan"]

CURVE = 60  # points
TIMING_SECONDS = {"mlp": 0.7, "resnet8": 1.8}


def plan(config: Config) -> list[Run]:
    """List the runs of a configuration; each names its arm, settings and predicted seconds."""
    runs: list[Run] = []
    data = {name: content_hash(entry) for name, entry in CONTENT.items()}
    data |= {"cifar10": CIFAR, "none": "drawn from the seed"}

    def add(arm: str, settings: dict[str, Any], seeds: int, spent: float, **more: Any) -> None:
        of = data[settings.get("data", "none")]
        for seed in range(config.first_seed, config.first_seed + seeds):
            runs.append(Run("02", arm, settings, seed, of, spent, **more))

    share = config.budget
    cost = 0.2 + 0.8 * share
    for arms, seeds in (
        (HEADLINE, config.seeds),
        (EXTENDED, config.extended_seeds),
        (PAPER, config.cifar_seeds),
    ):
        for arm in arms:
            settings, seconds = settings_of(arm)
            steps = max(2 * settings["refresh"], round(settings["steps"] * share))
            add(arm, settings | {"steps": steps}, seeds, seconds * cost)
    for arm, (settings, seconds, standard) in GRIDS.items():
        of_grid = settings | {"steps": max(50, round(settings["steps"] * share))}
        add(arm, of_grid, config.seeds if standard else config.extended_seeds, seconds * cost)
    for arms, seeds in (
        (SPEED_HEADLINE, config.speed_seeds),
        (SPEED_EXTENDED, config.extended_seeds),
    ):
        for arm in arms:
            settings, seconds = settings_of(arm)
            steps = max(100, round(settings["steps"] * share))
            settings |= {"lr": tuned(arm), "steps": steps}
            if settings["sampler"] in ("snooze", "reweighted"):
                settings["tau"] = best_tau(arm)
            if settings["sampler"] == "snooze":
                settings["control_lr"] = tuned(arm.replace("_snooze", "_random"))
            add(arm, settings, seeds, seconds * cost)
    add("enumeration", {"data": "digits", "num_train": 1000}, config.seeds, 0.5)
    base = settings_of("digits_mlp_0")[0]
    kept = ("data", "num_train", "lr", "momentum", "decay", "batch", "clusters", "iterations")
    settings = {name: base[name] for name in kept} | {"steps": round(base["steps"] * share)}
    add("departures", settings, config.extended_seeds, 8.0)
    for name in NETWORKS:
        add(
            f"timing_{name}",
            {"model": name},
            config.timing_blocks,
            TIMING_SECONDS[name],
            deterministic=False,
        )
    settings = SPEED | {"lr": tuned("speed_0_uniform")}
    add("timing_samplers", settings, config.timing_blocks, 1.5, deterministic=False)
    return runs


def execute(run: Run) -> dict[str, Any]:
    """Compute one run.

    Raises:
        ValueError: If the arm is unknown.
    """
    settings = dict(run.config)
    metrics: dict[str, float]
    curves: dict[str, list[float]] = {}
    counters: dict[str, int] = {}
    if run.arm in GRIDS:
        metrics, curves = run_grid(settings, run.seed)
    elif run.arm == "enumeration":
        metrics = enumeration(settings, run.seed)
    elif run.arm == "departures":
        metrics = departures(settings, run.seed)
    elif run.arm == "timing_samplers":
        metrics = time_samplers(settings, run.seed)
    elif run.arm in [f"timing_{name}" for name in NETWORKS]:
        metrics = time_clustering(settings, run.seed)
    elif run.arm.startswith("speed_"):
        metrics, curves = _speed(run.arm, settings, run.seed)
    else:
        settings_of(run.arm)
        found = follow(settings, run.seed)
        metrics, curves, counters = found.metrics, found.curves, {"steps": found.steps}
    return {
        "metrics": {name: rounded(value, 9) for name, value in metrics.items()},
        "curves": {name: [rounded(v, 6) for v in values] for name, values in curves.items()},
        "counters": counters,
    }


def _speed(
    arm: str, settings: dict[str, Any], seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Train with a sampler; a snoozing one also with its control, as many awake but at random."""
    settings_of(arm)
    target = TARGETS[arm.split("_")[1]]
    found = {"": train_sampler(settings, seed)}
    if "control_lr" in settings:
        control = settings | {"sampler": "random", "lr": settings["control_lr"]}
        found["random/"] = train_sampler(control, seed, counts=found[""].active_counts)
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for prefix, of in found.items():
        look = of.reached(target)
        place = -1 if look is None else look
        metrics |= {
            f"{prefix}reached": float(look is not None),
            f"{prefix}examples": of.examples[place],
            f"{prefix}extra": of.extra[place],
            f"{prefix}test/accuracy": of.test,
        }
        every = max(1, -(-len(of.accuracy) // CURVE))
        curves[f"{prefix}accuracy"] = of.accuracy[::every]
        curves[f"{prefix}drawn"] = of.examples[::every]
        if of.active_counts:
            curves[f"{prefix}active"] = [float(c) for c in of.active_counts[:CURVE]]
    return metrics, curves
