"""A toy chapter: runs that leave a mark each time they are computed, in the process that does it.

``TOY_KIND`` says how they misbehave; it reaches the workers with the rest of the environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from companion.evidence.store import Run, Store


def make_runs(folder: Path, count: int = 6, first: int = 0, **options: Any) -> list[Run]:
    """Runs that leave their marks in ``folder``; the later the longer."""
    return [
        Run("99", "arm", {"marks": str(folder), "number": i}, 1000 + i, "d", 1.0 + i, **options)
        for i in range(first, first + count)
    ]


def make_seeds(folder: Path, count: int, number: int = 0, **options: Any) -> list[Run]:
    """Runs that differ only in their seeds, so that one call can compute them."""
    config = {"marks": str(folder), "number": number}
    options = {"together": True} | options
    return [Run("99", "arm", config, 1000 + i, "d", 1.0, **options) for i in range(count)]


def execute_together(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Note the numbers and seeds of a call, and compute each run as `execute` does."""
    folder = Path(runs[0].config["marks"])
    words = [f"{run.config['number']}/{run.seed}" for run in runs]
    (folder / f"call.{time.time_ns()}").write_text(" ".join(words))
    results = [execute(run) for run in runs]
    if os.environ.get("TOY_KIND") == "killed between records" and (folder / "broken").exists():
        write = Store.write

        def write_or_end(self: Store, run: Run, *details: Any) -> None:
            if run.seed == 1002:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, run, *details)

        Store.write = write_or_end  # type: ignore[method-assign]
    return results


def execute(run: Run) -> dict[str, Any]:
    """Note when and where the run was computed; the result depends on config and seed alone."""
    number, folder = run.config["number"], Path(run.config["marks"])
    kind = os.environ.get("TOY_KIND", "")
    broken = (folder / "broken").exists()
    if kind == "must not run":
        raise AssertionError("computed although finished")
    if kind == "fails" and broken and number in (1, 4):
        raise ValueError(f"number {number} is broken")
    if kind == "interrupted" and number == 3:
        raise KeyboardInterrupt
    if kind == "killed" and broken and number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "killed with a child" and broken and number == 2:
        # it holds the pipe of the answers open
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exits" and broken and number == 2:
        os._exit(3)
    if kind == "loud":
        sys.stdout.write("printed by Python\n")
        os.write(1, b"printed below Python\n")
    started = time.monotonic()
    time.sleep(60 if kind == "slow" else 0.02)
    value = float(torch.randn(50, generator=torch.Generator().manual_seed(run.seed)).sum())
    mark = folder / f"{number}-{time.time_ns()}"
    words = (
        started,
        time.monotonic(),
        os.getpid(),
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("MKL_CBWR"),
    )
    mark.write_text(" ".join(map(str, words)))
    if kind == "not finite" and number == 2:
        value = float("nan")
    return {"metrics": {"value": value}, "curves": {}, "counters": {"runs": 1}}
