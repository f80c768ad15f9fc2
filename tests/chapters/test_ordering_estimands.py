"""Chapter 4: tables and figures on records made by hand, beside the formulas of the ledger."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections import Counter
from typing import Any

import pytest
from matplotlib.figure import Figure

from companion.chapters.ordering import estimands as e
from companion.chapters.ordering import figures
from companion.chapters.ordering.arms import STEP_LENGTHS
from companion.chapters.ordering.scores import SNAPSHOTS
from companion.evidence.formulas import Formula
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.lab import chapters
from companion.lab import records as shared
from companion.lab.tune import mean_curve, read_trials
from companion.paths import CLAIMS

SCORES, DATA = ("min_loss", "delta_abs", "delta_target"), ("digits", "fashion_mnist")
LEDGER = {claim.id: claim for claim in load_ledger(CLAIMS / "04.yaml")}
FUNCTIONS = chapters.functions_of("04")
STUDIES = ("orders_cnn_bn", "orders_mlp_lr005", "orders_mlp_lr010", "orders_mlp_lr020")


# --- numbers --------------------------------------------------------------------------------------

# log2 of the steps to the target, and of the forward-equivalents; test accuracy
TRAINED = {
    "digits_random": (5, 8, 0.96),
    "digits_min_loss": (4, 8, 0.95),
    "digits_delta_abs": (3, 10, 0.97),
    "digits_delta_target": (7, 11, 0.9),
    "fashion_mnist_random": (8, 10, 0.8),
    "fashion_mnist_min_loss": (8, 11, 0.81),
    "fashion_mnist_delta_abs": (9, 12, 0.79),
    "fashion_mnist_delta_target": (6, 9, 0.8),
}
SHARES = {  # of the accuracy, by position
    "orders_cnn_bn": (0.05, 0.1, 0.02, 0.04, 0.2, 0.5),
    "orders_mlp_lr005": (0.6, 0, 0, 0, 0, 0.1),
    "orders_mlp_lr010": (0.3, 0, 0, 0, 0, 0.25),
    "orders_mlp_lr020": (0.1, 0, 0, 0, 0, 0.45),
}
LOG2 = math.log(2)
SECONDS = {  # of each order over those of random reshuffling
    "digits": {"min_loss": 2.0, "delta_abs": 4.0, "delta_target": 5.0},
    "fashion_mnist": {"min_loss": 0.5, "delta_abs": 3.0, "delta_target": 6.0},
}
RANKS = {  # by score in the order of SCORES
    "orders_cnn_bn": (12.5, 40.0, 8.0),
    "orders_mlp_lr020": (3.0, 5.0, 7.0),
}


def formulas(claim: str) -> list[list[Formula]]:
    """The numbers of a claim, those beside after those that decide."""
    known = LEDGER[claim]
    return [part.formulas for part in (*known.parts, *known.beside)]


def hand_made() -> list[Record]:
    """All records of one seed that the numbers read."""
    actual: dict[str, tuple[dict[str, float], dict[str, list[float]]]] = {}
    for arm, (steps, forwards, accuracy) in TRAINED.items():
        costs = {"steps_to_target": 2.0**steps, "forwards_to_target": 2.0**forwards}
        actual[arm] = costs | {"test/accuracy": accuracy, "val/accuracy": 0.5}, {}
    for arm, shares in SHARES.items():
        metrics = {f"share/accuracy/{p}": share for p, share in enumerate(shares, 1)}
        metrics |= {f"share/loss/{p}": 0.01 * p for p in range(1, 7)}
        metrics |= {"val_accuracy/min": 42.0, "val_accuracy/max": 90.0}
        metrics |= {"test_accuracy/mean": 70.0, "best_on_val/test_accuracy": 85.0}
        actual[arm] = metrics, {}
    for arm, ranks in RANKS.items():
        for score, rank in zip(SCORES, ranks, strict=True):
            actual[arm][0].update({f"rank/{score}/loss": rank, f"rank/{score}/accuracy": 99.0})
    curves = {"range": [40.0, 20.0, 5.0], "persistence": [0.4, 0.0]}
    actual["epochs_cnn_bn"] = {"repeat": 0.7}, curves
    for data in DATA:
        seconds = {f"seconds/{score}": 0.25 * SECONDS[data][score] for score in SCORES}
        actual[f"timing_{data}"] = seconds | {"seconds/random": 0.25, "steps/random": 9.0}, {}
    return [
        {"arm": arm, "seed": 1000, "metrics": metrics, "curves": curves}
        for arm, (metrics, curves) in actual.items()
    ]


def test_a_range_of_nothing_counts_as_one_picture():
    later = {"arm": "epochs_cnn_bn", "curves": {"range": [50.0, 0.0]}}
    [[decay]] = formulas("ord.2")
    assert decay.evaluate([later]) == pytest.approx(math.log(50 / (100 / 138)))


@pytest.mark.parametrize(
    ("claim", "part", "setting", "side", "estimand"),
    [
        ("ord.12", 3, 0, -1, e.cost_ratio("digits_min_loss", "digits_random")),
        (
            "ord.7",
            3,
            1,
            -1,
            e.cost_ratio("fashion_mnist_min_loss", "fashion_mnist_random", "forwards"),
        ),
        ("ord.7", 1, 0, -1, e.seconds_ratio("digits", "delta_target")),
        ("ord.9", 0, 0, 1, e.accuracy_gain("digits_delta_target", "digits_random")),
        ("ord.4", 1, 0, 1, e.share("orders_cnn_bn", "6")),
        ("ord.5", 1, 1, 1, e.ranked("orders_mlp_lr020", "delta_abs")),
    ],
)
def test_tables_and_figures_show_the_numbers_of_the_ledger(claim, part, setting, side, estimand):
    expected = formulas(claim)[part][setting].evaluate(hand_made(), FUNCTIONS)
    assert estimand(hand_made()) == pytest.approx(side * expected, abs=1e-12)


def test_estimands_that_only_the_notebook_uses_by_hand():
    records = hand_made()
    assert e.share("orders_cnn_bn", "6", "loss")(records) == pytest.approx(0.06)
    assert e.ranked("orders_mlp_lr020", "delta_abs", "accuracy")(records) == 99
    assert e.metric("digits_random", "val/accuracy", 100)(records) == 50
    assert e.cost_ratio("digits_delta_abs", "digits_delta_target")(records) == pytest.approx(
        -4 * LOG2
    )


def test_gain_by_balance_is_a_mean_over_batches_of_all_seeds():
    def seed(number: int, mean: float, *ends: tuple[float, float]) -> Record:
        metrics = {"val_accuracy/mean": mean}
        for batch, (balance, accuracy) in enumerate(ends):
            metrics |= {f"last/{batch}/balance": balance, f"last/{batch}/accuracy": accuracy}
        return {"arm": "orders_cnn_bn", "seed": number, "metrics": metrics}

    records = [seed(1, 70, (0.5, 80), (0.25, 60)), seed(2, 60, (0.5, 64), (0.5, 61))]
    actual = e.gain_by_balance(records, "orders_cnn_bn")
    assert actual == {0.25: (-10, 1), 0.5: (5, 3)}
    assert list(actual) == [0.25, 0.5]


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", LEDGER.values(), ids=lambda claim: claim.id)
def test_full_runs_the_seeds_that_decide_a_claim(claim):
    planned = Counter(run.arm for run in chapters.load_chapter("04").plan("full"))
    read = {arm for formula in claim.all_formulas() for arm in formula.arms}
    assert min(planned[arm] for arm in read) >= claim.seeds.count


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
    actual: list[Record] = []
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
        kinds = itertools.product(scores, ("loss", "norm", "align"), SNAPSHOTS)
        actual += records
        metrics = {f"{score}/{what}/{step}": 0.25 + shift for score, what, step in kinds}
        actual.append({"arm": "selection", "seed": seed, "metrics": metrics, "curves": {}})
    return actual


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("name", "panels"),
    [
        ("order_spread", 2),
        ("recency", 2),
        ("scored_by", 3),
        ("cost_ratios", 2),
        ("learning_curves", 4),
    ],
)
def test_figures_draw_from_records_without_warnings(name, panels, seeds):
    more = (SNAPSHOTS,) if name == "scored_by" else ()
    drawn = getattr(figures, name)(drawable(seeds), *more)
    assert len(drawn.axes) == panels
    assert all(len(axis.lines) + len(axis.texts) > 0 for axis in drawn.axes)
    assert shown(drawn)


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
    drawn = figures.scored_by(drawable(3), SNAPSHOTS)
    for axis in drawn.axes:
        assert [text.get_text() for text in axis.texts] == ["0.26"] * 3 * len(SNAPSHOTS)
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == [
        str(step) for step in SNAPSHOTS
    ]


def test_cost_ratios_and_curves_name_their_scores():
    records = drawable(2)
    left, right = figures.cost_ratios(records).axes
    assert texts(left) == list(SCORES)
    assert [left.get_yscale(), right.get_yscale()] == ["log", "log"]
    # two seeds whose ratios to reshuffling are 1/2 and 1.01/2: their mean log is shown
    steps = left.containers[0].lines[0].get_ydata()
    assert steps == pytest.approx([math.sqrt(0.5 * 0.505)])
    curves = figures.learning_curves(records).axes
    assert texts(curves[0]) == ["random reshuffling", *SCORES]
    assert all(len(axis.lines) == 4 and axis.get_xscale() == "log" for axis in curves)
    median = curves[0].lines[0].get_ydata()
    assert list(median) == pytest.approx([10.5, 50, 90])


def test_step_lengths_are_those_of_the_trials():
    chosen, trials = chapters.load_chapter("04").chosen, read_trials("04")
    drawn = figures.step_lengths({arm: mean_curve(trials, arm) for arm in chosen})
    assert shown(drawn)
    for axis, data in zip(drawn.axes, DATA, strict=True):
        assert len(axis.lines) == 4
        x, y = axis.lines[0].get_data()
        assert list(x) == list(STEP_LENGTHS)
        assert x[min(range(len(y)), key=y.__getitem__)] == chosen[f"{data}_random"]["lr"]


def test_prefix_sums_draw_a_line_an_order():
    drawn = figures.prefix_sums({"random": [1.0, 2.0, 0.0], "GraB": [0.5, 0.4, 0.0]})
    assert shown(drawn)
    (axis,) = drawn.axes
    assert texts(axis) == ["random", "GraB"]
    assert list(axis.lines[1].get_ydata()) == [0.5, 0.4, 0.0]
