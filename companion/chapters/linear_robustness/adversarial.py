"""Adversarial training of chapter 6, at several radii in units of the exact one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from companion.chapters.linear_robustness.problems import Stepped, load_problems, log_spaced
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.methods.linear_robustness import (
    adversarial_paths,
    max_margin,
    norm,
    robust_radius,
    signed_rows,
)

__all__ = ["FRACTIONS", "Adversarial", "run_adversarial", "score_adversarial"]

FRACTIONS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.05)


@dataclass(frozen=True, kw_only=True)
class Adversarial(Stepped):
    r"""Training against $\ell_\infty$ attacks of several radii.

    Attributes:
        fractions: The radii, in units of $\varepsilon^*$.
        lr: Learning rate at the start of training, for each radius.
        curve_points: Points of the curves.
    """

    fractions: tuple[float, ...] = FRACTIONS
    lr: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    curve_points: int = 20


def run_adversarial(settings: Adversarial, seed: int) -> Result:
    """Train against attacks of every radius, and record the robust radius that is reached."""
    # from step 10 on: at the start, w = 0 has no radius
    recorded_steps = log_spaced(settings.steps, settings.curve_points)
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {"step": [float(step) for step in recorded_steps]}
    problems = load_problems(settings, seed)
    device = run_device()
    fractions = torch.tensor(settings.fractions, dtype=torch.float64, device=device)
    for name, X, y, _, _ in problems:
        eps = max_margin(X, y, "linf").eps_star * fractions  # (E,), solved on the CPU
        X, y = X.to(device), y.to(device)
        paths = adversarial_paths(
            signed_rows(X, y), "linf", eps, lr=settings.lr, record_at=recorded_steps
        )  # (K, E, D)
        radii = robust_radius(paths, X, y, "linf")  # (K, E)
        for j, fraction in enumerate(settings.fractions):
            metrics[f"{name}/radius@{fraction:g}"] = float(radii[-1, j])
            curves[f"{name}/{fraction:g}"] = radii[:, j].tolist()
    counters = {"gradients": settings.steps * len(problems) * len(settings.fractions)}
    return make_result(metrics, curves, counters, digits=12)


def score_adversarial(settings: Adversarial, seed: int) -> Mapping[str, float]:
    """Score training at one radius by its worst-case margin over the length of the weights.

    Training approaches the maximum of this quantity.

    Returns:
        The score of each problem, by name.
    """
    device = run_device()
    fractions = torch.tensor(settings.fractions, dtype=torch.float64, device=device)
    scores: dict[str, float] = {}
    for name, X, y, _, _ in load_problems(settings, seed):
        Z = signed_rows(X, y).to(device)
        eps = max_margin(X, y, "linf").eps_star * fractions  # (1,)
        w = adversarial_paths(Z, "linf", eps, lr=settings.lr, record_at=[settings.steps])[0]
        worst = ((w @ Z.T).amin(-1) - eps * norm(w, "l1")) / norm(w, "l2")  # (1,)
        scores[f"{settings.data}/{name}"] = float(worst[0])
    return scores
