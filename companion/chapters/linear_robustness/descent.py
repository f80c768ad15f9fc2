"""Steepest descent of chapter 6: three optimisers on the problems with known exact solutions.

All problems of one data set and seed form one run. They are stacked in one tensor, as are those of
several seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from companion.chapters.linear_robustness.problems import (
    Problem,
    Stepped,
    load_on_device,
    log_spaced,
    stacked,
)
from companion.lab.results import Result, make_result
from trainaug.methods.linear_robustness import (
    NORMS,
    PlainNorm,
    StepRule,
    dual,
    robust_error,
    robust_radius,
    steepest_descent_paths,
)

__all__ = [
    "OPTIMISERS",
    "ConstantCoordinateDescent",
    "ConstantGradientDescent",
    "ConstantSignDescent",
    "CoordinateDescent",
    "Descent",
    "GradientDescent",
    "SignDescent",
    "run_descent",
    "run_descents",
]

OPTIMISERS: dict[str, PlainNorm] = {"coordinate": "l1", "gradient": "l2", "sign": "linf"}


@dataclass(frozen=True, kw_only=True)
class Descent(Stepped):
    """Steepest descent on all problems of a data set.

    Each norm and rule has a class of its own with these as defaults, since records state only what
    differs from a default and have never stated them.

    Attributes:
        weight_norm: Norm in which a step is the steepest one.
        rule: ``log_loss`` for the theorem's step $1/B^2$ on the logarithm of the loss, or a
            ``constant`` step on the mean loss.
        step_size: Multiple of that step.
        steps: Updates of every model.
        published_steps: The number of steps of the published experiments, after which the radii
            are noted as well.
        curve_points: Points of the curves; those of the noted steps come in addition.
    """

    weight_norm: PlainNorm
    rule: StepRule = "log_loss"
    step_size: float = 1.0
    steps: int = 40_000
    published_steps: int = 10_000
    curve_points: int = 28

    def tiny(self) -> Self:
        return replace(super().tiny(), published_steps=100)

    @property
    def noted(self) -> set[int]:
        """Steps after which the radii are noted."""
        return {min(self.published_steps, self.steps), self.steps}

    @property
    def recorded(self) -> list[int]:
        """Steps of the curves, in order."""
        return sorted({*log_spaced(self.steps, self.curve_points), *self.noted})


@dataclass(frozen=True, kw_only=True)
class CoordinateDescent(Descent):
    """Descent along one coordinate at each step: the steepest in l1."""

    weight_norm: PlainNorm = "l1"


@dataclass(frozen=True, kw_only=True)
class GradientDescent(Descent):
    """Descent along the gradient: the steepest in l2."""

    weight_norm: PlainNorm = "l2"


@dataclass(frozen=True, kw_only=True)
class SignDescent(Descent):
    """Descent along the signs of the gradient: the steepest in l-inf."""

    weight_norm: PlainNorm = "linf"


@dataclass(frozen=True, kw_only=True)
class ConstantCoordinateDescent(CoordinateDescent):
    """`CoordinateDescent` with a constant step on the mean loss."""

    rule: StepRule = "constant"


@dataclass(frozen=True, kw_only=True)
class ConstantGradientDescent(GradientDescent):
    """`GradientDescent` with a constant step on the mean loss."""

    rule: StepRule = "constant"


@dataclass(frozen=True, kw_only=True)
class ConstantSignDescent(SignDescent):
    """`SignDescent` with a constant step on the mean loss."""

    rule: StepRule = "constant"


def run_descent(settings: Descent, seed: int) -> Result:
    r"""Train on all problems, and record the robust radius and the bound that gradients certify.

    Curves ``<problem>/lower``, the radius of the iterate, and ``<problem>/upper`` enclose the
    largest radius, $\varepsilon^*$. Metrics are the radii under every attack at the noted steps.
    """
    (result,) = run_descents(settings, [seed])
    return result


def run_descents(settings: Descent, seeds: Sequence[int]) -> list[Result]:
    """Do what `run_descent` does for several seeds, all problems in one stack.

    Returns:
        The result of each seed, in their order.
    """
    drawn = [load_on_device(settings, seed) for seed in seeds]
    Z, mask = stacked([problem for problems in drawn for problem in problems])
    path = steepest_descent_paths(
        Z,
        [settings.weight_norm],
        record_at=settings.recorded,
        lr=settings.step_size,
        step=settings.rule,
        mask=mask,
    )
    size = len(drawn[0])  # all seeds have the same number of problems
    weights = torch.split(path.weights.squeeze(2), size, dim=1)  # each (K, P, D)
    uppers = torch.split(path.upper.squeeze(2), size, dim=1)  # each (K, P)
    return [_describe(settings, *parts) for parts in zip(drawn, weights, uppers, strict=True)]


def _describe(
    settings: Descent, problems: Sequence[Problem], weights: Tensor, upper: Tensor
) -> Result:
    """Describe the iterates ``(K, P, D)`` on P problems, and their upper bounds ``(K, P)``."""
    attacked_norm = dual(settings.weight_norm)  # under it the theory predicts the largest radius
    recorded = settings.recorded
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    curves: dict[str, list[float]] = {"step": [float(step) for step in recorded]}
    for i, (name, X, y, _, _) in enumerate(problems):
        iterates = weights[:, i]  # (K, D)
        lower = robust_radius(iterates, X, y, attacked_norm)  # (K,)
        curves[f"{name}/lower"] = lower.tolist()
        curves[f"{name}/upper"] = upper[:, i].tolist()
        for step in sorted(settings.noted):
            w = iterates[recorded.index(step)]
            for attack in NORMS:
                metrics[f"{name}/{attack}/radius@{step}"] = float(robust_radius(w, X, y, attack))
        metrics[f"{name}/upper"] = float(upper[-1, i])
        errors[f"{name}/train_error"] = float(robust_error(iterates[-1], X, y, attacked_norm, 0.0))
    counters = {"gradients": settings.steps * len(problems)}
    result = make_result(metrics, curves, counters, digits=12)
    # records have always had these shares of a few examples unrounded
    return replace(result, metrics={**result.metrics, **errors})
