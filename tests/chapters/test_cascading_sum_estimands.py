"""Chapter 5 without training: formulas and figures on records made by hand."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from companion.chapters.cascading_sum import estimands as e
from companion.chapters.cascading_sum import figures
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.lab import records as shared
from companion.lab.chapters import load_chapter
from companion.paths import CLAIMS

MODELS = ("erm", "csa2", "csa4", "constant2", "mixup")  # attacked at several radii

ACCURACY: dict[str, dict[str, float]] = {  # on the test part, in percent
    "digits_10": {"erm": 80, "csa4": 85, "mixup": 84, "mixup_clean": 87, "csa2": 86}
    | {"constant2": 75, "random4": 81, "reversed4": 70, "csa4_restart": 88, "erm_restart": 82}
    | {"constant8": 30, "csa8": 83},
    "fashion_100": {"erm": 81, "csa4": 79, "mixup": 77, "mixup_clean": 79.5, "csa2": 82}
    | {"constant2": 76, "random4": 78, "reversed4": 60, "csa4_restart": 80, "erm_restart": 83}
    | {"constant8": 51, "csa8": 71, "source1": 82, "source4": 75},
    "digits_50": {"erm": 91, "csa4": 90},
    "digits_100": {"erm": 97, "csa4": 98},
    "fashion_10": {"erm": 70, "csa4": 73},
    "fashion_50": {"erm": 77, "csa4": 75},
    "fashion_500": {"erm": 86, "csa4": 90},
    "emoji_100": {"erm": 50, "csa4": 48, "csa2": 47, "mixup_clean": 51}
    | {"csa4_restart": 52, "erm_restart": 46},
    "resnet8": {"erm": 84, "csa4": 79, "mixup_clean": 82},
}
# of the cascade and of plain training: robust accuracies, corruption, ECE, NLL, sharpness
MEASURED = {
    "digits_10": ((0.4, 0.5), (0.3, 0.45), (0.7, 0.65), (0.04, 0.02), (0.5, 0.8), (3.0, 1.5)),
    "fashion_100": ((0.6, 0.5), (0.2, 0.19), (0.6, 0.66), (0.1, 0.15), (0.9, 0.7), (1.0, 4.0)),
}
NAMES = ("fgsm", "pgd", "corrupt/mean", "test/ece", "test/nll", "sharpness")
SLOPES = {"curvature/k4": -0.7, "curvature/k4_rescaled": -0.2}
SLOPES |= {"lipschitz/k4": -0.5, "lipschitz/k4_rescaled": 0.1}
EARLY = {"k1": 8.0, "k4": 2.0, "k4_rescaled": 16.0}  # Lipschitz estimates before update 30
# clean bare and mixed, PGD bare, unaware, adaptive
MIXING = {"constant2": (0.7, 0.75, 0.1, 0.3, 0.05), "csa2": (0.8, 0.6, 0.2, 0.2, 0.2)}
MIXING |= {"erm": (0.9, 0.85, 0.25, 0.3, 0.2)}


def hand_made(seed: int = 1000, shift: float = 0.0) -> list[Record]:
    """All records of one seed that formulas and figures read; ``shift`` sets seeds apart."""
    actual: list[Record] = []
    for condition, of_place in ACCURACY.items():
        for arm, percent in of_place.items():
            metrics = {"test/accuracy": percent / 100, "val/accuracy": 0.123}
            metrics |= dict.fromkeys(NAMES, 0.321)
            for column, which in enumerate(("csa4", "erm")):
                if arm == which and condition in MEASURED:
                    values = [pair[column] for pair in MEASURED[condition]]
                    metrics |= dict(zip(NAMES, values, strict=True))
            if arm == "csa4":
                metrics["test/accuracy"] += shift
            curves = {"step": [30.0, 600.0], "accuracy": [0.1 + shift, percent / 100]}
            actual.append({"arm": f"{condition}_{arm}", "metrics": metrics, "curves": curves})
    kinds = ("clean/bare", "clean/mixed", "pgd/bare", "pgd/unaware", "pgd/adaptive")
    for condition in e.CONDITIONS:
        metrics = {}
        for model, values in MIXING.items():
            metrics |= {f"{model}/{kind}": v for kind, v in zip(kinds, values, strict=True)}
        curves = {}
        for model in MODELS:
            falling = {"fgsm": [0.9, 0.4 + shift], "pgd": [0.9, 0.2 + shift]}
            curves |= {f"{model}/{k}": v for k, v in ({"eps": [0.0, 0.1]} | falling).items()}
        actual.append({"arm": f"{condition}_radii", "metrics": metrics, "curves": curves})
        names = ["k1", *(f"k{k}{end}" for k in (2, 4, 8) for end in ("", "_rescaled"))]
        curves = {f"curvature/{n}": [-3.0 - shift, 2.0, 1.0] for n in names}
        curves |= {f"lipschitz/{n}": [1.0, value, 1.0] for n, value in EARLY.items()}
        actual.append({"arm": f"{condition}_objective", "metrics": dict(SLOPES), "curves": curves})
    return [record | {"seed": seed} for record in actual]


LEDGER = load_ledger(CLAIMS / "05.yaml")
FORMULAS = {
    (claim.id, getattr(part, "label", "") or part.name, setting.name): formula
    for claim in LEDGER
    for part in (*claim.parts, *claim.beside)
    for setting, formula in zip(part.settings, part.formulas, strict=True)
}
EARLY_LABEL = "Lipschitz estimate of the gradient early in training, before update 30"


@pytest.mark.parametrize(
    ("claim", "label", "setting", "value"),
    [
        ("csa.1", "", "digits, 10 per class", 5),
        ("csa.2", "", "Fashion-MNIST, 10 against 500 per class", 3 - 4),
        ("csa.9", "largest curvature", "digits, 10 per class", 0.7),
        ("csa.9", EARLY_LABEL, "digits, 10 per class", math.log(4)),
        ("csa.10", "", "Fashion-MNIST, 100 per class", math.log(4)),
        ("csa.14", "", "digits, 10 per class", -5),
        ("csa.15", "expected calibration error", "digits, 10 per class", -2),
    ],
)
def test_formula_of_each_kind_equals_the_value_by_hand(claim, label, setting, value):
    """Positive where it supports the claim; the values follow from the tables above."""
    formula = FORMULAS[claim, label, setting]
    for records in (hand_made(), hand_made()[::-1]):
        assert formula.evaluate(records) == pytest.approx(value, abs=1e-9)
    for arm in formula.arms:
        with pytest.raises(KeyError, match=f"no record of {arm}'"):
            formula.evaluate([record for record in hand_made() if record["arm"] != arm])


def test_what_figures_and_tables_show_by_hand():
    records = [{"arm": "a", "metrics": {"m": 6.0}}, {"arm": "b", "metrics": {"m": 1.5}}]
    assert e.gain("a", "b", "m")(records) == 450  # points
    assert e.gain("b", "a", "m", 1.0)(records) == -4.5
    assert e.log_ratio("a", "b", "m")(records) == pytest.approx(math.log(4))
    early = e.objective_ratio("digits_10", "lipschitz", "k4", 1)
    assert early(hand_made()) == pytest.approx(-math.log(4))
    first = e.objective_ratio("digits_10", "curvature", "k4", 0)
    assert first(hand_made()) == 0  # of the moduli
    with pytest.raises(KeyError, match="no record of emoji_100_objective"):
        e.objective_ratio("emoji_100", "lipschitz", "k4", 1)(hand_made())


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_the_full_profile_runs_the_seeds_that_decide(claim):
    planned: dict[str, set[int]] = {}
    for run in load_chapter("05").plan("full"):
        planned.setdefault(run.arm, set()).add(run.seed)
    for part in (*claim.parts, *claim.beside):
        for setting, formula in zip(part.settings, part.formulas, strict=True):
            count = setting.seeds or claim.seeds.count
            deciding = set(range(claim.seeds.start, claim.seeds.start + count))
            assert all(deciding <= planned[arm] for arm in formula.arms)


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
    for name, drawn in drawn_figures(seeds).items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn.savefig(io.BytesIO(), format="png")
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
    assert len(drawn["accuracy_by_radius"].axes[0].lines) == 2 * len(MODELS)
    assert list(drawn["weight_paths"].axes[0].lines[1].get_ydata())[:1] == [1]


def test_seeds_that_did_not_run_an_arm_are_left_out():
    some = [r for r in hand_made(1001) if r["arm"] != "digits_10_mixup"]
    values = shared.values_of([*hand_made(), *some], e.gain("digits_10_csa4", "digits_10_mixup"))
    assert values == pytest.approx([1])
