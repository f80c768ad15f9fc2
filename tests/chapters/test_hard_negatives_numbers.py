"""Numbers of chapter 1's claims, tables and figures, on records made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from companion.chapters.hard_negatives import estimands
from companion.chapters.hard_negatives.numbers import early_lead, final_recall, item_values
from companion.evidence.store import read_reference
from companion.lab.records import Record


def test_items_are_shares_of_the_galleries_that_hold_a_concept() -> None:
    record = {"hits": {"i2t": "2010", "t2i": "0000"}, "galleries": "2110"}
    items = item_values(record, "test/i2t/r1")
    assert items is not None
    np.testing.assert_array_equal(items, [100, 0, 100, np.nan])
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
    # a gallery counts for its size here and once in the metric: not the same, but near
    assert float(np.nanmean(items)) == pytest.approx(
        record["metrics"][f"test/{direction}/r1"], 0.05
    )


def curves(epochs: list[int], values: list[int]) -> Record:
    return {"curves": {"epoch": epochs, "val/r1": values}}


def test_early_is_a_twentieth_of_the_longer_run() -> None:
    total = curves([1, 2, 3, 4, 5, 6], [1, 4, 9, 16, 20, 24])
    hardest = curves([1, 2, 4, 20, 41], [2, 3, 7, 20, 28])
    # ceil(0.05 * 41) = 3: epoch 3 of the one, epoch 4 of the other
    assert early_lead(total, hardest) == 9 - 7
    longer = curves([1, 2, 4, 20, 81], [2, 3, 7, 20, 28])
    assert early_lead(total, longer) == 20 - 20  # ceil(0.05 * 81) = 5
    assert final_recall(total) == (4 + 9 + 16 + 20 + 24) / 5


def test_collapse_reads_the_end_and_the_margin() -> None:
    metrics = {"final_loss": 0.5, "final_norm": 0.75, "test/i2t/r1": 3, "test/t2i/r1": 4}
    records = [{"arm": "a", "seed": 1000, "metrics": metrics, "plateau": False}]
    columns = estimands.collapse("a")
    assert [columns[name](records) for name in columns] == [1.25, 0.75, 3, 4, False]
    assert estimands.collapse("a", margin=0.05)["loss / 2 margins"](records) == pytest.approx(5)
    for estimand in estimands.collapse("b").values():
        with pytest.raises(KeyError, match="no record of b"):
            estimand(records)


def record(arm: str, seed: int, rsum: float, hits: str, galleries: str) -> Record:
    digits = {"hits": {"i2t": hits, "t2i": "0" * len(hits)}, "galleries": galleries}
    return {"arm": arm, "seed": seed, "metrics": {"val/rsum": rsum}, **digits}


def test_each_seed_compares_the_ridge_with_the_loss_of_the_higher_validation() -> None:
    records = [
        record("family_max", 1000, 300, "402", "404"),  # chosen
        record("family_sum", 1000, 299, "000", "404"),
        record("family_ridge", 1000, 999, "304", "404"),
        record("family_max", 1001, 100, "000", "241"),
        record("family_sum", 1001, 101, "131", "241"),  # chosen
        record("family_ridge", 1001, 0, "020", "241"),
        record("vendor_max", 1002, 0, "1", "1"),  # a seed without the ridge does not count
    ]
    assert estimands.chosen_loss(records[:3]) == "max"
    assert estimands.chosen_loss(records[3:6]) == "sum"
    tested = {1000: [4, 7, 9], 1001: [7, 9, 2]}
    # concept 2: 1/1; 4: (4-3)/4; 7: in no gallery, then (1-0)/2; 9: (2-4)/4 and (3-2)/4
    expected = [100, 25, 50, -12.5]
    differences = estimands.concept_differences(records, "i2t", tested.__getitem__)
    assert differences == pytest.approx(expected)
    with pytest.raises(ValueError, match="zip"):
        estimands.concept_differences(records, "i2t", lambda _: [4, 7])
    with pytest.raises(KeyError, match="family_sum"):
        estimands.concept_differences(records[:1] + records[2:], "i2t", tested.__getitem__)
