"""Numbers of chapter 3's claims on curves made by hand, against dense grids."""

from __future__ import annotations

import math

import numpy as np
import pytest

from companion.chapters.autoassist.numbers import mean_auc, saved_until_equal
from companion.evidence.formulas import Formula
from companion.lab.chapters import functions_of
from companion.lab.records import Record


def run(spent: list[float], losses: list[float], arm: str = "a") -> Record:
    return {"arm": arm, "metrics": {}, "curves": {"work": spent, "val_loss": losses}}


def on_a_grid(method: Record, baseline: Record) -> float:
    """The same by looking everywhere: both curves on a million points."""
    ends, grids = [], []
    for arm in (method, baseline):
        x, y = (np.array(arm["curves"][name]) for name in ("work", "val_loss"))
        grids.append(np.linspace(x[0], x[-1], 1_000_001))
        ends.append(np.interp(grids[-1], x, y))
    common = max(end.min() for end in ends)
    first = [grid[np.argmax(end <= common + 1e-9)] for grid, end in zip(grids, ends, strict=True)]
    return float(np.log(first[1] / first[0]))


def test_half_the_work_is_a_saving_of_a_half():
    slow, fast = run([100, 200, 400], [4, 3, 2]), run([50, 100, 200], [4, 3, 2])
    assert saved_until_equal(fast, slow, "work") == pytest.approx(math.log(2))
    assert saved_until_equal(slow, fast, "work") == pytest.approx(-math.log(2))
    assert saved_until_equal(slow, slow, "work") == 0


def test_the_common_loss_is_that_of_the_worse_run():
    better, worse = run([10, 20, 30], [4, 3, 1]), run([10, 20, 30], [4, 3, 2])
    # at 30 the worse has 2; the better passes 2 half-way between 20 and 30
    assert saved_until_equal(better, worse, "work") == pytest.approx(math.log(30 / 25))


def test_a_loss_reached_at_the_first_look_counts_as_it():
    early, late = run([8, 16], [1.0, 0.5]), run([8, 16], [3.0, 1.5])
    assert saved_until_equal(early, late, "work") == pytest.approx(math.log(16 / 8))


@pytest.mark.parametrize("seed", range(8))
def test_saving_equals_a_search_on_a_dense_grid(seed):
    g = np.random.default_rng(seed)
    runs = [
        run(list(np.cumsum(g.uniform(1, 2, 12))), list(5 - np.cumsum(g.normal(0.2, 0.3, 12))))
        for _ in range(2)
    ]  # rising losses among them
    saved = saved_until_equal(runs[0], runs[1], "work")
    assert saved == pytest.approx(on_a_grid(*runs), abs=1e-4)


def test_the_ledger_can_call_it():
    records = [run([50, 100], [4, 2], "one"), run([100, 200], [4, 2], "other")]
    number = Formula('saved_until_equal(one, other, "work")')
    assert number.arms == ["one", "other"]
    assert number.evaluate(records, functions_of("03")) == pytest.approx(math.log(2))


def test_mean_of_no_judgement_is_a_coin():
    curves = {"auc/r": [0.6, 0.8], "auc/class": []}
    arm: Record = {"arm": "a", "metrics": {}, "curves": curves}
    assert mean_auc(arm, "auc/r") == pytest.approx(0.7)
    assert mean_auc(arm, "auc/class") == 0.5
