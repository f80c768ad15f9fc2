"""One style for all figures: settings, a colour-blind palette and generic plots."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from companion.evidence.statistics import t_interval

__all__ = ["PALETTE", "band", "figure", "matrix", "set_style", "spread"]

# Okabe and Ito's palette, whose colours differ for every common kind of colour vision
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def set_style() -> None:
    """Set Matplotlib's settings for all figures of the book."""
    matplotlib.rcParams.update(
        {
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.prop_cycle": cycler(color=PALETTE),
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }
    )


def figure(columns: int = 1, rows: int = 1, *, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Make a figure in the style of the book, outside pyplot's global state.

    Args:
        columns: Panels per row.
        rows: Rows of panels.
        height: Height of a row in inches.

    Returns:
        The figure and its axes, row by row.
    """
    set_style()
    drawn = Figure(figsize=(min(10.0, 3.4 * columns + 0.6), height * rows))
    axes = drawn.subplots(rows, columns, squeeze=False)
    return drawn, [axis for row in axes for axis in row]


def band(
    axis: Axes, x: ArrayLike, curves: ArrayLike, *, label: str, colour: str, style: str = "-"
) -> None:
    """Draw the median of several curves and the range between the least and the greatest.

    Args:
        axis: Where to draw.
        x: Abscissae, shape ``(K,)``.
        curves: One curve per seed, shape ``(S, K)``.
        label: Legend entry.
        colour: Colour of line and band.
        style: Line style.
    """
    values = np.asarray(curves, dtype=float)
    axis.plot(x, np.median(values, axis=0), style, color=colour, label=label)
    axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def spread(
    axis: Axes,
    x: float,
    values: Sequence[float],
    *,
    colour: str,
    label: str | None = None,
    points: bool = True,
    horizontal: bool = False,
) -> None:
    """Draw single values, their mean and, if there are several, its 95 % Student interval.

    Args:
        axis: Where to draw.
        x: Position on the horizontal axis, or on the vertical one if ``horizontal``.
        values: One value per seed.
        colour: Colour of points, mean and interval.
        label: Legend entry.
        points: Draw the single values too.
        horizontal: Draw the values along the horizontal axis.
    """
    if points:
        positions = [x] * len(values)
        pairs = (values, positions) if horizontal else (positions, values)
        axis.plot(*pairs, ".", color=colour, alpha=0.3, markersize=5)
    mean = values[0]
    half = 0.0
    if len(values) > 1:
        interval = t_interval(values, 0.95)
        mean = interval.mean
        half = interval.high - interval.mean
    if horizontal:
        axis.errorbar(mean, x, xerr=half, fmt="o", color=colour, capsize=3, label=label)
    else:
        axis.errorbar(x, mean, half, fmt="o", color=colour, capsize=3, label=label)


def matrix(
    axis: Axes,
    values: ArrayLike,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float] = (0.0, 1.0),
    digits: int = 2,
) -> None:
    """Draw a table of numbers as shaded cells, each with its number.

    Args:
        axis: Where to draw.
        values: Numbers, shape ``(len(rows), len(columns))``.
        rows: Row names.
        columns: Column names.
        limits: Values of the lightest and the darkest shade.
        digits: Decimals shown.
    """
    table = np.asarray(values, dtype=float)
    low, high = limits
    axis.imshow(table, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        dark = (value - low) / (high - low) > 0.55  # there black text would be hard to read
        axis.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color="w" if dark else "k")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(False)
    axis.spines[:].set_visible(False)
