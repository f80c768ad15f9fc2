"""Figures of chapter 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from companion.chapters.hard_negatives.estimands import CATEGORIES, recall
from companion.chapters.hard_negatives.numbers import DIRECTIONS
from companion.evidence.plots import PALETTE, band, figure, spread
from companion.lab.records import Record, by_seed, find

__all__ = [
    "category_gains",
    "drawings",
    "gains",
    "key_figure",
    "learning_curves",
    "negative_sizes",
    "retrieval_gallery",
    "score_matrices",
]

LOSS_LABELS = {"sum": "sum of hinges", "max": "max of hinges"}
LOSS_COLOURS = dict(zip(LOSS_LABELS, PALETTE, strict=False))
SPLIT_LABELS = {"family": "new concepts", "vendor": "new drawing style"}
DIRECTION_LABELS = {"i2t": "picture to caption", "t2i": "caption to picture"}
GRID = 60  # points of a curve at most: whole epochs, evenly on a log scale


def score_matrices(scores: ArrayLike, counted: Mapping[str, ArrayLike]) -> Figure:
    """A matrix of scores, and for each loss the hinges of the negatives that it counts.

    Args:
        scores: Shape ``(B, B)``, pictures by captions.
        counted: Hinges by loss, ``(B, B)``; 0 for a negative that is not counted.
    """
    drawn, axes = figure(1 + len(counted), height=2.9)
    values = np.asarray(scores)
    for axis, (title, table) in zip(axes, {"scores": values, **counted}.items(), strict=True):
        shown = np.asarray(table)
        axis.imshow(shown, cmap="cividis_r", vmin=0, vmax=max(1e-9, float(shown.max())))
        for (i, j), value in np.ndenumerate(shown):
            dark = value > 0.55 * shown.max()
            text = f"{value:.2f}" if value or title == "scores" else ""
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("caption")
        axis.set_xticks(range(len(values)))
        axis.set_yticks(range(len(values)))
        axis.grid(False)
    axes[0].set_ylabel("picture")
    return drawn


def drawings(pictures: ArrayLike, captions: Sequence[str], vendors: Sequence[str]) -> Figure:
    """Drawings of some concepts: one column each, with its caption, and one row for each vendor.

    Args:
        pictures: uint8 ``(N, V, H, W, 3)``.
        captions: Text below each column.
        vendors: Name of each row's icon set.
    """
    images = np.asarray(pictures)
    drawn, axes = figure(len(images), len(vendors), height=1.25)
    for number, axis in enumerate(axes):
        row, column = divmod(number, len(images))
        axis.imshow(images[column, row], interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        if column == 0:
            axis.set_ylabel(vendors[row], fontsize=8)
        if row == len(vendors) - 1:
            axis.set_xlabel(captions[column], fontsize=8)
    return drawn


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: np.asarray(values) * factor


def learning_curves(records: Sequence[Record], pace: float) -> Figure:
    """Validation R@1 and the mean picture embedding of both losses, median and range over seeds.

    Args:
        records: All records of the chapter.
        pace: Seconds of an update, for the axis on top.
    """
    drawn, axes = figure(2, 2, height=2.6)
    for column, split in enumerate(SPLIT_LABELS):
        arms = {loss: f"{split}_{loss}" for loss in LOSS_LABELS}
        seeds = by_seed(records, *arms.values())
        for loss, arm in arms.items():
            runs = [find(seed, arm) for seed in seeds]
            per_epoch = runs[0]["counters"]["updates"] / runs[0]["metrics"]["epochs"]
            longest = max(run["curves"]["epoch"][-1] for run in runs)
            x = np.unique(np.geomspace(1, longest, GRID).round())
            for row, name in ((0, "val/r1"), (2, "norm")):
                curves = [np.interp(x, r["curves"]["epoch"], r["curves"][name]) for r in runs]
                band(
                    axes[row + column],
                    x * per_epoch,
                    curves,
                    label=LOSS_LABELS[loss],
                    colour=LOSS_COLOURS[loss],
                )
        axes[column].set_title(SPLIT_LABELS[split], fontsize=10)
        axes[2 + column].set_xlabel("updates")
        for row in (0, 2):
            axes[row + column].set_xscale("log")
        axes[2 + column].set_ylim(0, 1.02)
        top = axes[column].secondary_xaxis("top", functions=(_times(pace), _times(1 / pace)))
        top.set_xlabel("seconds of training", fontsize=8)
        top.tick_params(labelsize=8)
        top.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("validation R@1 (%)")
    axes[2].set_ylabel("length of the mean\npicture embedding")
    axes[0].legend(fontsize=8)
    return drawn


def _max_minus_sum(seeds: Sequence[Sequence[Record]], split: str, name: str) -> list[float]:
    """Differences of a metric by seed; a category may be absent from a seed's test part."""
    pairs = [
        [find(seed, f"{split}_{loss}")["metrics"] for loss in ("max", "sum")] for seed in seeds
    ]
    return [first[name] - second[name] for first, second in pairs if name in second]


def key_figure(records: Sequence[Record]) -> Figure:
    """The chapter's figure for its summary."""
    return gains(records)


def gains(records: Sequence[Record]) -> Figure:
    """Max minus sum of hinges by split, direction and metric, with 95 % intervals over seeds."""
    drawn, axes = figure(2, height=2.8)
    axes[1].sharey(axes[0])
    metrics = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}
    for axis, split in zip(axes, SPLIT_LABELS, strict=True):
        seeds = by_seed(records, f"{split}_sum", f"{split}_max")
        for shift, direction, colour in zip((-0.12, 0.12), DIRECTIONS, PALETTE[2:], strict=False):
            label: str | None = DIRECTION_LABELS[direction]
            for x, metric in enumerate(metrics):
                values = _max_minus_sum(seeds, split, f"test/{direction}/{metric}")
                spread(axis, x + shift, values, colour=colour, label=label)
                label = None  # one entry in the legend
        axis.axhline(0, color="k", linewidth=0.8)
        axis.set_xticks(range(len(metrics)), list(metrics.values()))
        axis.set_title(SPLIT_LABELS[split], fontsize=10)
    axes[0].set_ylabel("max minus sum (points)")
    axes[0].legend(fontsize=8)
    return drawn


def category_gains(records: Sequence[Record], split: str) -> Figure:
    """Max minus sum of hinges at R@1 by category, strict and with near-synonyms forgiven."""
    drawn, axes = figure(2, height=3.0)
    axes[1].sharey(axes[0])
    seeds = by_seed(records, f"{split}_sum", f"{split}_max")
    for axis, direction in zip(axes, DIRECTIONS, strict=True):
        for shift, metric, colour, title in (
            (-0.15, "r1", PALETTE[0], "only its own pair counts"),
            (0.15, "r1_lenient", PALETTE[1], "near-synonyms left out"),
        ):
            label: str | None = title
            for x, category in enumerate(CATEGORIES):
                name = f"test/{direction}/{metric}/{category}"
                values = _max_minus_sum(seeds, split, name)
                spread(axis, x + shift, values, colour=colour, label=label)
                label = None  # one entry in the legend
        axis.axhline(0, color="k", linewidth=0.8)
        names = [category.split(" &")[0] for category in CATEGORIES]
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        axis.set_title(DIRECTION_LABELS[direction], fontsize=10)
    axes[0].set_ylabel("max minus sum, R@1 (points)")
    axes[0].legend(fontsize=8)
    return drawn


def negative_sizes(records: Sequence[Record]) -> Figure:
    """R@1 by the number of negatives per query, at fixed batch size: median and range."""
    drawn, axes = figure(1, height=3.0)
    sizes = {2: "negatives_2_", 8: "negatives_8_", 32: "negatives_32_", 127: ""}
    arms = [f"vendor_{part}{loss}" for part in sizes.values() for loss in LOSS_LABELS]
    for loss, label in LOSS_LABELS.items():
        curves = [
            [recall(seed, f"vendor_{part}{loss}") for part in sizes.values()]
            for seed in by_seed(records, *arms)
        ]
        band(axes[0], list(sizes), curves, label=label, colour=LOSS_COLOURS[loss], style="-o")
    axes[0].set_xscale("log")
    axes[0].set_xticks(list(sizes), [str(n) for n in sizes])
    axes[0].minorticks_off()
    axes[0].set_xlabel("negatives per query")
    axes[0].set_ylabel("test R@1 (%), both directions")
    axes[0].legend(fontsize=8)
    return drawn


def retrieval_gallery(
    rows: Sequence[tuple[str, str, Sequence[tuple[ArrayLike, bool]]]],
) -> Figure:
    """Captions as queries: the first drawings that each loss retrieves, the right one framed.

    Args:
        rows: Caption, loss, and five drawings with whether each is the right one.
    """
    drawn, axes = figure(len(rows[0][2]), len(rows), height=1.1)
    for number, axis in enumerate(axes):
        row, column = divmod(number, len(rows[0][2]))
        caption, loss, retrieved = rows[row]
        picture, right = retrieved[column]
        axis.imshow(np.asarray(picture), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        axis.spines[:].set_visible(right)
        for spine in axis.spines.values():
            spine.set(color=PALETTE[2], linewidth=3)
        if column == 0:
            text = f"{caption}\n{LOSS_LABELS[loss]}"
            axis.set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")
    return drawn
