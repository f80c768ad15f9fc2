"""Values of the test items of chapter 1, which its records hold as digits."""

from __future__ import annotations

import numpy as np
import pytest

from companion.chapters.hard_negatives.numbers import item_values
from companion.evidence.store import read_reference


def test_items_are_shares_of_the_galleries_that_hold_a_concept() -> None:
    record = {"hits": {"i2t": "2010", "t2i": "0000"}, "galleries": "2110"}
    found = item_values(record, "test/i2t/r1")
    assert found is not None
    np.testing.assert_array_equal(found, [100, 0, 100, np.nan])
    for metric in ("test/i2t/r5", "val/r1", "test/rsum", "i2t"):
        assert item_values(record, metric) is None
    assert item_values({}, "test/i2t/r1") is None


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_items_average_to_the_metric_of_their_record(direction: str) -> None:
    reference = read_reference("standard", "01")
    assert reference is not None
    record = next(each for each in reference.records if each["arm"] == "vendor_max")
    items = item_values(record, f"test/{direction}/r1")
    assert items is not None
    # a gallery counts for its size here and once there: not the same, but near
    assert float(np.nanmean(items)) == pytest.approx(
        record["metrics"][f"test/{direction}/r1"], 0.05
    )
