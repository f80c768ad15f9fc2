"""Chapter 5 without training: claims and figures on records made by hand."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from companion.chapters.cascading_sum import estimands as e
from companion.chapters.cascading_sum import figures, runs
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.lab import chapters
from companion.lab import records as shared
from companion.paths import CLAIMS

# --- numbers of the claims ------------------------------------------------------------------------

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
SETTINGS = {  # of the ledger, in its order
    "digits_10": "digits, 10 per class",
    "digits_50": "digits, 50 per class",
    "digits_100": "digits, 100 per class",
    "fashion_10": "Fashion-MNIST, 10 per class",
    "fashion_50": "Fashion-MNIST, 50 per class",
    "fashion_100": "Fashion-MNIST, 100 per class",
    "fashion_500": "Fashion-MNIST, 500 per class",
    "emoji_100": "emoji in colour, 100 per class",
    "resnet8": "Fashion-MNIST, 100 per class, ResNet-8",
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

# claim, part or label, setting: the value by hand, positive where it supports the claim, and the
# arms that it reads
VALUES: dict[tuple[str, str, str], tuple[float, tuple[str, ...]]] = {}
_early = "Lipschitz estimate of the gradient early in training, before update 30"
for _claim, _label, _arm, _other, _gains in (
    ("csa.1", "", "csa4", "erm", (5, -1, 1, 3, -2, -2, 4, -2, -5)),
    (
        "csa.1",
        "the source's own recipe, plateaus and restarts, with more updates for the cascade",
        "source4",
        "source1",
        (None,) * 5 + (-7,),
    ),
    ("csa.3", "", "csa4", "mixup", (1, *(None,) * 4, 2)),
    ("csa.4", "", "csa4", "mixup_clean", (-2, *(None,) * 4, -0.5, None, -3, -3)),
    ("csa.5", "", "csa4", "csa2", (-1, *(None,) * 4, -3, None, 1)),
    (
        "csa.6",
        "against averages of two throughout",
        "csa4",
        "constant2",
        (10, *(None,) * 4, 3),
    ),
    ("csa.6", "against the same counts in random order", "csa4", "random4", (4, *(None,) * 4, 1)),
    ("csa.6", "against the same counts rising", "csa4", "reversed4", (15, *(None,) * 4, 19)),
    ("csa.7", "", "csa4_restart", "erm_restart", (6, *(None,) * 4, -3, None, 6)),
    (
        "csa.8",
        "averages of eight alone are less accurate than plain training",
        "erm",
        "constant8",
        (50, *(None,) * 4, 30),
    ),
    (
        "csa.8",
        "the cascade from eight is no less accurate than plain training",
        "csa8",
        "erm",
        (3, *(None,) * 4, -10),
    ),
):
    for (_place, _setting), _gain in zip(SETTINGS.items(), _gains, strict=False):
        if _gain is not None:
            _read = (f"{_place}_{_arm}", f"{_place}_{_other}")
            VALUES[_claim, _label, _setting] = _gain, _read
for _claim, _label, _digits, _fashion in (  # where records by hand are equal, nothing is gained
    ("csa.10", "", -math.log(2), math.log(4)),
    ("csa.11", "the strong attack, 20 steps of PGD with two random starts", -15, 1),
    ("csa.11", "the attack of one step, FGSM", -10, 10),
    ("csa.12", "", 5, -6),
    ("csa.15", "expected calibration error", -2, 5),
    ("csa.15", "negative log likelihood", 0.3, -0.2),
):
    for _place, _setting in SETTINGS.items():
        _value = {"digits_10": _digits, "fashion_100": _fashion}.get(_place, 0.0)
        VALUES[_claim, _label, _setting] = _value, (f"{_place}_csa4", f"{_place}_erm")
for _place in ("digits_10", "fashion_100"):
    _setting = SETTINGS[_place]
    for _key, _name in (
        ("curvature/k4", "largest curvature"),
        ("curvature/k4_rescaled", "largest curvature, contrast restored"),
        ("lipschitz/k4", "Lipschitz estimate of the gradient"),
        ("lipschitz/k4_rescaled", "Lipschitz estimate of the gradient, contrast restored"),
    ):
        VALUES["csa.9", _name, _setting] = -SLOPES[_key], (f"{_place}_objective",)
    for _end, _value in (("", math.log(4)), (", contrast restored", -math.log(2))):
        VALUES["csa.9", _early, _setting + _end] = _value, (f"{_place}_objective",)
    for _claim, _label, _value in (
        ("csa.13", "", 5),
        ("csa.13", "harm to a model that was shown clean pictures last, the cascade from two", 20),
        ("csa.14", "", -5),
        ("csa.14", "an attack that does not know of the mixing", 20),
        (
            "csa.14",
            "the attack that knows of it, against plain training without mixing under PGD",
            -20,
        ),
    ):
        VALUES[_claim, _label, _setting] = _value, (f"{_place}_radii",)
VALUES |= {
    ("csa.2", "", _setting): (_value, tuple(f"{_n}_{_a}" for _n in _of for _a in ("csa4", "erm")))
    for _setting, _value, _of in (
        ("digits, 10 against 100 per class", 5 - 1, ("digits_10", "digits_100")),
        ("Fashion-MNIST, 10 against 500 per class", 3 - 4, ("fashion_10", "fashion_500")),
    )
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
        metrics = {}
        for model, values in MIXING.items():
            metrics |= {f"{model}/{kind}": v for kind, v in zip(kinds, values, strict=True)}
        curves = {}
        for model in runs.ROBUST:
            falling = {"fgsm": [0.9, 0.4 + shift], "pgd": [0.9, 0.2 + shift]}
            curves |= {f"{model}/{k}": v for k, v in ({"eps": [0.0, 0.1]} | falling).items()}
        found.append({"arm": f"{place}_radii", "metrics": metrics, "curves": curves})
        names = ["k1", *(f"k{k}{end}" for k in (2, 4, 8) for end in ("", "_rescaled"))]
        curves = {f"curvature/{n}": [-3.0 - shift, 2.0, 1.0] for n in names}
        curves |= {f"lipschitz/{n}": [1.0, value, 1.0] for n, value in EARLY.items()}
        found.append({"arm": f"{place}_objective", "metrics": dict(SLOPES), "curves": curves})
    return [record | {"seed": seed} for record in found]


LEDGER = load_ledger(CLAIMS / "05.yaml")
FORMULAS = {
    (claim.id, getattr(part, "label", "") or part.name, setting.name): formula
    for claim in LEDGER
    for part in (*claim.parts, *claim.beside)
    for setting, formula in zip(part.settings, part.formulas, strict=True)
}


def test_every_number_of_the_ledger_is_computed_by_hand():
    assert set(VALUES) == set(FORMULAS)


@pytest.mark.parametrize("place", VALUES, ids=", ".join)
def test_a_formula_equals_the_value_by_hand(place):
    value, needed = VALUES[place]
    formula = FORMULAS[place]
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
    early = e.objective_ratio("digits_10", "lipschitz", "k4", 1)
    assert early(hand_made()) == pytest.approx(-math.log(4))
    first = e.objective_ratio("digits_10", "curvature", "k4", 0)
    assert first(hand_made()) == 0  # of the moduli
    with pytest.raises(KeyError, match="no record of emoji_100_objective"):
        e.objective_ratio("emoji_100", "lipschitz", "k4", 1)(hand_made())


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_the_full_profile_runs_the_seeds_that_decide(claim):
    planned: dict[str, set[int]] = {}
    for run in chapters.load_chapter("05").plan("full"):
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
