"""Chapter 5 without training: claims and figures on records made by hand."""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure

from companion.evidence.ledger import Criterion, load_ledger
from companion.evidence.store import Record
from companion.experiments import chapters
from companion.experiments import records as shared
from companion.experiments.ch05 import estimands as e
from companion.experiments.ch05 import figures, runs
from companion.paths import CLAIMS

# --- numbers of the claims ------------------------------------------------------------------------

ACCURACY: dict[str, dict[str, float]] = {  # on the test part, in percent
    "digits_10": {"erm": 80, "csa4": 85, "mixup": 84, "mixup_clean": 87, "csa2": 86}
    | {"constant2": 75, "random4": 81, "reversed4": 70, "csa4_restart": 88, "erm_restart": 82}
    | {"constant8": 30, "csa8": 83},
    "fashion_100": {"erm": 81, "csa4": 79, "mixup": 77, "mixup_clean": 79.5, "csa2": 82}
    | {"constant2": 76, "random4": 78, "reversed4": 60, "csa4_restart": 80, "erm_restart": 83}
    | {"constant8": 51, "csa8": 71},
    "digits_100": {"erm": 97, "csa4": 98},
    "fashion_10": {"erm": 70, "csa4": 73},
    "fashion_500": {"erm": 86, "csa4": 90},
}
# of the cascade and of clean training: robust accuracies, corruption, ECE, NLL, sharpness
MEASURED = {
    "digits_10": ((0.4, 0.5), (0.3, 0.45), (0.7, 0.65), (0.04, 0.02), (0.5, 0.8), (3.0, 1.5)),
    "fashion_100": ((0.6, 0.5), (0.2, 0.19), (0.6, 0.66), (0.1, 0.15), (0.9, 0.7), (1.0, 4.0)),
}
NAMES = ("fgsm", "pgd", "corrupt/mean", "test/ece", "test/nll", "sharpness")
SLOPES = {"curvature/k4": -0.7, "curvature/k4_rescaled": -0.2}
SLOPES |= {"lipschitz/k4": -0.5, "lipschitz/k4_rescaled": 0.1}
# clean bare and mixed, PGD bare, unaware, adaptive
MIXING = {"constant2": (0.7, 0.75, 0.1, 0.3, 0.05), "csa2": (0.8, 0.6, 0.2, 0.2, 0.2)}
GAINS = {  # in points, by hand; the arms that the cascade is compared with
    "digits": (5, 1, -2, -1, 10, 4, 15),
    "fashion": (-2, 2, -0.5, -3, 3, 1, 19),
}
CONTROLS = ("erm", "mixup", "mixup_clean", "csa2", "constant2", "random4", "reversed4")


VALUES: dict[str, tuple[float, tuple[str, ...]]] = {}
PAIRED = {  # by hand, for digits and fashion
    "restarts": (6, -3, "csa4_restart", "erm_restart"),
    "mix_only_loss": (50, 30, "erm", "constant8"),
    "csa8_over_erm": (3, -10, "csa8", "erm"),
    "sharpness": (math.log(2), -math.log(4), "csa4", "erm"),
    "fgsm_gain": (-10, 10, "csa4", "erm"),
    "pgd_gain": (-15, 1, "csa4", "erm"),
    "corrupt_gain": (5, -6, "csa4", "erm"),
    "ece_rise": (2, -5, "csa4", "erm"),
    "nll_rise": (-0.3, 0.2, "csa4", "erm"),
}
for _column, (_name, _place) in enumerate((("digits", "digits_10"), ("fashion", "fashion_100"))):
    for _control, _gain in zip(CONTROLS, GAINS[_name], strict=True):
        VALUES[f"{_name}_over_{_control}"] = _gain, (f"{_place}_csa4", f"{_place}_{_control}")
    for _key, (*_values, _a, _b) in PAIRED.items():
        VALUES[f"{_name}_{_key}"] = _values[_column], (f"{_place}_{_a}", f"{_place}_{_b}")
    for _key, _value in SLOPES.items():
        VALUES[f"{_name}_{_key.replace('/', '_')}"] = _value, (f"{_place}_objective",)
    for _key, _value in {"stopped": 5, "finished": -20, "adaptive": -5, "unaware": 20}.items():
        VALUES[f"{_name}_tta_{_key}"] = _value, (f"{_place}_radii",)
VALUES |= {
    f"{data}_small_data": (value, tuple(f"{data}_{n}_{a}" for n in counts for a in ("csa4", "erm")))
    for data, value, counts in (("digits", 5 - 1, (10, 100)), ("fashion", 3 - 4, (10, 500)))
}


def hand_made(seed: int = 1000, shift: float = 0.0) -> list[Record]:
    """All records of one seed that formulas and figures read; ``shift`` sets seeds apart."""
    found: list[Record] = []
    for place, of_place in ACCURACY.items():
        for arm, percent in of_place.items():
            metrics = {"test/accuracy": percent / 100, "val/accuracy": 0.123}
            metrics |= dict.fromkeys(NAMES, 0.321)
            for column, which in enumerate(("csa4", "erm")):
                if arm == which and place in MEASURED:
                    values = [pair[column] for pair in MEASURED[place]]
                    metrics |= dict(zip(NAMES, values, strict=True))
            if arm == "csa4":
                metrics["test/accuracy"] += shift
            curves = {"step": [30.0, 600.0], "accuracy": [0.1 + shift, percent / 100]}
            found.append({"arm": f"{place}_{arm}", "metrics": metrics, "curves": curves})
    kinds = ("clean/bare", "clean/mixed", "pgd/bare", "pgd/unaware", "pgd/adaptive")
    for place in e.PLACES:
        metrics = {"erm/clean/bare": 0.9}
        for model, values in MIXING.items():
            metrics |= {f"{model}/{kind}": v for kind, v in zip(kinds, values, strict=True)}
        curves = {}
        for model in runs.ROBUST:
            falling = {"fgsm": [0.9, 0.4 + shift], "pgd": [0.9, 0.2 + shift]}
            curves |= {f"{model}/{k}": v for k, v in ({"eps": [0.0, 0.1]} | falling).items()}
        found.append({"arm": f"{place}_radii", "metrics": metrics, "curves": curves})
        names = ["k1", *(f"k{k}{end}" for k in (2, 4, 8) for end in ("", "_rescaled"))]
        curves = {f"curvature/{n}": [-3.0 - shift, 2.0, 1.0] for n in names}
        found.append({"arm": f"{place}_objective", "metrics": dict(SLOPES), "curves": curves})
    return [record | {"seed": seed} for record in found]


LEDGER = load_ledger(CLAIMS / "05.yaml")
CRITERIA: dict[str, Criterion] = {
    part.estimand: part
    for claim in LEDGER
    for part in (*claim.all_of, *(claim.beside.all_of if claim.beside else ()))
}


def test_every_number_of_the_ledger_is_computed_by_hand():
    assert set(VALUES) == set(CRITERIA)


@pytest.mark.parametrize("name", VALUES)
def test_a_formula_equals_the_value_by_hand(name):
    value, needed = VALUES[name]
    formula = CRITERIA[name].formula
    assert set(formula.arms) == set(needed)
    for records in (hand_made(), hand_made()[::-1]):
        assert formula.evaluate(records) == pytest.approx(value, abs=1e-9)
    for arm in needed:
        with pytest.raises(KeyError, match=f"no record of {arm}'"):
            formula.evaluate([record for record in hand_made() if record["arm"] != arm])


def test_what_figures_and_tables_show_by_hand():
    records = [{"arm": "a", "metrics": {"m": 6.0}}, {"arm": "b", "metrics": {"m": 1.5}}]
    assert e.gain("a", "b", "m")(records) == 450  # points
    assert e.gain("b", "a", "m", 1.0)(records) == -4.5
    assert e.log_ratio("a", "b", "m")(records) == pytest.approx(math.log(4))


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_claims_can_be_decided_by_the_profile_that_runs_them(claim):
    profile = "standard" if claim.tier == "headline" else "full"
    planned = Counter(run.arm for run in chapters.load_chapter("05").plan(profile))
    parts = [*claim.all_of, *(claim.beside.all_of if claim.beside else ())]
    read = {arm for part in parts for arm in part.formula.arms}
    assert min(planned[arm] for arm in read) >= claim.seeds
    if claim.arms is not None:
        assert read == set(claim.arms)  # a claim sees no other records
    if claim.tier == "headline":
        assert (claim.power.power >= 0.8, claim.power.n) == (True, claim.seeds)


# --- figures --------------------------------------------------------------------------------------


def drawn_figures(seeds: int) -> dict[str, Figure]:
    records = [r for seed in range(seeds) for r in hand_made(1000 + seed, 0.01 * seed)]
    pictures, ramp = np.linspace(0, 1, 3 * 64).reshape(3, 8, 8), np.linspace(0, 1, 20)
    return {
        "mix_grid": figures.mix_grid({"K = 1": pictures, "K = 2": pictures[::-1]}),
        "key_figure": figures.key_figure(records),
        "learning_curves": figures.learning_curves(records),
        "ablation": figures.ablation(records, {"csa4": "cascade", "csa8": "8", "mixup": "mixup"}),
        "accuracy_by_radius": figures.accuracy_by_radius(records),
        "objectives": figures.objectives(records, (0, 30, 599)),
        "weight_paths": figures.weight_paths(
            {"step": np.stack([ramp, 1 - ramp], 1), "smooth": np.stack([1 - ramp, ramp], 1)}
        ),
    }


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_draw_without_warnings_and_label_their_axes(seeds):
    first, again = drawn_figures(seeds), drawn_figures(seeds)
    assert set(first) == set(figures.__all__)
    for name, drawn in first.items():
        files = []
        for one in (drawn, again[name]):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                files.append(io.BytesIO())
                one.savefig(files[-1], format="png")
        assert files[0].getvalue() == files[1].getvalue()
        assert len(drawn.axes) == (1 if name == "mix_grid" else 2)
        for axis in drawn.axes:
            ticks = [text.get_text() for text in axis.get_xticklabels()]
            assert axis.get_xlabel() or name in ("mix_grid", "key_figure")
            assert name != "key_figure" or (len(ticks) >= 3 and all(ticks))
            assert axis.lines or axis.images
        rows = [text.get_text() for text in drawn.axes[0].get_yticklabels()]
        assert drawn.axes[0].get_ylabel() or (name in ("mix_grid", "ablation") and all(rows))


def test_figures_show_the_numbers_of_the_records():
    drawn = drawn_figures(3)
    rows = drawn["mix_grid"].axes[0].get_yticklabels()
    assert [text.get_text() for text in rows] == ["K = 1", "K = 2"]
    assert drawn["mix_grid"].axes[0].images[0].get_array().shape == (20, 30)  # frames of one
    # seeds' points, then their mean: digits and Fashion-MNIST over clean training
    points = [line.get_ydata() for line in drawn["key_figure"].axes[0].lines]
    assert any(np.allclose(y, [5, 6, 7]) for y in points)
    assert any(np.allclose(y, [-2, -1, 0]) for y in points)
    robust = [line.get_ydata() for line in drawn["key_figure"].axes[1].lines]
    assert any(np.allclose(y, [-10] * 3) for y in robust)
    for name, first in (("learning_curves", [11, 80]), ("accuracy_by_radius", [90, 21])):
        assert list(drawn[name].axes[0].lines[0].get_ydata()) == pytest.approx(first)
    assert drawn["ablation"].axes[0].lines[0].get_xdata() == pytest.approx([6])  # mean of 5, 6, 7
    values = drawn["objectives"].axes[1].lines[0].get_ydata()
    assert list(values) == pytest.approx([3.01, 2, 1])  # modulus of the largest eigenvalue
    labels = [text.get_text() for text in drawn["objectives"].axes[0].get_legend().get_texts()]
    assert labels == ["K = 1", "K = 2", "K = 4", "K = 8", "K = 4, contrast restored"]
    assert len(drawn["accuracy_by_radius"].axes[0].lines) == 2 * len(runs.ROBUST)
    assert list(drawn["weight_paths"].axes[0].lines[1].get_ydata())[:1] == [1]


def test_seeds_that_did_not_run_an_arm_are_left_out():
    some = [r for r in hand_made(1001) if r["arm"] != "digits_10_mixup"]
    values = shared.values_of([*hand_made(), *some], e.gain("digits_10_csa4", "digits_10_mixup"))
    assert values == pytest.approx([1])
