"""What a run returns: rounding, refusals, and curves thinned evenly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from companion.lab.results import evenly, make_result


def test_metrics_are_rounded_as_asked_and_curves_to_six_digits():
    result = make_result({"a": 1 / 3}, {"c": [2 / 3, 1.0]}, {"steps": 3}, digits=4)
    assert result.as_record() == {
        "metrics": {"a": 0.3333},
        "curves": {"c": [0.666667, 1.0]},
        "counters": {"steps": 3},
    }
    assert make_result({"a": 1 / 3}).metrics == {"a": 0.333333333}


def test_notes_stand_beside_the_numbers():
    record = make_result({"a": 1.0}, notes={"threads": [1, 2]}).as_record()
    assert record == {"metrics": {"a": 1.0}, "curves": {}, "counters": {}, "threads": [1, 2]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError):
        make_result({"a": value})
    with pytest.raises(ValueError):
        make_result({"a": 1.0}, {"c": [0.0, value]})


def test_one_point_cannot_keep_both_ends():
    with pytest.raises(ValueError, match="two points or more"):
        evenly(5, 1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 60, 61, 1000])
@pytest.mark.parametrize("points", [2, 7, 60])
def test_a_thinned_curve_keeps_both_ends_and_is_even(count, points):
    kept = evenly(count, points)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, points)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)
        steps = [b - a for a, b in pairwise(kept)]
        assert not steps or max(steps) - min(steps) <= 1
