"""Figures of chapter 4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from companion.chapters.ordering.arms import PROBLEMS, SCORES
from companion.chapters.ordering.estimands import cost_ratio, seconds_ratio, share
from companion.chapters.ordering.numbers import POSITIONS
from companion.evidence.plots import PALETTE, band, figure, matrix, spread
from companion.evidence.statistics import t_interval
from companion.lab.records import Record, by_seed, curves_of, find, values_of

__all__ = [
    "cost_ratios",
    "key_figure",
    "learning_curves",
    "order_spread",
    "prefix_sums",
    "recency",
    "scored_by",
    "step_lengths",
]

COLOURS = dict(zip(("random", *SCORES), PALETTE, strict=False))
LABELS = {"random": "random reshuffling"}
DATA_LABELS = {"digits": "digits", "fashion_mnist": "Fashion-MNIST"}
NETS = {
    "orders_cnn_bn": "conv net, step 0.1",
    "orders_mlp_lr020": "MLP, step 0.2",
    "orders_mlp_lr010": "MLP, step 0.1",
    "orders_mlp_lr005": "MLP, step 0.05",
}


def order_spread(records: Sequence[Record]) -> Figure:
    """Accuracy after one epoch in every order, sorted, one line per seed, for two networks."""
    arms = {"orders_cnn_bn": "conv net with BatchNorm", "orders_mlp_lr020": "MLP, step 0.2"}
    drawn, axes = figure(2, height=3.0)
    for axis, (arm, title) in zip(axes, arms.items(), strict=True):
        for seed in by_seed(records, arm):
            curve = find(seed, arm)["curves"]["sorted"]
            kept = np.linspace(0, len(curve) - 1, 30).round().astype(int)  # with both ends
            x = 100 * kept / (len(curve) - 1)
            axis.plot(x, np.array(curve)[kept], color=PALETTE[0], alpha=0.4, lw=1)
        axis.set_title(title)
        axis.set_xlabel("orders, sorted (%)")
    axes[0].set_ylabel("validation accuracy (%)")
    return drawn


def key_figure(records: Sequence[Record]) -> Figure:
    """The chapter's figure for its summary."""
    return recency(records)


def recency(records: Sequence[Record]) -> Figure:
    """Share of variance by position with its control, and accuracy by the last batch's labels."""
    drawn, axes = figure(2, height=3.4)
    for number, (arm, label) in enumerate(NETS.items()):
        for position in range(1, POSITIONS + 1):
            # a seed whose orders all end alike has no shares
            values = values_of(records, share(arm, str(position)))
            x = position + 0.16 * (number - 1.5)
            name = label if position == 1 else None
            spread(axes[0], x, values, colour=PALETTE[number], label=name, points=False)
    control = values_of(records, share("orders_cnn_bn", "permuted"))
    axes[0].axhline(float(np.mean(control)), color="k", ls=":", label="positions permuted")
    labels = values_of(records, share("orders_cnn_bn", "last_balance"))
    name = "last batch's label balance"
    spread(axes[0], POSITIONS + 1, labels, colour="k", label=name, points=False)
    axes[0].set_xticks([*range(1, POSITIONS + 2)], [*"123456", "labels"])
    axes[0].set_xlabel("position of the batch in the epoch")
    axes[0].set_ylabel("share of variance of accuracy, $\\eta^2$")
    axes[0].legend(fontsize=7, loc="upper center")
    for number, arm in enumerate(("orders_cnn_bn", "orders_mlp_lr020")):
        points = []
        for seed in by_seed(records, arm):
            metrics = find(seed, arm)["metrics"]
            mean = metrics["val_accuracy/mean"]
            points += [
                (metrics[f"last/{b}/balance"], metrics[f"last/{b}/accuracy"] - mean)
                for b in range(POSITIONS)
            ]
        x, y = np.array(points).T
        axes[1].plot(x + 0.008 * number, y, ".", color=PALETTE[number], label=NETS[arm])
    axes[1].set_xlabel("share of the second class in the last batch")
    axes[1].set_ylabel("accuracy minus mean of orders (points)")
    axes[1].legend(fontsize=7)
    return drawn


def scored_by(records: Sequence[Record], steps: Sequence[int]) -> Figure:
    """Rank correlation of each trial score with loss, gradient norm and alignment, by step."""
    drawn, axes = figure(3, height=2.6)
    names = {"loss": "batch loss", "norm": "gradient norm", "align": "alignment with target"}
    scores = ("delta_abs", "delta_rel", "delta_target")
    for axis, (what, title) in zip(axes, names.items(), strict=True):
        table = [
            [
                np.mean(
                    [
                        find(seed, "selection")["metrics"][f"{score}/{what}/{step}"]
                        for seed in by_seed(records, "selection")
                    ]
                )
                for step in steps
            ]
            for score in scores
        ]
        shown = scores if what == "loss" else [""] * len(scores)
        columns = [str(step) for step in steps]
        matrix(axis, table, rows=shown, columns=columns, limits=(-0.5, 1))
        axis.set_title(title)
        axis.set_xlabel("step")
    return drawn


def cost_ratios(records: Sequence[Record]) -> Figure:
    """Cost to the target over that of random reshuffling, in three units, on both data sets."""
    drawn, axes = figure(2, height=3.4)
    for axis, data in zip(axes, PROBLEMS, strict=True):
        for number, score in enumerate(SCORES):
            arm, base = f"{data}_{score}", f"{data}_random"
            estimands = [
                cost_ratio(arm, base),
                cost_ratio(arm, base, "forwards"),
                seconds_ratio(data, score),
            ]
            for column, estimand in enumerate(estimands):
                label = score if column == 0 else None
                x = column + 0.2 * (number - 1)
                logs = values_of(records, estimand)
                _ratio(axis, x, logs, colour=COLOURS[score], label=label)
        axis.axhline(1, color="k", lw=1)
        _log_scale(axis)
        axis.set_xticks(range(3), ["steps", "forward\nequivalents", "seconds"])
        axis.set_title(DATA_LABELS[data])
    axes[0].set_ylabel("cost to the target accuracy,\nratio to random reshuffling")
    axes[0].legend(fontsize=8)
    return drawn


def _ratio(axis: Axes, x: float, logs: Sequence[float], *, colour: str, label: str | None) -> None:
    """Draw the mean log ratio and its 95 % interval as ratios, which is what the tables show."""
    if len(logs) < 2:  # one seed, as in quick, has no interval
        axis.plot([x], [math.exp(logs[0])], "o", color=colour, label=label)
        return
    mean, low, high = (math.exp(value) for value in t_interval(logs, 0.95)[:3])
    ends = [[mean - low], [high - mean]]
    axis.errorbar([x], [mean], ends, fmt="o", color=colour, capsize=3, label=label)


def _log_scale(axis: Axes) -> None:
    """Logarithmic ordinates with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def learning_curves(records: Sequence[Record]) -> Figure:
    """Validation accuracy against steps, and against cost in forward passes; median and range."""
    drawn, axes = figure(2, 2, height=2.7)
    for row, data in enumerate(PROBLEMS):
        for order, colour in COLOURS.items():
            arm = f"{data}_{order}"
            accuracy = 100 * curves_of(records, arm, "accuracy")
            label = LABELS.get(order, order)
            left, right = axes[2 * row], axes[2 * row + 1]
            steps = curves_of(records, arm, "step")[0]
            band(left, steps, accuracy, label=label, colour=colour)
            spent = np.median(curves_of(records, arm, "forwards"), axis=0)
            band(right, spent, accuracy, label=label, colour=colour)
        for axis, unit in ((left, "updates"), (right, "forward-equivalents (batches)")):
            axis.set_xscale("log")
            axis.set_xlabel(unit)
            axis.set_title(DATA_LABELS[data])
        left.set_ylabel("validation accuracy (%)")
    axes[0].legend(fontsize=7)
    return drawn


def step_lengths(curves: Mapping[str, Mapping[float, float]]) -> Figure:
    """Steps to the target against the learning rate, every arm on the same grid of pilot trials.

    Args:
        curves: By arm and learning rate, the mean score: minus the log of the steps.
    """
    drawn, axes = figure(2, height=3.0)
    for axis, data in zip(axes, PROBLEMS, strict=True):
        for order, colour in COLOURS.items():
            arm = f"{data}_random" if order == "random" else f"{data}_{order}_tuned"
            steps = [math.exp(-score) for score in curves[arm].values()]
            axis.plot(
                list(curves[arm]), steps, "o-", ms=4, color=colour, label=LABELS.get(order, order)
            )
        axis.set_xscale("log")
        _log_scale(axis)
        axis.set_xlabel("learning rate")
        axis.set_title(DATA_LABELS[data])
    axes[0].set_ylabel("steps to the target accuracy")
    axes[1].legend(fontsize=8, loc="lower right")  # no line comes there
    return drawn


def prefix_sums(lengths: Mapping[str, ArrayLike]) -> Figure:
    """Length of the sum of centred gradients along an epoch, for several orders."""
    drawn, axes = figure(1, height=3.0)
    for number, (label, values) in enumerate(lengths.items()):
        axes[0].plot(np.asarray(values), color=PALETTE[number], label=label)
    axes[0].set_xlabel("batches of the epoch")
    axes[0].set_ylabel("length of the running sum")
    axes[0].legend(fontsize=8)
    return drawn
