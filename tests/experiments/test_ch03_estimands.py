"""Chapter 3 without training: estimands on records made by hand, claims and figures."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.experiments import chapters, records
from companion.experiments.ch03 import arms, figures
from companion.experiments.ch03 import estimands as e
from companion.paths import CLAIMS

DATA = ("breast_cancer", "digits", "fashion")
PROBLEMS = ("0", "noise", "rotated", "large", "resnet8")
RIVALS = ("selfpaced", "screener", "selective", "pruned")
VARIANTS = ("ahead", "unshuffled", "base0", "base60")
AUC = {"r": [0.6, 0.8], "class": [0.5, 0.6, 0.7], "loss": [0.9]}


def number(arm: str, name: str) -> float:
    """A number in 1 to 2 of its own for each metric."""
    return 1 + int(hashlib.sha256(f"{arm}/{name}".encode()).hexdigest()[:6], 16) / 2**24


class Numbers(dict[str, float]):
    """All metrics that are asked for, and which they were."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.arm = arm

    def __missing__(self, name: str) -> float:
        self[name] = number(self.arm, name)
        return self[name]


def hand_made() -> list[Record]:
    """Records of one seed of all arms of the full profile."""
    found = [*arms.SVM_SETS, "theorem", "timing", "translation_timing", *arms.TRANSLATION_ARMS]
    curves = {f"auc/{name}": values for name, values in AUC.items()} | {"auc": [0.5, 0.75, 0.7]}
    return [
        {"arm": arm, "seed": 1000, "metrics": Numbers(arm), "curves": curves}
        for arm in [*found, *arms.HEADLINE, *arms.EXTENDED, *arms.LARGE]
    ]


def ratio(arm: str, one: str, other: str, of: str | None = None) -> float:
    return math.log(number(arm, one)) - math.log(number(of or arm, other))


# estimand: its value by hand, and the arms that it reads
VALUES: dict[str, tuple[float, set[str]]] = {
    "bound_ratio": (max(number("theorem", f"{c}/ratio") for c in (0, 1, 10, 100)), {"theorem"}),
    "bias_error": (number("theorem", "bias_error"), {"theorem"}),
    "overhead_async": (ratio("timing", "seconds/async", "seconds/uniform"), {"timing"}),
    "overhead_sync": (ratio("timing", "seconds/assist", "seconds/uniform"), {"timing"}),
    "waiting": (100 * number("timing", "waiting"), {"timing"}),
    "waiting_share": (math.log(1 + number("timing", "waiting")), {"timing"}),
    "0_auc_gain": (0.7 - 0.6, {"images_0_assist"}),
    "noise_wrong_excess": (
        100 * (number("images_noise_assist", "wrong") - number("images_noise_uniform", "wrong")),
        {"images_noise_assist", "images_noise_uniform"},
    ),
    "seconds_assist_over_uniform": (
        ratio("images_0_assist", "examples", "examples", "images_0_uniform")
        + ratio("timing", "seconds/assist", "seconds/uniform"),
        {"images_0_assist", "images_0_uniform", "timing"},
    ),
    "seconds_assist_over_random": (
        ratio("images_0_assist", "examples", "random/examples")
        + ratio("timing", "seconds/assist", "seconds/uniform"),  # of the control as of uniform
        {"images_0_assist", "timing"},
    ),
    "translation_overhead": (
        ratio("translation_timing", "seconds/assist", "seconds/uniform"),
        {"translation_timing"},
    ),
    "translation_kept": (100 * number("translation_assist", "kept"), {"translation_assist"}),
    "translation_confidence": (
        number("translation_assist", "confidence"),
        {"translation_assist"},
    ),
    "translation_guess": (number("translation_assist", "guess/mean"), {"translation_assist"}),
    "translation_auc": (0.65, {"translation_assist"}),
}
for _variant in ("ahead", "unshuffled"):
    VALUES[f"{_variant}_over_assist"] = (
        ratio(f"images_0_{_variant}", "examples", "examples", "images_0_assist"),
        {"images_0_assist", f"images_0_{_variant}"},
    )
for _c in (0, 1, 10, 100):
    VALUES[f"slope_{_c}"] = number("theorem", f"{_c}/slope"), {"theorem"}
    VALUES[f"theorem_gap_{_c}"] = ratio("theorem", f"{_c}/gap", "0/gap"), {"theorem"}
for _data in DATA:
    _arm = f"svm_{_data}"
    _found = {"loss_only_over_liblinear": ratio(_arm, "loss_only/products", "liblinear/products")}
    _found["moved_norm"] = ratio(_arm, "decay_skipped/found_norm", "decay_skipped/predicted_norm")
    for _rule in ("loss_only", "authors", "decay_skipped", "sphere", "constant", "random"):
        _found[f"{_rule}_norm"] = number(_arm, f"{_rule}/norm")
    for _rule in (
        *("loss_only", "authors", "decay_skipped", "sphere", "constant", "random"),
        *("decaying_1", "decaying_100"),
    ):
        _found[f"{_rule}_gap"] = ratio(_arm, f"{_rule}/gap", "sgd/gap")
        _found[f"{_rule}_kept"] = 100 * number(_arm, f"{_rule}/kept")
    for _one in ("loss_only", "with_replacement"):
        for _other, _what in (
            *(("loss_stale", "products"), ("loss_stale", "updates")),
            *(("gradient_stale", "products"), ("gradient_stale", "updates")),
            *(("loss_exact", "products"), ("gradient_exact", "products")),
        ):
            _found[f"{_one}_over_{_other}_{_what}"] = ratio(
                _arm, f"{_one}/{_what}", f"{_other}/{_what}"
            )
    VALUES |= {f"{_data}_{_name}": (_value, {_arm}) for _name, _value in _found.items()}
for _problem in PROBLEMS:
    _assist, _uniform = f"images_{_problem}_assist", f"images_{_problem}_uniform"
    for _guesser, _values in AUC.items():
        VALUES[f"{_problem}_auc_{_guesser}"] = sum(_values) / len(_values), {_assist}
    for _name in ("kept", "positives", "assistant_share"):
        VALUES[f"{_problem}_{_name}"] = 100 * number(_assist, _name), {_assist}
    _pairs = [("assist", "uniform"), ("assist", "random"), ("random", "uniform")]
    if _problem == "0":
        _pairs += [(_sampler, "uniform") for _sampler in (*RIVALS, *VARIANTS)]
    for _one, _other in _pairs:
        _arms, _prefixes = [], []
        for _sampler in (_one, _other):
            _arms.append(_assist if _sampler == "random" else f"images_{_problem}_{_sampler}")
            _prefixes.append("random/" if _sampler == "random" else "")

        def _both(name: str, arms: Any = _arms, prefixes: Any = _prefixes) -> tuple[float, float]:
            one, other = (number(a, p + name) for a, p in zip(arms, prefixes, strict=True))
            return one, other

        _base = f"{_problem}_{_one}_over_{_other}"
        for _end, _name in (("", "examples"), ("_work", "work")):
            _a, _b = _both(_name)
            VALUES[_base + _end] = math.log(_a) - math.log(_b), set(_arms)
        for _end, _name in (
            ("_accuracy", "test/accuracy"),
            ("_norms", "test/accuracy_norms"),
            ("_calibration", "test/calibration_error"),
        ):
            _a, _b = _both(_name)
            VALUES[_base + _end] = 100 * (_a - _b), set(_arms)
for _short, _name in (("loss", "val/loss"), ("bleu", "test/bleu"), ("chrf", "test/chrf")):
    _u, _a = "translation_uniform", "translation_assist"
    _of = number(_u, _name)
    VALUES |= {
        f"translation_uniform_{_short}": (_of, {_u}),
        f"translation_assist_{_short}": (number(_a, _name) - _of, {_u, _a}),
        f"translation_assist70_{_short}": (number(f"{_a}70", _name) - _of, {_u, f"{_a}70"}),
        f"translation_random_{_short}": (number(_a, f"random/{_name}") - _of, {_u, _a}),
        f"translation_assist_over_random_{_short}": (
            number(_a, _name) - number(_a, f"random/{_name}"),
            {_a},
        ),
    }

# --- estimands ------------------------------------------------------------------------------------


def test_every_estimand_is_computed_by_hand():
    assert set(VALUES) == set(e.ESTIMANDS)
    assert all(math.isfinite(estimand(hand_made())) for estimand in e.ESTIMANDS.values())


@pytest.mark.parametrize("name", VALUES)
def test_estimand_equals_the_value_by_hand(name):
    value, needed = VALUES[name]
    alone = [record for record in hand_made() if record["arm"] in needed]
    assert len(alone) == len(needed)
    for given in (hand_made(), hand_made()[::-1], alone):  # it reads no other arm
        assert e.ESTIMANDS[name](given) == pytest.approx(value, rel=1e-9, abs=1e-12)
    for arm in needed:
        with pytest.raises(KeyError, match=f"no record of {arm}'"):
            e.ESTIMANDS[name]([record for record in alone if record["arm"] != arm])


def test_kinds_of_estimands_by_hand():
    metrics = {"examples": 640.0, "random/examples": 320.0, "scanned": 900.0, "test/accuracy": 0.9}
    metrics |= {"reached": 1.0, "random/reached": 0.0}
    few: list[Record] = [
        {"arm": "images_0_assist", "metrics": metrics, "curves": {"auc/r": []}},
        {
            "arm": "images_0_uniform",
            "metrics": {"examples": 1280.0, "test/accuracy": 0.85, "reached": 1.0},
        },
        {"arm": "timing", "metrics": {"seconds/assist": 3.0, "seconds/uniform": 2.0}},
    ]
    assert e.auc("0")(few) == 0.5  # nothing was judged
    assert e.cost_ratio("0", "assist", "uniform")(few) == pytest.approx(-math.log(2))
    assert e.cost_ratio("0", "assist", "random")(few) == pytest.approx(math.log(2))
    assert e.accuracy_gain("0", "assist", "uniform")(few) == pytest.approx(5)
    assert e.seconds_to_target("assist")(few) == pytest.approx(640 / 64 * 3)
    assert e.seconds_to_target("random")(few) == pytest.approx(320 / 64 * 2)  # as cheap as uniform
    assert e.seconds_ratio("assist", "uniform")(few) == pytest.approx(math.log(30 / 40))
    assert e.log_ratio("images_0_assist", "scanned", "examples")(few) == math.log(900 / 640)
    assert [e.reached("0", of)(few) for of in ("assist", "random", "uniform")] == [
        True,
        False,
        True,
    ]
    with pytest.raises(KeyError, match="work"):
        e.cost_ratio("0", "assist", "uniform", "work")(few)


@pytest.mark.parametrize("claim", load_ledger(CLAIMS / "03.yaml"), ids=lambda claim: claim.id)
def test_claims_name_the_arms_that_their_estimands_read(claim, monkeypatch):
    read, find = set(), records.find

    def noting(given: Any, arm: str) -> Any:
        read.add(arm)
        return find(given, arm)

    for module in (records, e):
        monkeypatch.setattr(module, "find", noting)
    for part in [*claim.all_of, *(claim.beside.all_of if claim.beside else ())]:
        e.ESTIMANDS[part.estimand](hand_made())
    assert read == set(claim.arms)
    profile = "standard" if claim.tier == "headline" else "full"
    assert read <= {run.arm for run in chapters.load_chapter("03").plan(profile)}


# --- figures --------------------------------------------------------------------------------------


TRANSLATED = [("translation_uniform", "", 0.0), ("translation_assist", "", 0.2)]
TRANSLATED += [("translation_assist", "random/", 0.1), ("translation_assist70", "", 0.3)]


def of_seed(seed: int) -> list[Record]:
    """What the figures read; a seed is a tenth above the one before."""
    up = 1 + (seed - 1000) / 10
    found = {record["arm"]: record | {"seed": seed, "curves": {}} for record in hand_made()}
    curves: dict[str, dict[str, list[float]]] = {arm: of["curves"] for arm, of in found.items()}
    curves["theorem"]["k"] = [2.0, 20.0, 200.0]
    for c in (0, 1, 10, 100):
        curves["theorem"][f"{c}/distance"] = [up * (c + 1) / k for k in (2, 20, 200)]
        curves["theorem"][f"{c}/bound"] = [50.0 * (c + 1) / k for k in (2, 20, 200)]
    for arm in arms.SVM_SETS:
        for place, rule in enumerate(figures.RULES, 1):
            gaps = [9.0, up * place, 0.3, 0.1]  # every other is drawn
            curves[arm] |= {f"{rule}/gap": gaps, f"{rule}/products": [0.0, 5.0, 6.0, 7.0]}
    for arm in ("images_0_uniform", "images_0_assist", "images_noise_assist"):
        for prefix, accuracy in (("", 0.8), ("random/", 0.75)):
            curves[arm] |= {f"{prefix}accuracy": [0.7, accuracy * up, 0.85]}
            curves[arm] |= {f"{prefix}{name}": [1e3, 2e3, 3e3] for name in ("examples", "scanned")}
        curves[arm]["keep_rates"] = [1.0, 0.4 * up, 0.5] + [0.5] * (seed - 1000)
        curves[arm] |= {f"auc/{k}": [0.6 * up, 0.7] for k in ("r", "class", "loss")}
    for record in found.values():
        if record["arm"].startswith("images"):
            values = {"examples": 1000.0, "random/examples": 2000 * up, "random/work": 6000 * up}
            if not record["arm"].endswith("_uniform"):
                values = {k: v * up / 2 for k, v in values.items()}
            record["metrics"] = values | {"work": 3 * values["examples"]}
    for arm, prefix, less in TRANSLATED:
        tokens = [0.7e6, 1.4e6] if arm.endswith("70") else [1e6, 2e6]
        curves[arm] |= {f"{prefix}tokens": tokens, f"{prefix}val_loss": [4 * up - less, 3 - less]}
    spans = {"boss/wait": [0.0, 4.0, 8.0], "assistant/form": [1.0], "assistant/learn": [5.0, 6.0]}
    for kind, starts in spans.items():
        curves["timing"] |= {f"{kind}/start": starts, f"{kind}/end": [s + 1 for s in starts]}
        curves["timing"] |= {f"{kind}/{q}": [3.0] * len(starts) for q in ("batches", "feedbacks")}
    curves["timing"]["staleness"] = [1.0, 3.0] if seed > 1000 else [1.0, 2.0, 1.0]
    return list(found.values())


PANELS = {"accuracy_curves": 2, "key_figure": 2, "guessing": 2, "linear_work": 3, "savings": 2}
PANELS |= {"theorem_bounds": 1, "timeline": 3, "translation_curves": 2, "filtered_pictures": 2}


def drawn(name: str, seeds: int) -> Figure:
    given: Any = [record for seed in range(seeds) for record in of_seed(1000 + seed)]
    if name == "filtered_pictures":
        given = {"kept": torch.zeros(3, 8, 8), "left out": torch.zeros(2, 8, 8)}
    made: Figure = getattr(figures, name)(given)
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
    if name == "filtered_pictures":
        assert [axis.get_title(loc="left") for axis in made.axes] == ["kept", "left out"]
    elif name != "timeline":
        assert all(axis.get_xlabel() for axis in made.axes)


def test_figures_show_the_numbers_of_the_records():
    axes = {name: drawn(name, 3).axes for name in PANELS}
    shown = {
        name: [[list(line.get_ydata()) for line in axis.lines] for axis in of]
        for name, of in axes.items()
    }
    for c, line in zip((1, 2, 11, 101), shown["theorem_bounds"][0][::2], strict=True):
        assert line == pytest.approx([1.1 * c / k for k in (2, 20, 200)])
    for panel in shown["linear_work"]:
        assert panel[:5] == [pytest.approx([0.1])] * 5  # every third, from the end
    for panel in shown["accuracy_curves"]:
        expected = [[70, y, 85] for y in (88, 88, 82.5)]  # uniform, AutoAssist, its control
        assert panel[:3] == [pytest.approx(line) for line in expected]
    assert shown["guessing"][0][:3] == [pytest.approx([0.66, 0.7])] * 3
    assert list(axes["guessing"][0].lines[0].get_xdata()) == pytest.approx([19.2, 28.8])
    assert shown["guessing"][1] == [pytest.approx([100, 44, 50])] * 2  # the fewest passes
    left, right = shown["translation_curves"]
    assert left == [pytest.approx([4.4 - less, 3 - less]) for *_, less in TRANSLATED]
    assert right == [pytest.approx([-less, -less]) for less in (0.2, 0.1, 0.0)]
    assert list(axes["translation_curves"][0].lines[3].get_xdata()) == [0.7, 1.4]
    means = [[float(of.lines[0].get_xdata()[0]) for of in axis.containers]
             for axis in axes["savings"]]  # fmt: skip
    control = np.mean([up * up for up in (1, 1.1, 1.2)])
    wanted = [0.55, control, *[0.55] * 4, *[0.55, control] * 4]
    assert means == [pytest.approx(wanted)] * 2
    bars = [bar.get_height() for bar in axes["timeline"][2].patches]
    assert bars == pytest.approx([25, 200 / 3, 25 / 3])  # of 12 batches
