"""Chapter 2 without training: estimands on records made by hand, and the claims."""

from __future__ import annotations

import math
from typing import Any

import pytest

from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.experiments import chapters
from companion.experiments import records as shared
from companion.experiments.ch02 import estimands as e
from companion.experiments.ch02.features import cell_name
from companion.paths import CLAIMS

LOG2 = math.log(2)
# arm: logs to base 2, over SG-B, of GC and SVRG half-way, of GC fresh, old and without new views,
# and of SG-B's change along the run
ALONG: dict[str, tuple[float, ...]] = {
    "digits_mlp_0": (-2, 1, -3, -1, 0, -0.5),
    "digits_mlp_50": (-3, 2, -4, -2, 0, -1),
    "digits_mlp_90": (-6, 3, -6.5, -5, 0, -2),
    "digits_mlp_noise": (-0.5, 4, -1, 0.5, 0, 1),
    "digits_mlp_drop": (-1.5, 5, -2, -4, 0, 1.5),
    "fashion_mlp_0": (-1, -1, -5, 2, 0, -3),
    "fashion_mlp_50": (-2.5, -2, 3, 1, 0, 2),
    "fashion_mlp_90": (-4, -3, -6, -5, 0, 4),
    "fashion_mlp_noise": (0.25, 0, 1, 2, 0, -4),
    "fashion_mlp_drop": (0.75, 6, -5, 7, 0, -5),
    "fashion_mlp_augment": (0.1, 7, 0.2, 0.3, -1, 5),
    "fashion_mlp_90_augment": (0.4, 8, 0.5, 0.6, -2, 6),
    "fashion_cnn_0": (-0.6, 9, -0.7, -0.8, 0, 0.9),
    "fashion_cnn_noise": (-0.9, -4, -6, -6.5, 0, 7),
    "fashion_cnn_drop": (1.1, -5, 1.2, 1.3, 0, 2.9),
    "fashion_cnn_augment": (1.4, -6, 1.5, 1.6, -3, 8),
}
VARIANTS = {"means": 0, "svd": 1, "full": -0.25, "plain": 2, "frozen": 3, "exact": -1, "random": 4}
SPENT = {  # examples to the target and extras of them, in units of 2^10
    "0": {"uniform": (16, 0), "snooze": (8, 0), "random": (12, 0), "reweighted": (24, 0)}
    | {"stratified": (20, 3)},
    "50": {"uniform": (10, 0), "snooze": (15, 0), "random": (5, 0), "reweighted": (4, 0)}
    | {"stratified": (40, 10)},
    "90": {"uniform": (6, 0), "snooze": (3, 0), "random": (9, 0), "reweighted": (2, 0)}
    | {"stratified": (5, 1)},
    "noise": {"uniform": (7, 0), "snooze": (14, 0), "random": (28, 0)},
}
SECONDS = {"snooze": 2, "random": 1.5, "reweighted": 3}  # for 300 updates, over uniform ones
TIMES = {"mlp": (0.25, -1, 1, 0.5, 3), "resnet8": (4.0, -2, -0.5, 0, 2)}  # logs to base 2

# estimand: its value by hand, and the arms that it reads
VALUES: dict[str, tuple[float, tuple[str, ...]]] = {
    "mean_error": (1e-16, ("enumeration",)),
    "variance_error": (2e-15, ("enumeration",)),
    "optimum_error": (3e-14, ("enumeration",)),
    "rate_slope": (-1.5, ("features_rates",)),
    "equal_loss_slope": (2.0, ("features_rates",)),
    "features_copies_gc_over_sg": (-3, ("features_copies",)),
    "features_copies_gc_over_svrg": (-1.5, ("features_copies",)),
}
_grid = (-2 * 54 + 1.5 + e.FLOOR + 3) / 54
VALUES |= {
    name: (value, ("features_grid",))
    for name, value in {
        "teacher_share": 3 / 17,
        "teacher_spread": 5 / 3,
        "features_gc_over_sg": _grid,
        "features_gc_over_sg2": _grid + LOG2,
        "features_gc_worst": 0.5,
        "svrg_few_features": 2 * math.log(0.1),
        "svrg_many_features": 2 * math.log(10),
        "svrg_slope": 2,
        "svrg_worst": 2 * math.log(10) - 0.3 + 0.1,  # of the rate 0.1, not of all
        "norm_convergence": 1,
        "norm_plugin_convergence": 59 / 60,  # two of nine groups exchanged
    }.items()
}
for _arm, (_gc, _svrg, _fresh, _old, _still, _change) in ALONG.items():
    _logs = {"gc_over_sg": _gc, "gc_over_sg2": _gc + 1, "fresh_gc_over_sg": _fresh}
    _logs |= {"old_gc_over_sg": _old, "svrg_over_sg": _svrg, "gc_over_svrg": _gc - _svrg}
    _logs |= {"change": _change} | ({"still_gc_over_sg": _still} if _still else {})
    VALUES |= {f"{_arm}_{name}": (value * LOG2, (_arm,)) for name, value in _logs.items()}
for _data, _copies, _drop in (
    ("digits_mlp", -4, 2),
    ("fashion_mlp", -3, -2),
    ("fashion_cnn", None, 2),
):
    if _copies is not None:
        VALUES[f"{_data}_copies_effect"] = _copies * LOG2, (f"{_data}_90", f"{_data}_0")
    VALUES[f"{_data}_drop_effect"] = _drop * LOG2, (f"{_data}_drop", f"{_data}_0")
    for _name, _value in VARIANTS.items():
        if _name != "means":
            VALUES[f"{_data}_means_over_{_name}"] = -_value * LOG2, (f"{_data}_variants",)
for _problem, _of in SPENT.items():
    for _name, (_all, _extra) in _of.items():
        _sampler = "snooze" if _name == "random" else _name
        _pair = tuple(f"speed_{_problem}_{name}" for name in (_sampler, "uniform"))
        if _name == "uniform":
            continue
        VALUES[f"speed_{_problem}_{_name}"] = math.log(_all / _of["uniform"][0]), _pair
        # an example clustered costs as much as five drawn uniformly
        _each = _all * SECONDS[_name] if _name in SECONDS else _all - _extra + 5 * _extra
        _ratio = math.log(_each / _of["uniform"][0])
        VALUES[f"seconds_{_problem}_{_name}"] = _ratio, (*_pair, "timing_samplers")
    _own = math.log(_of["snooze"][0] / _of["random"][0])
    VALUES[f"speed_{_problem}_snooze_over_random"] = _own, (f"speed_{_problem}_snooze",)
for _model, (_, *_values) in TIMES.items():
    for _key, _value in zip(
        ("assign_32", "assign_128", "pass_32", "pass_128"), _values, strict=True
    ):
        VALUES[f"{_model}_{_key}"] = _value * LOG2, (f"timing_{_model}",)


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
    for name, value, n in (("fresh", fresh, 9), ("old", old, 7), ("still", still, 5)):
        if name != "still" or value:
            curves |= {f"{name}/sg": [4.0] * n, f"{name}/gc": powers(value + 2, n)}
    return curves


def grid() -> dict[str, float]:
    found: dict[str, float] = {}
    for i, tau in enumerate(e.TAUS):
        teacher_effect = 1.0 if i < 6 else -0.5
        for j, lr in enumerate(e.RATES):
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
    """All records of one seed that estimands read."""
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


# --- estimands ------------------------------------------------------------------------------------


def test_every_estimand_is_computed_by_hand():
    assert set(VALUES) == set(e.ESTIMANDS)


@pytest.mark.parametrize("name", VALUES)
def test_estimand_equals_the_value_by_hand(name):
    value, needed = VALUES[name]
    alone = [record for record in hand_made() if record["arm"] in needed]
    assert len(alone) == len(needed)
    for records in (hand_made(), hand_made()[::-1], alone):  # it reads no other arm
        assert e.ESTIMANDS[name](records) == pytest.approx(value, rel=1e-9, abs=1e-18)
    for arm in needed:
        with pytest.raises(KeyError, match=f"no record of {arm}'"):
            e.ESTIMANDS[name]([record for record in alone if record["arm"] != arm])


def test_kinds_of_estimands_by_hand():
    curves = {"a": [5.0, 0.0, 1e-9, 1.0, 3.0], "b": [5.0, 2.0, 1.0, 1.0, 1.5], "c": [1.0] * 3}
    records: list[Record] = [{"arm": "x", "curves": curves}]
    assert list(e.late([1, 2, 3, 4, 5])) == [2, 3, 4, 5]
    assert list(e.late([1, 2, 3])) == [1, 2, 3]
    assert pytest.approx(math.log(0.001)) == e.FLOOR
    # no variance and next to none count as a thousandth; the factor is the second's
    assert e.variance_ratio("x", "a", "b")(records) == pytest.approx((2 * e.FLOOR + LOG2) / 4)
    assert e.variance_ratio("x", "a", "b", 0.5)(records) == pytest.approx(
        (2 * e.FLOOR + 3 * LOG2) / 4
    )
    with pytest.raises(ValueError, match="shorter"):
        e.variance_ratio("x", "a", "c")(records)
    assert e.change("x", "b")(records) == pytest.approx(math.log(3.5 / 3 / 2))  # of five, one
    cells: list[Record] = [{"arm": "y", "metrics": {"c/gc": -60.0, "c/sg": 1.0, "c/svrg": 3.0}}]
    assert e.cell("y", "c", "svrg", "sg")(cells) == 2
    assert e.cell("y", "c", "svrg", "sg", LOG2)(cells) == 2 + LOG2
    assert e.cell("y", "c", "gc", "sg", 1.0)(cells) == e.FLOOR + 1
    assert e._slope([(0, 0), (1, 1), (2, 5)]) == pytest.approx(2.5)


def test_convergence_compares_the_sizes_of_correlations(monkeypatch):
    for name, values in (("TAUS", (1, 2, 3, 4)), ("RATES", (0.1,)), ("TEACHERS", (20,))):
        monkeypatch.setattr(e, name, values)
    columns = {"half": (1, 2, 3, 4), "sg": (8, 5, 3, 4), "norm": (4, 3, 2, 1)}
    columns |= {"norm_plugin": (2, 1, 4, 3), "gc": (0,) * 4, "svrg": (0,) * 4}
    metrics = {f"{t}/0.1/20/{name}": of[t - 1] for name, of in columns.items() for t in e.TAUS}
    records = [{"arm": "features_grid", "metrics": metrics}]
    assert e.convergence("norm")(records) == pytest.approx(1 - 0.8)
    assert e.convergence("norm_plugin")(records) == pytest.approx(0.6 - 0.8)


def test_seconds_of_a_clustering_are_not_negative():
    records = hand_made()
    for record in records:
        if record["arm"] == "timing_samplers":
            record["metrics"]["seconds/stratified"] = 2.0  # by chance below the uniform sampler's
    found = e.seconds_to_target("0", "stratified")(records)
    assert found == pytest.approx(3.0 * 17 * 1024 / (300 * 64))
    assert e.seconds_to_target("0", "uniform")(records) == pytest.approx(3.0 * 16 * 1024 / 19_200)


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", load_ledger(CLAIMS / "02.yaml"), ids=lambda claim: claim.id)
def test_claims_name_the_arms_that_their_estimands_read(claim, monkeypatch):
    parts = [*claim.all_of, *(claim.beside.all_of if claim.beside else ())]
    read, find = set(), shared.find

    def noting(records: Any, arm: str) -> Any:
        read.add(arm)
        return find(records, arm)

    for module in (shared, e):
        monkeypatch.setattr(module, "find", noting)
    for part in parts:
        e.ESTIMANDS[part.estimand](hand_made())
    assert read == set(claim.arms)
    profile = "standard" if claim.tier == "headline" else "full"
    assert read <= {run.arm for run in chapters.load_chapter("02").plan(profile)}
