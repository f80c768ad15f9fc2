"""Linear networks of chapter 6: convolutional ones of several depths, and a fully connected one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from companion.chapters.linear_robustness.problems import (
    Problem,
    Stepped,
    load_on_device,
    log_spaced,
    stacked,
)
from companion.evidence.store import rounded
from companion.lab.results import Result, make_result
from trainaug import roots
from trainaug.methods.linear_robustness import (
    FourierNorm,
    NetworkPath,
    Norm,
    convolutional_paths,
    dense_paths,
    robust_radius,
    signed_rows,
)
from trainaug.training.randomness import stream

__all__ = [
    "DEPTHS",
    "Convolutional",
    "Dense",
    "network_margins",
    "run_convolutional",
    "run_dense",
    "score_convolutional",
    "score_dense",
]

DEPTHS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Networks(Stepped):
    """Linear networks on all problems of a data set.

    Attributes:
        curve_points: Points of the curves.
        active: Share of the largest modulus above which a frequency counts as active.
    """

    curve_points: int = 20
    active: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Convolutional(Networks):
    """Convolutional networks of several depths, trained together.

    Attributes:
        depths: Numbers of layers.
        lr: Learning rate of each depth.
    """

    depths: tuple[int, ...] = DEPTHS
    lr: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Dense(Networks):
    """Fully connected networks of depth two.

    Attributes:
        lr: Learning rate.
    """

    lr: float = 1.0


def _convolutional_path(
    settings: Convolutional, seed: int, Z: Tensor, mask: Tensor, moments: list[int]
) -> NetworkPath:
    """Train networks of all depths on stacked problems, and keep them at the steps ``moments``."""
    return convolutional_paths(
        Z,
        settings.shape,
        settings.depths,
        lr=settings.lr,
        record_at=moments,
        generator=stream(seed, "init"),
        mask=mask,
    )


def _dense_path(
    settings: Dense, seed: int, Z: Tensor, mask: Tensor, moments: list[int]
) -> NetworkPath:
    generator = stream(seed, "init")
    return dense_paths(Z, lr=settings.lr, record_at=moments, generator=generator, mask=mask)


def run_convolutional(settings: Convolutional, seed: int) -> Result:
    """Train convolutional networks of all depths together, on all problems."""
    problems = load_on_device(settings, seed)
    moments = log_spaced(settings.steps, settings.curve_points)
    path = _convolutional_path(settings, seed, *stacked(problems), moments)
    return _describe(problems, settings, path, settings.depths)


def run_dense(settings: Dense, seed: int) -> Result:
    """Train fully connected networks of depth two on all problems."""
    problems = load_on_device(settings, seed)
    moments = log_spaced(settings.steps, settings.curve_points)
    path = _dense_path(settings, seed, *stacked(problems), moments)
    return _describe(problems, settings, path, (2,))


def _describe(
    problems: Sequence[Problem], settings: Networks, path: NetworkPath, depths: Sequence[int]
) -> Result:
    """Describe trained networks by problem and depth.

    Metrics are those of the last network; curves are the radius under the Fourier-l-inf attack
    along training, and the last network's ranked spectrum.
    """
    fourier = FourierNorm("linf", settings.shape)
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {"step": [float(step) for step in path.steps.tolist()]}
    spectra: dict[str, list[float]] = {}
    for i, problem in enumerate(problems):
        for j, depth in enumerate(depths):
            prefix = f"{problem.name}/depth={depth}"
            beta = path.beta[:, i, j]  # (K, D)
            curves[prefix] = robust_radius(beta, problem.X, problem.y, fourier).tolist()
            moduli = fourier.transform(beta[-1]).abs()
            measured = _last_network(problem, beta[-1], moduli, fourier, depth, settings.active)
            metrics |= {f"{prefix}/{name}": value for name, value in measured.items()}
            ranked = moduli.sort(descending=True).values / moduli.max()
            ranks = torch.linspace(0, len(ranked) - 1, len(path.steps)).round().long()
            spectra[f"{prefix}/spectrum"] = [rounded(value, 4) for value in ranked[ranks].tolist()]
    counters = {"gradients": int(path.steps[-1]) * len(problems)}
    result = make_result(metrics, curves, counters, digits=12)
    # a figure of spectra needs no more than four digits
    return replace(result, curves={**result.curves, **spectra})


def _last_network(
    problem: Problem, beta: Tensor, moduli: Tensor, fourier: Norm, depth: int, active: float
) -> dict[str, float]:
    """Radii of a trained network, its share of active frequencies, and its cost.

    ``beta`` are the weights of the linear function that it computes, ``moduli`` those of its
    Fourier transform.
    """
    X, y = problem.X, problem.y
    attacks: tuple[Norm, ...] = ("l2", "linf", fourier)
    measured = {f"{attack}/radius": float(robust_radius(beta, X, y, attack)) for attack in attacks}
    measured["active"] = float((moduli > active * moduli.max()).double().mean())
    margin = float((signed_rows(X, y) @ beta).min())
    power = 2 / depth
    if margin > 0:  # at smallest margin one, the cost that gradient descent keeps small
        size = roots.power(roots.power(moduli / margin, power).sum(), 1 / power)
        measured["quasi_norm"] = float(size)
    return measured


def network_margins(path: NetworkPath, Z: Tensor, mask: Tensor, depths: Sequence[int]) -> Tensor:
    r"""Smallest margin over $(\sum_l\|w_l\|^2)^{L/2}$, the quantity that training raises.

    Returns:
        Shape ``(K, P, M)``: recorded steps, problems, depths.
    """
    scores = (path.beta @ Z.mT).masked_fill(~mask.unsqueeze(1), torch.inf)  # (K, P, M, N)
    powers = torch.tensor(depths, dtype=Z.dtype, device=Z.device) / 2
    margins: Tensor = scores.amin(-1) / path.cost**powers
    return margins


def score_convolutional(settings: Convolutional, seed: int) -> Mapping[str, float]:
    """Score networks of one depth by the margin that training raises, by problem."""
    problems = load_on_device(settings, seed)
    Z, mask = stacked(problems)
    path = _convolutional_path(settings, seed, Z, mask, [settings.steps])
    margins = network_margins(path, Z, mask, settings.depths)[-1, :, 0]  # (P,)
    return _by_problem(settings, problems, margins)


def score_dense(settings: Dense, seed: int) -> Mapping[str, float]:
    """Score fully connected networks by the margin that training raises, by problem."""
    problems = load_on_device(settings, seed)
    Z, mask = stacked(problems)
    path = _dense_path(settings, seed, Z, mask, [settings.steps])
    return _by_problem(settings, problems, network_margins(path, Z, mask, (2,))[-1, :, 0])


def _by_problem(
    settings: Networks, problems: Sequence[Problem], margins: Tensor
) -> Mapping[str, float]:
    names = [f"{settings.data}/{problem.name}" for problem in problems]
    return dict(zip(names, margins.tolist(), strict=True))
