"""Reading records, made by hand: several seeds, not in order, some without an arm."""

from __future__ import annotations

import numpy as np
import pytest

from companion.lab.records import Record, by_seed, curves_of, find, metric, values_of


def record(seed: int, arm: str, m: float = 0.0) -> Record:
    return {"seed": seed, "arm": arm, "metrics": {"m": m}, "curves": {"c": [m, m + 1, m + 2]}}


# seed 1001 has no b, seed 1003 no a
RECORDS = [
    record(1002, "b", 5.0),
    record(1000, "a", 1.0),
    record(1003, "b", 7.0),
    record(1002, "a", 4.0),
    record(1001, "a", 3.0),
    record(1000, "b", 2.0),
]


def test_find_returns_the_record_of_the_arm():
    assert find(RECORDS[:2], "a") is RECORDS[1]
    assert find(RECORDS[:2], "b") is RECORDS[0]
    with pytest.raises(KeyError, match="no record of c'"):
        find(RECORDS, "c")


def test_metric_is_that_of_the_arm_times_a_scale():
    of_seed = [record(1000, "a", 6.0), record(1000, "b", 1.5)]
    assert metric("b", "m")(of_seed) == 1.5
    assert metric("a", "m", 100)(of_seed) == 600
    whole = metric("d", "n")([{"arm": "d", "metrics": {"n": 6}}])
    assert (whole, type(whole)) == (6, float)
    with pytest.raises(KeyError, match="other"):
        metric("a", "other")(of_seed)
    with pytest.raises(KeyError, match="no record of c'"):
        metric("c", "m")(of_seed)


@pytest.mark.parametrize(
    ("arms", "seeds"),
    [
        ((), [1000, 1001, 1002, 1003]),
        (("a",), [1000, 1001, 1002]),
        (("b",), [1000, 1002, 1003]),
        (("a", "b"), [1000, 1002]),
        (("a", "c"), []),
    ],
)
def test_by_seed_groups_seeds_in_order_that_have_all_arms(arms, seeds):
    groups = by_seed(RECORDS, *arms)
    assert [{r["seed"] for r in group} for group in groups] == [{seed} for seed in seeds]
    # all records of the seed, in the order given, not those of the arms alone
    assert groups == [[r for r in RECORDS if r["seed"] == seed] for seed in seeds]


def test_values_of_leaves_out_seeds_without_the_records():
    assert values_of(RECORDS, metric("a", "m")) == [1, 3, 4]
    assert values_of(
        RECORDS, lambda records: metric("b", "m")(records) - metric("a", "m")(records)
    ) == [1, 1]
    assert values_of(RECORDS, metric("a", "other")) == []
    with pytest.raises(ZeroDivisionError):  # nothing but a missing record is passed over
        values_of(RECORDS, lambda records: 1 / 0)


def test_curves_of_has_a_row_a_seed():
    actual = curves_of(RECORDS, "b", "c")
    np.testing.assert_array_equal(actual, [[2, 3, 4], [5, 6, 7], [7, 8, 9]])
    assert actual.shape == (3, 3)
    assert curves_of(RECORDS, "a", "c")[:, 0].tolist() == [1, 3, 4]
    assert len(curves_of(RECORDS, "other", "c")) == 0
    with pytest.raises(KeyError, match="other"):
        curves_of(RECORDS, "a", "other")
