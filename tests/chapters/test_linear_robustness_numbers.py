"""Numbers of chapter 6's claims against arrays computed another way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from companion.chapters.linear_robustness import numbers

SIZES = (3, 25, 50, 100)
ATTACKS = ("linf", "l2", "l1")  # own attacks of coordinate, gradient and sign descent
STEPS = 70


def records_of(ratios: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Exact solutions and three descents: ``ratios`` by problem, optimiser and attack."""
    eps = np.random.default_rng(1).uniform(0.5, 2, (len(names), 3))
    exact = {
        f"{name}/{attack}/eps_star": float(eps[i, k])
        for i, name in enumerate(names)
        for k, attack in enumerate(ATTACKS)
    }
    runs = [
        {
            "metrics": {
                f"{name}/{attack}/radius@{STEPS}": float(ratios[i, j, k] * eps[i, k])
                for i, name in enumerate(names)
                for k, attack in enumerate(ATTACKS)
            },
            "curves": {"step": [10.0, float(STEPS)]},
        }
        for j in range(3)
    ]
    return [{"metrics": exact}, *runs]


def advantages(ratios: np.ndarray) -> np.ndarray:
    """Least log-ratio of the diagonal to the largest other entry of its column, by problem."""
    diagonal = np.diagonal(ratios, axis1=1, axis2=2)
    others = np.where(np.eye(3, dtype=bool), -np.inf, ratios).max(axis=1)
    return np.log(diagonal / others).min(axis=1)


@pytest.mark.parametrize(
    ("bounds", "chosen"),
    [
        ((), [0, 1, 2, 3]),
        ((50,), [0, 1, 2]),
        ((100, 100), [3]),
        ((50, 25), [1, 2]),
        ((math.inf, 4), [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("at", ["end", STEPS])
def test_gaussian_problems_are_chosen_by_their_size(bounds, chosen, at):
    ratios = np.random.default_rng(0).uniform(0.2, 1, (4, 3, 3))
    records = records_of(ratios, [f"n={n}" for n in SIZES])
    kept = ratios[chosen]
    diagonal = np.diagonal(kept, axis1=1, axis2=2).min()
    assert numbers.smallest_diagonal(at, *records, *bounds) == pytest.approx(diagonal)
    assert numbers.smallest_advantage(at, *records, *bounds) == pytest.approx(
        advantages(kept).min()
    )


def test_pairs_have_no_size_and_are_always_kept():
    ratios = np.random.default_rng(2).uniform(0.2, 1, (2, 3, 3))
    records = records_of(ratios, ["0/1", "3/8"])
    diagonal = np.diagonal(ratios, axis1=1, axis2=2).min()
    assert numbers.smallest_diagonal("end", *records, 100, 100) == pytest.approx(diagonal)


def test_no_problem_of_such_a_size_counts_as_missing():
    records = records_of(np.full((4, 3, 3), 0.5), [f"n={n}" for n in SIZES])
    with pytest.raises(KeyError, match="at least 60 and at most 90 examples"):
        numbers.smallest_diagonal("end", *records, 90, 60)
