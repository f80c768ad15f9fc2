"""Hints for names that do not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name: similar names, or nothing if there are none.

    Examples:
        >>> did_you_mean("digits_randon", ["digits_random", "fashion_mlp"])
        '; did you mean digits_random?'
        >>> did_you_mean("x", ["digits_random"])
        ''
        >>> did_you_mean("digits_random", ["digits_random"])  # known, but not as what was meant
        ''
    """
    alike = get_close_matches(name, sorted(set(known) - {name}), n=3)
    return f"; did you mean {', '.join(alike)}?" if alike else ""
