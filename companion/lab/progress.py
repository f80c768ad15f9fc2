"""Progress of a sweep: a bar in a terminal or notebook, else a line at every tenth of the runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from trainaug.data.progress import shows_progress

__all__ = ["Progress", "TimeLeft", "sweep_progress"]

# called with runs done, runs in all, and predicted core-seconds of the runs that are left
Progress = Callable[[int, int, float], None]


class TimeLeft:
    """Estimate the time left from predicted core-seconds, scaled by the pace since the start.

    Args:
        workers: Runs at the same time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._started = time.monotonic()
        self._at_start: float | None = None

    def minutes(self, seconds_left: float) -> float:
        """Return the minutes left.

        Args:
            seconds_left: Predicted core-seconds of the runs that are left.
        """
        if self._at_start is None:
            self._at_start = seconds_left
        predicted = self._at_start - seconds_left
        if predicted <= 0:
            return max(0.0, seconds_left) / self._workers / 60
        passed = time.monotonic() - self._started
        return max(0.0, seconds_left) * passed / predicted / 60


@contextmanager
def sweep_progress(what: str, workers: int, *, lines: bool = False) -> Iterator[Progress | None]:
    """Show the progress of a sweep on standard error.

    Args:
        what: What is computed, such as a chapter.
        workers: Runs at the same time.
        lines: Where no bar is shown, print lines on standard output, for a log that is read later.

    Yields:
        The function that the sweep calls; ``None`` if nothing is to be shown.
    """
    left = TimeLeft(workers)
    if shows_progress():
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:  # a machine with a GPU may have little but PyTorch
            yield _printer(what, left, sys.stderr)
            return
        with tqdm(desc=what, unit="run", file=sys.stderr, bar_format=_FORMAT) as bar:

            def show(done: int, total: int, seconds_left: float) -> None:
                bar.total = total
                bar.n = done
                bar.set_postfix_str(f"{left.minutes(seconds_left):.1f} min left")

            yield show
    else:
        yield _printer(what, left, sys.stdout) if lines else None


_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs, {elapsed}{postfix}"


def _printer(what: str, left: TimeLeft, stream: TextIO) -> Progress:
    """Make a function that prints a line whenever another tenth of the runs is done."""
    tenths_said = -1

    def say(done: int, total: int, seconds_left: float) -> None:
        nonlocal tenths_said
        minutes = left.minutes(seconds_left)
        tenths = 10 * done // total if total else 0
        if tenths > tenths_said:
            tenths_said = tenths
            line = f"{what}: runs {done}/{total}, {minutes:.1f} min left"
            print(line, file=stream, flush=True)

    return say
