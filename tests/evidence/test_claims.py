"""The ledger and every rule of design §4."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.evidence import claims as c
from companion.evidence import ledger

NUMBERS = st.floats(-1e6, 1e6)
REGIONS = st.one_of(
    st.tuples(st.sampled_from([">", ">=", "<", "<="]), st.tuples(NUMBERS)),
    st.tuples(
        st.sampled_from(["in", "outside"]),
        st.lists(NUMBERS, min_size=2, max_size=2, unique=True).map(lambda x: tuple(sorted(x))),
    ),
).map(lambda args: ledger.Region(*args))

SOURCE = {"work": "w", "where": "table 1", "published": "+5.9", "read": "text"}
GAIN = {"estimand": "gain", "unit": "points", "reproduced": "> 0", "contradicted": "< 1.0"}
GAP = {"estimand": "gap", "unit": "relative", "tolerance": 1e-5}
CERTIFIED = {**GAP, "violation": "gap_violation"}
RATIO = {"estimand": "log_ratio", "unit": "log ratio", "target": 1.05}
ESTIMANDS = {
    name: lambda records, name=name: {r["arm"]: r for r in records}["method"]["metrics"][name]
    for name in ("gain", "other", "gap", "gap_violation", "log_ratio")
}


def entry(kind="statistical", *rules, **changes):
    rules = rules or {"statistical": (GAIN,), "exact": (GAP,), "timing": (RATIO,)}[kind]
    return {
        "id": "toy.1", "tier": "extended", "statement": "It helps.", "source": SOURCE,
        "kind": kind, "all_of": list(rules), "seeds": 5, **changes,
    }  # fmt: skip


def make(*args, **changes):
    return ledger.Claim.model_validate(entry(*args, **changes))


def runs(arm="method", first=1000, /, plateau=None, demonstration=None, **metrics):
    """One record a seed: every keyword is a metric with its list of values."""
    extra = {"plateau": plateau, "demonstration": demonstration}
    return [
        {
            "chapter": "06", "arm": arm, "config": {}, "seed": first + k, "data": "d",
            "metrics": dict(zip(metrics, row, strict=True)), "curves": {}, "counters": {},
            **{key: value for key, value in extra.items() if value is not None},
        }
        for k, row in enumerate(zip(*metrics.values(), strict=True))
    ]  # fmt: skip


def verdict(claim, records):
    return c.judge(claim, records, ESTIMANDS).verdict


HIGH, LOW, BETWEEN, WIDE = [5, 6, 5, 6, 5], [-5, -6, -5, -6, -5], [0.4, 0.6] * 5, [-9, 9, -9, 9, 1]


# --- regions ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(REGIONS)
def test_region_survives_the_round_trip(region):
    assert ledger.Region.parse(str(region)) == region


@settings(deadline=None)
@given(REGIONS, NUMBERS, st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
def test_region_contains_every_part_of_what_it_contains(region, low, width, left, right):
    if region.contains_interval(low - left, low + width + right):
        assert region.contains_interval(low, low + width)


@settings(deadline=None)
@given(REGIONS, NUMBERS)
def test_point_is_inside_as_the_comparison_says(region, x):
    a, b = region.bounds[0], region.bounds[-1]
    says = {
        ">": x > a, ">=": x >= a, "<": x < a, "<=": x <= a,
        "in": a < x < b, "outside": not a < x < b,
    }  # fmt: skip
    assert region.contains_interval(x, x) == says[region.op]


@pytest.mark.parametrize(
    ("text", "low", "high", "expected"),
    [
        ("> 0", 0, 1, False), (">= 0", 0, 1, True), ("< 1", 0, 1, False), ("<= 1", 0, 1, True),
        ("in (-1, 1)", -1, 0, False), ("in(-1,1)", -0.99, 0.99, True),
        ("outside (-1, 1)", 1, 2, True), ("outside (-1, 1)", -3, -1, True),
        ("outside (-1, 1)", -3, 3, False), ("outside (-1, 1)", 0, 2, False),
        ("  >  -.5e-1 ", 0, 1, True), (">+2.", 3, 4, True),
    ],
)  # fmt: skip
def test_region_at_its_ends(text, low, high, expected):
    assert ledger.Region.parse(text).contains_interval(low, high) is expected


@pytest.mark.parametrize(
    "text",
    ["", "0", "> ", "=> 0", "> 0 and < 1", "in [0, 1]", "in (0)", "in 0, 1", "> nan", "> inf",
     "> 1_0", "!= 0", "between (0, 1)", "> 0x1", "in (0, 1, 2)", "> 0; 1"],
)  # fmt: skip
def test_other_text_is_no_region_and_is_shown(text):
    with pytest.raises(ValueError) as caught:
        ledger.Region.parse(text)
    assert f"not a region: {text!r}" in str(caught.value)


@pytest.mark.parametrize("text", ["in (1, 1)", "in (2, 1)", "outside (1, 0)", "> 1e999"])
def test_ends_must_be_finite_and_increase(text):
    with pytest.raises(ValueError, match="finite and increasing") as caught:
        ledger.Region.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("low", "high"), [(1, 0), (math.nan, 1), (0, math.nan)])
def test_region_refuses_what_is_no_interval(low, high):
    with pytest.raises(ValueError, match="expected low <= high"):
        ledger.Region.parse("> 0").contains_interval(low, high)


@pytest.mark.parametrize(
    ("reproduced", "contradicted", "effect"),
    [
        ("> 0", "< 1.0", 1), ("< 0", "> -0.25", 0.25), ("> 0", "<= 0", None),
        ("in (-1, 1)", "outside (-2, 2)", 1), ("in (-1, 1)", "outside (-1, 1)", 1),
        ("outside (-1, 1)", "in (-0.5, 0.5)", 0.5), ("> 3", "< 1", 2),
    ],
)  # fmt: skip
def test_smallest_effect_is_the_distance_of_the_bounds(reproduced, contradicted, effect):
    rule = ledger.Criterion(
        estimand="x", unit="1", reproduced=reproduced, contradicted=contradicted
    )
    assert rule.smallest_effect == effect


# --- statistical -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [(HIGH, "reproduced"), (LOW, "contradicted"), (WIDE, "inconclusive")],
)
def test_three_verdicts(values, expected):
    assert verdict(make(), runs(gain=values)) == expected


def test_reproduced_is_looked_at_before_contradicted():
    # the interval lies in (0, 1): inside both regions
    assert verdict(make(seeds=10), runs(gain=BETWEEN)) == "reproduced"
    both = ledger.Region.parse("> 0"), ledger.Region.parse("< 1")
    assert c.decide(0.2, 0.8, *both) == "reproduced"
    assert c.decide(0.2, 0.8, *reversed(both)) == "reproduced"
    assert c.decide(-0.2, 0.8, *both) == "contradicted"
    assert c.decide(-0.2, 1.8, *both) == "inconclusive"


OTHER = {**GAIN, "estimand": "other"}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (HIGH, HIGH, "reproduced"), (HIGH, LOW, "contradicted"), (LOW, WIDE, "contradicted"),
        (HIGH, WIDE, "inconclusive"), (WIDE, WIDE, "inconclusive"), (LOW, LOW, "contradicted"),
    ],
)  # fmt: skip
def test_all_must_be_reproduced_and_one_contradicts(first, second, expected):
    claim = make("statistical", GAIN, OTHER)
    assert verdict(claim, runs(gain=first, other=second)) == expected
    assert verdict(claim, runs(gain=second, other=first)) == expected


def test_estimate_is_the_t_interval_with_its_rule():
    found = c.judge(make(), runs(gain=HIGH), ESTIMANDS)
    (estimate,) = found.estimates
    assert (estimate.n, estimate.mean) == (5, pytest.approx(5.4))
    assert estimate.high - estimate.mean == pytest.approx(2.776445 * 0.3**0.5 / 5**0.5, rel=1e-6)
    assert estimate.rule == {"reproduced": "> 0", "contradicted": "< 1.0"}
    assert estimate.values == dict(zip(range(1000, 1005), HIGH, strict=True))
    assert (found.reason, found.under_powered, found.seeds_needed) == ("", False, None)


def test_reasons_show_the_interval():
    assert c.judge(make(), runs(gain=LOW), ESTIMANDS).reason.endswith("] is inside '< 1.0'")
    reason = c.judge(make(), runs(gain=WIDE), ESTIMANDS).reason
    assert reason.startswith("gain: [-")
    assert reason.endswith("] is inside neither region")
    assert c.judge(make(), runs(gain=[2] * 5), ESTIMANDS).reason == "gain: all 5 values are equal"


def test_equal_values_on_the_edge_decide_nothing():
    rule = {**GAIN, "reproduced": "> 0.1", "contradicted": "< 0.05"}
    assert verdict(make("statistical", rule), runs(gain=[0.1] * 5)) == "inconclusive"


def test_under_powered_claims_are_marked_with_the_seeds_that_would_decide():
    found = c.judge(make(), runs(gain=WIDE), ESTIMANDS)
    estimate = found.estimates[0]
    assert estimate.under_powered
    assert (estimate.high - estimate.low) / 2 > 1.0
    assert found.under_powered
    assert found.seeds_needed == c.seeds_needed(estimate.sd, 1.0, 0.95) > 5
    assert not c.judge(make(seeds=10), runs(gain=BETWEEN), ESTIMANDS).under_powered
    signs = {**GAIN, "contradicted": "<= 0"}  # equal bounds state no smallest effect
    assert not c.judge(make("statistical", signs), runs(gain=WIDE), ESTIMANDS).under_powered


@pytest.mark.parametrize(("half", "marked"), [(0.99, False), (1.01, True)])
def test_half_width_is_compared_with_the_smallest_effect(half, marked):
    shape = c.t_interval(HIGH, 0.95)  # scaled so that its half-width is ``half``
    values = [v * half / (shape.high - shape.mean) for v in HIGH]
    found = c.judge(make(), runs(gain=values), ESTIMANDS)
    assert found.under_powered is marked
    assert found.seeds_needed == (6 if marked else None)
    assert found.verdict == "reproduced"  # the mark does not touch the verdict


def test_timing_and_exact_have_no_smallest_effect():
    assert ledger.Criterion(**GAP).smallest_effect is None
    assert ledger.Criterion(**RATIO).smallest_effect is None


def test_confidence_of_the_ledger_is_used():
    values = [1, 3, 2, 0.2, 1.5]
    assert verdict(make(), runs(gain=values)) == "reproduced"
    assert verdict(make(confidence=0.999), runs(gain=values)) == "inconclusive"


def test_only_the_first_seeds_count():
    # fifteen more seeds would turn the verdict; they were not in the ledger
    records = runs(gain=HIGH + [-100] * 15)
    found = c.judge(make(), list(reversed(records)), ESTIMANDS)
    assert (found.verdict, found.estimates[0].n) == ("reproduced", 5)


def test_pilot_seeds_are_refused():
    with pytest.raises(ValueError, match=r"claim toy\.1: seed 99 is a pilot seed"):
        c.judge(make(), runs("method", 99, gain=HIGH), ESTIMANDS)


def test_estimands_see_all_records_of_one_seed():
    seen = []

    def gain(records):
        seen.append([(r["seed"], r["arm"]) for r in records])
        return 5.0

    c.judge(make(), runs(gain=HIGH) + runs("baseline", gain=LOW), {"gain": gain})
    assert seen == [[(seed, "method"), (seed, "baseline")] for seed in range(1000, 1005)]


# --- missing and broken evidence -------------------------------------------------------------


def test_claims_without_runs_are_not_tested_with_the_reason():
    claim = make(all_of=None, not_tested="later: needs COCO")
    found = c.judge(claim, runs(gain=HIGH), {})
    assert (found.verdict, found.reason, found.estimates) == ("not tested", "later: needs COCO", ())
    found = c.judge(make(), [], ESTIMANDS)
    assert (found.verdict, found.reason) == ("not tested", "no records")


def test_fewer_seeds_than_the_ledger_says_decide_nothing():
    found = c.judge(make(seeds=10), runs(gain=HIGH), ESTIMANDS)
    assert (found.verdict, found.reason) == ("inconclusive", "gain: 5 of 10 seeds or blocks")
    assert found.estimates[0].low > 0  # shown all the same
    assert verdict(make(), runs(gain=[5])) == "inconclusive"


def test_missing_arm_decides_nothing_and_is_named():
    broken = runs(gain=HIGH)
    broken[2]["arm"] = "baseline"
    found = c.judge(make(), broken, ESTIMANDS)
    reason = "gain: 4 of 5 seeds or blocks (seed 1002 has no 'method')"
    assert (found.verdict, found.reason) == ("inconclusive", reason)


def test_declared_arms_limit_the_records_and_must_be_there():
    records = runs(gain=HIGH) + runs("ablation", 1000, plateau=False, gain=LOW)
    assert verdict(make(), records) == "inconclusive"
    assert verdict(make(arms=["method"]), records) == "reproduced"
    found = c.judge(make(arms=["method", "gone"]), records, ESTIMANDS)
    assert (found.verdict, found.reason) == ("inconclusive", "no records of arm 'gone'")
    assert verdict(make(arms=["gone"]), records) == "not tested"
    found = c.judge(make(arms=["ablation", "gone"]), records, ESTIMANDS)  # no value at all
    assert (found.verdict, found.reason) == ("not tested", "no records of arm 'gone'")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_decide_nothing(bad):
    found = c.judge(make(), runs(gain=[*HIGH[:4], bad]), ESTIMANDS)
    assert (found.verdict, found.reason) == ("inconclusive", f"gain: seed 1004 gives {bad}")
    assert verdict(make("exact"), runs(gap=[0, 0, 0, 0, 0, bad])) == "inconclusive"
    json.dumps(found.to_json(), allow_nan=False)


def test_complete_contradicted_estimand_decides_beside_an_incomplete_one():
    claim = make("statistical", GAIN, OTHER)
    records = runs(gain=LOW, other=[*HIGH[:4], math.nan])
    assert verdict(claim, records) == "contradicted"
    assert verdict(claim, runs(gain=HIGH, other=[*HIGH[:4], math.nan])) == "inconclusive"


def test_unknown_estimand_raises_and_lists_the_known():
    with pytest.raises(ValueError, match=r"claim toy\.1: 'gain' is not one of \['other'\]"):
        c.judge(make(), runs(gain=HIGH), {"other": len})


def test_other_errors_of_an_estimand_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        c.judge(make(), runs(gain=HIGH), {"gain": lambda records: 1 / 0})


# --- plateau ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("missed", "expected"), [(0, "reproduced"), (1, "reproduced"),
                                                  (2, "inconclusive")])  # fmt: skip
def test_nine_runs_in_ten_must_meet_their_plateau_rule(missed, expected):
    records = runs("method", 1000, plateau=True, gain=HIGH * 2)
    for record in records[:missed]:
        record["plateau"] = False
    found = c.judge(make(seeds=10), records, ESTIMANDS)
    assert found.verdict == expected
    if missed == 2:
        assert found.reason == "arm 'method': 8 of 10 runs met their plateau rule (< 90 %)"
        assert found.estimates[0].verdict == "inconclusive"


def test_plateau_is_counted_per_arm_without_demonstrations():
    good = runs("method", 1000, plateau=True, gain=HIGH)
    bad = runs("baseline", 1000, plateau=False, gain=[0])
    found = c.judge(make(), good * 5 + bad, ESTIMANDS)  # 25 of 26 in all, 0 of 1 in one arm
    assert (found.verdict, found.reason.split(":")[0]) == ("inconclusive", "arm 'baseline'")
    shown = runs("collapse", 1000, plateau=False, demonstration=True, gain=[0])
    assert verdict(make(), good + shown) == "reproduced"


def test_plateau_rule_holds_for_contradictions_too():
    assert verdict(make(), runs("method", 1000, plateau=False, gain=LOW)) == "inconclusive"


# --- exact -----------------------------------------------------------------------------------


def test_exact_holds_on_every_seed_up_to_the_tolerance():
    claim = make("exact")
    found = c.judge(claim, runs(gap=[1e-5, -1e-5, 0, 1e-9, 0]), ESTIMANDS)
    assert (found.verdict, found.reason) == ("reproduced", "")
    assert (found.estimates[0].low, found.estimates[0].high) == (-1e-5, 1e-5)
    for bad in (1.1e-5, -1.1e-5):
        found = c.judge(claim, runs(gap=[0, 0, 0, bad, 0]), ESTIMANDS)
        reason = f"gap: seed 1003: {abs(bad):.6g} > 1e-05"
        assert (found.verdict, found.reason) == ("contradicted", reason)


def test_exact_looks_at_further_seeds_too():
    assert verdict(make("exact", seeds=1), runs(gap=[0, 0, 1])) == "contradicted"


def test_exact_needs_its_seeds_to_hold_but_one_to_fail():
    assert verdict(make("exact"), runs(gap=[0, 0])) == "inconclusive"
    assert verdict(make("exact"), runs(gap=[0, 1])) == "contradicted"
    assert verdict(make("exact", seeds=1), runs(gap=[0])) == "reproduced"


def test_only_a_certified_violation_contradicts():
    claim = make("exact", CERTIFIED)
    zero = [0.0] * 5
    assert verdict(claim, runs(gap=zero, gap_violation=zero)) == "reproduced"
    found = c.judge(claim, runs(gap=[0, 0, 1, 0, 0], gap_violation=zero), ESTIMANDS)
    assert (found.verdict, found.reason) == (
        "inconclusive",
        "gap: seed 1002 gives 1, not certified",
    )
    found = c.judge(claim, runs(gap=[0, 0, 1, 0, 0], gap_violation=[0, 0, 0.9, 0, 0]), ESTIMANDS)
    reason = "gap_violation: seed 1002: 0.9 > 1e-05"
    assert (found.verdict, found.reason) == ("contradicted", reason)
    assert verdict(claim, runs(gap=zero, gap_violation=[-1.0] * 5)) == "reproduced"
    assert verdict(claim, runs(gap=zero, gap_violation=[math.nan, *zero[1:]])) == "inconclusive"
    assert verdict(claim, runs(gap=zero)) == "reproduced"  # no certificate, nothing to certify
    assert verdict(claim, runs(gap=[1, *zero[1:]])) == "inconclusive"


# --- timing ----------------------------------------------------------------------------------


def blocks(ratio, n=20):
    return runs(log_ratio=[math.log(ratio) + (-1) ** k * 0.01 for k in range(n)])


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.0, "reproduced"), (1.09, "reproduced"), (1.1025, "inconclusive"), (1.12, "contradicted")],
)  # the limit is 1.05 * 1.05 = 1.1025, the half-width of the log-ratio about 0.005
def test_timing_compares_the_bounds_with_target_and_slack(ratio, expected):
    assert verdict(make("timing"), blocks(ratio)) == expected


def test_timing_needs_twenty_blocks():
    found = c.judge(make("timing"), blocks(1.0, 19), ESTIMANDS)
    reason = "log_ratio: 19 of 20 seeds or blocks"
    assert (found.verdict, found.reason) == ("inconclusive", reason)


# --- beside ----------------------------------------------------------------------------------


def test_second_criterion_is_shown_and_never_decides():
    beside = {"label": "the note's", "all_of": [{**GAIN, "reproduced": "> 9"}]}
    with pytest.raises(ValueError, match=r"lies inside"):
        make(beside={"label": "x", "all_of": [{**GAIN, "contradicted": "> 9"}]})
    with pytest.raises(ValueError, match="beside 'x' has an empty all_of"):
        make(beside={"label": "x", "all_of": []})
    beside["all_of"][0]["contradicted"] = "< 8"
    found = c.judge(make(beside=beside), runs(gain=HIGH), ESTIMANDS)
    assert found.verdict == "reproduced"
    assert (found.beside["label"], found.beside["verdict"]) == ("the note's", "contradicted")
    assert found.to_json()["beside"]["estimates"][0]["rule"]["reproduced"] == "> 9"


# --- JSON and hash ---------------------------------------------------------------------------


def test_json_is_rounded_sorted_and_the_same_for_any_order_of_records():
    records = runs(gain=[0.1 + 0.2, 1, 2, 3, -0.0])
    text = c.verdicts_json([c.judge(make(), records, ESTIMANDS)])
    assert text == c.verdicts_json([c.judge(make(), records[::-1], ESTIMANDS)])
    (plain,) = json.loads(text)
    assert plain["estimates"][0]["values"]["1000"] == 0.3
    assert '"1004": 0.0' in text
    assert list(plain) == sorted(plain)
    assert text.endswith("]\n")
    keys = {"id", "tier", "kind", "verdict", "reason", "estimates", "criterion_hash"}
    assert keys <= set(plain)


def test_numbers_are_rounded_to_twelve_digits():
    found = c.round_numbers({1: [1 / 3, -0.0, (2, True, None, "x")]})
    assert found == {"1": [0.333333333333, 0.0, [2, True, None, "x"]]}
    assert math.copysign(1, found["1"][1]) == 1
    assert c.round_numbers(1e-300 / 3) == 3.33333333333e-301
    with pytest.raises(ValueError, match="cannot write nan"):
        c.round_numbers([math.nan])


def test_hash_is_stable_under_rewording():
    reworded = {"statement": "Other words.", "tier": "headline", "id": "toy.2",
                "source": {**SOURCE, "published": "+6"},
                "power": {"pilot_sd": 1, "n": 5, "power": 0.9}}  # fmt: skip
    assert ledger.criterion_hash(make()) == ledger.criterion_hash(make(**reworded))
    assert ledger.criterion_hash(make()) == ledger.criterion_hash(make(confidence=0.95))


def test_hash_moves_with_everything_that_decides():
    beside = {"label": "x", "all_of": [OTHER]}
    variants = [
        make(), make(seeds=6), make(confidence=0.9), make(arms=["method"]), make(beside=beside),
        make("statistical", {**GAIN, "contradicted": "< 1.1"}), make("statistical", GAIN, OTHER),
        make("statistical", {**GAIN, "reproduced": ">= 0"}), make("statistical", OTHER),
        make("exact"), make("exact", {**GAP, "tolerance": 2e-5}), make("exact", CERTIFIED),
        make("timing"), make("timing", {**RATIO, "target": 1.06}),
        make(all_of=None, not_tested="later"),
    ]  # fmt: skip
    assert len({ledger.criterion_hash(each) for each in variants}) == len(variants)


def test_expected_false_reproduced_counts_what_was_drawn():
    def judged(claim, records):
        return c.judge(claim, records, ESTIMANDS)

    judgements = [
        judged(make(), runs(gain=HIGH)), judged(make(confidence=0.9), runs(gain=WIDE)),
        judged(make("timing"), blocks(1.0)), judged(make("exact"), runs(gap=[0.0] * 5)),
        judged(make(), []),
    ]  # fmt: skip
    assert c.expected_false_reproduced(judgements) == pytest.approx(0.025 + 0.05 + 0.025)
    assert c.expected_false_reproduced([]) == 0


# --- ledger files ----------------------------------------------------------------------------

LEDGER = """\
- id: vse.1
  tier: headline
  statement: Max-of-hinges beats sum-of-hinges.
  source: {work: faghri2018vsepp, where: tables 1-2, published: "+5.9 / +4.6 R@1", read: recalled}
  kind: statistical
  all_of:
    - {estimand: gain, unit: points, reproduced: "> 0", contradicted: "< 1.0"}
  seeds: 10
  confidence: 0.95
  power: {pilot_sd: 0.01, n: 10, power: 0.95}
- id: vse.2
  tier: extended
  statement: The gap closes.
  source: {work: faghri2018vsepp, where: eq. 3, published: "0", read: text}
  kind: exact
  all_of: [{estimand: gap, unit: relative, tolerance: 1.0e-5, violation: gap_violation}]
- id: vse.3
  tier: extended
  statement: It costs nothing.
  source: {work: faghri2018vsepp, where: section 5, published: none, read: text}
  kind: timing
  all_of: [{estimand: log_ratio, unit: log ratio, target: 1.05}]
- id: vse.4
  tier: headline
  statement: On COCO too.
  source: {work: faghri2018vsepp, where: table 1, published: "+5.9", read: text}
  kind: statistical
  not_tested: "later: needs COCO"
"""


def test_ledger_is_read_as_written(tmp_path):
    path = tmp_path / "01.yaml"
    path.write_text(LEDGER)
    claims = ledger.load_ledger(path)
    assert [each.id for each in claims] == ["vse.1", "vse.2", "vse.3", "vse.4"]
    assert [each.kind for each in claims] == ["statistical", "exact", "timing", "statistical"]
    assert (claims[0].all_of[0].reproduced, claims[1].all_of[0].tolerance) == ("> 0", 1e-5)
    assert (claims[1].seeds, claims[1].confidence) == (10, 0.95)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id: vse.2", "id: vse.1", "claim vse.1 occurs twice"),
        ("id: vse.1", "id: VSE-1", "claim VSE-1: id: String should match"),
        ("- id: vse.1\n  tier", "- tier", "claim number 1: id: Field required"),
        ("tier: headline", "tier: main", "claim vse.1: tier: Input should be 'headline'"),
        ("seeds: 10", "seeds: 4", "needs at least 5 seeds, got 4"),
        ("seeds: 10", "sedes: 10", "sedes: Extra inputs are not permitted, got 10"),
        ("0.95\n", "95\n", "confidence: Input should be less than 1, got 95"),
        ("power: 0.95}", "power: 0.79}", "power of at least 0.8, got 0.79"),
        ("  power: {pilot_sd: 0.01, n: 10, power: 0.95}\n", "", "of at least 0.8, got None"),
        ('"> 0"', '"bigger"', "not a region: 'bigger'"),
        ('"< 1.0"', '"> 1.0"', "gain: '> 1.0' lies inside '> 0.0'"),
        (', contradicted: "< 1.0"', "", "got ['reproduced']"),
        ("read: recalled", "read: maybe", "source.read: Input should be 'text'"),
        ("kind: exact", "kind: timing", "gap: exact rule in a timing claim"),
        ("tolerance: 1.0e-5", "tolerance: -1", "tolerance: Input should be greater than or equal"),
        ("tolerance: 1.0e-5", "tolerance: .nan", "tolerance: Input should be a finite number"),
        ("target: 1.05", "target: 0", "target: Input should be greater than 0"),
        ("target: 1.05", "target: 1.05, violation: x", "violation belongs to tolerance"),
        ("target: 1.05", "target: 1.05, tolerance: 0", "got ['target', 'tolerance']"),
        (
            "[{estimand: log_ratio, unit: log ratio, target: 1.05}]",
            "[]",
            "either all_of or not_tested",
        ),
        ('  not_tested: "later: needs COCO"\n', "", "either all_of or not_tested"),
        ("  kind: timing", "  not_tested: x\n  kind: timing", "either all_of or not_tested"),
        ("- id: vse.1", "- just text\n- id: vse.1", "claim number 1: : Input should be a valid"),
        (LEDGER, "a: 1", "expected a list of claims, got dict"),
        (LEDGER, "", "expected a list of claims, got NoneType"),
        (LEDGER, "- [", "not readable as YAML"),
        (LEDGER, "- !!python/object/apply:os.getcwd []", "not readable as YAML"),
    ],
)
def test_faults_name_file_claim_and_value(tmp_path, old, new, message):
    path = tmp_path / "01.yaml"
    assert old in LEDGER
    path.write_text(LEDGER.replace(old, new, 1))
    with pytest.raises(ValueError) as caught:
        ledger.load_ledger(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
