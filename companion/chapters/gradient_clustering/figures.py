"""Figures of chapter 2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    NullFormatter,
)
from numpy.typing import ArrayLike

from companion.chapters.gradient_clustering.estimands import (
    cell,
    cost_ratio,
    overhead,
    seconds_ratio,
    variance_ratio,
)
from companion.chapters.gradient_clustering.features import cell_name
from companion.chapters.gradient_clustering.grids import RATES, SWEPT_RATES, SWEPT_TAUS, TAUS
from companion.chapters.gradient_clustering.numbers import at_loss
from companion.evidence.plots import PALETTE, band, figure
from companion.evidence.statistics import t_interval
from companion.lab.records import Estimand, Record, by_seed, curves_of, find, values_of

__all__ = [
    "along_training",
    "copies_and_gain",
    "cost_to_target",
    "distortion_curve",
    "key_figure",
    "nearest_pictures",
    "overheads",
    "rates",
    "widths",
]

COLOURS = dict(zip(("sg", "sg2", "gc", "svrg"), PALETTE, strict=False))
LABELS = {"sg": "SG-B", "sg2": "SG-2B", "gc": "GC", "svrg": "SVRG"}
PROBLEMS = {"digits_mlp": "digits, MLP", "fashion_mlp": "Fashion-MNIST, MLP"}
SAMPLERS = {
    "snooze": "snooze",
    "random": "snooze at random",
    "reweighted": "snooze, re-weighted",
    "stratified": "gradient clusters",
}


def _ratio(
    axis: Axes,
    x: float,
    records: Sequence[Record],
    estimand: Estimand,
    *,
    colour: str,
    label: str | None,
) -> None:
    """Draw geometric mean and 95 % interval of a ratio, or nothing if no seed has its records."""
    values = values_of(records, estimand)
    if not values:
        return
    logs = t_interval(values, 0.95)[:3] if len(values) > 1 else 3 * (values[0],)
    mean, low, high = map(math.exp, logs)
    ends = [[mean - low], [high - mean]]
    axis.errorbar(x, mean, ends, fmt="o", color=colour, capsize=3, label=label)


def _log_scale(axis: Axes) -> None:
    """Make the ordinate logarithmic, with plain numbers if it spans little.

    Call it after everything is drawn, since the limits decide.
    """
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high / low < 30:
        subs = (1.0, 2.0, 5.0) if high / low > 5 else (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def key_figure(records: Sequence[Record]) -> Figure:
    """The chapter's figure for its summary."""
    return along_training(records)


def along_training(records: Sequence[Record]) -> Figure:
    """Summed variance of four estimators along training, median and range over the seeds."""
    drawn, axes = figure(2, height=3.2)
    for axis, (arm, title) in zip(axes, PROBLEMS.items(), strict=True):
        steps = curves_of(records, f"{arm}_0", "step")[0]
        for name, colour in COLOURS.items():
            source, factor = ("sg", 0.5) if name == "sg2" else (name, 1.0)
            values = factor * curves_of(records, f"{arm}_0", f"mid/{source}")
            band(axis, steps, values, label=LABELS[name], colour=colour)
        _log_scale(axis)
        axis.set_xlabel("updates")
        axis.set_title(title)
    axes[0].set_ylabel("variance of the gradient estimate,\nsummed over the parameters")
    axes[1].legend(fontsize=8)
    return drawn


def copies_and_gain(records: Sequence[Record]) -> Figure:
    """Variance of GC and SVRG over that of SG-B with and without copies."""
    drawn, axes = figure(2, height=3.0)
    for axis, (data, title) in zip(axes, PROBLEMS.items(), strict=True):
        for number, name in enumerate(("gc", "svrg")):
            for column, copies in enumerate(("0", "50", "90")):
                estimand = variance_ratio(f"{data}_{copies}", f"mid/{name}", "mid/sg")
                label = LABELS[name] if column == 0 else None
                x = column + 0.15 * (number - 0.5)
                _ratio(axis, x, records, estimand, colour=COLOURS[name], label=label)
        axis.axhline(1, color="k", lw=1)
        axis.axhline(0.5, color="k", lw=1, ls=":")
        _log_scale(axis)
        axis.set_xticks(range(3), ["none", "half", "90 %"])
        axis.set_xlabel("share of exact copies of ten examples")
        axis.set_title(title)
    axes[0].set_ylabel("variance, ratio to SG-B")
    axes[0].legend(fontsize=8)
    return drawn


def rates(records: Sequence[Record]) -> Figure:
    """Variance of SG-B with random features against the learning rate: equal steps, equal loss."""
    drawn, axes = figure(2, height=3.0)
    for number, tau in enumerate(SWEPT_TAUS):
        equal_steps, equal_loss = [], []
        for seed in by_seed(records, "features_rates"):
            record = find(seed, "features_rates")
            names = [cell_name(tau, lr, 2000) for lr in SWEPT_RATES]
            equal_steps.append([math.exp(record["metrics"][f"{name}/sg"]) for name in names])
            target = max(record["curves"][f"{name}/loss"][-1] for name in names)
            equal_loss.append([math.exp(at_loss(record["curves"], name, target)) for name in names])
        label = f"{tau:g} features per example"
        for axis, values in ((axes[0], equal_steps), (axes[1], equal_loss)):
            band(axis, SWEPT_RATES, values, label=label, colour=PALETTE[number])
    for axis, title in zip(axes, ("equal steps", "equal training loss"), strict=True):
        axis.set_xscale("log")
        _log_scale(axis)
        axis.set_xlabel("learning rate")
        axis.set_title(title)
    axes[0].set_ylabel("variance of SG-B, summed")
    axes[0].legend(fontsize=8)
    return drawn


def widths(records: Sequence[Record]) -> Figure:
    """Variance of GC and SVRG over that of SG-B against the number of features per example."""
    drawn, axes = figure(len(RATES), height=2.8)
    for axis, lr in zip(axes, RATES, strict=True):
        for name in ("gc", "svrg"):
            curves = []
            for seed in by_seed(records, "features_grid"):
                estimands = [
                    cell("features_grid", cell_name(tau, lr, 2000), name, "sg") for tau in TAUS
                ]
                curves.append([math.exp(estimand(seed)) for estimand in estimands])
            band(axis, TAUS, curves, label=LABELS[name], colour=COLOURS[name])
        axis.axhline(1, color="k", lw=1)
        axis.axhline(0.5, color="k", lw=1, ls=":")
        axis.set_xscale("log")
        _log_scale(axis)
        axis.set_xlabel("features per example")
        axis.set_title(f"learning rate {lr:g}")
    axes[0].set_ylabel("variance, ratio to SG-B")
    axes[0].legend(fontsize=8)
    return drawn


def cost_to_target(records: Sequence[Record]) -> Figure:
    """Examples and seconds to the target over those of uniform draws, extra passes included."""
    problems = {"0": "no copies", "90": "90 % copies"}
    drawn, axes = figure(2, height=3.2)
    for axis, (problem, title) in zip(axes, problems.items(), strict=True):
        for number, sampler in enumerate(SAMPLERS):
            costs = cost_ratio(problem, sampler, "uniform"), seconds_ratio(problem, sampler)
            for column, estimand in enumerate(costs):
                label = SAMPLERS[sampler] if column == 0 else None
                x = column + 0.15 * (number - 1.5)
                _ratio(axis, x, records, estimand, colour=PALETTE[number], label=label)
        axis.axhline(1, color="k", lw=1)
        axis.set_xticks(range(2), ["examples", "seconds"])
        axis.set_xlim(-0.5, 1.5)
        axis.set_title(title)
        axis.set_yscale("log")
    ends = [axis.get_ylim() for axis in axes]
    for axis in axes:  # one scale for both panels
        axis.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
        _log_scale(axis)
    axes[0].set_ylabel("cost to the target accuracy,\nratio to uniform draws")
    axes[0].legend(fontsize=8)
    return drawn


def overheads(records: Sequence[Record]) -> Figure:
    """Time of clustering a batch over that of its forward and backward pass."""
    drawn, axes = figure(1, height=2.8)
    names = {"assign": "assign", "pass": "assign and collect"}
    for number, (what, label) in enumerate(names.items()):
        cases = [(model, count) for model in ("mlp", "resnet8") for count in (32, 128)]
        for column, (model, count) in enumerate(cases):
            x = column + 0.15 * (number - 0.5)
            shown = label if column == 0 else None
            estimand = overhead(model, what, count)
            _ratio(axes[0], x, records, estimand, colour=PALETTE[number], label=shown)
    axes[0].axhline(1, color="k", lw=1)
    axes[0].set_xticks(range(4), ["MLP\nK = 32", "MLP\nK = 128", "ResNet-8\n32", "ResNet-8\n128"])
    axes[0].set_ylabel("time, ratio to\nforward and backward")
    axes[0].legend(fontsize=8)
    return drawn


def distortion_curve(counts: Sequence[int], variances: Mapping[str, Sequence[float]]) -> Figure:
    """Variance against the number of clusters, with the lines of SG-B and SG-2B for B = K.

    Args:
        counts: Numbers of clusters, K.
        variances: Variances at each K, by name.
    """
    drawn, axes = figure(1, height=3.0)
    styles = {"SG-B": "-", "SG-2B": "--"}
    for number, (name, values) in enumerate(variances.items()):
        style = styles.get(name, "o-")
        axes[0].plot(counts, values, style, color=PALETTE[number], ms=4, label=name)
    axes[0].set_xscale("log", base=2)
    _log_scale(axes[0])
    axes[0].set_xlabel("clusters, and draws, K = B")
    axes[0].set_ylabel("variance, summed")
    axes[0].legend(fontsize=8)
    return drawn


def nearest_pictures(rows: Mapping[str, ArrayLike]) -> Figure:
    """Pictures of some clusters, one row each: those whose gradients lie nearest to the centre.

    Args:
        rows: Pictures by title, ``(M, H, W)``.
    """
    count = max(len(np.asarray(pictures)) for pictures in rows.values())
    drawn, axes = figure(count, len(rows), height=0.95)
    drawn.set_size_inches(0.8 * count, 0.95 * len(rows))
    engine = drawn.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, 0, 1, 0.96))  # type: ignore[call-arg]  # room for the first title
    for row, (title, pictures) in enumerate(rows.items()):
        for column in range(count):
            axis = axes[row * count + column]
            axis.axis("off")
            shown = np.asarray(pictures)
            if column < len(shown):
                axis.imshow(shown[column], cmap="gray_r", interpolation="none")
        heading = axes[row * count].set_title(title, fontsize=8, loc="left")
        heading.set_in_layout(False)  # it may be wider than its picture
    return drawn
