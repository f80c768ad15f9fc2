"""Reading records, for the estimands and figures of all chapters.

An estimand is a function from all records of one seed to a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

__all__ = ["Estimand", "Record", "by_seed", "curves_of", "find", "metric", "values_of"]

Record = Mapping[str, Any]
Estimand = Callable[[Sequence[Record]], float]


def find(records: Sequence[Record], arm: str) -> Record:
    """Return an arm's record among those of one seed; a KeyError if there is none."""
    for record in records:
        if record["arm"] == arm:
            return record
    raise KeyError(f"no record of {arm}")


def metric(arm: str, name: str, scale: float = 1.0) -> Estimand:
    """Make the estimand that is one metric of an arm, times ``scale``."""
    return lambda records: scale * float(find(records, arm)["metrics"][name])


def by_seed(records: Sequence[Record], *arms: str) -> list[list[Record]]:
    """Return all records of each seed that ran these arms, seeds in order."""
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record["seed"], []).append(record)
    return [seed for _, seed in sorted(groups.items()) if set(arms) <= {r["arm"] for r in seed}]


def values_of(records: Sequence[Record], estimand: Estimand) -> list[float]:
    """Return an estimand's value for each seed that has the records, seeds in order."""
    values = []
    for seed in by_seed(records):
        with suppress(KeyError):
            values.append(estimand(seed))
    return values


def curves_of(records: Sequence[Record], arm: str, name: str) -> np.ndarray:
    """Return a curve of an arm, one row per seed that ran it, seeds in order."""
    return np.array([find(seed, arm)["curves"][name] for seed in by_seed(records, arm)])  # (S, T)
