"""Reading the records of one seed: what estimands are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Estimand", "Record", "find", "metric"]

Record = Mapping[str, Any]
Estimand = Callable[[Sequence[Record]], float]


def find(records: Sequence[Record], arm: str) -> Record:
    """Return the one record of an arm; a KeyError if there is none."""
    for record in records:
        if record["arm"] == arm:
            return record
    raise KeyError(f"no record of {arm}")


def metric(arm: str, name: str, scale: float = 1.0) -> Estimand:
    """Make the estimand: one metric of an arm."""
    return lambda records: scale * float(find(records, arm)["metrics"][name])
