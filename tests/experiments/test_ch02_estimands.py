"""Chapter 2 without training: the numbers of its claims and tables on records made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from scipy.stats import spearmanr

from companion.evidence.formulas import Formula
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.experiments import chapters
from companion.experiments.ch02 import estimands as e
from companion.experiments.ch02 import numbers
from companion.experiments.ch02.arms import GRIDS
from companion.experiments.ch02.features import cell_name
from companion.paths import CLAIMS

LEDGER = load_ledger(CLAIMS / "02.yaml")
FORMULAS = {
    part.estimand: part.formula
    for claim in LEDGER
    for part in (*claim.all_of, *(claim.beside.all_of if claim.beside else ()))
}
LOG2 = math.log(2)
# arm: logs to base 2, over SG-B, of GC and SVRG half-way, of GC fresh, old and without new views,
# and of SG-B's change along the run
ALONG: dict[str, tuple[float, ...]] = {
    "digits_mlp_0": (-2, 1, -3, -1, 0, -0.5),
    "digits_mlp_90": (-6, 3, -6.5, -5, 0, -2),
    "fashion_mlp_0": (-1, -1, -5, 2, 0, -3),
    "fashion_mlp_90": (-4, -3, -6, -5, 0, 4),
    "fashion_mlp_augment": (0.1, 7, 0.2, 0.3, -1, 5),
    "fashion_cnn_0": (-0.6, 9, -0.7, -0.8, 0, 0.9),
    "fashion_cnn_drop": (1.1, -5, 1.2, 1.3, 0, 2.9),
    "fashion_cnn_augment": (1.4, -6, 1.5, 1.6, -3, 8),
}
VARIANTS = {"means": 0, "svd": 1, "full": -0.25, "plain": 2, "frozen": 3, "exact": -1, "random": 4}
SPENT = {  # examples to the target and extras of them, in units of 2^10
    "0": {"uniform": (16, 0), "snooze": (8, 0), "random": (12, 0), "reweighted": (24, 0)}
    | {"stratified": (20, 3)},
    "90": {"uniform": (6, 0), "snooze": (3, 0), "random": (9, 0), "reweighted": (2, 0)}
    | {"stratified": (5, 1)},
}
SECONDS = {"snooze": 2, "random": 1.5, "reweighted": 3}  # for 300 updates, over uniform ones
TIMES = {"mlp": (0.25, -1, 1, 0.5, 3), "resnet8": (4.0, -2, -0.5, 0, 2)}  # logs to base 2

# number of the ledger: its value by hand, and the arms that it reads
VALUES: dict[str, tuple[float, tuple[str, ...]]] = {
    "mean_error": (1e-16, ("enumeration",)),
    "variance_error": (2e-15, ("enumeration",)),
    "optimum_error": (3e-14, ("enumeration",)),
    "rate_slope": (-1.5, ("features_rates",)),
    "equal_loss_slope": (2.0, ("features_rates",)),
    "features_copies_gc_over_svrg": (-1.5, ("features_copies",)),
    "digits_mlp_copies_effect": (-4 * LOG2, ("digits_mlp_90", "digits_mlp_0")),
    "fashion_mlp_copies_effect": (-3 * LOG2, ("fashion_mlp_90", "fashion_mlp_0")),
    "fashion_cnn_0_change": (0.9 * LOG2, ("fashion_cnn_0",)),
    "digits_mlp_0_change": (-0.5 * LOG2, ("digits_mlp_0",)),
    "fashion_cnn_drop_effect": (2 * LOG2, ("fashion_cnn_drop", "fashion_cnn_0")),
    "fashion_cnn_augment_still_gc_over_sg": (-3 * LOG2, ("fashion_cnn_augment",)),
}
_grid = (-2 * 54 + 1.5 + numbers.FLOOR + 3) / 54
VALUES |= {
    name: (value, ("features_grid",))
    for name, value in {
        "teacher_share": 3 / 17,
        "teacher_spread": 5 / 3,
        "features_gc_over_sg": _grid,
        "features_gc_over_sg2": _grid + LOG2,
        "features_gc_worst": 0.5,
        "svrg_few_features": 2 * math.log(0.1),
        "svrg_slope": 2,
        "svrg_worst": 2 * math.log(10) - 0.3 + 0.1,  # of the rate 0.1, not of all
        "norm_convergence": 1,
        "norm_plugin_convergence": 59 / 60,  # two of nine groups exchanged
    }.items()
}
for _data in ("digits_mlp", "fashion_mlp"):
    for _copies in ("0", "90"):
        _arm = f"{_data}_{_copies}"
        VALUES[f"{_arm}_gc_over_sg2"] = (ALONG[_arm][0] + 1) * LOG2, (_arm,)
for _arm in ("fashion_mlp_augment", "fashion_cnn_augment"):
    VALUES[f"{_arm}_gc_over_sg"] = ALONG[_arm][0] * LOG2, (_arm,)
for _data in ("digits_mlp", "fashion_mlp", "fashion_cnn"):
    VALUES[f"{_data}_means_over_full"] = -VARIANTS["full"] * LOG2, (f"{_data}_variants",)
for _problem, _of in SPENT.items():
    for _name, _other in (("snooze", "uniform"), ("stratified", "uniform"), ("snooze", "random")):
        _label = f"speed_{_problem}_{_name}{'_over_random' * (_other == 'random')}"
        _arms = {f"speed_{_problem}_{_name}", f"speed_{_problem}_{_other}"}
        _arms -= {f"speed_{_problem}_random"}  # a part of the snooze's record
        VALUES[_label] = math.log(_of[_name][0] / _of[_other][0]), tuple(sorted(_arms))
for _model, (*_, _few, _many) in TIMES.items():
    VALUES[f"{_model}_pass_32"] = _few * LOG2, (f"timing_{_model}",)
    VALUES[f"{_model}_pass_128"] = _many * LOG2, (f"timing_{_model}",)

Number = Callable[[Sequence[Record]], float]
# what tables and figures show besides: the estimand, its value by hand, and the arms that it reads
SHOWN: dict[str, tuple[Number, float, tuple[str, ...]]] = {
    f"{_arm}, {_age}": (e.variance_ratio(_arm, f"{_age}/gc", f"{_age}/sg"), _value * LOG2, (_arm,))
    for _arm, (_, _, _fresh, _old, *_) in ALONG.items()
    for _age, _value in (("fresh", _fresh), ("old", _old))
}
for _arm, (_gc, _svrg, *_, _change) in ALONG.items():
    for _label, _estimand, _value in (
        ("svrg", e.variance_ratio(_arm, "mid/svrg", "mid/sg"), _svrg),
        ("gc over svrg", e.variance_ratio(_arm, "mid/gc", "mid/svrg"), _gc - _svrg),
        ("change", e.change(_arm), _change),
    ):
        SHOWN[f"{_arm}, {_label}"] = _estimand, _value * LOG2, (_arm,)
for _name, _value in VARIANTS.items():
    _estimand = e.variance_ratio("digits_mlp_variants", "variant/means", f"variant/{_name}")
    SHOWN[f"means over {_name}"] = _estimand, -_value * LOG2, ("digits_mlp_variants",)
for _problem, _of in SPENT.items():
    for _name, (_all, _extra) in _of.items():
        _sampler = "snooze" if _name == "random" else _name
        _arms = (f"speed_{_problem}_{_sampler}", f"speed_{_problem}_uniform")
        if _name == "uniform":
            continue
        _label, (_uniform, _) = f"{_problem}, {_name}", _of["uniform"]
        _estimand = e.cost_ratio(_problem, _name, "uniform")
        SHOWN[f"{_label}, examples"] = _estimand, math.log(_all / _uniform), _arms
        _estimand = e.drawn_ratio(_problem, _name, "uniform")
        SHOWN[f"{_label}, drawn"] = _estimand, math.log((_all - _extra) / _uniform), _arms
        # an example clustered costs as much as five drawn uniformly
        _each = _all * SECONDS[_name] if _name in SECONDS else _all - _extra + 5 * _extra
        _timed = math.log(_each / _uniform), (*_arms, "timing_samplers")
        SHOWN[f"{_label}, seconds"] = e.seconds_ratio(_problem, _name), *_timed
for _model, (_, *_values) in TIMES.items():
    _kinds = (("assign", 32), ("assign", 128), ("pass", 32), ("pass", 128))
    for (_what, _count), _value in zip(_kinds, _values, strict=True):
        _estimand = e.overhead(_model, _what, _count)
        _timed = _value * LOG2, (f"timing_{_model}",)
        SHOWN[f"{_model}, {_what}, {_count}"] = _estimand, *_timed
SHOWN |= {
    "drop effect": (e.drop_effect("fashion_cnn"), *VALUES["fashion_cnn_drop_effect"]),
    "rate slope": (e.rate_slope, *VALUES["rate_slope"]),
    "equal loss slope": (e.equal_loss_slope, *VALUES["equal_loss_slope"]),
    "rank correlation": (e.rank_correlation("norm"), -1, ("features_grid",)),
    "gc of a cell": (
        e.cell("features_copies", "2/0.01/2000/0.9", "gc", "sg"),
        -3,
        ("features_copies",),
    ),
}
FUNCTIONS = chapters.functions_of("02")
CASES = SHOWN | {
    name: (partial(formula.evaluate, functions=FUNCTIONS), *VALUES[name])
    for name, formula in FORMULAS.items()
}


def powers(mean: float, n: int) -> list[float]:
    """Powers of two: after the first quarter the mean of the exponents is the given one."""
    late = n - n // 4
    rest = [(-1) ** i * (i // 2 + 1.0) for i in range(late - late % 2)] + [0.0] * (late % 2)
    return [2.0 ** (mean + of) for of in [9.0] * (n // 4) + rest]


def along(arm: str) -> dict[str, list[float]]:
    gc, svrg, fresh, old, still, change = ALONG[arm]
    end = 2.0**change
    curves = {"step": [10.0 * i for i in range(8)]}
    curves["mid/sg"] = [64.0, 99.0, 1.0, 3.0, end, 3 * end, 2.5 * end, 1.5 * end]
    for name, value in (("gc", gc), ("svrg", svrg)):
        ratios = powers(value, 8)
        curves[f"mid/{name}"] = [a * b for a, b in zip(curves["mid/sg"], ratios, strict=True)]
    for name, value, count in (("fresh", fresh, 9), ("old", old, 7), ("still", still, 5)):
        if name != "still" or value:
            curves |= {f"{name}/sg": [4.0] * count, f"{name}/gc": powers(value + 2, count)}
    return curves


def grid() -> dict[str, float]:
    found: dict[str, float] = {}
    for i, tau in enumerate(numbers.TAUS):
        teacher_effect = 1.0 if i < 6 else -0.5
        for j, lr in enumerate(numbers.RATES):
            for h, sign in ((20, 1), (2000, -1)):
                sg = j - 1 + sign * teacher_effect
                cell = {"sg": sg, "gc": sg - 1 - j, "half": 10.0 * i**2, "norm": 9 / (i + 1)}
                cell["svrg"] = sg + 2 * math.log(tau) + (-0.3, 0, 0.3)[j] + sign * 0.1
                cell["norm_plugin"] = float({7: 8, 8: 7}.get(i, i))
                if (tau, lr, h) == (10.0, 0.1, 20):
                    cell["gc"] = sg + 0.5
                if (tau, lr, h) == (0.1, 0.001, 2000):
                    cell["gc"] = math.log(1e-30)  # no variance at all
                found |= {f"{cell_name(tau, lr, h)}/{name}": v for name, v in cell.items()}
    return found


def rates() -> tuple[dict[str, float], dict[str, list[float]]]:
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for tau, at_steps, at_loss in ((0.5, -1, 1), (2.0, -0.5, 2), (10.0, -3, 3)):
        paths = {  # to a loss of 1: half-way; three quarters, the first time; at a place; at once
            0.1: ([2, 1.5, 0.5, 0.1], [9, 3, 1 / 3, 9]),
            0.03: ([2, 1.75, 0.75, 1.5, 0.2], [9, 27, 1 / 3, 9, 9]),
            0.01: ([2, 1, 0.5, 0.3], [9, 1, 9, 9]),
            0.003: ([1, 0.5, 0.4], [1, 9, 9]),
            0.001: ([2, 1.5, 1.2, 1], [9, 9, 9, 1]),  # the slowest
        }
        for lr, (losses, variances) in paths.items():
            name = cell_name(tau, lr, 2000)
            metrics[f"{name}/sg"] = at_steps * math.log(lr) + tau
            curves |= {f"{name}/loss": list(losses), f"{name}/step": [0.0] * len(losses)}
            curves[f"{name}/sg"] = [lr**at_loss * of for of in variances]
    return metrics, curves


def hand_made() -> list[Record]:
    """All records of one seed that the numbers read."""
    found: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
        arm: ({"test/accuracy": 0.5}, along(arm)) for arm in ALONG
    }
    for data in ("digits_mlp", "fashion_mlp", "fashion_cnn"):
        curves = {f"variant/{name}": powers(value, 8) for name, value in VARIANTS.items()}
        found[f"{data}_variants"] = {}, curves
    errors = {"mean_error": 1e-16, "variance_error": 2e-15, "optimum_error": 3e-14}
    found["enumeration"] = errors | {"published_over_best": 1.5}, {}
    found["features_rates"], found["features_grid"] = rates(), (grid(), {})
    cells = {
        "2/0.01/2000/0.9": (1, -2, -0.5),
        "2/0.01/2000": (5, 6, 7),
        "1/0.01/2000/0.9": (8, 9, 3),
    }
    names = ("sg", "gc", "svrg")
    found["features_copies"] = (
        {f"{c}/{n}": float(v) for c, of in cells.items() for n, v in zip(names, of, strict=True)},
        {},
    )
    for problem, of in SPENT.items():
        for name, (examples, extra) in of.items():
            arm = f"speed_{problem}_{'snooze' if name == 'random' else name}"
            prefix, scale = "random/" if name == "random" else "", 1024.0
            more = {f"{prefix}examples": examples * scale, f"{prefix}extra": extra * scale}
            found[arm] = found.get(arm, ({}, {}))[0] | more, {}
    times = {"seconds/uniform": 3.0} | {f"seconds/{n}": 3.0 * v for n, v in SECONDS.items()}
    drawn, clustered = 300 * 64, 3 * 10_000 + 64
    found["timing_samplers"] = times | {"seconds/stratified": 3.0 + 15.0 * clustered / drawn}, {}
    for model, (plain, *logs) in TIMES.items():
        names = ("assign/32", "assign/128", "pass/32", "pass/128")
        times = {f"seconds/{n}": plain * 2.0**v for n, v in zip(names, logs, strict=True)}
        found[f"timing_{model}"] = times | {"seconds/plain": plain}, {}
    return [
        {"arm": arm, "seed": 1000, "metrics": metrics, "curves": curves}
        for arm, (metrics, curves) in found.items()
    ]


# --- numbers --------------------------------------------------------------------------------------


def test_every_number_of_the_ledger_is_computed_by_hand():
    assert set(VALUES) == set(FORMULAS)


@pytest.mark.parametrize("name", CASES)
def test_number_equals_the_value_by_hand(name):
    number, value, needed = CASES[name]
    alone = [record for record in hand_made() if record["arm"] in needed]
    assert len(alone) == len(needed)
    for records in (hand_made(), hand_made()[::-1], alone):  # it reads no other arm
        assert number(records) == pytest.approx(value, rel=1e-9, abs=1e-18)
    for arm in needed:
        with pytest.raises(KeyError, match=f"no record of {arm}'"):
            number([record for record in alone if record["arm"] != arm])


def test_functions_of_curves_by_hand():
    curves = {"a": [5.0, 0.0, 1e-9, 1.0, 3.0], "b": [5.0, 2.0, 1.0, 1.0, 1.5], "c": [1.0] * 3}
    run = {"arm": "x", "curves": curves}
    assert pytest.approx(math.log(0.001)) == numbers.FLOOR
    # of five values the first is left out; no variance and next to none count as a thousandth; the
    # factor is the second's
    ratios = (
        pytest.approx((2 * numbers.FLOOR + LOG2) / 4),
        pytest.approx((2 * numbers.FLOOR + 3 * LOG2) / 4),
    )
    assert numbers.late_log_ratio(run, "a", "b") == ratios[0]
    assert numbers.late_log_ratio(run, "a", "b", 0.5) == ratios[1]
    assert numbers.late_log_ratio({"curves": {"c": [4.0, 2, 2], "d": [1.0] * 3}}, "c", "d") == (
        pytest.approx(4 / 3 * LOG2)  # of three, none
    )
    with pytest.raises(ValueError, match="shorter"):
        numbers.late_log_ratio(run, "a", "c")
    assert numbers.second_half(run, "b") == pytest.approx(3.5 / 3)
    assert numbers.second_quarter(run, "b") == 2
    with pytest.raises(KeyError, match="d"):
        numbers.second_half(run, "d")
    assert numbers._slope([(0, 0), (1, 1), (2, 5)]) == pytest.approx(2.5)


def test_ratio_of_a_cell_has_a_least_value():
    cells: list[Record] = [{"arm": "y", "metrics": {"c/gc": -60.0, "c/sg": 1.0, "c/svrg": 3.0}}]
    assert e.cell("y", "c", "svrg", "sg")(cells) == 2
    assert e.cell("y", "c", "gc", "sg")(cells) == numbers.FLOOR


def test_cells_have_the_names_that_runs_record():
    for settings, *_ in GRIDS.values():
        for tau in settings["taus"]:
            for lr in settings["lrs"]:
                assert numbers._cell(tau, lr, 2000) == cell_name(tau, lr, 2000)
    assert GRIDS["features_rates"][0]["teachers"] == [numbers.SWEPT_TEACHER]


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
    (grid,) = (record for record in hand_made() if record["arm"] == "features_grid")
    del grid["metrics"][f"1.5/0.01/20/{name}"]
    with pytest.raises(KeyError, match=f"1.5/0.01/20/{name}"):
        Formula(formula).evaluate([grid], FUNCTIONS)


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
        f"{t}/0.1/20/{name}": of[t - 1] for name, of in columns.items() for t in numbers.TAUS
    }
    grid = {"arm": "features_grid", "metrics": metrics}
    assert numbers.rank_correlation(grid, "norm") == -1
    for name in ("sg", "norm_plugin"):
        expected = spearmanr(columns[name], columns["half"]).statistic
        assert numbers.rank_correlation(grid, name) == pytest.approx(expected, rel=1e-14)
    assert math.isnan(numbers.rank_correlation(grid, "same"))


def test_seconds_of_a_clustering_are_not_negative():
    records = hand_made()
    for record in records:
        if record["arm"] == "timing_samplers":
            record["metrics"]["seconds/stratified"] = 2.0  # by chance below the uniform sampler's
    found = e.seconds_to_target("0", "stratified")(records)
    assert found == pytest.approx(3.0 * 17 * 1024 / (300 * 64))
    assert e.seconds_to_target("0", "uniform")(records) == pytest.approx(3.0 * 16 * 1024 / 19_200)


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_claims_name_the_arms_that_their_numbers_read(claim):
    parts = [*claim.all_of, *(claim.beside.all_of if claim.beside else ())]
    read = {arm for part in parts for arm in part.formula.arms}
    assert read == set(claim.arms)
    profile = "standard" if claim.tier == "headline" else "full"
    assert read <= {run.arm for run in chapters.load_chapter("02").plan(profile)}
