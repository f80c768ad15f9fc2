"""Figures of chapter 6."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from companion.chapters.linear_robustness.arms import (
    CLASSIFIERS,
    NETWORKS,
    REGULARISED,
    descent_arm,
)
from companion.chapters.linear_robustness.descent import OPTIMISERS
from companion.chapters.linear_robustness.estimands import (
    band_accuracy,
    energy_share,
    exact_metrics,
    matrices,
    path_ratio,
)
from companion.chapters.linear_robustness.networks import DEPTHS
from companion.chapters.linear_robustness.penalty import STRENGTHS
from companion.chapters.linear_robustness.pictures import BANDS, EPS
from companion.evidence.plots import PALETTE, band, figure, matrix
from companion.lab.records import Record, by_seed, find
from trainaug.methods.linear_robustness import PlainNorm, dual

__all__ = [
    "ATTACK_LABELS",
    "OPTIMISER_LABELS",
    "PENALTIES",
    "README_PANELS",
    "band_curves",
    "certificate_bands",
    "key_figure",
    "optimiser_attack_matrix",
    "perturbation_images",
    "regularisation_paths",
    "spectra_by_depth",
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
PENALTIES = {
    "linf": r"$\ell_1$",
    "l2": r"$\ell_2$",
    "l1": r"$\ell_\infty$",
    "fourier_linf": r"Fourier $\ell_1$",
}
BAND_LABELS = ("lowest quarter", "second", "third", "highest quarter")
MODEL_LABELS = {"cnn": "CNN", "mlp": "MLP"}

Panel = tuple[str, str, str]  # data, problem, title

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
        tables = [matrices(seed, data)[problem] for seed in by_seed(records)]
        values = [
            [float(np.mean([table[name, attack] for table in tables])) for attack in ATTACKS]
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


def regularisation_paths(records: Sequence[Record], panels: Sequence[Panel]) -> Figure:
    r"""Gap $1 - \rho/\varepsilon^*$ against $\lambda/\lambda_{\max}$ for four penalties."""
    drawn, axes = figure(len(panels), height=3.0)
    seeds = by_seed(records, *REGULARISED.values())
    for axis, (data, problem, title) in zip(axes, panels, strict=True):
        for (attack, label), colour in zip(PENALTIES.items(), PALETTE, strict=False):
            curves = [
                [1 - path_ratio(data, problem, attack, s)(seed) for s in STRENGTHS]
                for seed in seeds
            ]
            band(axis, STRENGTHS, curves, label=label, colour=colour, style="-o")
        theory = [1 / np.log(1 / s) for s in STRENGTHS]
        axis.plot(STRENGTHS, theory, ":", color="k", label=r"$1/\log(\lambda_{\max}/\lambda)$")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.invert_xaxis()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(r"strength $\lambda/\lambda_{\max}$, weaker to the right")
    axes[0].set_ylabel(r"gap $1 - \rho/\varepsilon^*$")
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, fontsize=8, ncols=len(labels), loc="outside lower center")
    return drawn


def spectra_by_depth(records: Sequence[Record], panels: Sequence[Panel]) -> Figure:
    r"""Ranked moduli $|\hat\beta_k|$ of linear networks, relative to the largest, by depth."""
    drawn, axes = figure(len(panels), height=3.0)
    nets = [("convolutional", depth, f"convolutional, depth {depth}") for depth in DEPTHS]
    nets.append(("dense", 2, "fully connected, depth 2"))
    seeds = by_seed(records, *(arm for names in NETWORKS.values() for arm in names.values()))
    for axis, (data, problem, title) in zip(axes, panels, strict=True):
        for (kind, depth, label), colour in zip(nets, PALETTE, strict=False):
            arm = NETWORKS[kind][data]
            curves = [
                np.maximum(find(seed, arm)["curves"][f"{problem}/depth={depth}/spectrum"], 1e-4)
                for seed in seeds
            ]
            share = np.linspace(0, 100, len(curves[0]))
            style = "--" if kind == "dense" else "-"
            band(axis, share, curves, label=label, colour=colour, style=style)
        axis.set_yscale("log")
        axis.set_ylim(0.9e-4, 1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("rank of the frequency (% of all)")
    axes[0].set_ylabel(r"$|\hat\beta_k| \,/\, \max_k|\hat\beta_k|$")
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, fontsize=8, ncols=3, loc="outside lower center")
    return drawn


def perturbation_images(picture: ArrayLike, perturbations: Mapping[str, ArrayLike]) -> Figure:
    """A picture, and perturbations of it, each in its own grey scale with zero in the middle."""
    columns = 4
    rows = -(-(len(perturbations) + 1) // columns)
    drawn, axes = figure(columns, rows, height=2.5)
    axes[0].imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("picture", fontsize=9)
    for axis, (name, values) in zip(axes[1:], perturbations.items(), strict=False):
        delta = np.asarray(values)
        size = np.abs(delta).max()
        axis.imshow(delta, cmap="PuOr", vmin=-size, vmax=size)
        axis.set_title(f"{name}\nlargest pixel {size:.2f}", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    return drawn


def _series(
    seeds: Sequence[Sequence[Record]], estimands: Sequence[Callable[[Sequence[Record]], float]]
) -> list[list[float]]:
    """Values of the estimands, a list for each seed."""
    return [[estimand(seed) for estimand in estimands] for seed in seeds]


def band_curves(records: Sequence[Record]) -> Figure:
    """Accuracy of CNN and MLP by radius and frequency band, and how an l2 attack uses the bands."""
    drawn, axes = figure(3, height=3.1)
    seeds = by_seed(records, *CLASSIFIERS.values())
    for axis, model in zip(axes, CLASSIFIERS, strict=False):
        for number, (label, colour) in enumerate(zip(BAND_LABELS, PALETTE, strict=False)):
            curves = _series(seeds, [band_accuracy(model, eps, f"band={number}") for eps in EPS])
            band(axis, EPS, curves, label=label, colour=colour, style="-o")
        curves = _series(seeds, [band_accuracy(model, eps, "all") for eps in EPS])
        band(axis, EPS, curves, label="all frequencies", colour="k", style="--s")
        axis.set_xscale("log")
        axis.set_xticks(EPS, [f"{eps:g}" for eps in EPS])
        axis.minorticks_off()
        axis.set_ylim(-2, 100)
        axis.set_title(f"{MODEL_LABELS[model]}, attack by band", fontsize=10)
        axis.set_xlabel(r"radius $\varepsilon$ of each Fourier modulus")
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].legend(fontsize=7, loc="upper right")
    _draw_energy(axes[2], seeds)
    return drawn


def _draw_energy(axis: Axes, seeds: Sequence[Sequence[Record]]) -> None:
    """Draw the share of an l2 attack's energy in each band, mean and range over seeds."""
    for model, colour, shift in zip(CLASSIFIERS, PALETTE, (-0.2, 0.2), strict=False):
        estimands = [energy_share(model, number) for number in range(BANDS)]
        shares = np.array(_series(seeds, estimands)) * 100  # (S, 4)
        mean = shares.mean(0)
        axis.bar(
            np.arange(BANDS) + shift,
            mean,
            0.38,
            yerr=[mean - shares.min(0), shares.max(0) - mean],
            color=colour,
            label=MODEL_LABELS[model],
            capsize=2,
        )
    axis.axhline(100 / BANDS, color="k", linestyle=":", label="no preference")
    axis.set_xticks(range(BANDS), ["lowest", "2nd", "3rd", "highest"])
    axis.set_xlabel("quarter of the frequencies")
    axis.set_ylabel(r"energy of the $\ell_2$ attack (%)")
    axis.set_title("where an unrestricted attack goes", fontsize=10)
    axis.legend(fontsize=8)
