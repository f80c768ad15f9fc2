"""Step lengths of chapter 6: the same grid and trials for every arm, on pilot seeds.

``make reproduce TUNE=1 CHAPTERS=6`` writes ``results/standard/06/tuning.csv`` and ``tuned.yaml``.
Nothing that a claim is about is looked at: a network is scored by the margin that its own training
raises, adversarial training by its worst-case margin, a picture classifier on validation pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import joblib
import torch

from companion.chapters.linear_robustness import bias, pictures
from companion.chapters.linear_robustness.config import Config
from companion.chapters.linear_robustness.problems import SHAPES, load_problems, stacked
from companion.lab import trials
from trainaug.data.fashion_mnist import fashion_mnist_tensors
from trainaug.methods.linear_robustness import (
    adversarial_paths,
    convolutional_paths,
    dense_paths,
    max_margin,
    norm,
    signed_rows,
)
from trainaug.training.models import evaluate
from trainaug.training.randomness import stream

__all__ = ["choose", "read_trials", "tune", "tuning_curve", "tuning_table"]

SEEDS = (0, 1, 2)
GRIDS = {
    "networks": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "adversarial": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    "pictures": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
}
# a margin that is not positive counts as this share of the best one on the grid
WORST_SHARE = 1e-3

Scores = dict[tuple[str, str], float]  # (arm, problem) -> score, larger is better


def _networks(lr: float, seed: int, config: Config) -> Scores:
    found: Scores = {}
    for data, more in bias.NETWORK_DATA.items():
        problems = load_problems({"data": data, **more}, seed)
        Z, mask = stacked(problems)
        run: dict[str, Any] = {"record_at": [config.network_steps], "mask": mask}
        depths = list(bias.DEPTHS)
        rates = [lr] * len(depths)
        start = stream(seed, "init")
        nets = convolutional_paths(Z, SHAPES[data], depths, lr=rates, generator=start, **run)
        dense = dense_paths(Z, lr=lr, generator=stream(seed, "init"), **run)
        margins = bias.network_margins(nets, Z, mask, depths)[-1]  # (P, M)
        single = bias.network_margins(dense, Z, mask, [2])[-1]  # (P, 1)
        for i, problem in enumerate(problems):
            name = f"{data}/{problem.name}"
            for depth, margin in zip(depths, margins[i].tolist(), strict=True):
                found[f"convolutional-{depth}", name] = margin
            found["dense-2", name] = float(single[i])
    return found


def _adversarial(lr: float, seed: int, config: Config) -> Scores:
    found: Scores = {}
    steps, fractions = config.adversarial_steps, list(bias.FRACTIONS)
    for data, more in bias.ADVERSARIAL_DATA.items():
        for name, X, y, _, _ in load_problems({"data": data, **more}, seed):
            Z = signed_rows(X, y)
            exact = max_margin(X, y, "linf").eps_star
            eps = exact * torch.tensor(fractions, dtype=torch.float64)
            rates = [lr] * len(fractions)
            w = adversarial_paths(Z, "linf", eps, lr=rates, record_at=[steps])[0]  # (E, D)
            # relative to the length of w, the quantity whose maximum this training approaches
            worst = ((w @ Z.T).amin(-1) - eps * norm(w, "l1")) / norm(w, "l2")  # (E,)
            for fraction, value in zip(fractions, worst.tolist(), strict=True):
                found[f"adversarial-{fraction:g}", f"{data}/{name}"] = value
    return found


def _pictures(lr: float, seed: int, config: Config) -> Scores:
    validation = fashion_mnist_tensors("val")
    found: Scores = {}
    for model in pictures.MODELS:
        net = pictures.train_classifier(model, pictures.EXAMPLES, config.epochs, lr, seed)
        found[model, "validation"] = evaluate(net, validation, "val")["val/accuracy"]
    return found


def _score_one(task: tuple[str, float, int]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    group, lr, seed = task
    score: Callable[[float, int, Config], Scores] = {
        "networks": _networks,
        "adversarial": _adversarial,
        "pictures": _pictures,
    }[group]
    return [
        {
            "arm": arm,
            "setting": "lr",
            "value": lr,
            "seed": seed,
            "problem": name,
            "score": float(f"{value:.9g}"),
        }
        for (arm, name), value in score(lr, seed, Config()).items()
    ]


def tuning_curve(rows: Sequence[dict[str, Any]]) -> dict[float, float]:
    """Mean over problems and seeds of a score in units of the best one on the grid.

    Where a score can be negative for every setting (adversarial training beyond eps*) the
    difference from the best one, over its size, is averaged instead of the logarithm.
    """
    total: dict[float, list[float]] = {}
    cases = {(row["problem"], row["seed"]) for row in rows}
    for case in sorted(cases):
        group = {r["value"]: r["score"] for r in rows if (r["problem"], r["seed"]) == case}
        best = max(group.values())
        for value, score in group.items():
            if best > 0:
                share = math.log(max(score / best, WORST_SHARE))
            else:
                share = max((score - best) / abs(best or 1.0), math.log(WORST_SHARE))
            total.setdefault(value, []).append(share)
    return {value: math.fsum(shares) / len(shares) for value, shares in sorted(total.items())}


def tune(workers: int, say: Callable[[str], None]) -> None:
    """Score every arm on its grid, write the curve and the chosen values."""
    tasks = [(group, lr, seed) for group, grid in GRIDS.items() for lr in grid for seed in SEEDS]
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    rows: list[dict[str, Any]] = []
    for number, found in enumerate(parallel(joblib.delayed(_score_one)(t) for t in tasks), 1):
        rows += found
        say(f"trials {number}/{len(tasks)}")
    trials.write_choice("06", rows, bias.TUNED, _curve_of_arm)


def read_trials() -> list[dict[str, Any]]:
    """Read the committed ``tuning.csv``."""
    return trials.read_trials("06")


def tuning_table() -> str:
    """Text of the tuning curves: arm, chosen step length, percent short of the best at each value.

    Scores are averaged as logarithms, so this is their geometric mean over problems and seeds.
    """
    head = "value: score against the best on the grid, in percent"
    return trials.trials_table("06", head, 1, _percent_of_arm)


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Take the best value of every arm's curve, in the form of ``tuned.yaml``."""
    return trials.choose(rows, _curve_of_arm)


def _curve_of_arm(rows: Sequence[dict[str, Any]], arm: str) -> dict[float, float]:
    return tuning_curve([row for row in rows if row["arm"] == arm])


def _percent_of_arm(rows: Sequence[dict[str, Any]], arm: str) -> dict[float, float]:
    """Curve of an arm in percent; where scores are negative it holds differences already."""
    negative = all(row["score"] < 0 for row in rows if row["arm"] == arm)
    return {
        value: 100 * (mean if negative else math.expm1(mean))
        for value, mean in _curve_of_arm(rows, arm).items()
    }
