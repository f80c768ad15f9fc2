"""Chapter 2 without training: the numbers of its claims and tables on records made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from companion.chapters.gradient_clustering import estimands as e
from companion.chapters.gradient_clustering import numbers
from companion.chapters.gradient_clustering.arms import GRIDS
from companion.chapters.gradient_clustering.features import cell_name
from companion.evidence.formulas import Formula
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.lab import chapters
from companion.paths import CLAIMS

LEDGER = load_ledger(CLAIMS / "02.yaml")
# claim, part or label, setting: its formula
FORMULAS = {
    (claim.id, getattr(part, "label", "") or part.name, setting.name): formula
    for claim in LEDGER
    for part in (*claim.parts, *claim.beside)
    for setting, formula in zip(part.settings, part.formulas, strict=True)
}
LOG2, LOG10 = math.log(2), math.log(10)
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

DATA = {
    "digits_mlp": "digits, MLP",
    "fashion_mlp": "Fashion-MNIST, MLP",
    "fashion_cnn": "Fashion-MNIST, conv net",
}
# number of the ledger: its value by hand, and the arms that it reads; positive supports the claim
VALUES: dict[tuple[str, str, str], tuple[float, tuple[str, ...]]] = {}
_seven = "digits, seven gradients"
VALUES |= {
    ("gc.1", "the mean of all draws is the full gradient", _seven): (1e-16, ("enumeration",)),
    ("gc.1", "the variance of all draws is that of the formula", _seven): (2e-15, ("enumeration",)),
    ("gc.2", "", _seven): (3e-14, ("enumeration",)),
}
for _data in ("digits_mlp", "fashion_mlp"):
    _none, _many = f"{_data}_0", f"{_data}_90"
    for _place, _arm in {
        ("gc.3", ""): _none,
        ("gc.4", "less variance than doubled batches, 90 percent copies"): _many,
    }.items():
        VALUES[*_place, DATA[_data]] = (-ALONG[_arm][0] - 1) * LOG2, (_arm,)
    _label = "a larger gain over equal batches with 90 percent copies than without"
    _gain = ALONG[_none][0] - ALONG[_many][0]
    VALUES["gc.4", _label, DATA[_data]] = _gain * LOG2, (_none, _many)
_label = "less variance than SVRG, random features, two an example, 90 percent copies"
VALUES["gc.4", _label, "random features"] = 1.5, ("features_copies",)
_conv, _digits = DATA["fashion_cnn"], DATA["digits_mlp"]
_dropped = f"{_conv}, a tenth of the rate from half-way on"
# of 64, 99, 1, 3 and 2 to the change times 1, 3, 2.5, 1.5: the last over the first
for _arm, _setting in (
    ("fashion_cnn_0", f"{_conv}, constant rate"),
    ("fashion_cnn_drop", _dropped),
):
    _value = (ALONG[_arm][-1] - 6) * LOG2 + math.log(1.5)
    VALUES["gc.5", "from the early level to the end", _setting] = _value, (_arm,)
_fall = "a fall on easy data, from the second quarter to the second half (a question of ours)"
for _label, _setting, _change, _arms in (
    (
        "from the quarter before the drop to the half after it",
        _dropped,
        2.9,
        ("fashion_cnn_drop",),
    ),
    (
        "second half with the drop against the same half without it",
        _conv,
        2,
        ("fashion_cnn_drop", "fashion_cnn_0"),
    ),
    (
        "from the second quarter to the second half, constant rate",
        _conv,
        0.9,
        ("fashion_cnn_0",),
    ),
    (_fall, _digits, 0.5, ("digits_mlp_0",)),
):
    VALUES["gc.5", _label, _setting] = _change * LOG2, _arms
for _label, _slope in (("", -1.5), ("the same at equal training loss", 2.0)):
    _setting = "random features, a tenth of the rate"
    VALUES["gc.6", _label, _setting] = -_slope * LOG10, ("features_rates",)
_grid = (-2 * 54 + 1.5 + numbers.FLOOR + 3) / 54
# Of the 18 cells of a rate nine pairs have one speed each; raw variance has two levels in a pair.
for _setting, _lr in (
    ("random features, rate 0.1", 0.1),
    ("random features, rate 0.01", 0.01),
    ("random features, rate 0.001", 0.001),
):
    _speed = [10.0 * i**2 for i in range(9) for _ in (20, 2000)]
    _raw = [sign * (1.0 if i < 6 else -0.5) for i in range(9) for sign in (1, -1)]
    _plugin = [float({7: 8, 8: 7}.get(i, i)) for i in range(9) for _ in (20, 2000)]
    _of_raw, _of_plugin = (abs(spearmanr(v, _speed).statistic) for v in (_raw, _plugin))
    VALUES["gc.7", "", _setting] = 1 - _of_raw, ("features_grid",)
    _label = "the authors' plug-in statistic, ten draws"
    VALUES["gc.7", _label, _setting] = _of_plugin - _of_raw, ("features_grid",)
_label = "all 54 runs at once, three rates mixed"
VALUES |= {
    place: (value, ("features_grid",))
    for place, value in {
        ("gc.7", _label, "exact statistic"): 1,
        ("gc.7", _label, "plug-in statistic, ten draws"): 59 / 60,  # two of nine groups exchanged
        (
            "gc.8",
            "less variance than equal batches at 0.1 features an example",
            "random features, mean of six runs",
        ): 2 * LOG10,
        (
            "gc.8",
            "less gain with more features",
            "random features, ten times as many",
        ): 2 * LOG10,
        (
            "gc.8",
            "more variance than equal batches in one of the runs with rate 0.1",
            "random features, worst of 18 runs",
        ): 2 * LOG10 - 0.3 + 0.1,  # of the rate 0.1, not of all
        ("gc.9", "", "random features, teachers of width 20 and 2000"): 5 / 3,
        (
            "gc.10",
            "less variance than equal batches",
            "random features, mean of 54 runs",
        ): -_grid,
        (
            "gc.10",
            "more variance than doubled batches",
            "random features, mean of 54 runs",
        ): _grid + LOG2,
        (
            "gc.10",
            "in the worst run not worse than equal batches by a tenth",
            "random features, worst of 54 runs",
        ): -0.5,
    }.items()
}
for _data, _setting in DATA.items():
    VALUES["gc.11", "", _setting] = VARIANTS["full"] * LOG2, (f"{_data}_variants",)
_shifted = "fresh shifts and flips at every draw"
_still = "the same clusters, measured at once and without augmentation"
for _label, _setting, _arm, _index in (
    ("", f"{_conv}, {_shifted}", "fashion_cnn_augment", 0),
    (_still, _conv, "fashion_cnn_augment", 4),
    ("an MLP", f"Fashion-MNIST, MLP, {_shifted}", "fashion_mlp_augment", 0),
):
    VALUES["gc.12", _label, _setting] = -ALONG[_arm][_index] * LOG2, (_arm,)
for _model, _name in (("mlp", "MLP"), ("resnet8", "ResNet-8")):
    for _count, _value in zip((32, 128), TIMES[_model][-2:], strict=True):
        _place = ("gc.13", "", f"{_name}, {_count} clusters")
        VALUES[_place] = (1 - _value) * LOG2, (f"timing_{_model}",)
for _problem, _setting in (
    ("0", "Fashion-MNIST, no copies"),
    ("90", "Fashion-MNIST, 90 percent copies"),
):
    _of = SPENT[_problem]
    for _label, _name, _other in (
        ("", "snooze", "uniform"),
        ("against sleeping at random, with as many awake in every epoch", "snooze", "random"),
        (
            "batches from gradient clusters, with the passes of clustering counted",
            "stratified",
            "uniform",
        ),
    ):
        _read = {f"speed_{_problem}_{_name}", f"speed_{_problem}_{_other}"}
        _read -= {f"speed_{_problem}_random"}  # a part of the snooze's record
        _value = math.log(_of[_other][0] / _of[_name][0])
        VALUES["gc.14", _label, _setting] = _value, tuple(sorted(_read))

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
    "drop effect": (
        e.drop_effect("fashion_cnn"),
        2 * LOG2,
        ("fashion_cnn_drop", "fashion_cnn_0"),
    ),
    "rate effect": (e.rate_effect, 1.5 * LOG10, ("features_rates",)),
    "equal loss effect": (e.equal_loss_effect, -2 * LOG10, ("features_rates",)),
    "rise": (e.rise("fashion_cnn_0"), (0.9 - 6) * LOG2 + math.log(1.5), ("fashion_cnn_0",)),
    "rank correlation": (e.rank_correlation("norm"), -1, ("features_grid",)),
    "rank correlation of a rate": (e.rank_correlation("norm", 0.01), -1, ("features_grid",)),
    "gc of a cell": (
        e.cell("features_copies", "2/0.01/2000/0.9", "gc", "sg"),
        -3,
        ("features_copies",),
    ),
}
FUNCTIONS = chapters.functions_of("02")
CASES = SHOWN | {
    ", ".join(part for part in place if part): (
        partial(formula.evaluate, functions=FUNCTIONS),
        *VALUES[place],
    )
    for place, formula in FORMULAS.items()
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


@pytest.mark.parametrize("lr", numbers.RATES)
def test_rank_correlation_of_a_rate_leaves_out_the_others(lr):
    generator = np.random.default_rng(5)
    cells = [(t, rate, h) for t in numbers.TAUS for rate in numbers.RATES for h in numbers.TEACHERS]
    columns = {name: generator.integers(0, 12, len(cells)) for name in ("norm", "half")}
    metrics = {
        f"{cell_name(*cell)}/{name}": float(of[i])
        for name, of in columns.items()
        for i, cell in enumerate(cells)
    }
    own = [rate == lr for _, rate, _ in cells]
    expected = spearmanr(columns["norm"][own], columns["half"][own]).statistic
    found = numbers.rank_correlation({"arm": "features_grid", "metrics": metrics}, "norm", lr)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found != pytest.approx(spearmanr(columns["norm"], columns["half"]).statistic)


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
def test_claims_read_arms_of_their_profile(claim):
    read = {arm for formula in claim.all_formulas() for arm in formula.arms}
    profile = "standard" if claim.tier == "headline" else "full"
    assert read <= {run.arm for run in chapters.load_chapter("02").plan(profile)}
