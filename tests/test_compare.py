"""Comparison with the evidence: bytes, intervals, seconds, and what the first line says."""

from __future__ import annotations

import copy

import pytest

from companion.evidence.claims import Effect, Judgement
from companion.pages.compare import Comparison, compare_claims, compare_records, first_line


def pair(arm="plain", seed=1000, value=1.0, fingerprint="aa", deterministic=True, **settings):
    record = {
        "chapter": "05",
        "arm": arm,
        "version": 1,
        "seed": seed,
        "data": "d",
        "settings": settings,
        "metrics": {"test/accuracy": value},
    }
    return record, {"fingerprint": fingerprint, "deterministic": deterministic}


def judgement(*effects, claim="csa.1"):
    names = "tier origin scope control statement note published published_effect read where"
    plain = dict.fromkeys([*names.split(), "front", "posed", "criterion"], "")
    rest = {"kind": "effect", "worth": "1 points"}
    return Judgement(id=claim, **plain, **rest, effects=effects)


def effect(word, low, high, name="gain", kind="effect"):
    middle, head = (low + high) / 2, ("", name, "a - b", kind, 1.0, "points", 0.0, 1)
    return Effect(*head, word, "", "", 8, {}, middle, 1.0, (low, high), (low, high))


def test_equal_records_of_an_equal_fingerprint_are_counted():
    pairs = [pair(seed=1000), pair(seed=1001)]
    actual = compare_records("05", copy.deepcopy(pairs), pairs)
    assert (actual.compared, actual.differing, actual.failed) == (2, [], False)


def test_a_last_digit_is_an_error_that_names_arm_and_seed():
    actual = compare_records("05", [pair(value=1.0 + 1e-12)], [pair()])
    assert actual.failed
    assert actual.differing == ["plain seed 1000"]


@pytest.mark.parametrize("fingerprints", [("aa", "bb"), ("aa-native", "aa-native")])
def test_bytes_count_only_where_equal_fingerprints_promise_them(fingerprints):
    ours, theirs = fingerprints
    actual = compare_records("05", [pair(value=2.0, fingerprint=ours)], [pair(fingerprint=theirs)])
    assert (actual.compared, actual.elsewhere, actual.failed) == (0, 1, False)


def test_seconds_are_not_compared():
    ours = [pair(value=2.0, deterministic=False)]
    assert compare_records("05", ours, [pair(deterministic=False)]) == Comparison("05")


def test_evidence_from_before_canonical_mode_is_not_compared():
    actual = compare_records("05", [pair(value=2.0)], [pair()], early_arms=["plain"])
    assert (actual.early, actual.compared, actual.failed) == (1, 0, False)


def test_another_setting_or_version_is_not_in_the_evidence():
    newer, row = pair()
    newer["version"] = 2
    actual = compare_records("05", [pair(lr=0.1), (newer, row)], [pair()])
    assert (actual.absent, actual.failed) == (2, False)


def compared(ours, theirs):
    comparison = Comparison("05", elsewhere=1)
    compare_claims(comparison, [ours], [theirs])
    return comparison


def test_a_word_may_turn_at_the_edge_and_not_where_the_intervals_are_apart():
    ours = judgement(effect("holds", 0.1, 2.0))
    edge = compared(ours, judgement(effect("opposite", -1.0, 0.2)))
    assert not edge.failed
    assert edge.moved == ["csa.1, gain: opposite in the evidence, holds here"]
    apart = compared(ours, judgement(effect("opposite", -1.0, 0.05)))
    assert apart.failed
    assert apart.turned[0].startswith("csa.1, gain: opposite in the evidence, holds here: gain 1")


def test_disjoint_intervals_with_the_same_word_or_a_weaker_one_are_no_error():
    ours = judgement(effect("holds", 1.0, 2.0))
    assert compared(ours, judgement(effect("holds", 5.0, 6.0))).agreeing == 1
    weaker = compared(ours, judgement(effect("open", -6.0, -5.0)))
    assert (weaker.agreeing, weaker.failed, len(weaker.moved)) == (0, False, 1)


def test_only_the_setting_that_turned_counts():
    ours = judgement(effect("holds", 0.1, 2.0), effect("holds", 5.0, 6.0, "other"))
    theirs = judgement(effect("opposite", -1.0, 0.2), effect("holds", 1.0, 2.0, "other"))
    assert not compared(ours, theirs).failed


def test_an_exact_claim_that_turns_is_an_error_whatever_its_extremes():
    ours = judgement(effect("opposite", 0.0, 1.0, kind="exact"))
    assert compared(ours, judgement(effect("holds", 0.0, 1e-9, kind="exact"))).failed


def test_a_turned_timing_is_neither_an_error_nor_counted():
    ours = judgement(effect("opposite", 1.0, 2.0, kind="timing"))
    actual = compared(ours, judgement(effect("holds", -2.0, -1.0, kind="timing")))
    assert (actual.claims, actual.moved, actual.failed) == (0, [], False)


@pytest.mark.parametrize(
    ("comparison", "unavailable", "words"),
    [
        (Comparison("01", compared=412), {}, "412 of 412 records equal the evidence"),
        (
            Comparison("04", compared=60, differing=["a seed 1000", "b seed 1001"]),
            {},
            "58 of 60 records equal the evidence; 2 differ: a seed 1000, b seed 1001",
        ),
        (
            Comparison("04", elsewhere=60, claims=23, agreeing=23),
            {},
            "another fingerprint: intervals were compared, 23 of 23 claims agree",
        ),
        (
            Comparison("03"),
            {"03": "libreoffice_help"},
            "data not available here: chapter 3 (libreoffice_help)",
        ),
        (Comparison("02", early=3), {}, "made before canonical mode, not compared: chapter 2"),
        (Comparison("02"), {}, "nothing was compared"),
    ],
)
def test_the_first_line_says_what_was_found(comparison, unavailable, words):
    assert words in first_line([comparison], unavailable)


def test_unavailable_data_never_counts_as_equal():
    line = first_line([Comparison("01", compared=5)], {"03": "libreoffice_help"})
    assert "5 of 5 records equal" in line
    assert "chapter 3 (libreoffice_help)" in line
