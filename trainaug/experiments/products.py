"""Products of float32 matrices that are the same on every machine. Filled by the lead."""

from __future__ import annotations

__all__ = ["install"]


def install() -> None:
    """Filled by the lead."""
