"""Regularisation paths of chapter 6: logistic regression with a penalty that weakens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from companion.chapters.linear_robustness.problems import Stepped, load_on_device, stacked
from companion.lab.results import Result, make_result
from trainaug.methods.linear_robustness import (
    FourierNorm,
    Norm,
    dual,
    regularisation_path,
    robust_radius,
)

__all__ = ["STRENGTHS", "Regularised", "run_regularised"]

STRENGTHS = (0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True, kw_only=True)
class Regularised(Stepped):
    r"""Paths of four penalties, $\ell_1$, $\ell_2$, $\ell_\infty$ and Fourier $\ell_1$.

    Attributes:
        strengths: Strengths of the penalty, $\lambda / \lambda_{\max}$.
    """

    strengths: tuple[float, ...] = STRENGTHS

    def tiny(self) -> Self:
        return replace(super().tiny(), steps=40)


def run_regularised(settings: Regularised, seed: int) -> Result:
    """Solve the paths of all problems; record radius and residual at every strength."""
    problems = load_on_device(settings, seed)
    Z, _ = stacked(problems)  # equally many examples in each, so that nothing is padded
    norms: tuple[Norm, ...] = ("l1", "l2", "linf", FourierNorm("l1", settings.shape))
    metrics: dict[str, float] = {}
    for weight_norm in norms:
        path = regularisation_path(Z, weight_norm, settings.strengths, steps=settings.steps)
        attack = dual(weight_norm)
        for i, (name, X, y, _, _) in enumerate(problems):
            metrics[f"{name}/{attack}/lambda_max"] = float(path.lambda_max[i])
            radii = robust_radius(path.weights[i], X, y, attack)  # (S,)
            for j, strength in enumerate(settings.strengths):
                metrics[f"{name}/{attack}/radius@{strength:g}"] = float(radii[j])
                metrics[f"{name}/{attack}/residual@{strength:g}"] = float(path.residual[i, j])
    counters = {"gradients": settings.steps * len(norms) * len(settings.strengths)}
    return make_result(metrics, counters=counters, digits=12)
