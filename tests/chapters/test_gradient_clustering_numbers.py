"""Chapter 2 without training: the numbers of its claims and tables on records made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy.stats import spearmanr

from companion.chapters.gradient_clustering import estimands as e
from companion.chapters.gradient_clustering import numbers
from companion.chapters.gradient_clustering.features import cell_name
from companion.chapters.gradient_clustering.grids import RATES, SWEPT_TAUS, TAUS, TEACHERS
from companion.evidence.formulas import Formula
from companion.evidence.store import Record
from companion.lab import chapters

FUNCTIONS = chapters.functions_of("02")
LOG2 = math.log(2)


def run(arm: str, metrics: Mapping[str, float] = {}, **curves: Sequence[float]) -> Record:
    return {"arm": arm, "seed": 1000, "metrics": dict(metrics), "curves": curves}


def grid() -> Record:
    """Random features: cells whose numbers follow simple laws."""
    metrics: dict[str, float] = {}
    for i, tau in enumerate(TAUS):
        for j, lr in enumerate(RATES):
            for teacher, sign in zip(TEACHERS, (1, -1), strict=True):
                sg = j + sign * 0.5
                cell = {"sg": sg, "gc": sg - 1 - j, "half": 10.0 * i**2, "norm": 9 / (i + 1)}
                cell["svrg"] = sg + 2 * math.log(tau) + 0.1 * j
                name = cell_name(tau, lr, teacher)
                metrics |= {f"{name}/{key}": value for key, value in cell.items()}
    return run("features_grid", metrics)


# --- numbers --------------------------------------------------------------------------------------


def test_numbers_of_the_grid_follow_from_its_laws():
    records = grid()
    assert numbers.gc_over_sg(records) == pytest.approx(-2)
    assert numbers.worst_gc_over_sg(records) == pytest.approx(-1)
    assert numbers.svrg_over_sg(records, 10) == pytest.approx(2 * math.log(10) + 0.1)
    assert numbers.worst_svrg_over_sg(records, 0.01) == pytest.approx(2 * math.log(10) + 0.1)
    assert numbers.svrg_slope(records) == pytest.approx(2)
    assert numbers.teacher_spread(records) == pytest.approx(1)
    assert numbers.rank_correlation(records, "norm") == -1


def test_slopes_on_the_learning_rate_are_those_of_power_laws():
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    paths = {  # to a loss of 1: half-way, three quarters, at a place, at once, and the slowest
        0.1: ([2, 1.5, 0.5, 0.1], [9, 3, 1 / 3, 9]),
        0.03: ([2, 1.75, 0.75, 1.5, 0.2], [9, 27, 1 / 3, 9, 9]),
        0.01: ([2, 1, 0.5, 0.3], [9, 1, 9, 9]),
        0.003: ([1, 0.5, 0.4], [1, 9, 9]),
        0.001: ([2, 1.5, 1.2, 1], [9, 9, 9, 1]),
    }
    for tau, at_steps, at_loss in zip(SWEPT_TAUS, (-1, -0.5, -3), (1, 2, 3), strict=True):
        for lr, (losses, factors) in paths.items():
            name = cell_name(tau, lr, 2000)
            metrics[f"{name}/sg"] = at_steps * math.log(lr) + tau
            curves[f"{name}/loss"] = list(losses)
            curves[f"{name}/sg"] = [lr**at_loss * factor for factor in factors]
    rates = run("features_rates", metrics, **curves)
    assert numbers.rate_slope(rates) == pytest.approx(-1.5)
    assert numbers.equal_loss_slope(rates) == pytest.approx(2)
    assert e.rate_effect([rates]) == pytest.approx(1.5 * math.log(10))
    assert e.equal_loss_effect([rates]) == pytest.approx(-2 * math.log(10))


def test_functions_of_curves_by_hand():
    curves = {"a": [5.0, 0.0, 1e-9, 1.0, 3.0], "b": [5.0, 2.0, 1.0, 1.0, 1.5], "c": [1.0] * 3}
    record = run("x", **curves)
    assert pytest.approx(math.log(0.001)) == numbers.FLOOR
    # of five values the first is left out; no variance and next to none count as a thousandth; the
    # factor is the second's
    ratios = (
        pytest.approx((2 * numbers.FLOOR + LOG2) / 4),
        pytest.approx((2 * numbers.FLOOR + 3 * LOG2) / 4),
    )
    assert numbers.late_log_ratio(record, "a", "b") == ratios[0]
    assert numbers.late_log_ratio(record, "a", "b", 0.5) == ratios[1]
    assert numbers.late_log_ratio({"curves": {"c": [4.0, 2, 2], "d": [1.0] * 3}}, "c", "d") == (
        pytest.approx(4 / 3 * LOG2)  # of three, none
    )
    with pytest.raises(ValueError, match="shorter"):
        numbers.late_log_ratio(record, "a", "c")
    assert numbers.second_half(record, "b") == pytest.approx(3.5 / 3)
    assert numbers.second_quarter(record, "b") == 2
    with pytest.raises(KeyError, match="d"):
        numbers.second_half(record, "d")


def test_ratio_of_a_cell_has_a_least_value():
    cells: list[Record] = [{"arm": "y", "metrics": {"c/gc": -60.0, "c/sg": 1.0, "c/svrg": 3.0}}]
    assert e.cell("y", "c", "svrg", "sg")(cells) == 2
    assert e.cell("y", "c", "gc", "sg")(cells) == numbers.FLOOR


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("teacher_spread(features_grid)", "sg"),
        ("worst_gc_over_sg(features_grid)", "gc"),
        ("svrg_over_sg(features_grid, 10)", "svrg"),
        ('rank_correlation(features_grid, "norm")', "half"),
    ],
)
def test_a_grid_without_one_of_its_cells_has_no_number(formula, name):
    records = grid()
    del records["metrics"][f"1.5/0.01/20/{name}"]
    with pytest.raises(KeyError, match=f"1.5/0.01/20/{name}"):
        Formula(formula).evaluate([records], FUNCTIONS)


def test_rank_correlation_is_spearmans(monkeypatch):
    for name, values in (("TAUS", range(1, 7)), ("RATES", (0.1,)), ("TEACHERS", (20,))):
        monkeypatch.setattr(numbers, name, values)
    columns = {
        "half": (1, 2, 3, 4, 5, 6),
        "sg": (8, 5, 3, 4, -2, 0),
        "norm": (6, 5, 4, 3, 2, 1),
        "norm_plugin": (2.0, 2.0, 4, 3.5, 4, 4),
        "same": (7, 7, 7, 7, 7, 7),
    }
    metrics = {
        f"{t}/0.1/20/{name}": column[t - 1]
        for name, column in columns.items()
        for t in numbers.TAUS
    }
    grid = {"arm": "features_grid", "metrics": metrics}
    assert numbers.rank_correlation(grid, "norm") == -1
    for name in ("sg", "norm_plugin"):
        expected = spearmanr(columns[name], columns["half"]).statistic
        assert numbers.rank_correlation(grid, name) == pytest.approx(expected, rel=1e-14)
    assert math.isnan(numbers.rank_correlation(grid, "same"))


@pytest.mark.parametrize("lr", numbers.RATES)
def test_rank_correlation_of_a_rate_leaves_out_the_others(lr):
    generator = np.random.default_rng(5)
    cells = [(t, rate, h) for t in numbers.TAUS for rate in numbers.RATES for h in numbers.TEACHERS]
    columns = {name: generator.integers(0, 12, len(cells)) for name in ("norm", "half")}
    metrics = {
        f"{cell_name(*cell)}/{name}": float(column[i])
        for name, column in columns.items()
        for i, cell in enumerate(cells)
    }
    of_rate = [rate == lr for _, rate, _ in cells]
    expected = spearmanr(columns["norm"][of_rate], columns["half"][of_rate]).statistic
    actual = numbers.rank_correlation({"arm": "features_grid", "metrics": metrics}, "norm", lr)
    assert actual == pytest.approx(expected, rel=1e-12)
    assert actual != pytest.approx(spearmanr(columns["norm"], columns["half"]).statistic)


# --- tables ---------------------------------------------------------------------------------------


def test_ratios_are_below_zero_where_the_first_is_smaller():
    curves = {"mid/sg": [8.0, 4.0, 4.0, 2.0], "mid/gc": [9.0, 2.0, 2.0, 1.0]}
    records = [run("digits_mlp_0", **curves), run("digits_mlp_drop", **{"mid/sg": [8, 4, 2, 1]})]
    assert e.variance_ratio("digits_mlp_0", "mid/gc", "mid/sg")(records) == pytest.approx(-LOG2)
    doubled = e.variance_ratio("digits_mlp_0", "mid/gc", "mid/sg", 0.5)(records)
    assert doubled == pytest.approx(0)
    assert e.rise("digits_mlp_0")(records) == pytest.approx(-2 * LOG2)
    assert e.change("digits_mlp_0")(records) == pytest.approx(math.log(3 / 4))
    assert e.drop_effect("digits_mlp")(records) == pytest.approx(-LOG2)


def costs(stratified_seconds: float) -> list[Record]:
    """Samplers' costs in units of 1024 examples, and seconds of 300 updates."""
    unit = 1024.0
    clustered = {"examples": 20 * unit, "extra": 4 * unit, "test/accuracy": 0.81}
    snooze = {"examples": 8 * unit, "extra": 0.0, "random/examples": 16 * unit}
    uniform = {"examples": 16 * unit, "extra": 0.0, "test/accuracy": 0.8}
    seconds = {"uniform": 3.0, "snooze": 6.0, "random": 3.0, "stratified": stratified_seconds}
    return [
        run("speed_0_uniform", uniform),
        run("speed_0_snooze", snooze),
        run("speed_0_stratified", clustered),
        run("timing_samplers", {f"seconds/{name}": value for name, value in seconds.items()}),
        run("timing_mlp", {"seconds/plain": 0.5, "seconds/pass/32": 2.0}),
    ]


def test_costs_of_samplers_count_what_clustering_takes():
    clustering = 15.0 * (3 * 10_000 + 64) / (300 * 64)  # an example takes as long as five drawn
    records = costs(3.0 + clustering)
    for sampler, examples, drawn, seconds in (
        ("snooze", 8 / 16, 8 / 16, 1),
        ("stratified", 20 / 16, 16 / 16, (16 + 5 * 4) / 16),
    ):
        for estimand, ratio in (
            (e.cost_ratio("0", sampler, "uniform"), examples),
            (e.drawn_ratio("0", sampler, "uniform"), drawn),
            (e.seconds_ratio("0", sampler), seconds),
        ):
            assert estimand(records) == pytest.approx(math.log(ratio))
    # the control is a part of the snooze's record
    assert e.cost_ratio("0", "snooze", "random")(records) == pytest.approx(-LOG2)
    assert e.accuracy_gain("0", "stratified", "uniform")(records) == pytest.approx(1)
    assert e.overhead("mlp", "pass", 32)(records) == pytest.approx(2 * LOG2)


def test_seconds_of_a_clustering_are_not_negative():
    records = costs(2.0)  # by chance below the uniform sampler's
    seconds = e.seconds_to_target("0", "stratified")(records)
    assert seconds == pytest.approx(3.0 * 16 * 1024 / (300 * 64))


def test_an_arm_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="no record of speed_90_snooze"):
        e.cost_ratio("90", "snooze", "uniform")(costs(3.0))
