"""Progress bars on standard error, shown only where a person watches.

``TRAINAUG_PROGRESS=off`` turns them off, as is needed wherever outputs are compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar", "shows_progress"]


def shows_progress() -> bool:
    """Tell whether to show progress: in a terminal or a notebook, unless it is switched off.

    Returns:
        False if ``TRAINAUG_PROGRESS=off`` is set, or standard error goes to a file.
    """
    if os.environ.get("TRAINAUG_PROGRESS") == "off":
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


@contextmanager
def progress_bar(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar during a block of code.

    Args:
        what: What is being done, shown before the bar.
        total: Total number of steps, if known.
        unit: What a step is; bytes, ``"B"``, are shown with prefixes such as k and M.

    Yields:
        A function that takes the number of steps done since the last call. It does nothing if
        progress is not shown or tqdm is not installed.
    """
    bar_of = _tqdm() if shows_progress() else None
    if bar_of is None:
        yield lambda steps: None
        return
    scaled = unit == "B"
    with bar_of(total=total, desc=what, unit=unit, unit_scale=scaled, file=sys.stderr) as bar:
        yield bar.update


def _tqdm() -> Callable[..., Any] | None:
    """Return the class of bars, or None if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # the library works without it
        return None
    bar_of: Callable[..., Any] = tqdm
    return bar_of
