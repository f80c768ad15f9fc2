"""Figures of chapter 3."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from companion.chapters.autoassist.arms import CLEAN
from companion.chapters.autoassist.estimands import cost_ratio
from companion.chapters.autoassist.linear import THRESHOLDS
from companion.evidence.plots import PALETTE, band, figure, spread
from companion.lab.records import Record, by_seed, curves_of, find, values_of

__all__ = [
    "accuracy_curves",
    "filtered_pictures",
    "guessing",
    "key_figure",
    "linear_work",
    "savings",
    "theorem_bounds",
    "timeline",
    "translation_curves",
]

DATA = {"breast_cancer": "breast cancer", "digits": "digits, 3 and 8", "fashion": "pullover, shirt"}
RULES = {
    "loss_only": "shrinking, loss only = SGD",
    "with_replacement": "SGD with replacement",
    "gradient_stale": "importance sampling, gradient",
    "loss_stale": "importance sampling, loss",
    "authors": "shrinking, decay skipped",
}
SAMPLERS = {"uniform": "uniform", "assist": "AutoAssist", "random": "skipping at random"}
RIVALS = {
    "assist": "AutoAssist",
    "random": "skipping at random",
    "pruned": "pruning, rescaled",
    "selective": "selective backprop",
    "selfpaced": "self-paced",
    "screener": "ScreenerNet",
}
PROBLEMS = {
    "0": "clean",
    "noise": "20 % wrong labels",
    "rotated": "rotated",
    "large": "five times the data",
    "resnet8": "ResNet-8",
}
RATIOS = (0.5, 0.7, 1, 1.5, 2)  # marked on an axis of logarithms


def key_figure(records: Sequence[Record]) -> Figure:
    """The chapter's figure for its summary."""
    return accuracy_curves(records)


def theorem_bounds(records: Sequence[Record]) -> Figure:
    """Squared distance to the optimum against k with thresholds c/k, and Theorem A's bounds."""
    drawn, [axis] = figure(height=3.4)
    drawn.set_figwidth(6.5)
    steps = curves_of(records, "theorem", "k")[0]
    for c, colour in zip(THRESHOLDS, PALETTE, strict=False):
        distances = curves_of(records, "theorem", f"{c:g}/distance")
        band(axis, steps, distances, label=f"c = {c:g}", colour=colour)
        bounds = np.median(curves_of(records, "theorem", f"{c:g}/bound"), axis=0)
        axis.plot(steps, bounds, ":", color=colour, lw=1.2)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("iteration k")
    axis.set_ylabel("mean squared distance to the optimum\n(dotted: bound)")
    axis.legend(fontsize=8, ncol=2)
    return drawn


def linear_work(records: Sequence[Record]) -> Figure:
    """Gap of the objective against inner products, on three data sets."""
    drawn, axes = figure(3, height=3.2)
    for axis, (data, title) in zip(axes, DATA.items(), strict=True):
        for (rule, label), colour in zip(RULES.items(), PALETTE, strict=False):
            gaps = curves_of(records, f"svm_{data}", f"{rule}/gap")
            work = np.median(curves_of(records, f"svm_{data}", f"{rule}/products"), axis=0)
            third = slice(-1, 0, -3)  # every third point, without the start, which has no work
            band(axis, work[third], gaps[:, third], label=label, colour=colour)
        axis.axhline(1e-3, color="k", lw=1, ls=":")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(title)
        axis.set_xlabel("inner products")
    axes[0].set_ylabel("gap of the objective")
    drawn.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=8
    )
    return drawn


def accuracy_curves(records: Sequence[Record]) -> Figure:
    """Validation accuracy against the examples that the Boss trained on, and those scanned."""
    drawn, axes = figure(2, height=3.2)
    shown = [("examples", "examples trained on"), ("scanned", "examples scanned")]
    for axis, (name, title) in zip(axes, shown, strict=True):
        for (sampler, label), colour in zip(SAMPLERS.items(), PALETTE, strict=False):
            arm, prefix = f"images_0_{sampler}", ""
            if sampler == "random":
                arm, prefix = "images_0_assist", "random/"
            x = np.median(curves_of(records, arm, f"{prefix}{name}"), axis=0)
            values = 100 * curves_of(records, arm, f"{prefix}accuracy")
            band(axis, x / 1000, values, label=label, colour=colour)
        axis.axhline(100 * CLEAN.target, color="k", lw=1, ls=":")
        axis.set_ylim(72, 90)
        axis.set_xlabel(f"{title}, thousands")
    axes[0].set_ylabel("validation accuracy, %")
    axes[0].legend(fontsize=8)
    return drawn


def savings(records: Sequence[Record]) -> Figure:
    """Examples, and work in forward passes, until the target accuracy, over those of uniform.

    Means and intervals are those of the logarithms, as in tables and verdicts.
    """
    drawn, axes = figure(2, height=4.0)
    rows = [("0", sampler, label, PALETTE[0]) for sampler, label in RIVALS.items()]
    for problem in ("noise", "rotated", "large", "resnet8"):
        for sampler in ("assist", "random"):
            label = f"{PROBLEMS[problem]}: {RIVALS[sampler]}"
            rows.append((problem, sampler, label, PALETTE[1]))
    counts: dict[int, int] = {}
    for line, (problem, sampler, _, colour) in enumerate(rows):
        for axis, what in zip(axes, ("examples", "work"), strict=True):
            if values := values_of(records, cost_ratio(problem, sampler, "uniform", what)):
                counts[line] = len(values)
                spread(axis, -line, values, colour=colour, horizontal=True, points=False)
    for axis, title in zip(axes, ("examples", "work"), strict=True):
        axis.axvline(0, color="k", lw=1)
        axis.axvline(math.log(0.8), color="k", lw=1, ls=":")
        axis.set_xticks([math.log(ratio) for ratio in RATIOS], [f"{ratio:g}" for ratio in RATIOS])
        axis.set_yticks([-line for line in range(len(rows))], [""] * len(rows))
        axis.set_ylim(0.6 - len(rows), 0.6)
        axis.set_title(f"{title} to the target", fontsize=10)
        axis.set_xlabel("ratio to uniform draws")
    labels = [f"{row[2]}, n = {counts.get(line, 0)}" for line, row in enumerate(rows)]
    axes[0].set_yticks([-line for line in range(len(rows))], labels, fontsize=8)
    return drawn


def guessing(records: Sequence[Record]) -> Figure:
    """AUC of the guesses of the Assistant and of two other guessers; share kept in each pass."""
    drawn, axes = figure(2, height=3.0)
    names = {"r": "Assistant", "class": "mean loss of the class", "loss": "its own loss now"}
    curves = {name: curves_of(records, "images_0_assist", f"auc/{name}") for name in names}
    drawn_each = CLEAN.probe_every * CLEAN.batch / 1000
    steps = drawn_each * (2 + np.arange(curves["r"].shape[1]))
    for (name, label), colour in zip(names.items(), PALETTE, strict=False):
        band(axes[0], steps, curves[name], label=label, colour=colour)
    axes[0].axhline(0.5, color="k", lw=1)
    axes[0].set_ylim(0.3, 1.0)  # the legend below the line of chance
    axes[0].set_xlabel("examples trained on, thousands")
    axes[0].set_ylabel(f"AUC for a high loss\n{CLEAN.probe_every} updates later")
    axes[0].legend(fontsize=8)
    arms = {"clean": "images_0_assist", "20 % wrong labels": "images_noise_assist"}
    for (label, arm), colour in zip(arms.items(), PALETTE, strict=False):
        rates = [find(seed, arm)["curves"]["keep_rates"] for seed in by_seed(records, arm)]
        if rates:
            least = min(map(len, rates))
            values = 100 * np.array([rate[:least] for rate in rates])
            band(axes[1], np.arange(1, least + 1), values, label=label, colour=colour)
    axes[1].set_ylim(0, 100)
    axes[1].set_xlabel("pass over the training set")
    axes[1].set_ylabel("examples kept, %")
    axes[1].legend(fontsize=8)
    return drawn


def timeline(records: Sequence[Record]) -> Figure:
    """What Boss and Assistant did in a traced run, with the queues, and staleness of batches."""
    drawn = figure(height=4.0)[0]
    drawn.clear()
    drawn.set_size_inches(9.5, 4.2)
    grid = drawn.add_gridspec(2, 2, width_ratios=(2.4, 1))
    above, below = drawn.add_subplot(grid[0, 0]), drawn.add_subplot(grid[1, 0])
    side = drawn.add_subplot(grid[:, 1])
    timed = [record for record in records if record["arm"] == "timing"]
    curves: Mapping[str, Sequence[float]] = timed[0]["curves"]
    starts, ends = curves["boss/wait/start"], curves["boss/wait/end"]
    steps = [(e, s - e) for e, s in zip(ends, starts[1:], strict=False)]
    above.broken_barh(
        steps, (1.1, 0.8), facecolors=PALETTE[0], edgecolor="white", label="Boss trains"
    )
    for row, name, label, colour in (
        (0.1, "form", "batch formed", PALETTE[1]),
        (0.1, "learn", "Assistant learns", PALETTE[2]),
    ):
        key = f"assistant/{name}"
        bars = zip(curves[f"{key}/start"], curves[f"{key}/end"], strict=True)
        spans = [(start, end - start) for start, end in bars]
        above.broken_barh(spans, (row, 0.8), facecolors=colour, label=label)
    above.set_yticks([0.5, 1.5], ["Assistant", "Boss"])
    above.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)
    for key, label, colour in (
        ("batches", "batches ready", PALETTE[0]),
        ("feedbacks", "losses waiting", PALETTE[3]),
    ):
        points = [
            (end, depth)
            for name in ("assistant/form", "assistant/learn", "boss/wait")
            for end, depth in zip(curves[f"{name}/end"], curves[f"{name}/{key}"], strict=True)
        ]
        xs, ys = zip(*sorted(points), strict=True)
        below.step(xs, ys, where="post", color=colour, label=label)
    below.set_xlabel("milliseconds")
    below.set_ylabel("queue depth")
    below.set_ylim(0, 22)
    below.legend(fontsize=8, loc="center right")
    end = steps[-1][0] + steps[-1][1]
    above.set_xlim(0, end)
    below.set_xlim(0, end)
    longest = max(len(record["curves"]["staleness"]) for record in timed)
    counts = np.zeros(longest)
    for record in timed:
        values = record["curves"]["staleness"]
        counts[: len(values)] += values
    side.bar(range(longest), 100 * counts / counts.sum(), color=PALETTE[0])
    side.set_xlabel("feedbacks that a batch's\ndecisions did not know")
    side.set_ylabel("batches, %")
    return drawn


def translation_curves(records: Sequence[Record]) -> Figure:
    """Validation loss against tokens trained on, and its difference to that of uniform draws."""
    drawn, axes = figure(2, height=3.2)
    uniform = curves_of(records, "translation_uniform", "val_loss")
    arms = {"uniform draws": ("uniform", ""), "AutoAssist": ("assist", "")}
    arms |= {"skipped at random": ("assist", "random/"), "AutoAssist, 70 %": ("assist70", "")}
    for (label, (sampler, prefix)), colour in zip(arms.items(), PALETTE, strict=False):
        arm = f"translation_{sampler}"
        x = np.median(curves_of(records, arm, f"{prefix}tokens"), axis=0) / 1e6
        values = curves_of(records, arm, f"{prefix}val_loss")
        band(axes[0], x, values, label=label, colour=colour)
        if sampler == "assist":
            band(axes[1], x, values - uniform, label=label, colour=colour)
    axes[1].axhline(0, color=PALETTE[0], lw=1.5)
    for axis in axes:
        axis.set_xlabel("target tokens trained on, millions")
    axes[0].set_ylabel("validation loss per token, nats")
    axes[1].set_ylabel("loss minus that of uniform, nats")
    axes[0].legend(fontsize=8)
    return drawn


def filtered_pictures(rows: Mapping[str, Tensor]) -> Figure:
    """Rows of pictures ``(n, H, W)``, each under its title."""
    count = max(len(pictures) for pictures in rows.values())
    drawn, axes = figure(1, len(rows), height=1.1)
    drawn.set_figwidth(7.5)
    for axis, (title, pictures) in zip(axes, rows.items(), strict=True):
        strip: Any = np.concatenate([picture.numpy() for picture in pictures], axis=1)
        axis.imshow(strip, cmap="gray_r", aspect="equal")
        axis.set_xlim(0, count * pictures.shape[2])
        axis.set_title(title, fontsize=9, loc="left")
        axis.axis("off")
    return drawn
