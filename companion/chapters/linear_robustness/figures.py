r"""Figures of chapter 6."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from companion.chapters.linear_robustness.arms import OPTIMISERS, descent_arm
from companion.chapters.linear_robustness.estimands import exact_metrics, matrices
from companion.evidence.plots import PALETTE, band, figure, matrix
from companion.lab.records import Record, by_seed, find
from trainaug.methods.linear_robustness import PlainNorm, dual

__all__ = [
    "ATTACK_LABELS",
    "OPTIMISER_LABELS",
    "README_PANELS",
    "certificate_bands",
    "key_figure",
    "optimiser_attack_matrix",
    "toy_balls",
]

OPTIMISER_LABELS = {
    "coordinate": "coordinate descent",
    "gradient": "gradient descent",
    "sign": "sign descent",
}
ATTACK_LABELS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}
# the order of the optimisers: coordinate, gradient, sign
ATTACKS: tuple[PlainNorm, ...] = ("linf", "l2", "l1")
COLOURS = dict(zip(OPTIMISERS, PALETTE, strict=False))
DATA_LABELS = {
    "gaussian": "Gaussian",
    "digits": "digits",
    "fashion_mnist": "Fashion-MNIST",
}


README_PANELS = (("gaussian", "n=10"), ("digits", "3/8"), ("fashion_mnist", "1/9"))


def key_figure(records: Sequence[Record]) -> Figure:
    """The chapter's figure for its summary and the README."""
    return certificate_bands(records, README_PANELS)


def certificate_bands(records: Sequence[Record], panels: Sequence[tuple[str, str]]) -> Figure:
    r"""Both bounds of $\varepsilon^*$ along training, relative to the exact $\varepsilon^*$.

    Args:
        records: All records of the chapter.
        panels: Data set and problem of each panel, in two rows if more than three.
    """
    columns = min(3, len(panels))
    drawn, axes = figure(columns, -(-len(panels) // columns), height=3.0)
    for axis, (data, problem) in zip(axes, panels, strict=True):
        for name, kind in OPTIMISERS.items():
            lower, upper = [], []
            for seed in by_seed(records):
                eps = exact_metrics(seed, data)[f"{problem}/{dual(kind)}/eps_star"]
                run = find(seed, descent_arm(name, data))
                steps = run["curves"]["step"]
                lower.append([v / eps for v in run["curves"][f"{problem}/lower"]])
                upper.append([v / eps for v in run["curves"][f"{problem}/upper"]])
            label = f"{OPTIMISER_LABELS[name]} ({ATTACK_LABELS[dual(kind)]})"
            band(axis, steps, lower, label=label, colour=COLOURS[name])
            band(axis, steps, upper, label="_", colour=COLOURS[name], style="--")
        axis.axhline(1.0, color="k", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_ylim(0.5, 1.5)
        axis.set_title(f"{DATA_LABELS[data]}, {problem}", fontsize=10)
        axis.set_xlabel("steps")
    for axis in axes[::columns]:
        axis.set_ylabel(r"bounds of $\varepsilon^*$ / exact $\varepsilon^*$")
    axes[0].legend(fontsize=8, loc="upper right")
    return drawn


def optimiser_attack_matrix(
    records: Sequence[Record], problems: Sequence[tuple[str, str]]
) -> Figure:
    r"""Mean over seeds of $\rho/\varepsilon^*$ for each optimiser under each attack."""
    drawn, axes = figure(len(problems), height=2.6)
    for number, (axis, (data, problem)) in enumerate(zip(axes, problems, strict=True)):
        found = [matrices(seed, data)[problem] for seed in by_seed(records)]
        values = [
            [float(np.mean([m[name, attack] for m in found])) for attack in ATTACKS]
            for name in OPTIMISERS
        ]
        rows = list(OPTIMISER_LABELS.values()) if number == 0 else [""] * len(OPTIMISERS)
        columns = [ATTACK_LABELS[attack] for attack in ATTACKS]
        matrix(axis, values, rows=rows, columns=columns, digits=3)
        axis.set_title(f"{DATA_LABELS[data]}, {problem}", fontsize=10)
        axis.set_xlabel("attack norm")
    return drawn


def toy_balls(solutions: dict[str, tuple[Sequence[float], float]], rows: np.ndarray) -> Figure:
    r"""The plane toy: signed points, the separating line and the largest ball around each point.

    Args:
        solutions: Weights and radius of the exact solution for each attack.
        rows: Signed points $y_i x_i$, shape ``(N, 2)``.
    """
    drawn, axes = figure(3, height=3.0)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)  # (200, 2)
    order = {"linf": np.inf, "l2": 2, "l1": 1}
    for axis, attack, colour in zip(axes, ATTACKS, PALETTE, strict=False):
        w, eps = np.asarray(solutions[attack][0]), solutions[attack][1]
        ball = circle / np.linalg.norm(circle, order[attack], axis=1, keepdims=True)
        for point in rows:
            axis.fill(*(point + eps * ball).T, color=colour, alpha=0.25)
        axis.plot(rows[:, 0], rows[:, 1], "k.", markersize=6)
        reach = np.array([-9.0, 9.0])
        along = np.array([-w[1], w[0]]) / np.linalg.norm(w)
        axis.plot(reach * along[0], reach * along[1], color="k", linewidth=1)
        axis.set_xlim(-2.5, 7.5)
        axis.set_ylim(-2.5, 5.5)
        axis.set_aspect("equal")
        axis.set_title(rf"{ATTACK_LABELS[attack]}: $\varepsilon^* = {eps:.3f}$", fontsize=10)
        axis.set_xlabel("feature 1")
    axes[0].set_ylabel("feature 2")
    return drawn
