"""Judging a claim: which values count, what stands in the way, what is shown beside."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from companion.evidence import claims as c
from companion.evidence.ledger import Claim

PUBLISHED = {"value": "+5 points", "where": "table 1", "work": "w", "read": "text"}
GAIN = {"name": "digits", "number": "new - old"}


def make(**changes):
    base = {
        "id": "toy.1",
        "tier": "headline",
        "origin": "authors",
        "scope": "scaled",
        "statement": "It helps.",
        "published": PUBLISHED,
        "kind": "effect",
        "worth": "1.0 points",
        "of": "accuracy",
        "settings": [GAIN],
        "seeds": {"from": 1000, "count": 8},
    } | changes
    return Claim.model_validate({k: v for k, v in base.items() if v is not None})


def part(**changes):
    rule = {"kind": "effect", "worth": "1.0 points", "of": "accuracy", "settings": [GAIN]}
    return {k: v for k, v in (rule | changes).items() if v is not None}


PARTS = {"kind": None, "worth": None, "of": None, "settings": None}


def runs(arm, values, first=1000, **extra):
    return [
        {"arm": arm, "seed": first + k, "metrics": {"accuracy": v}, "curves": {}, **extra}
        for k, v in enumerate(values)
    ]


def pair(gains, first=1000, **extra):
    """Records of both arms whose difference is given."""
    old = [50.0 + k for k in range(len(gains))]
    new = [a + g for a, g in zip(old, gains, strict=True)]
    return runs("new", new, first, **extra) + runs("old", old, first)


HIGH = [3.0, 3.5, 2.5, 3.2, 2.8, 3.1, 2.9, 3.0]
NONE = [0.1, -0.1, 0.2, -0.2, 0.1, -0.1, 0.05, -0.05]


def test_the_word_and_what_it_rests_on():
    actual = c.judge(make(), pair(HIGH), {})
    assert (actual.word, actual.addition) == ("holds", "at least worth")
    [effect] = actual.effects
    assert effect.n == 8
    assert effect.values == pytest.approx({1000 + k: g for k, g in enumerate(HIGH)})
    expected = stats.t.interval(0.95, 7, np.mean(HIGH), stats.sem(HIGH))
    assert effect.size == pytest.approx(expected)
    assert effect.formula == "new - old of accuracy"
    assert (actual.kind, actual.worth, effect.worth, effect.unit) == (
        "effect", "1.0 points", 1.0, "points",
    )  # fmt: skip
    assert effect.stability == 1.0
    assert not actual.is_narrow


def test_exactly_the_first_seeds_decide():
    later = [-20.0] * 4
    assert c.judge(make(), pair(HIGH + later), {}).effects[0].n == 8
    before = c.judge(make(), pair(later, first=996) + pair(HIGH), {})
    assert before.word == "holds"
    fewer = c.judge(make(), pair(HIGH[:7]), {})
    assert fewer.word == "open"
    assert fewer.reason == "7 of 8 seeds"


def test_fewer_seeds_decide_only_for_comparisons():
    assert c.judge(make(), pair(HIGH[:6]), {}, all_there_are=True).word == "holds"
    assert c.judge(make(), pair(HIGH[:4]), {}, all_there_are=True).word == "open"


def test_a_missing_arm_and_a_missing_metric_are_named():
    only = runs("new", HIGH)
    actual = c.judge(make(), only, {})
    assert (actual.word, actual.reason) == ("open", "0 of 8 seeds: no record of old")
    assert not actual.has_values
    assert c.judge(make(), [], {}).reason == "0 of 8 seeds"
    gone = c.judge(make(of="gone"), pair(HIGH), {})
    assert gone.reason == "0 of 8 seeds: gone"


def test_a_metric_that_no_record_has_is_named_with_those_that_are_alike():
    misspelt = c.judge(make(of="acuracy"), pair(HIGH), {})
    assert misspelt.effects[0].reason == "0 of 8 seeds: acuracy; did you mean accuracy?"
    curves = pair(HIGH, curves={"loss": [2.0, 1.0]})
    setting = {"name": "digits", "number": 'new.curve["los"][-1]'}
    misspelt = c.judge(make(of=None, settings=[setting]), curves, {})
    assert misspelt.effects[0].reason == "0 of 8 seeds: los; did you mean loss?"
    # what only some seeds lack is spelt right
    some = pair(HIGH)
    del some[0]["metrics"]["accuracy"]
    some[1]["metrics"]["acuracy"] = 1.0
    assert c.judge(make(), some, {}).effects[0].reason == "7 of 8 seeds: accuracy"


def test_values_that_are_not_finite_are_named():
    actual = c.judge(make(), pair([*HIGH[:7], math.nan]), {})
    assert (actual.word, actual.reason) == ("open", "seed 1007 gives nan")


def test_unknown_arms_double_records_and_equal_values_are_refused_by_name():
    with pytest.raises(ValueError, match=r"toy\.1: unknown arm 'old'; did you mean old2"):
        c.judge(make(), pair(HIGH), {}, known_arms={"new", "old2"})
    with pytest.raises(ValueError, match="two records of 'new'"):
        c.judge(make(), pair(HIGH) + runs("new", HIGH), {})
    with pytest.raises(ValueError, match=r"toy\.1: digits: all 8 values are 2"):
        c.judge(make(), pair([2.0] * 8), {})
    claim = make(settings=[{"name": "x", "number": "leed(new)"}])
    with pytest.raises(ValueError, match=r"unknown function 'leed'; did you mean lead\?"):
        c.judge(claim, pair(HIGH), {"lead": max})


def test_functions_take_the_records_of_arms(monkeypatch):
    claim = make(settings=[{"name": "digits", "number": "lead(new, old)"}], of=None)

    def lead(new, old):
        return new["metrics"]["accuracy"] - old["metrics"]["accuracy"]

    monkeypatch.setattr("companion.evidence.ledger.source_hash", lambda function: "0")
    assert c.judge(claim, pair(HIGH), {"lead": lead}).word == "holds"


def test_an_arm_that_did_not_reach_its_plateau_decides_nothing():
    records = pair(HIGH, plateau=True)
    for record in records[:1]:
        record["plateau"] = False
    actual = c.judge(make(), records, {})
    assert actual.word == "open"
    assert actual.reason == "arm new: 7 of 8 runs met their plateau rule (< 90 %)"
    assert actual.effects[0].mean == pytest.approx(np.mean(HIGH))
    shown = [r | {"demonstration": True} for r in records]
    assert c.judge(make(), shown, {}).word == "holds"


def test_settings_are_one_effect():
    claim = make(settings=[GAIN, {"name": "fashion", "number": "other - old"}])
    old = pair(HIGH)
    records = old + runs("other", [50.0 + k + g for k, g in enumerate(NONE)])
    actual = c.judge(claim, records, {})
    assert actual.word == "mixed"
    assert [effect.word for effect in actual.effects] == ["holds", "no effect"]
    [pooled] = actual.pooled
    assert pooled.settings == 2
    assert pooled.mean == pytest.approx((np.mean(HIGH) + np.mean(NONE)) / 2)


def test_parts_all_and_any():
    other = part(name="b", settings=[{"name": "fashion", "number": "other - old"}])
    records = pair(HIGH) + runs("other", [50.0 + k + g for k, g in enumerate(NONE)])
    both = make(**PARTS, all_of=[part(name="a"), other])
    either = make(**PARTS, any_of=[part(name="a"), other])
    assert c.judge(both, records, {}).word == "no effect"
    assert c.judge(either, records, {}).word == "holds"
    assert [e.part for e in c.judge(both, records, {}).effects] == ["a", "b"]
    mixed = make(**PARTS, all_of=[part(name="a"), part(name="b", kind="none")])
    assert c.judge(mixed, records, {}).kind == "parts"


def test_what_stands_beside_never_decides():
    claim = make(
        beside=[part(label="other way round", settings=[{"name": "x", "number": "old - new"}])]
    )
    actual = c.judge(claim, pair(HIGH), {})
    assert actual.word == "holds"
    [aside] = actual.beside
    assert (aside.label, aside.word) == ("other way round", "opposite")


def test_a_claim_that_todays_records_cannot_answer_is_open_with_its_reason():
    claim = make(unanswered="The budget was cut.")
    actual = c.judge(claim, pair(HIGH), {})
    assert (actual.word, actual.reason) == ("open", "The budget was cut.")
    assert actual.effects[0].mean == pytest.approx(np.mean(HIGH))
    assert c.judge(make(**PARTS, unanswered="No arm."), [], {}).reason == "No arm."


@pytest.mark.parametrize(("side", "word"), [("above", "holds"), ("below", "opposite")])
def test_bounds_are_judged_from_their_threshold(side, word):
    claim = make(kind="bound", worth=None, unit="points", **{side: 1.0})
    actual = c.judge(claim, pair(HIGH), {})
    assert actual.word == word
    [effect] = actual.effects
    assert effect.mean == pytest.approx((np.mean(HIGH) - 1) * (1 if side == "above" else -1))


def test_truth_and_exact():
    truth = make(
        kind="truth", worth=None, unit="of seeds", settings=[{"name": "x", "number": "new > old"}]
    )
    assert c.judge(truth, pair(HIGH), {}).word == "holds"
    exact = make(kind="exact", worth=None, unit="share", tolerance=1e-6)
    tiny = pair([1e-9] * 3)
    for record in tiny:
        record["metrics"]["accuracy"] = 1e-9 if record["arm"] == "new" else 0.0
    assert c.judge(exact, tiny, {}).word == "holds"  # every case there is, however few
    far = [r | {"metrics": {"accuracy": 1.0 if r["arm"] == "new" else 0.0}} for r in tiny]
    assert c.judge(exact, far, {}).word == "opposite"
    certified = make(kind="exact", worth=None, unit="share", tolerance=1e-6, certificate="0 * new")
    assert c.judge(certified, far, {}).word == "open"


def test_timings_need_twenty_blocks_and_are_judged_on_fifths():
    claim = make(kind="timing", worth="5 percent", seeds={"from": 1000, "count": 20})
    rng = np.random.default_rng(0)
    gains = (0.2 + 0.01 * rng.normal(size=20)).tolist()
    actual = c.judge(claim, pair(gains), {})
    assert (actual.word, actual.addition) == ("holds", "at least worth")
    assert actual.effects[0].n == 20
    few = c.judge(claim, pair(gains[:19]), {})
    assert (few.word, few.reason) == ("open", "19 of 20 blocks")


def test_what_is_said_beside_an_open_word():
    wide = [0.5 + 2 * z for z in np.linspace(-1, 1, 8)]
    actual = c.judge(make(published=PUBLISHED | {"effect": "5 points"}), pair(wide), {})
    [effect] = actual.effects
    assert actual.word == "open"
    assert effect.seeds_needed is not None
    assert effect.seeds_needed > 8
    assert effect.power is not None
    assert 0.9 < effect.power <= 1
    assert effect.detectable is not None
    assert effect.detectable > 1


def test_large_skew_of_few_values_is_said():
    skewed = [0.0, 0.1, 0.0, 0.1, 0.05, 0.0, 0.1, 9.0]
    assert c.judge(make(), pair(skewed), {}).effects[0].skew == pytest.approx(
        stats.skew(np.array(skewed)), rel=1e-6
    )
    assert c.judge(make(), pair(HIGH), {}).effects[0].skew is None


def test_json_goes_there_and_back_and_has_equal_bytes():
    claim = make(beside=[part(label="again")], note="A note.", front="In short.")
    actual = c.judge(claim, pair(HIGH), {})
    text = c.verdicts_json([actual])
    assert text == c.verdicts_json([c.judge(claim, pair(HIGH)[::-1], {})])
    [row] = json.loads(text)
    again = c.Judgement.from_json(row)
    assert c.verdicts_json([again]) == text
    assert again.effects[0].values == {
        k: pytest.approx(v) for k, v in actual.effects[0].values.items()
    }
    for name in ("word", "effects", "beside"):
        damaged = {key: value for key, value in row.items() if key != name}
        with pytest.raises(TypeError, match=name):
            c.Judgement.from_json(damaged)


def test_numbers_are_rounded_and_never_negative_zero():
    assert c.round_numbers({1: (1 / 3, -0.0)}) == {"1": [0.333333333333, 0.0]}
    with pytest.raises(ValueError, match="cannot write"):
        c.round_numbers([math.inf])
