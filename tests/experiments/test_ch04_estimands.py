"""Chapter 4 without training: the numbers of its claims on records made by hand, and figures."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections import Counter
from typing import Any

import pytest
from matplotlib.figure import Figure

from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.experiments import chapters, trials
from companion.experiments import records as shared
from companion.experiments.ch04 import arms, figures, runs, tuning
from companion.experiments.ch04 import estimands as e
from companion.paths import CLAIMS

SCORES, DATA = ("min_loss", "delta_abs", "delta_target"), ("digits", "fashion_mnist")
LEDGER = load_ledger(CLAIMS / "04.yaml")
FUNCTIONS = chapters.functions_of("04")
FORMULAS = {
    part.estimand: part.formula
    for claim in LEDGER
    for part in (*claim.all_of, *(claim.beside.all_of if claim.beside else ()))
}
STUDIES = ("orders_cnn_bn", "orders_mlp_lr005", "orders_mlp_lr010", "orders_mlp_lr020")


# --- numbers --------------------------------------------------------------------------------------

# log2 of the steps to the target, and of the forward-equivalents; test accuracy
TRAINED = {
    "digits_random": (5, 8, 0.96),
    "digits_min_loss": (4, 8, 0.95),
    "digits_delta_abs": (3, 10, 0.97),
    "digits_delta_target": (7, 11, 0.9),
    "digits_min_loss_tuned": (5, 8, 0.1),
    "digits_delta_abs_tuned": (6, 8, 0.1),
    "digits_delta_target_tuned": (2, 8, 0.1),
    "fashion_mnist_random": (8, 10, 0.8),
    "fashion_mnist_min_loss": (8, 11, 0.81),
    "fashion_mnist_delta_abs": (9, 12, 0.79),
    "fashion_mnist_delta_target": (6, 9, 0.8),
    "fashion_mnist_min_loss_tuned": (10, 0, 0.1),
    "fashion_mnist_delta_abs_tuned": (7, 0, 0.1),
    "fashion_mnist_delta_target_tuned": (8, 0, 0.1),
    # with digits_random and the arm itself at 1 and 8 candidates; log2 N = 0, 1, 2, 3, 4
    "digits_min_loss_2": (5, 0, 0),
    "digits_min_loss_4": (5, 0, 0),
    "digits_min_loss_16": (1, 0, 0),
    "digits_delta_abs_2": (4, 0, 0),
    "digits_delta_abs_4": (3, 0, 0),
    "digits_delta_abs_16": (1, 0, 0),
    "digits_delta_target_2": (5, 0, 0),
    "digits_delta_target_4": (6, 0, 0),
    "digits_delta_target_16": (7, 0, 0),
    **{f"digits_{m}_random": (6, 0, 0) for m in ("linear", "cnn", "cnn_bn")},
    "digits_linear_delta_target": (7, 0, 0),
    "digits_cnn_delta_target": (8, 0, 0),
    "digits_cnn_bn_delta_target": (9, 0, 0),
    "paced_short_random": (0, 0, 0.70),
    "paced_short_random_list": (0, 0, 0.72),
    "paced_short_ascending": (0, 0, 0.75),
    "paced_noisy_random": (0, 0, 0.66),
    "paced_noisy_random_list": (0, 0, 0.60),
    "paced_noisy_ascending": (0, 0, 0.61),
}
SHARES = {  # of the accuracy, by position
    "orders_cnn_bn": (0.05, 0.1, 0.02, 0.04, 0.2, 0.5),
    "orders_mlp_lr005": (0.6, 0, 0, 0, 0, 0.1),
    "orders_mlp_lr010": (0.3, 0, 0, 0, 0, 0.25),
    "orders_mlp_lr020": (0.1, 0, 0, 0, 0, 0.45),
}
LOG2 = math.log(2)
# number of the ledger: its value by hand, and the arms that it reads
VALUES: dict[str, tuple[float, tuple[str, ...]]] = {
    "spread": (90 - 42, ("orders_cnn_bn",)),
    "range_decay": (math.log(5 / 40), ("epochs_cnn_bn",)),
    "persistence": (0.2, ("epochs_cnn_bn",)),
    "repeat": (0.7, ("epochs_cnn_bn",)),
    "last_share": (0.5, ("orders_cnn_bn",)),
    "last_lead": (math.log(0.5 / 0.2), ("orders_cnn_bn",)),
    "mlp_005_last_share": (0.1, ("orders_mlp_lr005",)),
    "mlp_01_last_share": (0.25, ("orders_mlp_lr010",)),
    "mlp_02_last_share": (0.45, ("orders_mlp_lr020",)),
    "short_over_reshuffling": (5, ("paced_short_ascending", "paced_short_random")),
    "short_over_random_list": (3, ("paced_short_ascending", "paced_short_random_list")),
    "noisy_over_reshuffling": (-5, ("paced_noisy_ascending", "paced_noisy_random")),
    "noisy_over_random_list": (1, ("paced_noisy_ascending", "paced_noisy_random_list")),
}
BY_DATA = {  # steps, forward-equivalents and tuned steps in log2, seconds as ratio, points
    "digits_min_loss": (-1, 0, 0, 2.0, -1),
    "digits_delta_abs": (-2, 2, 1, 4.0, 1),
    "digits_delta_target": (2, 3, -3, 5.0, -6),
    "fashion_mnist_min_loss": (0, 1, 2, 0.5, 1),
    "fashion_mnist_delta_abs": (1, 2, -1, 3.0, -1),
    "fashion_mnist_delta_target": (-2, -1, 0, 6.0, 0),
}
for _arm, (_steps, _forwards, _tuned, _seconds, _points) in BY_DATA.items():
    _data = "digits" if _arm.startswith("digits") else "fashion_mnist"
    _pair = (_arm, f"{_data}_random")
    VALUES |= {
        f"{_arm}_steps": (_steps * LOG2, _pair),
        f"{_arm}_tuned_steps": (_tuned * LOG2, (f"{_arm}_tuned", f"{_data}_random")),
        f"{_arm}_accuracy": (_points, _pair),
    }
    if "delta_abs" not in _arm:  # no claim is about its time
        VALUES[f"{_arm}_forwards"] = _forwards * LOG2, _pair
        VALUES[f"{_arm}_seconds"] = math.log(_seconds), (f"timing_{_data}",)
for _model, _steps in (("linear", 1), ("cnn", 2), ("cnn_bn", 3)):
    _pair = (f"digits_{_model}_delta_target", f"digits_{_model}_random")
    VALUES[f"{_model}_delta_target_steps"] = (_steps * LOG2, _pair)
for _score, _slope, _ranks in (  # per doubling; conv net, MLP
    # at log2 N = 0 to 4: 5 5 5 4 1; 5 4 3 3 1; 5 5 6 7 7
    ("min_loss", -0.9, (12.5, 3)),
    ("delta_abs", -0.9, (40, 5)),
    ("delta_target", 0.6, (8, 7)),
):
    _counts = tuple(f"digits_{_score}{end}" for end in ("", "_2", "_4", "_16"))
    VALUES[f"{_score}_slope"] = (_slope * LOG2, ("digits_random", *_counts))
    VALUES[f"{_score}_rank"] = (_ranks[0], ("orders_cnn_bn",))
    VALUES[f"{_score}_rank_mlp"] = (_ranks[1], ("orders_mlp_lr020",))


def hand_made() -> list[Record]:
    """All records of one seed that the numbers read."""
    found: dict[str, tuple[dict[str, float], dict[str, list[float]]]] = {}
    for arm, (steps, forwards, accuracy) in TRAINED.items():
        costs = {"steps_to_target": 2.0**steps, "forwards_to_target": 2.0**forwards}
        found[arm] = costs | {"test/accuracy": accuracy, "val/accuracy": 0.5}, {}
    for arm, shares in SHARES.items():
        metrics = {f"share/accuracy/{p}": share for p, share in enumerate(shares, 1)}
        metrics |= {f"share/loss/{p}": 0.01 * p for p in range(1, 7)}
        metrics |= {"val_accuracy/min": 42.0, "val_accuracy/max": 90.0}
        found[arm] = metrics, {}
    for place, arm in enumerate(("orders_cnn_bn", "orders_mlp_lr020")):
        for score in SCORES:
            rank = VALUES[f"{score}_rank{'_mlp' * place}"][0]
            found[arm][0].update({f"rank/{score}/loss": rank, f"rank/{score}/accuracy": 99.0})
    curves = {"range": [40.0, 20.0, 5.0], "persistence": [0.4, 0.0]}
    found["epochs_cnn_bn"] = {"repeat": 0.7}, curves
    for data in DATA:
        seconds = {f"seconds/{s}": 0.25 * BY_DATA[f"{data}_{s}"][3] for s in SCORES}
        found[f"timing_{data}"] = seconds | {"seconds/random": 0.25, "steps/random": 9.0}, {}
    return [
        {"arm": arm, "seed": 1000, "metrics": metrics, "curves": curves}
        for arm, (metrics, curves) in found.items()
    ]


def test_every_number_of_the_ledger_is_computed_by_hand():
    assert set(VALUES) == set(FORMULAS)


@pytest.mark.parametrize("name", VALUES)
def test_number_equals_the_value_by_hand(name):
    value, needed = VALUES[name]
    alone = [record for record in hand_made() if record["arm"] in needed]
    for records in (hand_made(), hand_made()[::-1], alone):  # it reads no other arm
        found = FORMULAS[name].evaluate(records, FUNCTIONS)
        assert found == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", VALUES)
def test_a_missing_arm_is_named(name):
    for arm in VALUES[name][1]:
        rest = [record for record in hand_made() if record["arm"] != arm]
        with pytest.raises(KeyError, match=f"no record of {arm}'"):
            FORMULAS[name].evaluate(rest, FUNCTIONS)


def test_a_range_of_nothing_counts_as_one_picture():
    later = {"arm": "epochs_cnn_bn", "curves": {"range": [50.0, 0.0]}}
    found = FORMULAS["range_decay"].evaluate([later])
    assert found == pytest.approx(math.log(100 / 138 / 50))


@pytest.mark.parametrize(
    ("number", "estimand"),
    [
        ("digits_min_loss_steps", e.cost_ratio("digits_min_loss", "digits_random")),
        (
            "fashion_mnist_min_loss_forwards",
            e.cost_ratio("fashion_mnist_min_loss", "fashion_mnist_random", "forwards"),
        ),
        ("digits_delta_target_seconds", e.seconds_ratio("digits", "delta_target")),
        ("digits_delta_target_accuracy", e.accuracy_gain("digits_delta_target", "digits_random")),
        ("last_share", e.share("orders_cnn_bn", "6")),
        ("delta_abs_rank_mlp", e.ranked("orders_mlp_lr020", "delta_abs")),
    ],
)
def test_tables_and_figures_show_the_numbers_of_the_ledger(number, estimand):
    assert estimand(hand_made()) == FORMULAS[number].evaluate(hand_made())


def test_estimands_that_only_the_notebook_uses_by_hand():
    records = hand_made()
    assert e.share("orders_cnn_bn", "6", "loss")(records) == pytest.approx(0.06)
    assert e.ranked("orders_mlp_lr020", "delta_abs", "accuracy")(records) == 99
    assert e.metric("digits_random", "val/accuracy", 100)(records) == 50
    assert e.cost_ratio("digits_delta_abs", "digits_delta_target")(records) == pytest.approx(
        -4 * LOG2
    )


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_claims_can_be_decided_by_the_profile_that_runs_them(claim):
    profile = "standard" if claim.tier == "headline" else "full"
    planned = Counter(run.arm for run in chapters.load_chapter("04").plan(profile))
    parts = [*claim.all_of, *(claim.beside.all_of if claim.beside else ())]
    read = {arm for part in parts for arm in part.formula.arms}
    for arm in read:
        assert planned[arm] >= claim.seeds, arm
    if claim.arms is not None:
        assert read == set(claim.arms)  # a claim sees no other records
    if claim.tier == "headline":
        assert claim.power.power >= 0.8
        assert claim.power.n == claim.seeds


def test_there_are_twelve_claims_and_they_judge_delta_target():
    claims = {claim.id: claim for claim in LEDGER}
    assert list(claims) == [f"ord.{number}" for number in range(1, 13)]
    headline = [name for name, claim in claims.items() if claim.tier == "headline"]
    assert headline == ["ord.1", "ord.4", "ord.6", "ord.7", "ord.12"]
    for number in (6, 7, 8, 9, 10, 12):
        deciding = [part.estimand for part in claims[f"ord.{number}"].all_of]
        assert all("delta_target" in estimand for estimand in deciding)
        beside = claims[f"ord.{number}"].beside
        assert not any(
            "delta_target" in part.estimand for part in (beside.all_of if beside else ())
        )


# --- figures --------------------------------------------------------------------------------------


def shown(drawn: Figure) -> bytes:
    """Render a figure; nothing may be warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = io.BytesIO()
        drawn.savefig(file, format="png")
    return file.getvalue()


def texts(axis: Any) -> list[str]:
    legend = axis.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def drawable(seeds: int) -> list[Record]:
    """Hand-made records of several seeds with what the figures read besides."""
    found: list[Record] = []
    for seed in range(1000, 1000 + seeds):
        shift = 0.01 * (seed - 1000)
        records = hand_made()
        for record in records:
            record["seed"], metrics = seed, record["metrics"]
            for name in metrics:  # no two seeds alike
                if name.startswith(("share/", "seconds/m", "seconds/d")):
                    metrics[name] *= 1 + shift
            if record["arm"] in STUDIES:
                record["curves"]["sorted"] = [50.0 + shift + i / 2 for i in range(60)]
                metrics |= {
                    "share/accuracy/permuted": 0.01,
                    "share/accuracy/last_balance": 0.4 + shift,
                }
                metrics["val_accuracy/mean"] = 70.0
                for b in range(6):
                    metrics |= {f"last/{b}/balance": b / 8, f"last/{b}/accuracy": 60.0 + 4 * b}
            if "steps_to_target" in metrics:
                if not record["arm"].endswith("random"):
                    metrics["steps_to_target"] *= 1 + shift
                    metrics["forwards_to_target"] *= 1 + shift
                curve = {"step": [1.0, 10.0, 320.0], "forwards": [3.0, 30.0, 960.0 + seed]}
                record["curves"] = curve | {"accuracy": [0.1 + shift, 0.5, 0.9]}
        scores = ("delta_abs", "delta_rel", "delta_target", "grad_align")
        kinds = itertools.product(scores, ("loss", "norm", "align"), runs.SNAPSHOTS)
        found += records
        metrics = {f"{score}/{what}/{step}": 0.25 + shift for score, what, step in kinds}
        found.append({"arm": "selection", "seed": seed, "metrics": metrics, "curves": {}})
    return found


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("name", "panels"),
    [
        ("order_spread", 2),
        ("recency", 2),
        ("key_figure", 2),
        ("scored_by", 3),
        ("cost_ratios", 2),
        ("learning_curves", 4),
    ],
)
def test_figures_draw_from_records_without_warnings(name, panels, seeds):
    more = (runs.SNAPSHOTS,) if name == "scored_by" else ()
    first, again = (getattr(figures, name)(drawable(seeds), *more) for _ in range(2))
    assert len(first.axes) == panels
    assert all(len(axis.lines) + len(axis.texts) > 0 for axis in first.axes)
    assert shown(first) == shown(again)


def test_a_figure_has_a_line_a_seed_and_names_its_networks():
    records = drawable(3)
    for axis in figures.order_spread(records).axes:
        assert len(axis.lines) == 3
        for line in axis.lines:
            y = list(line.get_ydata())
            assert y == sorted(y)
    shares, ends = figures.recency(records).axes
    assert set(figures.NETS) == set(STUDIES)
    assert set(figures.NETS.values()) < set(texts(shares))
    assert "positions permuted" in texts(shares)
    assert len(ends.lines) == 2
    x, y = ends.lines[0].get_data()
    assert sorted(x) == sorted(b / 8 for b in range(6) for _ in range(3))
    assert sorted(y) == sorted(4.0 * b - 10 for b in range(6) for _ in range(3))


def test_seeds_without_shares_or_timing_are_left_out_of_their_figure():
    records = drawable(3)
    for record in records:  # all orders end alike
        if record["seed"] == 1001 and record["arm"] == "orders_mlp_lr005":
            for name in [name for name in record["metrics"] if name.startswith("share/")]:
                del record["metrics"][name]
    assert len(shared.values_of(records, e.share("orders_mlp_lr005", "6"))) == 2
    shown(figures.recency(records))
    fewer = [r for r in records if r["seed"] == 1000 or not r["arm"].startswith("timing")]
    ratios = shared.values_of(fewer, e.seconds_ratio("digits", "min_loss"))
    assert ratios == pytest.approx([math.log(2)])
    shown(figures.cost_ratios(fewer))


def test_correlations_shown_are_means_over_seeds():
    drawn = figures.scored_by(drawable(3), runs.SNAPSHOTS)
    for axis in drawn.axes:
        assert [text.get_text() for text in axis.texts] == ["0.26"] * 3 * len(runs.SNAPSHOTS)
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == [
        str(step) for step in runs.SNAPSHOTS
    ]


def test_cost_ratios_and_curves_name_their_scores():
    records = drawable(2)
    left, right = figures.cost_ratios(records).axes
    assert texts(left) == list(SCORES)
    assert [left.get_yscale(), right.get_yscale()] == ["log", "log"]
    curves = figures.learning_curves(records).axes
    assert texts(curves[0]) == ["random reshuffling", *SCORES]
    assert all(len(axis.lines) == 4 and axis.get_xscale() == "log" for axis in curves)
    median = curves[0].lines[0].get_ydata()
    assert list(median) == pytest.approx([10.5, 50, 90])


def test_step_lengths_are_those_of_the_trials():
    rows = tuning.read_trials()
    curves = {arm: trials.mean_curve(rows, arm) for arm in tuning.tuned_arms()}
    drawn = figures.step_lengths(curves)
    assert shown(drawn)
    for axis, data in zip(drawn.axes, DATA, strict=True):
        assert len(axis.lines) == 4
        x, y = axis.lines[0].get_data()
        assert list(x) == list(tuning.GRID)
        assert x[min(range(len(y)), key=y.__getitem__)] == arms.tuned(f"{data}_random")


def test_prefix_sums_draw_a_line_an_order():
    drawn = figures.prefix_sums({"random": [1.0, 2.0, 0.0], "GraB": [0.5, 0.4, 0.0]})
    assert shown(drawn)
    (axis,) = drawn.axes
    assert texts(axis) == ["random", "GraB"]
    assert list(axis.lines[1].get_ydata()) == [0.5, 0.4, 0.0]
