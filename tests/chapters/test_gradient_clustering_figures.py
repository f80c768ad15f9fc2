"""Chapter 2: the figures show the numbers of the records."""

from __future__ import annotations

import io
import math
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from companion.chapters.gradient_clustering import features, figures
from companion.chapters.gradient_clustering.grids import RATES, SWEPT_RATES, SWEPT_TAUS, TAUS
from companion.evidence.store import Record

TRAJECTORIES = (
    "digits_mlp_0", "digits_mlp_90", "fashion_mlp_0", "fashion_mlp_90", "digits_mlp_50",
    "fashion_mlp_50",
)  # fmt: skip


def of_seed(seed: int) -> list[Record]:
    """What the figures read; a seed is a tenth above the one before."""
    up = 1 + (seed - 1000) / 10
    actual: dict[str, tuple[dict[str, float], dict[str, Any]]] = {}
    for number, arm in enumerate(TRAJECTORIES, 1):
        curves = {"mid/sg": [4.0, 4.0, 2.0, 2.0], "step": [5.0, 15.0, 25.0, 35.0]}
        curves["mid/gc"] = [up * v / (number + 1) for v in curves["mid/sg"]]
        curves["mid/svrg"] = [up * v * number for v in curves["mid/sg"]]
        actual[arm] = {}, curves
    values = {"sg": 1.0, "gc": 1 - math.log(3), "svrg": 1 + math.log(up)}
    places = [(t, lr, h) for t in TAUS for lr in RATES for h in (20, 2000)]
    named = {features.cell_name(*position): position for position in places}
    actual["features_grid"] = {f"{c}/{n}": v for c in named for n, v in values.items()}, {}
    actual["features_rates"] = {}, {}
    for tau in SWEPT_TAUS:
        for lr in SWEPT_RATES:
            name = features.cell_name(tau, lr, 2000)
            actual["features_rates"][0][f"{name}/sg"] = math.log(up / lr)
            losses = [2.0, 1.9, 1.8, 1.5] if lr == 0.001 else [2.0, 1.0, 0.9, 0.5]
            curves = {"loss": losses, "sg": [9.0, 4 * tau, 99.0, 7.0]}
            actual["features_rates"][1].update({f"{name}/{k}": v for k, v in curves.items()})
    samplers = {"uniform": 1000.0, "snooze": 500 * up, "stratified": 2000 * up}
    for sampler, examples in samplers.items():
        spent = {"examples": examples, "extra": 0.0, "random/examples": 3000 * up}
        actual[f"speed_0_{sampler}"] = actual[f"speed_90_{sampler}"] = spent, {}
    times = {"uniform": 2.0, "snooze": 4.0, "random": 6.0, "stratified": 9.0}
    actual["timing_samplers"] = {f"seconds/{name}": value for name, value in times.items()}, {}
    for model in ("mlp", "resnet8"):
        times = {f"seconds/{w}/{k}": up * k / 32 for w in ("assign", "pass") for k in (32, 128)}
        actual[f"timing_{model}"] = times | {"seconds/plain": 0.5}, {}
    return [{"arm": a, "seed": seed, "metrics": m, "curves": c} for a, (m, c) in actual.items()]


PANELS = {"along_training": 2, "copies_and_gain": 2, "cost_to_target": 2, "distortion_curve": 1}
PANELS |= {"key_figure": 2, "nearest_pictures": 6, "overheads": 1, "rates": 2, "widths": 3}


def drawn(name: str, seeds: int) -> Figure:
    pictures = np.linspace(0, 1, 3 * 64).reshape(3, 8, 8)
    given: Any = ([record for seed in range(seeds) for record in of_seed(1000 + seed)],)
    if name == "distortion_curve":
        given = ([2, 4], {"SG-B": [3.0, 2.0], "SG-2B": [1.5, 1.0], "clusters": [1.2, 0.5]})
    if name == "nearest_pictures":
        given = ({"easy": pictures, "hard": pictures[:2]},)
    made: Figure = getattr(figures, name)(*given)
    return made


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", figures.__all__)
def test_figures_draw_without_warnings_and_label_their_axes(name, seeds):
    made = drawn(name, seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Creating legend")  # it depends on the clock
        made.savefig(io.BytesIO(), format="png")
    assert len(made.axes) == PANELS[name]
    if name == "nearest_pictures":
        assert [len(axis.images) for axis in made.axes] == [1, 1, 1, 1, 1, 0]
        assert [axis.get_title(loc="left") for axis in made.axes[::3]] == ["easy", "hard"]
        return
    assert made.axes[0].get_ylabel()
    for axis in made.axes:
        assert axis.lines
        ticks = [text.get_text() for text in axis.get_xticklabels()]
        assert axis.get_xlabel() or any("examples" in t or "MLP" in t for t in ticks)
        assert axis.get_title() or len(made.axes) == 1
    assert any(axis.get_legend() for axis in made.axes)


def heights(axis: Any) -> list[list[float]]:
    """What the lines of an axis show."""
    return [list(line.get_ydata()) for line in axis.lines]


def means(axis: Any) -> list[float]:
    """Centres of the intervals."""
    return [float(interval.lines[0].get_ydata()[0]) for interval in axis.containers]


def test_figures_show_the_numbers_of_the_records():
    actual = {name: SimpleNamespace(axes=drawn(name, 3).axes) for name in PANELS}
    shown = heights(actual["along_training"].axes[0])  # medians of SG-B, SG-2B, GC, SVRG
    medians = ([4, 4, 2, 2], [2, 2, 1, 1], [2.2, 2.2, 1.1, 1.1], [4.4, 4.4, 2.2, 2.2])
    assert shown == [pytest.approx(values) for values in medians]
    assert list(actual["along_training"].axes[0].lines[0].get_xdata()) == [5, 15, 25, 35]
    names = [text.get_text() for text in actual["along_training"].axes[1].get_legend().get_texts()]
    assert names == ["SG-B", "SG-2B", "GC", "SVRG"]
    middle = (1 * 1.1 * 1.2) ** (1 / 3)  # ratios have geometric means
    for column, number in ((0, (1, 5, 2)), (1, (3, 6, 4))):  # none, half, 90 %
        ratios = [*(middle / (k + 1) for k in number), *(middle * k for k in number)]
        assert means(actual["copies_and_gain"].axes[column]) == pytest.approx(ratios)
    steps, loss = actual["rates"].axes
    assert heights(steps)[0] == pytest.approx([1.1 / lr for lr in (0.1, 0.03, 0.01, 0.003, 0.001)])
    for tau, line in zip((0.5, 2, 10), heights(loss), strict=True):  # where it is 1.5
        assert line == pytest.approx([6 * math.sqrt(tau)] * 4 + [7])
    gc, svrg = heights(actual["widths"].axes[0])[:2]
    assert (gc, svrg) == (pytest.approx([1 / 3] * 9), pytest.approx([1.1] * 9))
    for axis in actual["cost_to_target"].axes:  # examples, seconds: snooze, its control, clusters
        ratios = [middle * k for k in (0.5, 1, 3, 9, 2, 2)]
        assert means(axis) == pytest.approx(ratios)
    assert means(actual["overheads"].axes[0]) == pytest.approx([2 * middle, 8 * middle] * 4)
    assert heights(actual["distortion_curve"].axes[0])[2] == [1.2, 0.5]
