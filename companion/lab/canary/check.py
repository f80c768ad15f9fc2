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

from companion.evidence.canonical import fingerprint
from companion.evidence.store import Run, write_atomic
from companion.lab.canary.sizes import default_settings
from companion.lab.chapters import chapter_numbers, load_chapter
from companion.lab.sweep import child_environment
from companion.paths import RESULTS

__all__ = [
    "CANARIES",
    "Canary",
    "CanaryFailedError",
    "CanaryResult",
    "canary_runs",
    "check_canaries",
    "compare_coverage",
    "compute_canaries",
    "moved_constants",
    "read_canaries",
    "write_canaries",
    "write_constants",
    "write_coverage",
    "write_operations",
]

CANARIES = RESULTS / "canaries"
State = Literal["equal", "moved trace", "moved record", "missing", "no such arm", "moved constant"]


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
    """How an arm's canary compares with the committed one.

    A constant that canaries replace stands in place of an arm if it is another one than committed.
    """

    chapter: str
    arm: str
    state: State


def canary_runs(number: str) -> dict[str, Run]:
    """One run of every deterministic arm of a chapter, at full size with seed 0, by name."""
    chapter = load_chapter(number)
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
    found = []
    for answer in _ask_child(["run", number, *["--details"] * details], names):
        progress(answer["arm"])
        operations, functions = (tuple(answer.get(n, ())) for n in ("operations", "functions"))
        found.append(
            Canary(answer["arm"], answer["trace"], answer["record"], operations, functions)
        )
    return found


def _ask_child(arguments: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Have a canonical child answer for each name; see the ``__main__`` of this package.

    Raises:
        CanaryFailedError: If it says that an arm failed, or ends before it has answered for all.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "companion.lab.canary", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(is_canonical=True),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    answered = 0
    try:
        child.stdin.write(json.dumps(list(names)))
        child.stdin.close()
        for line in child.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise CanaryFailedError(f"{answer['arm']}: {answer['error']}")
            answered += 1
            yield answer
        if child.wait() != 0 or answered < len(names):
            raise CanaryFailedError(
                f"the process of the canaries ended with {child.returncode} after {answered} of "
                f"{len(names)}: {names[answered : answered + 1]}"
            )
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def read_canaries(number: str, folder: Path = CANARIES) -> dict[str, Any]:
    """Read the committed canaries of a chapter.

    Returns:
        ``code`` and ``fingerprint`` when they were recorded, and ``arms``: by name ``version``,
        ``trace`` and ``record``.

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
        if not {"code", "fingerprint"} <= found.keys():
            raise KeyError("code and fingerprint")
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
    head = (
        f' "code": {json.dumps(code)},\n "fingerprint": {json.dumps(fingerprint(canonical=True))}'
    )
    text = "{\n" + head + ',\n "arms": {\n' + ",\n".join(lines) + "\n }\n}\n"
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


def compare_coverage(
    number: str, arms: Collection[str], *, seconds: float, workers: int = 1
) -> dict[str, dict[str, Any]]:
    """Compare which functions an evidence run enters with those that its canary enters.

    Args:
        number: Two-digit chapter.
        arms: Names of arms.
        seconds: Core-seconds after which an evidence run is broken off.
        workers: Processes side by side.

    Returns:
        By arm ``evidence``, the number of functions entered; ``complete``, whether the run came to
        its end; ``missing``, those that the canary does not enter.

    Raises:
        CanaryFailedError: If a run fails.
    """
    names = [name for name in canary_runs(number) if name in arms]
    size = -(-len(names) // max(1, workers))
    parts = [names[start : start + size] for start in range(0, len(names), size)]

    def ask(part: Sequence[str]) -> list[dict[str, Any]]:
        return list(_ask_child(["coverage", number, "--seconds", str(seconds)], part))

    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        rows = [row for answers in pool.map(ask, parts) for row in answers]
    return {row.pop("arm"): row for row in rows}


def write_coverage(number: str, rows: dict[str, dict[str, Any]], folder: Path = CANARIES) -> None:
    """Write what `compare_coverage` found, beside what was found of other arms before."""
    path = folder / "coverage.json"
    chapters = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    chapters[number] = chapters.get(number, {}) | rows
    write_atomic(path, json.dumps(chapters, indent=1, sort_keys=True) + "\n")


def _read_constants(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "constants.json"
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(values, dict) for values in found.values()):
            raise TypeError("not every chapter has a mapping")
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: no constants in there ({error})") from error
    return found


def write_constants(number: str, folder: Path = CANARIES) -> None:
    """Write the defaults of a chapter's settings."""
    chapters = _read_constants(folder) | {number: default_settings(number)}
    text = json.dumps(chapters, indent=1, sort_keys=True) + "\n"
    write_atomic(folder / "constants.json", text)


def moved_constants(number: str, folder: Path = CANARIES) -> list[str]:
    """Defaults of a chapter's settings that are not as committed, as ``Class.setting``.

    A setting that is new is none of them: its default is what was done before it was there.

    Raises:
        ValueError: If the file is not what `write_constants` writes.
    """
    today, committed = default_settings(number), _read_constants(folder).get(number, {})
    return [
        f"{kind}.{name}"
        for kind, defaults in sorted(committed.items())
        for name, value in sorted(defaults.items())
        if name not in today.get(kind, {}) or today[kind][name] != value
    ]


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
    for number in chapters or chapter_numbers():
        committed = read_canaries(number, folder)["arms"]
        today = {
            c.arm: c for c in compute_canaries(number, arms, workers=workers, progress=progress)
        }
        for arm, canary in today.items():
            results.append(CanaryResult(number, arm, _state(canary, committed.get(arm))))
        gone = committed.keys() - canary_runs(number).keys()
        for arm in sorted(gone if arms is None else gone & set(arms)):
            results.append(CanaryResult(number, arm, "no such arm"))
        for name in moved_constants(number, folder):
            results.append(CanaryResult(number, name, "moved constant"))
    return results


def _state(canary: Canary, committed: dict[str, Any] | None) -> State:
    if committed is None:
        return "missing"
    row = asdict(canary)
    for name in ("trace", "record"):
        if row[name] != committed[name]:
            return "moved trace" if name == "trace" else "moved record"
    return "equal"
