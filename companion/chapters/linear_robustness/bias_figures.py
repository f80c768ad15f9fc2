r"""Figures of chapter 6 on regularisers, architectures and attacks by frequency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from companion.chapters.linear_robustness.arms import CLASSIFIERS, NETWORKS, REGULARISED
from companion.chapters.linear_robustness.bias import DEPTHS, STRENGTHS
from companion.chapters.linear_robustness.bias_estimands import (
    band_accuracy,
    energy_share,
    path_ratio,
)
from companion.chapters.linear_robustness.pictures import BANDS, EPS, MODELS
from companion.evidence.plots import PALETTE, band, figure
from companion.lab.records import Record, by_seed, find

__all__ = [
    "band_curves",
    "perturbation_images",
    "regularisation_paths",
    "spectra_by_depth",
]

PENALTIES = {
    "linf": r"$\ell_1$",
    "l2": r"$\ell_2$",
    "l1": r"$\ell_\infty$",
    "fourier_linf": r"Fourier $\ell_1$",
}
BAND_LABELS = ("lowest quarter", "second", "third", "highest quarter")
MODEL_LABELS = {"cnn": "CNN", "mlp": "MLP"}

Panel = tuple[str, str, str]  # data, problem, title


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
    seeds = by_seed(records, *NETWORKS.values())
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
    return [[estimand(seed) for estimand in estimands] for seed in seeds]


def band_curves(records: Sequence[Record]) -> Figure:
    """Accuracy of CNN and MLP by radius and band, and where an l2 attack puts its energy."""
    drawn, axes = figure(3, height=3.1)
    seeds = by_seed(records, *CLASSIFIERS.values())
    for axis, model in zip(axes, MODELS, strict=False):
        for number, (label, colour) in enumerate(zip(BAND_LABELS, PALETTE, strict=False)):
            curves = _series(seeds, [band_accuracy(model, e, f"band={number}") for e in EPS])
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
    for model, colour, shift in zip(MODELS, PALETTE, (-0.2, 0.2), strict=False):
        shares = np.array(_series(seeds, [energy_share(model, b) for b in range(BANDS)])) * 100
        low, high = shares.min(0), shares.max(0)
        mean = shares.mean(0)
        axes[2].bar(
            np.arange(BANDS) + shift,
            mean,
            0.38,
            yerr=[mean - low, high - mean],
            color=colour,
            label=MODEL_LABELS[model],
            capsize=2,
        )
    axes[2].axhline(100 / BANDS, color="k", linestyle=":", label="no preference")
    axes[2].set_xticks(range(BANDS), ["lowest", "2nd", "3rd", "highest"])
    axes[2].set_xlabel("quarter of the frequencies")
    axes[2].set_ylabel(r"energy of the $\ell_2$ attack (%)")
    axes[2].set_title("where an unrestricted attack goes", fontsize=10)
    axes[2].legend(fontsize=8)
    return drawn
