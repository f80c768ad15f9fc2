"""Progress on standard error where a person watches, and one switch that turns it off.

Whatever runs notebooks or tests for a machine to compare sets ``TRAINAUG_PROGRESS=off``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar", "shows_progress"]


def shows_progress() -> bool:
    """Whether a person watches: in a terminal or a notebook, unless it is switched off.

    Returns:
        False where ``TRAINAUG_PROGRESS=off`` is set, or standard error goes to a file.
    """
    if os.environ.get("TRAINAUG_PROGRESS") == "off":
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


@contextmanager
def progress_bar(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], Any]]:
    """Show a bar while something is done.

    Args:
        what: What is being done.
        total: Steps in all, if that is known.
        unit: What a step is; of bytes, ``"B"``, multiples are shown.

    Yields:
        A function that takes the number of steps done since the last call; it does nothing where
        nobody watches or tqdm is not installed.
    """
    bar_of = _tqdm() if shows_progress() else None
    if bar_of is None:
        yield lambda steps: None
        return
    scaled = unit == "B"
    with bar_of(total=total, desc=what, unit=unit, unit_scale=scaled, file=sys.stderr) as bar:
        yield bar.update


def _tqdm() -> Callable[..., Any] | None:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # the library works without it
        return None
    bar_of: Callable[..., Any] = tqdm
    return bar_of
