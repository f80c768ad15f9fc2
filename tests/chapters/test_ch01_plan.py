"""Chapter 1 without its data: arms, plan, and the claims' numbers on records made by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from companion.chapters.hard_negatives import arms, runs, tuning
from companion.chapters.hard_negatives import estimands as e
from companion.chapters.hard_negatives.config import Config
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.lab import chapters
from companion.lab.records import find
from companion.paths import CLAIMS

GROUPS = (arms.HEADLINE, arms.FACTORIAL, arms.EXTENDED, arms.DEEP)
ALL = {arm: entry for group in GROUPS for arm, entry in group.items()}


@pytest.fixture
def any_rate(monkeypatch) -> None:
    """Give every arm that may be tuned a step length of its own."""
    values = {arm: float(f"1e-{i}") for i, arm in enumerate(tuning.tuned_arms(), 1)}
    monkeypatch.setattr(arms, "_tuned_values", lambda: values)


# --- arms and plan --------------------------------------------------------------------------------


def test_headline_is_two_losses_by_two_splits_with_and_without_unit_pictures():
    assert list(arms.HEADLINE) == ["family_sum", "family_max", "vendor_sum", "vendor_max"]
    assert list(arms.FACTORIAL) == [
        *("family_product_sum", "family_product_max"),
        *("vendor_product_sum", "vendor_product_max"),
    ]
    for name, (changes, _, owner) in (arms.HEADLINE | arms.FACTORIAL).items():
        split, *product, loss = name.split("_")
        score = product[0] if product else "cosine"
        assert (changes, owner) == ({"split": split, "score": score, "loss": loss}, name)


@pytest.mark.parametrize("arm", ALL)
def test_an_arm_has_the_settings_of_base_and_an_owner(arm):
    settings, seconds, owner = arms.settings_of(arm)
    assert set(settings) == set(arms.BASE)
    assert settings["split"] == arm.split("_")[0]
    assert seconds > 0
    assert arms.settings_of(owner)[2] == owner
    assert owner in tuning.tuned_arms()
    # what shares a step length shares the encoders and the score
    for name in ("split", "encoder", "captions", "score", "loss"):
        assert arms.settings_of(owner)[0][name] == settings[name]


def test_every_owner_that_a_profile_plans_is_tuned():
    owners = {owner for _, _, owner in ALL.values()}
    assert owners == set(tuning.tuned_arms())
    dear = {owner for _, _, owner in arms.DEEP.values()}  # no profile has seeds for them yet
    assert owners - dear <= set(arms._tuned_values()) <= owners
    assert {arms.tuned(owner) for owner in arms._tuned_values()} <= set(tuning.GRID)
    with pytest.raises(KeyError, match="family_clip_mean_sum"):
        arms.tuned("family_clip_mean_sum")  # has that of its owner


def test_groups_share_no_arm_and_unknown_ones_are_refused():
    assert len(ALL) == sum(map(len, GROUPS))
    assert set(arms.DEMONSTRATIONS) <= set(ALL)
    assert arms.BASE["split"] == "family"  # not changed by what was asked before
    for arm in ("family", "family_average", "timing", ""):
        with pytest.raises(ValueError, match=f"unknown arm '{arm}'"):
            arms.settings_of(arm)


@pytest.mark.parametrize("profile", ["standard", "full"])
def test_plan_stays_within_its_budget(profile, any_rate):
    path = chapters.PROFILES / f"{profile}.yaml"
    if profile == "full" and "01" not in yaml.safe_load(path.read_text(encoding="utf-8")):
        pytest.skip("full.yaml has no section for chapter 1 yet")
    plan = chapters.load_chapter("01").plan(profile)
    assert sum(run.predicted_seconds for run in plan) <= chapters.BUDGET_SECONDS[profile]
    assert all(run.seed >= 1000 for run in plan)


def test_plan_has_every_arm_with_the_rate_of_its_owner(any_rate):
    counts = (4, 3, 2, 1)  # seeds of the groups
    names = ("seeds", "factorial_seeds", "extended_seeds", "deep_seeds")
    plan = runs.plan(Config(**dict(zip(names, counts, strict=True)), timing_blocks=5))
    expected = {"family_ridge": 4, "timing": 5}
    for group, count in zip(GROUPS, counts, strict=True):
        expected |= dict.fromkeys(group, count)
    assert Counter(run.arm for run in plan) == expected
    assert len({run.key for run in plan}) == len(plan)
    for run in plan:
        assert run.seed in range(1000, 1000 + expected[run.arm])
        assert run.deterministic == (run.arm != "timing")
        if run.arm in ALL:
            settings, _, owner = arms.settings_of(run.arm)
            assert settings.items() <= dict(run.config).items()
            assert run.config["lr"] == arms.tuned(owner)
            assert run.config["max_epochs"] == arms.epochs_of(run.arm, 120)
    standard = {*arms.HEADLINE, *arms.FACTORIAL, "family_ridge", "timing"}
    assert {run.arm for run in runs.plan(Config())} == standard


# --- numbers of the claims on records made by hand ------------------------------------------------

# arm: R@1 from picture to caption and back, mean ranks
RECALLS = {
    "family_sum": (30, 20, 10, 14),
    "family_max": (34, 22, 20, 16),
    "family_product_sum": (20, 14, 30, 31),
    "family_product_max": (29, 25, 32, 33),
    "family_order_sum": (10, 8, 50, 51),
    "family_order_max": (13, 6, 52, 53),
    "family_ridge": (18, 17, 40, 41),
    "vendor_sum": (50, 40, 8, 8),
    "vendor_max": (60, 44, 5, 7),
    "vendor_product_sum": (41, 31, 11, 12),
    "vendor_product_max": (48, 38, 13, 14),
    "vendor_fixed_sum": (33, 27, 21, 22),
    "vendor_fixed_max": (35, 30, 23, 24),
    "vendor_warmup_1": (62, 46, 6, 6),
    "vendor_warmup_5": (58, 42, 6, 7),
    "vendor_negatives_2_sum": (30, 20, 15, 16),
    "vendor_negatives_8_sum": (36, 30, 17, 18),
    "vendor_negatives_32_sum": (41, 39, 19, 20),
    "vendor_negatives_2_max": (20, 10, 15, 16),
    "vendor_negatives_8_max": (40, 36, 17, 18),
    "vendor_negatives_32_max": (50, 46, 19, 20),
}
# the longer run ends at epoch 41: early is the first record from epoch ceil(0.05 * 41) = 3 on
CURVES = {
    "sum": ([1, 2, 3, 4, 5, 6], [1, 4, 9, 16, 20, 24]),
    "max": ([1, 2, 4, 20, 30, 40, 41], [2, 3, 7, 20, 25, 25, 28]),
}


def hand_made() -> list[Record]:
    """All records of one seed."""
    records: list[Record] = []
    for arm, (there, back, rank_there, rank_back) in RECALLS.items():
        metrics = {
            "test/i2t/r1": there,
            "test/t2i/r1": back,
            "test/i2t/mean_r": rank_there,
            "test/t2i/mean_r": rank_back,
            "val/rsum": {"family_sum": 200.0, "family_max": 190.0}.get(arm, 300.0),
        }
        epochs, values = CURVES[arm.split("_")[-1]] if arm[-4:] in ("_sum", "_max") else ([], [])
        shift = 100 if arm == "vendor_max" else 0
        curves = {"epoch": list(epochs), "val/r1": [value + shift for value in values]}
        records.append({"arm": arm, "seed": 1000, "metrics": metrics, "curves": curves})
    times = {(128, "sum"): 0.001, (128, "max"): 0.002, (1024, "sum"): 0.4, (1024, "max"): 0.3}
    seconds = {f"{loss}/B={size}/d=1024": time for (size, loss), time in times.items()}
    seconds |= {"step/sum": 0.020, "step/max": 0.021}
    return [*records, {"arm": "timing", "seed": 1000, "metrics": seconds, "curves": {}}]


CLAIMED = {claim.id: claim for claim in load_ledger(CLAIMS / "01.yaml")}
FUNCTIONS = chapters.functions_of("01")
# every number of the ledger, by claim: parts in order and then those beside, settings in order
FORMULAS = {
    f"{name} {place}": formula
    for name, claim in CLAIMED.items()
    for place, formula in enumerate(claim.all_formulas())
}

# number: value by hand, and the weights of the arms' mean R@1 of both directions in it
LINEAR = {
    "vse.2 0": (
        4.5,
        {"vendor_max": 1, "vendor_sum": -1, "vendor_fixed_max": -1, "vendor_fixed_sum": 1},
    ),
    "vse.2 1": (2.5, {"vendor_fixed_max": 1, "vendor_fixed_sum": -1}),
    "vse.4 0": (-2, {"vendor_max": 1, "vendor_warmup_1": -1}),
    "vse.4 1": (2, {"vendor_max": 1, "vendor_warmup_5": -1}),
    "vse.5 0": (37, {"vendor_max": 1, "vendor_negatives_2_max": -1}),
    "vse.5 1": (  # 38 - 15 against 52 - 48
        19,
        {
            "vendor_negatives_8_max": 1,
            "vendor_negatives_2_max": -1,
            "vendor_max": -1,
            "vendor_negatives_32_max": 1,
        },
    ),
    "vse.5 2": (  # 37 against 45 - 25
        17,
        {
            "vendor_max": 1,
            "vendor_negatives_2_max": -1,
            "vendor_sum": -1,
            "vendor_negatives_2_sum": 1,
        },
    ),
    # loss ((28-25) + (27-17)) / 2 = 6.5, normalisation ((28-27) + (25-17)) / 2 = 4.5
    "vse.8 0": (2, {"family_product_max": 1, "family_sum": -1}),
    "vse.8 1": (-8, {"family_product_sum": 1, "family_sum": -1}),
    # loss ((52-45) + (43-36)) / 2 = 7, normalisation ((52-43) + (45-36)) / 2 = 9
    "vse.8 2": (-2, {"vendor_product_max": 1, "vendor_sum": -1}),
    "vse.8 3": (-9, {"vendor_product_sum": 1, "vendor_sum": -1}),
    "vse.9 0": (3, {"family_max": 1, "family_sum": -1}),
    "vse.9 2": (7, {"vendor_max": 1, "vendor_sum": -1}),
}
# number: value by hand, and the single metrics that move it: a gain, then a loss
SINGLE = {
    "vse.1 0": (4, "family_max/i2t/r1", "family_sum/i2t/r1"),
    "vse.1 1": (2, "family_max/t2i/r1", "family_sum/t2i/r1"),
    "vse.1 2": (10, "vendor_max/i2t/r1", "vendor_sum/i2t/r1"),
    "vse.1 3": (4, "vendor_max/t2i/r1", "vendor_sum/t2i/r1"),
    "vse.7 0": (3, "family_order_max/i2t/r1", "family_order_sum/i2t/r1"),
    "vse.7 1": (-2, "family_order_max/t2i/r1", "family_order_sum/t2i/r1"),
}
OTHER = {
    "vse.3 0": 9 - 7,
    "vse.3 1": 21 - 14.6,
    "vse.3 2": 9 - 107,
    "vse.3 3": 121 - 14.6,
    "vse.6 0": math.log(1.05 * 20 / 21),
    "vse.6 1": math.log(20 / 21),
    "vse.6 2": math.log(1 / 2),
    "vse.6 3": math.log(4 / 3),
    "vse.9 1": math.log(18 / 12),
    "vse.9 3": math.log(6 / 8),
}
VALUES = {name: entry[0] for name, entry in (LINEAR | SINGLE).items()} | OTHER


def value(name: str, records: list[Record]) -> float:
    """The number of the ledger."""
    return FORMULAS[name].evaluate(records, FUNCTIONS)


def moved(name: str, arm: str, change: Callable[[Record], Any]) -> float:
    """How far a number moves when one record changes."""
    records = hand_made()
    change(find(records, arm))
    return value(name, records) - value(name, hand_made())


def add_to(metric: str, value: float) -> Callable[[Record], Any]:
    return lambda record: record["metrics"].update({metric: record["metrics"][metric] + value})


def test_every_number_is_computed_by_hand():
    assert set(VALUES) == set(FORMULAS)


def test_numbers_read_no_arm_that_the_plan_has_not():
    read = {arm for formula in FORMULAS.values() for arm in formula.arms}
    assert read <= {*ALL, "timing"}


@pytest.mark.parametrize("name", VALUES)
def test_number_equals_the_value_by_hand(name):
    for records in (hand_made(), hand_made()[::-1]):
        assert value(name, records) == pytest.approx(VALUES[name], abs=1e-12)


@pytest.mark.parametrize("name", sorted(LINEAR.keys() | SINGLE.keys()))
def test_number_moves_with_its_recalls_and_with_nothing_else(name):
    gain, loss = SINGLE[name][1:] if name in SINGLE else ("", "")
    for arm in RECALLS:
        for direction in ("i2t", "t2i"):
            key = f"{arm}/{direction}/r1"
            weight = (key == gain) - (key == loss)
            if name in LINEAR:
                weight = LINEAR[name][1].get(arm, 0) / 2
            shift = moved(name, arm, add_to(f"test/{direction}/r1", 3.0))
            assert shift == pytest.approx(3 * weight, abs=1e-12), (arm, direction)
            assert moved(name, arm, add_to(f"test/{direction}/mean_r", 3.0)) == 0


@pytest.mark.parametrize(
    ("split", "behind", "ahead", "rank"),
    [("family", "vse.3 0", "vse.3 1", "vse.9 1"), ("vendor", "vse.3 2", "vse.3 3", "vse.9 3")],
)
def test_leads_and_ratios_move_with_what_they_are_about(split, behind, ahead, rank):
    most, total = f"{split}_max", f"{split}_sum"

    def shift(name: str, arm: str, place: int) -> float:
        def change(record: Record) -> None:
            record["curves"]["val/r1"][place] += 10

        return moved(name, arm, change)

    # recorded epochs of the maximum: 1, 2, 4, 20, 30, 40, 41; of the sum 1 to 6
    assert [shift(behind, most, i) for i in range(7)] == [0, 0, -10, 0, 0, 0, 0]
    assert [shift(behind, total, i) for i in range(6)] == [0, 0, 10, 0, 0, 0]
    assert [shift(ahead, most, i) for i in range(7)] == pytest.approx([0, 0] + [2] * 5)
    assert [shift(ahead, total, i) for i in range(6)] == pytest.approx([0] + [-2] * 5)
    mean = sum(RECALLS[most][2:]) / 2
    moves = moved(rank, most, add_to("test/i2t/mean_r", 2.0))
    assert moves == pytest.approx(math.log((mean + 1) / mean))
    assert moved(rank, total, add_to("test/t2i/mean_r", 2.0)) < 0


def test_a_long_run_of_the_sum_decides_what_is_early():
    def longer(record: Record) -> None:
        record["curves"]["epoch"][-1] = 81  # ceil(0.05 * 81) = 5: the sum's 20, the maximum's 20

    assert moved("vse.3 0", "family_sum", longer) == (20 - 20) - (9 - 7)


def test_times_move_with_the_seconds_that_they_are_about():
    timed = ("step/{}", "step/{}", "{}/B=128/d=1024", "{}/B=1024/d=1024")
    for place, own in enumerate(timed):
        for loss, sign in (("max", -1), ("sum", 1)):
            for metric in timed:
                slower = add_to(metric.format(loss), 10.0)
                shift = moved(f"vse.6 {place}", "timing", slower)
                assert (shift * sign > 0) == (metric == own), (place, metric, loss)


def test_collapse_and_the_slower_step_by_hand():
    metrics = {"final_loss": 0.5, "final_norm": 0.75, "test/i2t/r1": 3, "test/t2i/r1": 4}
    records = [{"arm": "a", "seed": 1000, "metrics": metrics, "plateau": False}]
    found = {name: estimand(records) for name, estimand in e.collapse("a").items()}
    assert list(found.values()) == pytest.approx([1.25, 0.75, 3, 4, False])
    assert found["met the plateau rule"] is False
    assert e.collapse("a", margin=0.05)["loss / 2 margins"](records) == pytest.approx(5)
    for estimand in e.collapse("b").values():
        with pytest.raises(KeyError, match="no record of b"):
            estimand(records)
    seconds = {"step/max": 0.0022, "step/sum": 0.002}
    slower = e.step_slowdown([{"arm": "timing", "seed": 1000, "metrics": seconds}])
    assert slower == pytest.approx(10)


def test_mean_recall_in_tables():
    assert e.recall(hand_made(), "family_max") == (34 + 22) / 2
    with pytest.raises(KeyError, match="no record of other"):
        e.recall(hand_made(), "other")


def test_chosen_loss_is_the_one_of_the_higher_validation():
    records = hand_made()
    assert e.chosen_loss(records) == "sum"
    assert e.chosen_over_ridge("i2t/r1")(records) == 30 - 18
    assert e.chosen_over_ridge("t2i/r1")(records) == 20 - 17
    find(records, "family_max")["metrics"]["val/rsum"] = 201.0
    assert e.chosen_loss(records) == "max"
    assert e.chosen_over_ridge("i2t/r1")(records) == 34 - 18
    with pytest.raises(KeyError, match="family_ridge"):
        e.chosen_over_ridge("i2t/r1")([r for r in records if r["arm"] != "family_ridge"])


def test_concept_differences_by_hand():
    def record(arm: str, seed: int, rsum: float, hits: str, galleries: str) -> Record:
        digits = {"hits": {"i2t": hits, "t2i": "0" * len(hits)}, "galleries": galleries}
        return {"arm": arm, "seed": seed, "metrics": {"val/rsum": rsum}, **digits}

    records = [
        record("family_max", 1000, 300, "402", "404"),  # chosen
        record("family_sum", 1000, 299, "000", "404"),
        record("family_ridge", 1000, 999, "304", "404"),
        record("family_max", 1001, 100, "000", "241"),
        record("family_sum", 1001, 101, "131", "241"),  # chosen
        record("family_ridge", 1001, 0, "020", "241"),
        record("vendor_max", 1002, 0, "1", "1"),  # a seed without the ridge does not count
    ]
    tested = {1000: [4, 7, 9], 1001: [7, 9, 2]}
    # concept 2: 1/1; 4: (4-3)/4; 7: in no gallery, then (1-0)/2; 9: (2-4)/4 and (3-2)/4
    expected = [100, 25, 50, -12.5]
    assert e.concept_differences(records, "i2t", tested.__getitem__) == pytest.approx(expected)
    assert e.concept_differences(records, "t2i", tested.__getitem__) == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="zip"):
        e.concept_differences(records, "i2t", lambda _: [4, 7])
    with pytest.raises(KeyError, match="family_sum"):
        e.concept_differences(records[:1] + records[2:], "i2t", tested.__getitem__)
