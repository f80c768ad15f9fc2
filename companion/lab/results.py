"""What one run returns, and how its numbers are rounded and its curves thinned for the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from companion.evidence.store import rounded

__all__ = ["Result", "evenly", "make_result"]


@dataclass(frozen=True)
class Result:
    """What a run returns; its record is this and the fields that identify the run.

    Attributes:
        metrics: Numbers, by names such as ``test/accuracy``.
        curves: Sequences of numbers over training, by name.
        counters: Whole numbers that say how much was computed, by name.
        notes: Other fields of the record; JSON values only.
    """

    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)

    def as_record(self) -> dict[str, object]:
        """Return it in the form in which the store writes it."""
        return {
            "metrics": dict(self.metrics),
            "curves": dict(self.curves),
            "counters": dict(self.counters),
            **self.notes,
        }


def make_result(
    metrics: Mapping[str, float],
    curves: Mapping[str, Sequence[float]] | None = None,
    counters: Mapping[str, int] | None = None,
    *,
    digits: int = 9,
    notes: Mapping[str, object] | None = None,
) -> Result:
    """Round a run's numbers, metrics to ``digits`` significant digits and curves to six.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    return Result(
        {name: rounded(value, digits) for name, value in metrics.items()},
        {name: [rounded(v, 6) for v in row] for name, row in (curves or {}).items()},
        dict(counters or {}),
        dict(notes or {}),
    )


def evenly(count: int, points: int) -> list[int]:
    """At most ``points``, two or more, of the indices 0 to ``count - 1``, evenly with both ends.

    Raises:
        ValueError: If ``points`` is below 2.
    """
    if points < 2:
        raise ValueError(f"need two points or more, for both ends, got {points}")
    if count == 0:
        return []
    spread = {round(i * (count - 1) / (points - 1)) for i in range(points)}
    return sorted(spread | {0, count - 1})
