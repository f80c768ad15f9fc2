"""Runs of chapter 6 on other sources of bias: regularisers, architectures, adversarial training."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from companion.chapters.linear_robustness.arms import ADVERSARIAL, NETWORKS, REGULARISED
from companion.chapters.linear_robustness.config import Config
from companion.chapters.linear_robustness.problems import SHAPES, Problem, load_problems, stacked
from companion.evidence.store import rounded
from trainaug import roots
from trainaug.methods.linear_robustness import (
    FourierNorm,
    NetworkPath,
    Norm,
    adversarial_paths,
    convolutional_paths,
    dense_paths,
    dual,
    max_margin,
    regularisation_path,
    robust_radius,
    signed_rows,
)
from trainaug.training.randomness import stream

__all__ = [
    "DEPTHS",
    "FRACTIONS",
    "STRENGTHS",
    "adversarial",
    "network_margins",
    "networks",
    "regularised",
    "run_adversarial",
    "run_convolutional",
    "run_dense",
    "run_regularised",
    "tuned",
]

STRENGTHS = (0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # lambda / lambda_max
DEPTHS = (1, 2, 3, 4)
FRACTIONS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.05)  # radius of adversarial training / eps*
PATH_DATA = {"gaussian": {"sizes": [10]}, "digits": {}}
NETWORK_DATA = {"gaussian": {"sizes": [3, 10, 25]}, "digits": {}}
ADVERSARIAL_DATA = {"gaussian": {"sizes": [10, 50]}, "digits": {}}
TUNED = Path(__file__).with_name("tuned.yaml")
# predicted core-seconds: 1000 proximal steps in four norms, 10 000 steps of the others
SECONDS = {"regularised": 4.0, "convolutional": 7.0, "dense": 2.5, "adversarial": 3.5}

Planned = tuple[str, dict[str, Any], float]  # arm, settings, predicted core-seconds


def tuned(arm: str) -> float:
    """Step length that `tuning` chose, say for ``"convolutional-2"``: kind and depth."""
    return _tuned_values()[arm]


@cache
def _tuned_values() -> dict[str, float]:
    chosen = yaml.safe_load(TUNED.read_text(encoding="utf-8"))
    return {arm: float(settings["lr"]["value"]) for arm, settings in chosen.items()}


def regularised(config: Config) -> Iterator[Planned]:
    """The regularisation paths in four norms (lin.4)."""
    for data, more in PATH_DATA.items():
        settings = {"data": data, **more, "strengths": list(STRENGTHS), "steps": config.path_steps}
        yield REGULARISED[data], settings, SECONDS["regularised"] * config.path_steps / 1000


def networks(config: Config) -> Iterator[Planned]:
    """Linear networks: convolutional of four depths, fully connected of depth two (lin.5)."""
    steps = config.network_steps
    for data, more in NETWORK_DATA.items():
        base = {"data": data, **more, "steps": steps}
        lr = [tuned(f"convolutional-{depth}") for depth in DEPTHS]
        settings = base | {"depths": list(DEPTHS), "lr": lr}
        arm = NETWORKS["convolutional", data]
        yield arm, settings, SECONDS["convolutional"] * steps / 10_000
        settings = base | {"lr": tuned("dense-2")}
        yield NETWORKS["dense", data], settings, SECONDS["dense"] * steps / 10_000


def adversarial(config: Config) -> Iterator[Planned]:
    """Adversarial training at several radii (lin.7)."""
    steps, lr = config.adversarial_steps, [tuned(f"adversarial-{f:g}") for f in FRACTIONS]
    for data, more in ADVERSARIAL_DATA.items():
        settings = {"data": data, **more, "fractions": list(FRACTIONS), "lr": lr, "steps": steps}
        yield ADVERSARIAL[data], settings, SECONDS["adversarial"] * steps / 10_000


def run_regularised(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Solve the paths of all problems, which have equally many rows."""
    problems = load_problems(config, seed)
    Z, _ = stacked(problems)
    norms: tuple[Norm, ...] = ("l1", "l2", "linf", FourierNorm("l1", SHAPES[config["data"]]))
    metrics: dict[str, float] = {}
    for weight_norm in norms:
        path = regularisation_path(Z, weight_norm, config["strengths"], steps=config["steps"])
        attack = dual(weight_norm)
        for i, (name, X, y, _, _) in enumerate(problems):
            metrics[f"{name}/{attack}/lambda_max"] = float(path.lambda_max[i])
            radii = robust_radius(path.weights[i], X, y, attack)  # (S,)
            for j, strength in enumerate(config["strengths"]):
                metrics[f"{name}/{attack}/radius@{strength:g}"] = float(radii[j])
                metrics[f"{name}/{attack}/residual@{strength:g}"] = float(path.residual[i, j])
    counters = {"gradients": config["steps"] * len(norms) * len(config["strengths"])}
    return _result(metrics, {}, counters)


def network_margins(path: NetworkPath, Z: Tensor, mask: Tensor, depths: list[int]) -> Tensor:
    r"""Smallest margin over $(\sum_l\|w_l\|^2)^{L/2}$, which training raises; ``(K, P, M)``."""
    scores = (path.beta @ Z.mT).masked_fill(~mask.unsqueeze(1), torch.inf)  # (K, P, M, N)
    powers = torch.tensor(depths, dtype=Z.dtype) / 2
    margins: Tensor = scores.amin(-1) / path.cost**powers
    return margins


def _moments(steps: int) -> list[int]:
    spaced = torch.logspace(
        1, roots.log10(torch.tensor(float(steps))).item(), 20, dtype=torch.float64
    )
    return sorted({round(t) for t in spaced.tolist()} | {steps})


def _describe(
    problems: list[Problem], data: str, path: NetworkPath, depths: list[int]
) -> dict[str, Any]:
    fourier = FourierNorm("linf", SHAPES[data])
    attacks: tuple[Norm, ...] = ("l2", "linf", fourier)
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {"step": [float(t) for t in path.steps.tolist()]}
    for (i, (name, X, y, _, _)), (j, depth) in (
        (a, b) for a in enumerate(problems) for b in enumerate(depths)
    ):
        at, beta = f"{name}/depth={depth}", path.beta[:, i, j]  # (K, D)
        radii = robust_radius(beta, X, y, fourier)  # (K,)
        curves[at] = [rounded(v, 6) for v in radii.tolist()]
        for attack in attacks:
            metrics[f"{at}/{attack}/radius"] = float(robust_radius(beta[-1], X, y, attack))
        moduli = fourier.transform(beta[-1]).abs()
        metrics[f"{at}/active"] = float((moduli > 0.01 * moduli.max()).double().mean())
        margin = float((signed_rows(X, y) @ beta[-1]).min())
        power = 2 / depth
        if margin > 0:  # at smallest margin one, the cost that gradient descent keeps small
            size = float(roots.power(roots.power(moduli / margin, power).sum(), 1 / power))
            metrics[f"{at}/quasi_norm"] = size
        ranked = moduli.sort(descending=True).values / moduli.max()
        ranks = torch.linspace(0, len(ranked) - 1, len(path.steps)).round().long()
        curves[f"{at}/spectrum"] = [rounded(v, 4) for v in ranked[ranks].tolist()]
    return _result(metrics, curves, {"gradients": int(path.steps[-1]) * len(problems)})


def run_convolutional(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train convolutional networks of all depths side by side."""
    problems = load_problems(config, seed)
    Z, mask = stacked(problems)
    path = convolutional_paths(
        Z,
        SHAPES[config["data"]],
        config["depths"],
        lr=config["lr"],
        record_at=_moments(config["steps"]),
        generator=stream(seed, "init"),
        mask=mask,
    )
    return _describe(problems, config["data"], path, config["depths"])


def run_dense(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train fully connected networks of depth two."""
    problems = load_problems(config, seed)
    Z, mask = stacked(problems)
    generator, moments = stream(seed, "init"), _moments(config["steps"])
    path = dense_paths(Z, lr=config["lr"], record_at=moments, generator=generator, mask=mask)
    return _describe(problems, config["data"], path, [2])


def run_adversarial(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train against l-inf attacks of several radii, in units of the exact one."""
    metrics: dict[str, float] = {}
    moments = _moments(config["steps"])
    curves: dict[str, list[float]] = {"step": [float(t) for t in moments]}
    problems = load_problems(config, seed)
    for name, X, y, _, _ in problems:
        eps = max_margin(X, y, "linf").eps_star * torch.tensor(
            config["fractions"], dtype=torch.float64
        )
        paths = adversarial_paths(
            signed_rows(X, y), "linf", eps, lr=config["lr"], record_at=moments
        )  # (K, E, D)
        # the first recorded step is behind w = 0, whose radius is undefined
        radii = robust_radius(paths, X, y, "linf")  # (K, E)
        for j, fraction in enumerate(config["fractions"]):
            metrics[f"{name}/radius@{fraction:g}"] = float(radii[-1, j])
            curves[f"{name}/{fraction:g}"] = [rounded(v, 6) for v in radii[:, j].tolist()]
    counters = {"gradients": config["steps"] * len(problems) * len(config["fractions"])}
    return _result(metrics, curves, counters)


def _result(
    metrics: dict[str, float], curves: dict[str, list[float]], counters: dict[str, int]
) -> dict[str, Any]:
    kept = {name: rounded(value) for name, value in metrics.items()}
    return {"metrics": kept, "curves": curves, "counters": counters}
