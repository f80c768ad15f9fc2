"""Compute the canaries of chapters in canonical child processes and compare them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trainaug.evidence.canonical import canonical_environment
from trainaug.evidence.store import Run, write_atomic
from trainaug.experiments.chapters import TITLES, load_chapter
from trainaug.paths import RESULTS

__all__ = [
    "CANARIES",
    "Canary",
    "CanaryFailedError",
    "CanaryResult",
    "canary_runs",
    "check_canaries",
    "compute_canaries",
    "read_canaries",
    "write_canaries",
    "write_operations",
]

CANARIES = RESULTS / "canaries"
State = Literal["equal", "moved trace", "moved record", "missing", "no such arm"]


class CanaryFailedError(RuntimeError):
    """A canary could not be computed; the message names the arm and the error."""


@dataclass(frozen=True)
class Canary:
    """The two hashes of an arm, and what it calls where that was asked for."""

    arm: str
    trace: str
    record: str
    operations: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


@dataclass(frozen=True)
class CanaryResult:
    """How an arm's canary compares with the committed one."""

    chapter: str
    arm: str
    state: State


def canary_runs(number: str) -> dict[str, Run]:
    """One run of every deterministic arm of a chapter, at full size with seed 0, by name."""
    chapter = load_chapter(number)
    if chapter is None:
        return {}
    runs: dict[str, Run] = {}
    for profile in ("full", "standard", "paper"):
        for run in chapter.plan(profile):
            if run.deterministic:
                runs.setdefault(run.arm, replace(run, seed=0))
    return dict(sorted(runs.items()))


def compute_canaries(
    number: str,
    arms: Collection[str] | None = None,
    *,
    workers: int = 1,
    details: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Canary]:
    """Compute canaries in canonical child processes of one thread each.

    Args:
        number: Two-digit chapter.
        arms: Their names; all by default.
        workers: Processes side by side.
        details: Run each once more and note the operations called and the functions entered.
        progress: Called with the name of each canary that is done.

    Raises:
        CanaryFailedError: If a canary fails, or a process ends.
    """
    names = [name for name in canary_runs(number) if arms is None or name in arms]
    # arms that share data stand side by side, so that each process loads it once
    size = -(-len(names) // max(1, workers))
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        jobs = [pool.submit(_in_child, number, part, details, progress) for part in parts]
        return [canary for job in jobs for canary in job.result()]


def _in_child(
    number: str, names: Sequence[str], details: bool, progress: Callable[[str], None]
) -> list[Canary]:
    command = [sys.executable, "-m", "trainaug.experiments.canary", "run", number]
    command += ["--details"] * details
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=canonical_environment(),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        child.stdin.write(json.dumps(list(names)))
        child.stdin.close()
        found = list(_canaries(child.stdout, number, progress))
    if child.returncode != 0 or len(found) < len(names):
        raise CanaryFailedError(
            f"chapter {number}: the process of the canaries ended with {child.returncode} after "
            f"{len(found)} of {len(names)}"
        )
    return found


def _canaries(
    lines: Iterator[str], number: str, progress: Callable[[str], None]
) -> Iterator[Canary]:
    for line in lines:
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CanaryFailedError(f"chapter {number}, {answer['arm']}: {answer['error']}")
        progress(answer["arm"])
        lists = {name: tuple(answer.pop(name, ())) for name in ("operations", "functions")}
        yield Canary(**answer, **lists)


def read_canaries(number: str, folder: Path = CANARIES) -> dict[str, Any]:
    """Read the committed canaries of a chapter: ``code`` and, by arm, ``trace`` and ``record``.

    Raises:
        LookupError: If there are none.
        ValueError: If the file is not what `write_canaries` writes.
    """
    path = folder / f"{number}.json"
    if not path.is_file():
        raise LookupError(f"{path.name}: chapter {number} has no canaries; record them")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        arms = found["arms"]
        if not all({"version", "trace", "record"} == row.keys() for row in arms.values()):
            raise KeyError("version, trace and record of every arm")
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: no canaries in there ({error})") from error
    return found


def write_canaries(
    number: str, canaries: Sequence[Canary], versions: dict[str, int], code: str,
    folder: Path = CANARIES,
) -> None:  # fmt: skip
    """Write the canaries of a chapter, an arm a line."""
    rows = {
        canary.arm: {
            "version": versions.get(canary.arm, 1),
            "trace": canary.trace,
            "record": canary.record,
        }
        for canary in canaries
    }
    lines = [f"  {json.dumps(arm)}: {json.dumps(row)}" for arm, row in sorted(rows.items())]
    text = '{\n "code": ' + json.dumps(code) + ',\n "arms": {\n' + ",\n".join(lines) + "\n }\n}\n"
    write_atomic(folder / f"{number}.json", text)


def write_operations(number: str, canaries: Sequence[Canary], folder: Path = CANARIES) -> None:
    """Write which operations the canaries of a chapter call, and which arms call each."""
    path = folder / "operations.json"
    chapters = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    arms: dict[str, list[str]] = {}
    for canary in sorted(canaries, key=lambda canary: canary.arm):
        for operation in canary.operations:
            arms.setdefault(operation, []).append(canary.arm)
    chapters[number] = {
        operation: "all" if len(callers) == len(canaries) else callers
        for operation, callers in sorted(arms.items())
    }
    write_atomic(path, json.dumps(chapters, indent=1, sort_keys=True) + "\n")


def check_canaries(
    chapters: Sequence[str] = (),
    arms: Collection[str] | None = None,
    *,
    workers: int = 1,
    folder: Path = CANARIES,
    progress: Callable[[str], None] = lambda line: None,
) -> list[CanaryResult]:
    """Compare today's canaries with the committed ones.

    Args:
        chapters: Two-digit numbers; all by default.
        arms: Their names; all by default.
        workers: Processes side by side.
        folder: Of the committed canaries.
        progress: Called with the name of each canary that is done.

    Raises:
        CanaryFailedError: If a canary cannot be computed.
        LookupError: If a chapter has no committed canaries.
    """
    results = []
    for number in chapters or [n for n in TITLES if canary_runs(n)]:
        committed = read_canaries(number, folder)["arms"]
        today = {
            c.arm: c for c in compute_canaries(number, arms, workers=workers, progress=progress)
        }
        for arm, canary in today.items():
            results.append(CanaryResult(number, arm, _state(canary, committed.get(arm))))
        gone = committed.keys() - canary_runs(number).keys()
        for arm in sorted(gone if arms is None else gone & set(arms)):
            results.append(CanaryResult(number, arm, "no such arm"))
    return results


def _state(canary: Canary, committed: dict[str, Any] | None) -> State:
    if committed is None:
        return "missing"
    row = asdict(canary)
    for name in ("trace", "record"):
        if row[name] != committed[name]:
            return "moved trace" if name == "trace" else "moved record"
    return "equal"
