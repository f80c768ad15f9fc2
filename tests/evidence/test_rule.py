"""The rule of verdicts: test vectors, kinds, combinations, what stands beside the word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from companion.evidence import rule as r


def values(mean, sd, n):
    """Equally spaced values with this mean and standard deviation."""
    z = np.linspace(-1, 1, n)
    return (mean + sd * z / z.std(ddof=1)).tolist()


@pytest.mark.parametrize(
    ("mean", "sd", "n", "words"),
    [
        (3, 0.75, 12, "holds, at least worth"),
        (1, 0.75, 12, "holds"),
        (0.5, 0.5, 24, "holds, small"),
        (0.42, 0.9, 24, "no effect"),
        (0.1, 1, 12, "no effect"),
        (-1.2, 2, 10, "no gain"),
        (-0.5, 0.5, 24, "opposite, small"),
        (-1.18, 1.62, 24, "opposite"),
        (0.5, 2, 12, "open"),
        (3, 0.5, 4, "open"),
    ],
)
def test_vectors_of_one_setting(mean, sd, n, words):
    assert r.rule_values(values(mean, sd, n), 1.0).words == words


def test_vectors_of_other_kinds():
    assert r.rule_values(values(0, 0.04, 24), 0.026, "none").word == "holds"
    assert r.rule_values(values(-0.19, 0.45, 36), 0.5, "not_less").word == "holds"


FIRST, SECOND, EIGHTH = (3, 0.75, 12), (1, 0.75, 12), (-1.18, 1.62, 24)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ([FIRST, (-0.1, 0.6, 12)], "mixed"),
        ([SECOND, (0.3, 0.9, 12)], "open"),
        ([EIGHTH, (-0.14, 0.64, 24)], "no gain"),
        ([FIRST, FIRST], "holds"),
        ([FIRST, SECOND], "holds"),
        ([EIGHTH, (-3, 0.5, 12)], "opposite"),
        ([(0.5, 0.5, 24), (0.1, 1, 12)], "no effect"),
        ([(0.5, 2, 12), (0.5, 2, 12)], "open"),
    ],
)
def test_settings(settings, word):
    rulings = [r.rule_values(values(*each), 1.0) for each in settings]
    assert r.combine_settings(rulings, 1.0).word == word


def test_equal_settings_keep_their_addition():
    strong = r.rule_values(values(*FIRST), 1.0)
    assert r.combine_settings([strong, strong], 1.0).words == "holds, at least worth"
    plain = r.rule_values(values(*SECOND), 1.0)
    assert r.combine_settings([strong, plain], 1.0).words == "holds"


def parts(*given):
    level = r.Level().among(len(given))
    plain = [r.rule_values(values(*each), 1.0) for each in given]
    corrected = [r.rule_values(values(*each), 1.0, level=level) for each in given]
    return plain, corrected


@pytest.mark.parametrize(
    ("combine", "given", "words"),
    [
        (r.combine_and, [(2, 1, 12), (0, 0.9, 12)], "no effect"),
        (r.combine_or, [(2, 1, 12), (-2, 0.9, 12)], "holds, at least worth"),
        (r.combine_and, [(2, 1, 12), (3, 0.75, 12)], "holds, at least worth"),
        (r.combine_and, [(-2, 0.9, 12), (0, 0.9, 12)], "opposite, at least worth"),
        (r.combine_or, [(-2, 0.9, 12), (0, 0.8, 12)], "no gain"),
        (r.combine_or, [(0.5, 2, 12), (-2, 0.9, 12)], "open"),
        (r.combine_and, [(2, 1, 12), (0.5, 2, 12)], "open"),
    ],
)
def test_parts(combine, given, words):
    assert combine(*parts(*given)).words == words


def test_a_part_refutes_only_at_the_corrected_level():
    # alone its interval lies within (-1, 1); among three it does not
    sd = 0.99 * math.sqrt(12) / stats.t.ppf(0.975, 11)
    plain, corrected = parts((3, 0.5, 12), (3, 0.5, 12), (0, sd, 12))
    assert plain[2].word == "no effect"
    assert r.combine_and(plain, corrected).word == "open"


def test_both_intervals_are_students():
    x = [0.3, 1.1, 0.2, 0.9, 0.7, 1.4]
    actual = r.rule_values(x, 1.0)
    for interval, confidence in ((actual.sign, 0.99), (actual.size, 0.95)):
        expected = stats.t.interval(confidence, 5, np.mean(x), stats.sem(x))
        assert interval == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_too_few_seeds_are_open_with_the_number(n):
    actual = r.rule_values(values(3, 0.1, n) if n > 1 else [3.0] * n, 1.0)
    assert actual.word == "open"
    assert f"{n} of at least 5" in actual.reason


def test_missing_and_undefined_values_are_open_with_the_reason():
    assert r.rule_values(values(3, 0.1, 12), 1.0, reason="seed 7 is missing").word == "open"
    actual = r.rule_values([1.0, 2.0, math.nan, 1.0, 1.0], 1.0)
    assert (actual.word, actual.reason) == ("open", "a value is nan")


def test_equal_values_and_a_worth_of_zero_are_refused():
    with pytest.raises(ValueError, match=r"all 6 values are 2\.0"):
        r.rule_values([2.0] * 6, 1.0)
    for worth in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="worth must be positive"):
            r.rule_values(values(1, 1, 8), worth)
    with pytest.raises(ValueError, match="kind must be one of"):
        r.rule_values(values(1, 1, 8), 1.0, "exact")


def test_a_bound_needs_no_worth():
    assert r.rule_values(values(0.5, 0.2, 8), 0.0, "bound").word == "holds"
    assert r.rule_values(values(-0.5, 0.2, 8), 0.0, "bound").word == "opposite"
    assert r.rule_values(values(0.1, 0.9, 8), 0.0, "bound").word == "open"


@pytest.mark.parametrize(
    ("kind", "mean", "word"),
    [
        ("none", 0, "holds"),
        ("none", 3, "opposite"),
        ("none", -3, "opposite"),
        ("none", 1, "open"),
        ("not_less", 3, "holds"),
        ("not_less", -3, "opposite"),
        ("not_less", -1, "open"),
    ],
)
def test_claims_of_no_effect_and_of_no_loss(kind, mean, word):
    assert r.rule_values(values(mean, 0.5, 12), 1.0, kind).word == word


def test_a_word_that_hangs_on_one_seed_is_open_and_says_which(monkeypatch):
    x = values(3, 0.75, 12)

    def ruled(rest, *rule, least):
        # as if the fourth value alone made the claim hold; Student's interval is too wide for that
        return r.Ruling("holds" if x[3] in rest else "opposite", n=len(rest))

    monkeypatch.setattr(r, "_ruled", ruled)
    actual = r.rule_values(x, 1.0)
    assert actual.word == "open"
    assert actual.reason == "without value 4 of 12 the word is “opposite”"


def test_a_word_that_only_weakens_without_a_seed_stays(monkeypatch):
    x = values(3, 0.75, 12)
    monkeypatch.setattr(
        r, "_ruled", lambda rest, *rule, least: r.Ruling("holds" if x[3] in rest else "no effect")
    )
    assert r.rule_values(x, 1.0).word == "holds"


def test_disjoint_regions():
    def region(word, addition=""):
        return r._regions("effect", r.Ruling(word, addition), 1.0)

    pairs = [
        (("holds",), ("opposite",), True),
        (("holds", "at least worth"), ("no effect",), True),
        (("holds", "at least worth"), ("no gain",), True),
        (("holds", "at least worth"), ("holds", "small"), True),
        (("holds",), ("no effect",), False),
        (("opposite", "at least worth"), ("no effect",), True),
        (("opposite",), ("no gain",), False),
        (("open",), ("holds",), False),
    ]
    for one, other, disjoint in pairs:
        assert r._are_disjoint(region(*one), region(*other)) is disjoint, (one, other)


def test_timings_are_judged_on_the_means_of_fifths():
    blocks = values(0.3, 0.1, 24)
    actual = r.rule_values(blocks, 0.05, "timing")
    means = [float(np.mean(part)) for part in np.array_split(blocks, 5)]
    expected = stats.t.interval(0.99, 4, np.mean(means), stats.sem(means))
    assert actual.sign == pytest.approx(expected, rel=1e-12)
    assert (actual.n, actual.means) == (24, 5)
    few = r.rule_values(blocks[:19], 0.05, "timing")
    assert (few.word, few.reason) == ("open", "19 of at least 20 values")


@pytest.mark.parametrize(
    ("true", "n", "word"),
    [(8, 8, "holds"), (7, 7, "open"), (0, 8, "opposite"), (4, 8, "open"), (4, 4, "open")],
)
def test_truth(true, n, word):
    assert r.rule_truth([1.0] * true + [0.0] * (n - true)).word == word


def test_truth_has_the_interval_of_clopper_and_pearson():
    actual = r.rule_truth([1.0] * 9 + [0.0])
    low, high = stats.binomtest(9, 10).proportion_ci(0.99)
    assert actual.sign == pytest.approx((low, high), abs=1e-12)
    with pytest.raises(ValueError, match=r"got 0\.5"):
        r.rule_truth([0.5])
    with pytest.raises(ValueError, match="chance"):
        r.rule_truth([1.0], chance=1.0)


@pytest.mark.parametrize(
    ("given", "options", "word"),
    [
        ([1e-9, -1e-9], {}, "holds"),
        ([1e-9, 1e-3], {}, "opposite"),
        ([1e-9, 1e-3], {"certified": [0.0, 0.0]}, "open"),
        ([1e-9], {"certified": [1e-3]}, "opposite"),
        ([1e-9], {"reason": "a case is missing"}, "open"),
        ([1e-3], {"reason": "a case is missing"}, "opposite"),
        ([math.nan], {"certified": [0.0]}, "open"),
        ([], {}, "open"),
    ],
)
def test_exact(given, options, word):
    assert r.rule_exact(given, 1e-6, **options).word == word


# --- several settings together ----------------------------------------------------------------


def ruled(mean, sd, n=12):
    return r.Ruling("open", n=n, means=n, mean=mean, sd=sd)


def test_settings_of_equal_precision_have_the_interval_of_their_means():
    means = [1.0, 2.5, -0.5, 3.0, 0.7, 1.9]
    actual = r.pool([ruled(m, 0.6) for m in means])
    expected = stats.t.interval(0.95, 5, np.mean(means), stats.sem(means))
    assert actual.mean == pytest.approx(np.mean(means))
    assert actual.interval == pytest.approx(expected)
    # between the settings: the variance of the means less that within; one more setting adds it
    between = np.var(means, ddof=1) - 0.6**2 / 12
    half = stats.t.ppf(0.975, 4) * math.sqrt(between + np.var(means, ddof=1) / 6)
    assert actual.prediction == pytest.approx((np.mean(means) - half, np.mean(means) + half))


def test_precise_settings_weigh_more_where_nothing_lies_between_them():
    actual = r.pool([ruled(1.0, 0.1)] * 3 + [ruled(1.05, 10.0)] * 2)
    assert actual.mean == pytest.approx(1.0, abs=1e-3)


def test_few_settings_have_a_plain_mean_and_one_has_none():
    actual = r.pool([ruled(1.0, 0.1), ruled(4.0, 2.0)], "a part")
    assert (actual.part, actual.settings, actual.mean) == ("a part", 2, 2.5)
    assert actual.interval is None
    assert actual.prediction is None
    assert r.pool([ruled(1.0, 0.1)]) is None
    assert r.pool([ruled(1.0, 0.1), r.Ruling("open")]) is None


# --- beside the word ------------------------------------------------------------------------------


def test_seeds_for_power_are_those_of_the_table():
    actual = [r.seeds_for_power(effect) for effect in (0.5, 0.75, 1, 1.5, 2)]
    assert actual == [51, 25, 16, 9, 7]


def test_power_is_that_of_the_noncentral_t():
    rng = np.random.default_rng(3)
    x = rng.normal(0.8, 1, (200_000, 12))
    low = x.mean(1) - stats.t.ppf(0.995, 11) * x.std(1, ddof=1) / math.sqrt(12)
    assert float(r.power_of_sign(0.8, 12)) == pytest.approx((low > 0).mean(), abs=4e-3)


@given(st.floats(0.1, 10), st.integers(5, 60))
def test_the_detectable_effect_has_its_power(sd, n):
    effect = r.detectable_effect(sd, n)
    assert float(r.power_of_sign(effect / sd, n)) == pytest.approx(0.8, abs=1e-6)


def test_stability_is_high_far_from_the_edge_and_low_on_it():
    assert r.stability(values(3, 0.3, 24), 1.0) == 1.0
    edge = values(0.575, 1, 24)  # the interval of 99 % just excludes zero
    assert r.rule_values(edge, 1.0).word == "holds"
    assert r.stability(edge, 1.0) < 0.9


def test_small_and_no_effect_count_as_the_same():
    x = values(0.31, 0.5, 24)
    assert r.rule_values(x, 1.0).words == "holds, small"
    assert r.stability(x, 1.0) > 0.99


@given(
    st.lists(st.floats(-5, 5), min_size=5, max_size=40),
    st.floats(0.1, 3),
    st.sampled_from(["effect", "none", "not_less", "bound"]),
)
def test_many_words_at_once_are_the_words_one_by_one(x, worth, kind):
    mean, sd = float(np.mean(x)), float(np.std(x, ddof=1))
    if sd < 1e-6:
        return
    [word] = r.words_of(np.array([mean]), np.array([sd]), len(x), worth, kind)
    assert r._ruled(list(x), worth, kind, r.Level(), least=5).word == word


def test_interval_for_other_items_holds_both_spreads():
    rng = np.random.default_rng(0)
    missed, runs, seeds, count = 0, 400, 8, 60
    for _ in range(runs):  # a value is 1 + what an item adds, shared by seeds, + noise
        items = 1 + rng.normal(size=count) + 0.5 * rng.normal(size=(seeds, count))
        pair = r.interval_for_other_items(items.mean(axis=1).tolist(), items)
        assert pair is not None
        missed += not pair[0] <= 1 <= pair[1]
    assert missed <= 0.05 * runs
    untested = np.column_stack([items, np.full(seeds, np.nan)])
    assert r.interval_for_other_items(items.mean(axis=1).tolist(), untested) == pair
    assert r.interval_for_other_items([1.0, 2.0], items[:2, :1]) is None
