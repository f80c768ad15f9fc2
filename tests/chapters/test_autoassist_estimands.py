"""Chapter 3 without training: claims, tables and figures on records made by hand."""

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

from companion.chapters.autoassist import estimands as e
from companion.chapters.autoassist import figures
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.lab import chapters
from companion.paths import CLAIMS

SVMS = [f"svm_{data}" for data in e.DATA]
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
    """Records of one seed of all arms."""
    curves = {f"auc/{name}": values for name, values in AUC.items()} | {"auc": [0.5, 0.75, 0.7]}
    return [
        {"arm": arm, "seed": 1000, "metrics": Numbers(arm), "curves": curves}
        for arm in chapters.load_chapter("03").arms
    ]


# --- claims ---------------------------------------------------------------------------------------

CLAIMED = {claim.id: claim for claim in load_ledger(CLAIMS / "03.yaml")}


def value(claim: str, part: int = 0, setting: int = 0, **given: dict[str, float]) -> float:
    """A number of a claim, from records with the given metrics of some arms."""
    formula = CLAIMED[claim].parts[part].formulas[setting]
    records = [
        record | {"metrics": record["metrics"] | given.get(record["arm"], {})}
        for record in hand_made()
        if record["arm"] in formula.arms
    ]
    return formula.evaluate(records, chapters.functions_of("03"))


@pytest.mark.parametrize(
    ("claim", "problem", "side"),
    [("aa.6", "0", 1), ("aa.9", "large", 1), ("aa.10", "resnet8", 1), ("aa.11", "noise", -1)],
)
def test_half_the_examples_support_a_saving(claim, problem, side):
    given = {f"images_{problem}_assist": {"examples": 50.0}}
    given[f"images_{problem}_uniform"] = {"examples": 100.0}
    assert value(claim, **given) == pytest.approx(side * math.log(2))


@pytest.mark.parametrize("part", range(3))
def test_a_rival_with_half_the_examples_saves(part):
    [rival] = {"selective", "pruned", "screener"} & {
        arm.removeprefix("images_0_") for arm in CLAIMED["aa.12"].parts[part].formulas[0].arms
    }
    given = {f"images_0_{rival}": {"examples": 50.0}, "images_0_uniform": {"examples": 100.0}}
    assert value("aa.12", part, **given) == pytest.approx(math.log(2))


def test_steeper_curves_and_smaller_gaps_keep_the_rate():
    assert value("aa.1", theorem={"10/slope": -1.1}) == pytest.approx(0.1)
    assert value("aa.1", theorem={"10/slope": -0.7}) == pytest.approx(-0.3)
    gaps = {"0/gap": 2.0, "10/gap": 1.0, "100/gap": 4.0}
    assert value("aa.1", 1, 0, theorem=gaps) == pytest.approx(math.log(2))
    assert value("aa.1", 1, 1, theorem=gaps) == pytest.approx(-math.log(2))


@pytest.mark.parametrize("setting", range(3))
def test_a_moved_solution_has_a_larger_gap(setting):
    gaps = {"sgd/gap": 1.0, "constant/gap": 8.0, "authors/gap": 4.0, "loss_only/gap": 1.5}
    given = dict.fromkeys(SVMS, gaps)
    assert value("aa.2", 0, setting, **given) == pytest.approx(math.log(8))
    assert value("aa.3", 0, setting, **given) == pytest.approx(0.5)
    assert value("aa.3", 1, setting, **given) == pytest.approx(math.log(4))


@pytest.mark.parametrize("setting", range(6))
def test_shrinking_draws_as_importance_sampling_does_and_fewer_products_are_better(setting):
    products = {"with_replacement/products": 1.0, "loss_only/products": 0.1}
    products |= {"gradient_stale/products": 2.0, "loss_stale/products": 4.0}
    given = dict.fromkeys(SVMS, products)
    expected = [math.log(2), math.log(4)][setting % 2]
    assert value("aa.4", 0, setting, **given) == pytest.approx(expected)


def test_an_assistant_is_judged_against_a_coin_and_by_its_share_of_the_work():
    assert value("aa.5") == pytest.approx(0.7 - 0.5)  # the mean of two probes
    light = {"images_0_assist": {"assistant_share": 0.1}}
    assert value("aa.5", 1, **light) == pytest.approx(math.log(10))


def test_cheaper_updates_support_the_claims_on_time():
    seconds = {"seconds/uniform": 1.0, "seconds/async": 1.05, "seconds/assist": 1.2}
    given = {"timing": seconds | {"waiting": 0.1}}
    assert value("aa.7", **given) == pytest.approx(math.log(1.1 / 1.05))
    assert value("aa.7", 1, **given) == pytest.approx(math.log(1.05 / 1.1))
    assert value("aa.13", **given) == pytest.approx(math.log(1.1 / 1.2))


def test_more_wrong_labels_support_the_claim_that_they_are_preferred():
    given = {"images_noise_assist": {"wrong": 0.3}, "images_noise_uniform": {"wrong": 0.2}}
    assert value("aa.11", 1, **given) == pytest.approx(10)


# --- tables ---------------------------------------------------------------------------------------


def test_a_control_is_read_from_its_assistant_s_record():
    metrics = {"examples": 640.0, "random/examples": 320.0, "reached": 1.0, "random/reached": 0.0}
    records: list[Record] = [
        {"arm": "images_0_assist", "metrics": metrics, "curves": {"auc/r": []}},
        {"arm": "timing", "metrics": {"seconds/assist": 3.0, "seconds/uniform": 2.0}},
    ]
    assert e.cost_ratio("0", "assist", "random")(records) == pytest.approx(math.log(2))
    # its updates are as cheap as uniform ones
    assert e.seconds_ratio("assist", "random")(records) == pytest.approx(math.log(2 * 3 / 2))
    assert e.reached("0", "assist")(records)
    assert not e.reached("0", "random")(records)
    assert e.auc("0")(records) == 0.5  # nothing was judged
    with pytest.raises(KeyError, match="work"):
        e.cost_ratio("0", "assist", "random", "work")(records)
    with pytest.raises(KeyError, match="images_0_pruned"):
        e.reached("0", "pruned")(records)


# --- figures --------------------------------------------------------------------------------------


TRANSLATED = [("translation_uniform", "", 0.0), ("translation_assist", "", 0.2)]
TRANSLATED += [("translation_assist", "random/", 0.1), ("translation_assist70", "", 0.3)]


UPS = (1.0, 1.1, 1.2)


def records_of_seed(seed: int) -> list[Record]:
    """What the figures read; a seed is a tenth above the one before."""
    up = 1 + (seed - 1000) / 10
    records = [record | {"seed": seed, "curves": {}} for record in hand_made()]
    curves: dict[str, dict[str, list[float]]] = {each["arm"]: each["curves"] for each in records}
    curves["theorem"]["k"] = [2.0, 20.0, 200.0]
    for c in (0, 1, 10, 100):
        curves["theorem"][f"{c}/distance"] = [up * (c + 1) / k for k in (2, 20, 200)]
        curves["theorem"][f"{c}/bound"] = [50.0 * (c + 1) / k for k in (2, 20, 200)]
    for arm in SVMS:
        for number, rule in enumerate(figures.RULES, 1):
            gaps = [9.0, up * number, 0.3, 0.1]  # every other is drawn
            curves[arm] |= {f"{rule}/gap": gaps, f"{rule}/products": [0.0, 5.0, 6.0, 7.0]}
    for arm in ("images_0_uniform", "images_0_assist", "images_noise_assist"):
        for prefix, accuracy in (("", 0.8), ("random/", 0.75)):
            curves[arm] |= {f"{prefix}accuracy": [0.7, accuracy * up, 0.85]}
            curves[arm] |= {f"{prefix}{name}": [1e3, 2e3, 3e3] for name in ("examples", "scanned")}
        curves[arm]["keep_rates"] = [1.0, 0.4 * up, 0.5] + [0.5] * (seed - 1000)
        curves[arm] |= {f"auc/{k}": [0.6 * up, 0.7] for k in ("r", "class", "loss")}
    for record in records:
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
    return records


def drawn(name: str, seeds: int) -> Figure:
    given: Any = [record for seed in range(seeds) for record in records_of_seed(1000 + seed)]
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
    if name == "filtered_pictures":
        assert [axis.get_title(loc="left") for axis in made.axes] == ["kept", "left out"]
    elif name != "timeline":
        assert all(axis.get_xlabel() for axis in made.axes)


def test_figures_show_the_numbers_of_the_records():
    axes = {name: drawn(name, 3).axes for name in figures.__all__}
    shown = {
        name: [[list(line.get_ydata()) for line in axis.lines] for axis in panels]
        for name, panels in axes.items()
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
    means = [[float(part.lines[0].get_xdata()[0]) for part in axis.containers]
             for axis in axes["savings"]]  # fmt: skip
    ratios = {"assist": [up / 2 for up in UPS], "random": [up * up for up in UPS]}
    method, control = (float(np.mean(np.log(ratios[part]))) for part in ("assist", "random"))
    wanted = [method, control, *[method] * 4, *[method, control] * 4]
    assert means == [pytest.approx(wanted)] * 2
    bars = [bar.get_height() for bar in axes["timeline"][2].patches]
    assert bars == pytest.approx([25, 200 / 3, 25 / 3])  # of 12 batches
