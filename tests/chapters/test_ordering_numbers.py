"""The functions of chapter 4's ledger on records made by hand, against other ways to the number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from companion.chapters.ordering import numbers
from companion.evidence.formulas import Formula
from companion.evidence.store import Record


def orders(accuracy: tuple[float, float], shares: tuple[float, ...]) -> Record:
    """A record of all orders: least and largest accuracy, shares of variance by position."""
    metrics = {f"share/accuracy/{position}": share for position, share in enumerate(shares, 1)}
    low, high = accuracy
    return {"metrics": {"val_accuracy/min": low, "val_accuracy/max": high, **metrics}}


def test_the_lead_of_the_last_batch_is_a_factor_over_the_best_of_the_others():
    shares = (0.1, 0.05, 0.2, 0.02, 0.03, 0.6)
    assert math.exp(numbers.last_lead(orders((40, 90), shares))) == pytest.approx(3)
    assert math.exp(numbers.last_lead(orders((40, 90), shares[::-1]))) == pytest.approx(1 / 6)


def test_no_batch_leads_where_all_orders_end_alike():
    assert numbers.last_lead(orders((50, 50), ())) == 0


def test_shares_that_are_lost_are_named():
    with pytest.raises(KeyError, match="share/accuracy/1"):
        numbers.last_lead(orders((49, 50), ()))


def runs(*steps: float) -> list[Record]:
    return [
        {"arm": f"n_{count}", "metrics": {"steps_to_target": value}}
        for count, value in zip(numbers.CANDIDATES, steps, strict=True)
    ]


def test_slope_over_candidates_is_that_of_least_squares():
    steps = np.array([40.0, 31.0, 37.0, 22.0, 25.0])
    expected = np.polyfit(np.log2(numbers.CANDIDATES), np.log(steps), 1)[0]
    assert numbers.slope_of_candidates(*runs(*steps)) == pytest.approx(expected)


def test_formula_of_the_ledger_for_two_to_sixteen_is_that_of_least_squares():
    steps = np.array([40.0, 31.0, 37.0, 22.0, 25.0])
    saved = Formula("(3 * log(n_2 / n_16) + log(n_4 / n_8)) / 10", "steps_to_target")
    expected = np.polyfit([1, 2, 3, 4], np.log(steps[1:]), 1)[0]
    assert saved.evaluate(runs(*steps)) == pytest.approx(-expected)
