"""A process that computes runs, one call at a time on one thread; `sweep` starts and asks it.

Requests come on standard input and answers go to standard output, each as one line of JSON. The
environment decides whether the process is canonical, and it must be set before anything numeric is
imported; that is why the parent starts a new interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from companion.evidence.store import Conditions, Record, Run, Store

__all__ = ["Answer", "Request", "compute", "main"]

_POLL_SECONDS = 0.5

W = TypeVar("W")
R = TypeVar("R")


@dataclass(frozen=True)
class Request:
    """What a worker is asked to compute.

    Attributes:
        module: Dotted name of the module whose ``execute`` computes a run, and whose
            ``execute_together`` computes several.
        runs: The run; or several that differ only in their seeds, which one call computes.
        conditions: Conditions under which the worker must work; else the runs fail.
        store: Store of the records; without one, the record of a single run is sent back.
    """

    module: str
    runs: tuple[Run, ...]
    conditions: Conditions
    store: Store | None

    def to_json(self) -> dict[str, object]:
        """Return the request as plain data, for its line of JSON."""
        store = self.store
        return {
            "module": self.module,
            "runs": [asdict(run) for run in self.runs],
            "conditions": asdict(self.conditions),
            "store": store and {"profile": store.profile, "root": str(store.root)},
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read back what `to_json` has made."""
        from companion.evidence.store import Conditions, Run, Store

        target = plain["store"]
        return cls(
            plain["module"],
            tuple(Run(**run) for run in plain["runs"]),
            Conditions(**plain["conditions"]),
            Store(target["profile"], Path(target["root"])) if target else None,
        )


@dataclass(frozen=True)
class Answer:
    """What became of a request; all fields are at their defaults if its records were stored.

    Attributes:
        record: The record, if the request has no store.
        failure: Why the runs failed; several may have failed after the first were stored.
        ended: How the worker ended before it could answer; filled in by its parent.
        interrupted: Whether the run was interrupted by Ctrl-C.
    """

    record: Record | None = None
    failure: str = ""
    ended: str = ""
    interrupted: bool = False


def _end_with(parent: int) -> None:
    """End this process, and all that it started, when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    # the parent starts every worker as the leader of its own process group
    os.killpg(os.getpid(), signal.SIGKILL)


def _take_over_streams() -> tuple[IO[str], IO[str]]:
    """Return streams of requests and answers, and keep standard input and output apart from them.

    What a run prints then goes to standard error, even if code below Python prints it.
    """
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, answers


def _one_thread() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def compute(work: W, execute: Callable[[W], R]) -> tuple[R, dict[str, float]]:
    """Execute one run, or several in one call, on one thread in this process.

    Args:
        work: The run or runs.
        execute: What computes them.

    Returns:
        What ``execute`` returns, and the wall and processor seconds that it took.
    """
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            wall, processor = time.perf_counter(), time.process_time()
            result = execute(work)
            spent = {
                "wall_seconds": round(time.perf_counter() - wall, 3),
                "core_seconds": round(time.process_time() - processor, 3),
            }
    finally:
        torch.set_num_threads(threads)
    return result, spent


def _answer(request: Request) -> Answer:
    """Compute what is asked; store it where the request says so, else send its record back."""
    from companion.evidence.canonical import is_canonical
    from companion.evidence.store import canonical_json
    from companion.lab.conditions import conditions_of

    runs = request.runs
    asked = request.conditions
    store = request.store
    try:
        measured = conditions_of(runs[0], asked.code, is_canonical=is_canonical())
        if measured != asked:
            raise RuntimeError(f"this process works under {measured}, not under {asked}")
        started = datetime.now(UTC).isoformat(timespec="seconds")
        results, seconds = _results(request)
        if store is None:
            return Answer(record=json.loads(canonical_json(runs[0].head | results[0])))
        for run, result in zip(runs, results, strict=True):
            store.write(run, measured, result, seconds, started)
    except KeyboardInterrupt:
        return Answer(interrupted=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if store is not None:
            detail = "".join(traceback.format_exception(error)[-3:])
            with suppress(OSError):  # fails too if the disk is full; the answer has the reason
                for run in runs:
                    store.write_failure(run, asked, f"{reason}\n{detail}")
        return Answer(failure=reason)
    return Answer()


def _results(request: Request) -> tuple[list[Record], dict[str, float]]:
    """Compute the result of each run, and the seconds that each took, as even shares."""
    module = import_module(request.module)
    if len(request.runs) == 1:
        result, seconds = compute(request.runs[0], module.execute)
        return [result], seconds
    results, seconds = compute(request.runs, module.execute_together)
    return results, {name: round(spent / len(results), 3) for name, spent in seconds.items()}


def main() -> None:
    """Serve requests until there are no more; the command's argument is the parent's process id."""
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    requests, answers = _take_over_streams()
    _one_thread()
    from companion.evidence.canonical import is_canonical

    if is_canonical():
        from companion.lab import kernels

        kernels.install()
    answers.write("{}\n")  # an empty answer says that this worker is ready
    answers.flush()
    for line in requests:
        answer = _answer(Request.from_json(json.loads(line)))
        answers.write(json.dumps(asdict(answer)) + "\n")
        answers.flush()
    sys.stderr.flush()
    os._exit(0)  # all is done, and torch's clean-up at a normal exit takes long


if __name__ == "__main__":
    main()
