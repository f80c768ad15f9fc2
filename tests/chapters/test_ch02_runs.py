"""Chapter 2: a tiny run of every kind of arm, and the figures."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from companion.chapters.gradient_clustering import (
    arms,
    features,
    figures,
    problems,
    runs,
    theory,
    timing,
)
from companion.chapters.gradient_clustering.speed import TARGETS, Trained, train_sampler
from companion.chapters.gradient_clustering.trajectory import follow
from companion.evidence.store import Record, Run, canonical_json, rounded

pytestmark = pytest.mark.usefixtures("untouched_randomness")

TINY = {"data": "digits", "num_train": 45, "batch": 6, "clusters": 6, "iterations": 2}
TINY |= {"steps": 12, "refresh": 5}
FEW = {"taus": [10.0, 4.0], "lrs": [0.1], "teachers": [20], "steps": 10}
SPEED = {"data": "digits", "num_train": 50, "batch": 8, "clusters": 5, "steps": 30, "lr": 0.05}


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problems.problem("digits", 0, 20)


def execute(arm: str, settings: Mapping[str, Any], seed: int = 3) -> dict[str, Any]:
    """Compute a run; its result is written as text."""
    given = dict(settings)
    found = runs.execute(Run("02", arm, settings, seed, "", 1.0))
    assert dict(settings) == given
    assert canonical_json(found)
    assert set(found) == {"metrics", "curves", "counters"}
    return found


def shortened(metrics: Mapping[str, float], curves: Mapping[str, Any]) -> tuple[Any, Any]:
    return (
        {name: rounded(value, 9) for name, value in metrics.items()},
        {name: [rounded(v, 6) for v in values] for name, values in curves.items()},
    )


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("digits_mlp_0", {}),
        ("digits_mlp_variants", {}),
        ("fashion_cnn_augment", {"measured": 12}),
        ("fashion_mlp_drop", {"copies": 0.5}),
    ],
)
def test_a_run_along_training_is_what_follow_finds(arm, changes):
    settings = arms.settings_of(arm)[0] | TINY | changes
    one, again = execute(arm, settings), execute(arm, settings)
    assert canonical_json(one) == canonical_json(again)
    found = follow(settings, 3)
    assert (one["metrics"], one["curves"]) == shortened(found.metrics, found.curves)
    assert one["counters"] == {"steps": 12}
    assert any(n.startswith("variant/") for n in one["curves"]) == arm.endswith("variants")
    assert ("still/gc" in one["curves"]) == arm.endswith("augment")
    assert execute(arm, settings, 4)["curves"]["mid/gc"] != one["curves"]["mid/gc"]


@pytest.mark.parametrize("arm", arms.GRIDS)
def test_a_run_of_random_features_is_what_the_grid_finds(arm):
    settings = arms.GRIDS[arm][0] | FEW
    one = execute(arm, settings)
    assert (one["metrics"], one["curves"]) == shortened(*features.run_grid(settings, 3))
    assert canonical_json(one) == canonical_json(execute(arm, settings))
    assert bool(one["curves"]) == (arm == "features_rates")
    copies = settings["copies"]
    assert len(one["metrics"]) == 2 * len(copies) * 7
    assert one["counters"] == {}


def test_small_exact_checks_and_departures_run(monkeypatch):
    monkeypatch.setattr(theory, "FEW", 4)
    settings: dict[str, Any] = {"data": "digits", "num_train": 20}
    one = execute("enumeration", settings)
    assert one["metrics"] == shortened(theory.enumeration(settings, 3), {})[0]
    settings = {name: arms.BASE[name] for name in ("lr", "momentum", "decay")} | TINY
    one = execute("departures", settings)
    assert one["metrics"] == shortened(theory.departures(settings, 3), {})[0]
    assert one["curves"] == one["counters"] == {}


def test_timings_run(monkeypatch):
    for name, value in (("BATCH", 4), ("COUNTS", (2,)), ("STEPS", 8)):
        monkeypatch.setattr(timing, name, value)
    for model in timing.NETWORKS:
        found = execute(f"timing_{model}", {"model": model})["metrics"]
        assert set(found) == {f"seconds/{name}" for name in ("plain", "assign/2", "pass/2")}
    found = execute("timing_samplers", arms.SPEED | SPEED)["metrics"]
    assert set(found) == {f"seconds/{name}" for name in (*arms.SAMPLERS, "random")}
    assert min(found.values()) > 0


@pytest.mark.parametrize("sampler", arms.SAMPLERS)
def test_a_sampler_s_run_is_what_it_spends(sampler):
    settings = arms.settings_of(f"speed_90_{sampler}")[0] | SPEED | {"copies": 0.5}
    if sampler == "snooze":
        settings["control_lr"] = 0.02
    one = execute(f"speed_90_{sampler}", settings)
    assert canonical_json(one) == canonical_json(execute(f"speed_90_{sampler}", settings))
    of = train_sampler(settings, 3)
    expected = {"reached": 0.0, "examples": of.examples[-1], "extra": of.extra[-1]}
    expected |= {"test/accuracy": of.test}  # too few looks to reach anything
    curves: dict[str, Any] = {"accuracy": of.accuracy, "drawn": of.examples}
    if sampler in ("snooze", "reweighted"):
        curves["active"] = of.active_counts
    if sampler == "snooze":
        control = settings | {"sampler": "random", "lr": 0.02}
        other = train_sampler(control, 3, counts=of.active_counts)
        expected |= {"random/reached": 0.0, "random/examples": other.examples[-1]}
        expected |= {"random/extra": 0.0, "random/test/accuracy": other.test}
        curves |= {"random/accuracy": other.accuracy, "random/drawn": other.examples}
        curves["random/active"] = of.active_counts  # as many awake
    assert (one["metrics"], one["curves"]) == shortened(expected, curves)
    assert (one["metrics"]["extra"] > 0) == (sampler == "stratified")


@pytest.mark.parametrize("problem", TARGETS)
def test_costs_are_those_of_the_look_that_reached_the_target(monkeypatch, problem):
    target, given = TARGETS[problem], []
    ramp = [target - 0.0105 + 0.001 * i for i in range(130)]  # the mean of five is two looks behind
    examples = [64.0 * (i + 1) for i in range(130)]
    extra = [float(i) for i in range(130)]

    def fake(settings: dict[str, Any], seed: int, **rest: Any) -> Trained:
        given.append((settings, seed, rest))
        accuracy = ramp if settings["sampler"] == "snooze" else [target - 0.01] * 130
        return Trained(accuracy, examples, extra, test=0.5, active_counts=list(range(70)))

    monkeypatch.setattr(runs, "train_sampler", fake)
    settings = {"sampler": "snooze", "lr": 0.1, "control_lr": 0.2}
    found = execute(f"speed_{problem}_snooze", settings)
    control = settings | {"sampler": "random", "lr": 0.2}
    assert given == [(settings, 3, {}), (control, 3, {"counts": list(range(70))})]
    reached = {"reached": 1, "examples": 64 * 14, "extra": 13, "test/accuracy": 0.5}
    never = {"reached": 0, "examples": 64 * 130, "extra": 129, "test/accuracy": 0.5}
    assert found["metrics"] == reached | {f"random/{name}": v for name, v in never.items()}
    assert found["curves"]["drawn"] == [64.0 * (i + 1) for i in range(0, 130, 3)]  # at most sixty
    assert len(found["curves"]["accuracy"]) == len(found["curves"]["drawn"]) == 44
    assert found["curves"]["active"] == [float(c) for c in range(60)]


@pytest.mark.parametrize("arm", ["speed_0_random", "digits_mlp", "timing_cnn", "features", ""])
def test_unknown_arms_are_named(arm):
    with pytest.raises(ValueError, match=f"unknown arm '{arm}'"):
        execute(arm, TINY)


# --- figures --------------------------------------------------------------------------------------


def of_seed(seed: int) -> list[Record]:
    """What the figures read; a seed is a tenth above the one before."""
    up = 1 + (seed - 1000) / 10
    found: dict[str, tuple[dict[str, float], dict[str, Any]]] = {}
    for number, arm in enumerate((*arms.HEADLINE, "digits_mlp_50", "fashion_mlp_50"), 1):
        curves = {"mid/sg": [4.0, 4.0, 2.0, 2.0], "step": [5.0, 15.0, 25.0, 35.0]}
        curves["mid/gc"] = [up * v / (number + 1) for v in curves["mid/sg"]]
        curves["mid/svrg"] = [up * v * number for v in curves["mid/sg"]]
        found[arm] = {}, curves
    settings = arms.GRIDS["features_grid"][0]
    values = {"sg": 1.0, "gc": 1 - math.log(3), "svrg": 1 + math.log(up)}
    places = [(t, lr, h) for t in settings["taus"] for lr in settings["lrs"] for h in (20, 2000)]
    named = {features.cell_name(*place): place for place in places}
    found["features_grid"] = {f"{c}/{n}": v for c in named for n, v in values.items()}, {}
    found["features_rates"] = {}, {}
    for tau in (0.5, 2.0, 10.0):
        for lr in (0.1, 0.03, 0.01, 0.003, 0.001):
            name = features.cell_name(tau, lr, 2000)
            found["features_rates"][0][f"{name}/sg"] = math.log(up / lr)
            losses = [2.0, 1.9, 1.8, 1.5] if lr == 0.001 else [2.0, 1.0, 0.9, 0.5]
            curves = {"loss": losses, "sg": [9.0, 4 * tau, 99.0, 7.0]}
            found["features_rates"][1].update({f"{name}/{k}": v for k, v in curves.items()})
    for arm in arms.SPEED_HEADLINE:
        spent = {"uniform": 1000.0, "snooze": 500 * up, "stratified": 2000 * up}
        spent = {"examples": spent[arm.split("_")[2]], "extra": 0.0, "random/examples": 3000 * up}
        found[arm] = spent, {}
    times = {"uniform": 2.0, "snooze": 4.0, "random": 6.0, "stratified": 9.0}
    found["timing_samplers"] = {f"seconds/{name}": value for name, value in times.items()}, {}
    for model in timing.NETWORKS:
        times = {f"seconds/{w}/{k}": up * k / 32 for w in ("assign", "pass") for k in (32, 128)}
        found[f"timing_{model}"] = times | {"seconds/plain": 0.5}, {}
    return [{"arm": a, "seed": seed, "metrics": m, "curves": c} for a, (m, c) in found.items()]


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
    found = {name: SimpleNamespace(axes=drawn(name, 3).axes) for name in PANELS}
    shown = heights(found["along_training"].axes[0])  # medians of SG-B, SG-2B, GC, SVRG
    medians = ([4, 4, 2, 2], [2, 2, 1, 1], [2.2, 2.2, 1.1, 1.1], [4.4, 4.4, 2.2, 2.2])
    assert shown == [pytest.approx(values) for values in medians]
    assert list(found["along_training"].axes[0].lines[0].get_xdata()) == [5, 15, 25, 35]
    names = [text.get_text() for text in found["along_training"].axes[1].get_legend().get_texts()]
    assert names == ["SG-B", "SG-2B", "GC", "SVRG"]
    middle = (1 * 1.1 * 1.2) ** (1 / 3)  # ratios have geometric means
    for column, number in ((0, (1, 5, 2)), (1, (3, 6, 4))):  # none, half, 90 %
        ratios = [*(middle / (k + 1) for k in number), *(middle * k for k in number)]
        assert means(found["copies_and_gain"].axes[column]) == pytest.approx(ratios)
    steps, loss = found["rates"].axes
    assert heights(steps)[0] == pytest.approx([1.1 / lr for lr in (0.1, 0.03, 0.01, 0.003, 0.001)])
    for tau, line in zip((0.5, 2, 10), heights(loss), strict=True):  # where it is 1.5
        assert line == pytest.approx([6 * math.sqrt(tau)] * 4 + [7])
    gc, svrg = heights(found["widths"].axes[0])[:2]
    assert (gc, svrg) == (pytest.approx([1 / 3] * 9), pytest.approx([1.1] * 9))
    for axis in found["cost_to_target"].axes:  # examples, seconds: snooze, its control, clusters
        ratios = [middle * k for k in (0.5, 1, 3, 9, 2, 2)]
        assert means(axis) == pytest.approx(ratios)
    assert means(found["overheads"].axes[0]) == pytest.approx([2 * middle, 8 * middle] * 4)
    assert heights(found["distortion_curve"].axes[0])[2] == [1.2, 0.5]
