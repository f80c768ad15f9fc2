"""Figures of chapter 5."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from companion.chapters.cascading_sum.estimands import CONDITIONS, gain
from companion.evidence.plots import PALETTE, band, figure, spread
from companion.lab.records import Estimand, Record, values_of

__all__ = [
    "ablation",
    "accuracy_by_radius",
    "key_figure",
    "learning_curves",
    "mix_grid",
    "objectives",
    "weight_paths",
]

TITLES = {"digits_10": "digits, 10 a class", "fashion_100": "Fashion-MNIST, 100 a class"}
LABELS = {
    "erm": "clean",
    "csa4": "cascade 4-2-1",
    "csa2": "cascade 2-1",
    "mixup": "mixup",
    "mixup_clean": "mixup, then clean",
    "constant2": "two samples throughout",
}
COLOURS = dict(zip(LABELS, PALETTE, strict=False))


def _select_arm(records: Sequence[Record], arm: str) -> list[Record]:
    return [record for record in records if record["arm"] == arm]


def mix_grid(rows: Mapping[str, ArrayLike]) -> Figure:
    """Draw pictures with pixels from 0 to 1, each row of them with a name."""
    shown = {name: np.asarray(pictures) for name, pictures in rows.items()}  # (N, H, W)
    count = max(len(pictures) for pictures in shown.values())
    drawn, axes = figure(1, height=0.75 * len(shown))
    strips = [
        np.concatenate([np.pad(picture, 1, constant_values=1) for picture in pictures], 1)
        for pictures in shown.values()
    ]
    height = strips[0].shape[0]
    axes[0].imshow(np.concatenate(strips, 0), cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes[0].set_yticks([height * (row + 0.5) for row in range(len(shown))], list(shown))
    axes[0].set_xticks([])
    axes[0].grid(False)
    axes[0].spines[:].set_visible(False)
    drawn.set_size_inches(0.62 * count + 1.4, 0.62 * len(shown) + 0.2)
    return drawn


def key_figure(records: Sequence[Record]) -> Figure:
    """Draw what the cascade gains: accuracy over its controls, robust accuracy over clean training.

    Each estimand is a function of a data set's name, ``p``.
    """
    drawn, axes = figure(2, height=3.4)
    versus: dict[str, Callable[[str], Estimand]] = {
        "clean\ntraining": lambda p: gain(f"{p}_csa4", f"{p}_erm"),
        "mixup,\nthen clean": lambda p: gain(f"{p}_csa4", f"{p}_mixup_clean"),
        "cascade\n2-1": lambda p: gain(f"{p}_csa4", f"{p}_csa2"),
        "clean, both\nwith restarts": lambda p: gain(f"{p}_csa4_restart", f"{p}_erm_restart"),
    }
    attacks: dict[str, Callable[[str], Estimand]] = {
        "no attack": lambda p: gain(f"{p}_csa4", f"{p}_erm"),
        "FGSM": lambda p: gain(f"{p}_csa4", f"{p}_erm", "fgsm"),
        "PGD": lambda p: gain(f"{p}_csa4", f"{p}_erm", "pgd"),
    }
    for axis, columns in zip(axes, (versus, attacks), strict=True):
        for number, condition in enumerate(CONDITIONS):
            for column, estimand in enumerate(columns.values()):
                x = column + 0.24 * (number - 0.5)
                label = TITLES[condition] if column == 0 else None
                values = values_of(records, estimand(condition))
                spread(axis, x, values, colour=PALETTE[number], label=label)
        axis.axhline(0, color="k", lw=1)
        axis.set_xticks(range(len(columns)), list(columns))
    axes[0].set_ylabel("accuracy of cascade 4-2-1\nminus that of … (points)")
    axes[1].set_ylabel("accuracy of cascade 4-2-1\nminus clean training (points)")
    axes[0].legend(fontsize=8)
    return drawn


def learning_curves(records: Sequence[Record]) -> Figure:
    """Draw the clean validation accuracy against updates, median and range over seeds."""
    drawn, axes = figure(2, height=3.2)
    for axis, condition in zip(axes, CONDITIONS, strict=True):
        for name in ("erm", "csa4", "mixup_clean"):
            runs = [record["curves"] for record in _select_arm(records, f"{condition}_{name}")]
            accuracy = 100 * np.array([run["accuracy"] for run in runs])
            band(axis, runs[0]["step"], accuracy, label=LABELS[name], colour=COLOURS[name])
        for share in (1 / 3, 2 / 3):
            axis.axvline(share * runs[0]["step"][-1], color="k", lw=0.8, ls=":")
        axis.set_title(TITLES[condition])
        axis.set_xlabel("updates (dotted: stages of the cascade)")
    axes[0].set_ylabel("validation accuracy, clean (%)")
    axes[0].legend(fontsize=8)
    return drawn


def ablation(records: Sequence[Record], arms: Mapping[str, str]) -> Figure:
    """Draw the test accuracy of arms minus that of clean training, mean and interval over seeds.

    Args:
        records: Records of a profile that ran the arms.
        arms: Name of an arm without its data set, and what to call it.
    """
    drawn, axes = figure(2, height=0.24 * len(arms) + 0.8)
    for axis, condition in zip(axes, CONDITIONS, strict=True):
        for row, name in enumerate(arms):
            values = values_of(records, gain(f"{condition}_{name}", f"{condition}_erm"))
            colour = PALETTE[0] if name.startswith("csa") else PALETTE[1]
            spread(axis, row, values, colour=colour, points=False, horizontal=True)
        axis.axvline(0, color="k", lw=1)
        axis.set_yticks(range(len(arms)), list(arms.values()) if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.set_title(TITLES[condition])
        axis.set_xlabel("points above clean training")
    drawn.set_size_inches(10, 0.24 * len(arms) + 1.0)
    return drawn


def accuracy_by_radius(records: Sequence[Record]) -> Figure:
    """Draw accuracy against the radius of FGSM (dashed) and PGD (solid), mean over seeds."""
    drawn, axes = figure(2, height=3.2)
    for axis, condition in zip(axes, CONDITIONS, strict=True):
        runs = [record["curves"] for record in _select_arm(records, f"{condition}_radii")]
        for name in ("erm", "csa2", "csa4", "constant2", "mixup"):
            radii = runs[0][f"{name}/eps"]
            for attack, style in (("pgd", "-"), ("fgsm", "--")):
                mean = 100 * np.mean([run[f"{name}/{attack}"] for run in runs], axis=0)
                label = LABELS[name] if attack == "pgd" else None
                axis.plot(radii, mean, style, color=COLOURS[name], label=label)
        axis.set_title(TITLES[condition])
        axis.set_xlabel("radius of the attack (pixels from 0 to 1)")
    axes[0].set_ylabel("test accuracy (%)")
    axes[1].legend(fontsize=8)
    return drawn


def objectives(records: Sequence[Record], steps: Sequence[int]) -> Figure:
    """Draw the curvature of the objectives by K along a cascade, median over seeds.

    Args:
        records: Records with the arms ``..._objective``.
        steps: The step of each snapshot.
    """
    drawn, axes = figure(2, height=3.2)
    names = {"k1": "K = 1", "k2": "K = 2", "k4": "K = 4", "k8": "K = 8"}
    names |= {"k4_rescaled": "K = 4, contrast restored"}
    for axis, condition in zip(axes, CONDITIONS, strict=True):
        runs = [record["curves"] for record in _select_arm(records, f"{condition}_objective")]
        for number, (name, label) in enumerate(names.items()):
            median = np.median([np.abs(run[f"curvature/{name}"]) for run in runs], axis=0)
            style = "--" if name.endswith("rescaled") else "-"
            axis.plot(steps, median, f"o{style}", ms=3, color=PALETTE[number], label=label)
        axis.set_yscale("log")
        axis.set_title(TITLES[condition])
        axis.set_xlabel("updates")
    axes[0].set_ylabel("largest eigenvalue of the Hessian")
    axes[0].legend(fontsize=8)
    return drawn


def weight_paths(paths: Mapping[str, ArrayLike]) -> Figure:
    """Draw the weights of the samples along a cascade, one panel per schedule.

    Args:
        paths: Weights of each schedule by its name, shape ``(steps, K)``.
    """
    drawn, axes = figure(len(paths), height=2.6)
    for axis, (name, weights) in zip(axes, paths.items(), strict=True):
        table = np.asarray(weights, dtype=float)
        progress = np.arange(len(table)) / len(table)
        for sample in range(table.shape[1]):
            label = f"sample {sample + 1}"
            axis.plot(progress, table[:, sample], color=PALETTE[sample], label=label)
        axis.set_title(name)
        axis.set_xlabel("share of the cascade")
    axes[0].set_ylabel("weight in the mix")
    axes[0].legend(fontsize=8)
    return drawn
