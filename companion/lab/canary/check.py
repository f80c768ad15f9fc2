"""Compute the canaries of chapters in canonical child processes and compare them.

A canary is an arm with its settings made tiny, so few steps on few data: a change of the code that
moves its bytes would move those of the evidence, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from companion.evidence.canonical import fingerprint
from companion.evidence.store import Run, write_atomic
from companion.lab.canary.sizes import Constants, default_settings
from companion.lab.chapters import chapter_numbers, load_chapter
from companion.lab.processes import child_environment
from companion.paths import RESULTS

__all__ = [
    "CANARIES",
    "Canary",
    "CanaryFailedError",
    "CanaryResult",
    "CommittedCanaries",
    "CommittedCanary",
    "Coverage",
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


T = TypeVar("T")


@dataclass(frozen=True)
class Canary:
    """The two hashes of an arm and, if asked for, the operations and functions that it calls."""

    arm: str
    trace: str
    record: str
    operations: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the answer of a child process, without operations and functions if it has none."""
        return {name: value for name, value in asdict(self).items() if value != ()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read back what `to_json` has made."""
        calls = {name: tuple(plain.get(name, ())) for name in ("operations", "functions")}
        return cls(plain["arm"], plain["trace"], plain["record"], **calls)


@dataclass(frozen=True)
class Coverage:
    """How many functions an arm's evidence run enters, and which of them its canary does not.

    Attributes:
        arm: Its name.
        evidence: The number of functions that the evidence run enters.
        complete: Whether that run came to its end.
        missing: Those that the canary does not enter.
    """

    arm: str
    evidence: int
    complete: bool
    missing: tuple[str, ...]

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read the answer of a child process."""
        return cls(**{**plain, "missing": tuple(plain["missing"])})


@dataclass(frozen=True)
class CommittedCanary:
    """What is committed for an arm: its version when it was recorded, and the two hashes."""

    version: int
    trace: str
    record: str


@dataclass(frozen=True)
class CommittedCanaries:
    """The committed canaries of a chapter.

    Attributes:
        code: Digest of the code when the canaries were recorded.
        fingerprint: Fingerprint of the environment in which they were recorded.
        rows: The canaries by arm.
    """

    code: str
    fingerprint: str
    rows: Mapping[str, CommittedCanary]


@dataclass(frozen=True)
class CanaryResult:
    """How an arm's canary compares with the committed one.

    For a default that has changed (`moved_constants`) ``arm`` is its name, ``Class.setting``.
    """

    chapter: str
    arm: str
    state: State


def canary_runs(number: str) -> dict[str, Run]:
    """One run of every deterministic arm of a chapter, at full size with seed 0, by name."""
    chapter = load_chapter(number)
    runs: dict[str, Run] = {}
    # an arm's run is that of the first of these profiles that has the arm
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
        arms: Names of arms; all by default.
        workers: Processes at the same time.
        details: Run each once more and note the operations called and the functions entered.
        progress: Called with the name of each canary that is done.

    Raises:
        CanaryFailedError: If a canary fails, or a process ends.
    """
    return _compute([number], arms, workers, details, progress)[number]


def _compute(
    numbers: Sequence[str],
    arms: Collection[str] | None,
    workers: int,
    details: bool,
    progress: Callable[[str], None],
) -> dict[str, list[Canary]]:
    """Canaries of several chapters, by chapter; see `compute_canaries`.

    Parts of all chapters wait in one queue, because no core shall wait for a chapter's last arm.
    """
    names = {n: [name for name in canary_runs(n) if arms is None or name in arms] for n in numbers}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        jobs = [
            (number, pool.submit(_in_child, number, part, details, progress))
            for number in numbers
            for part in _parts(names[number], workers)
        ]
        canaries: dict[str, list[Canary]] = {number: [] for number in numbers}
        for number, job in jobs:
            canaries[number] += job.result()
    return canaries


def _parts(names: Sequence[str], workers: int) -> list[Sequence[str]]:
    """Divide names among processes; arms that share data are neighbours and stay together."""
    size = max(1, -(-len(names) // max(1, workers)))  # rounded up
    return [names[start : start + size] for start in range(0, len(names), size)]


def _in_child(
    number: str, names: Sequence[str], details: bool, progress: Callable[[str], None]
) -> list[Canary]:
    """Compute canaries of one chapter in one child process."""
    canaries = []
    arguments = ["run", number, *["--details"] * details]
    for canary in _ask_child(arguments, names, Canary.from_json):
        progress(canary.arm)
        canaries.append(canary)
    return canaries


def _ask_child(
    arguments: Sequence[str], names: Sequence[str], read: Callable[[Mapping[str, Any]], T]
) -> Iterator[T]:
    """Have a canonical child process answer for each name; see the ``__main__`` of this package.

    Args:
        arguments: Arguments of the child.
        names: Names of arms.
        read: Makes what is yielded from an answer.

    Raises:
        CanaryFailedError: If an arm failed, or the child ended before it had answered for all.
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
            answer = json.loads(line)
            if "error" in answer:
                raise CanaryFailedError(f"{answer['arm']}: {answer['error']}")
            answered += 1
            yield read(answer)
        if child.wait() != 0 or answered < len(names):
            raise CanaryFailedError(
                f"the process of the canaries ended with {child.returncode} after {answered} of "
                f"{len(names)}: {names[answered : answered + 1]}"
            )
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def read_canaries(number: str, folder: Path = CANARIES) -> CommittedCanaries:
    """Read the committed canaries of a chapter.

    Raises:
        LookupError: If there are none.
        ValueError: If the file is not what `write_canaries` writes.
    """
    path = folder / f"{number}.json"
    if not path.is_file():
        raise LookupError(f"{path.name}: chapter {number} has no canaries; record them")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        # a row with other fields raises a TypeError here
        rows = {arm: CommittedCanary(**row) for arm, row in plain["arms"].items()}
        return CommittedCanaries(plain["code"], plain["fingerprint"], rows)
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: no canaries in there ({error})") from error


def write_canaries(
    number: str, canaries: Sequence[Canary], versions: dict[str, int], code: str,
    folder: Path = CANARIES,
) -> None:  # fmt: skip
    """Write the canaries of a chapter, one line per arm; ``code`` is the digest of the code."""
    rows = {
        canary.arm: CommittedCanary(versions.get(canary.arm, 1), canary.trace, canary.record)
        for canary in canaries
    }
    lines = [f"  {json.dumps(arm)}: {json.dumps(asdict(row))}" for arm, row in sorted(rows.items())]
    header = (
        f' "code": {json.dumps(code)},\n "fingerprint": {json.dumps(fingerprint(canonical=True))}'
    )
    text = "{\n" + header + ',\n "arms": {\n' + ",\n".join(lines) + "\n }\n}\n"
    write_atomic(folder / f"{number}.json", text)


def write_operations(number: str, canaries: Sequence[Canary], folder: Path = CANARIES) -> None:
    """Write which operations the canaries of a chapter call, and for each the arms that call it."""
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
) -> list[Coverage]:
    """Compare the functions that an arm's run for the evidence enters with those of its canary.

    The canary is the same run with fewer steps and data, so it may miss a branch.

    Args:
        number: Two-digit chapter.
        arms: Names of arms.
        seconds: Core-seconds after which a run for the evidence is broken off; its `Coverage` is
            then not ``complete``.
        workers: Processes at the same time.

    Raises:
        CanaryFailedError: If a run fails.
    """
    names = [name for name in canary_runs(number) if name in arms]
    parts = _parts(names, workers)

    def ask(part: Sequence[str]) -> list[Coverage]:
        arguments = ["coverage", number, "--seconds", str(seconds)]
        return list(_ask_child(arguments, part, Coverage.from_json))

    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        return [row for answers in pool.map(ask, parts) for row in answers]


def write_coverage(number: str, rows: Sequence[Coverage], folder: Path = CANARIES) -> None:
    """Write the result of `compare_coverage`; earlier results of other arms stay."""
    path = folder / "coverage.json"
    chapters = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    plain = {row.arm: asdict(row) for row in rows}
    for row in plain.values():
        del row["arm"]  # the name is the key already
    chapters[number] = chapters.get(number, {}) | plain
    write_atomic(path, json.dumps(chapters, indent=1, sort_keys=True) + "\n")


def _read_constants(folder: Path) -> dict[str, Constants]:
    """Read the committed defaults of all chapters; none without a file."""
    path = folder / "constants.json"
    if not path.is_file():
        return {}
    try:
        chapters: dict[str, Constants] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(values, dict) for values in chapters.values()):
            raise TypeError("not every chapter has a mapping")
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: no constants in there ({error})") from error
    return chapters


def write_constants(number: str, folder: Path = CANARIES) -> None:
    """Write the defaults of a chapter's settings."""
    chapters = _read_constants(folder) | {number: default_settings(number)}
    text = json.dumps(chapters, indent=1, sort_keys=True) + "\n"
    write_atomic(folder / "constants.json", text)


def moved_constants(number: str, folder: Path = CANARIES) -> list[str]:
    """Names of the chapter's defaults that are not as committed, as ``Class.setting``.

    A new setting does not count, because its default must be what was done before.

    Raises:
        ValueError: If the file is not what `write_constants` writes.
    """
    today = default_settings(number)
    committed = _read_constants(folder).get(number, {})
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
        arms: Names of arms; all by default.
        workers: Processes at the same time.
        folder: Folder of the committed canaries.
        progress: Called with the name of each canary that is done.

    Raises:
        CanaryFailedError: If a canary cannot be computed.
        LookupError: If a chapter has no committed canaries.
    """
    numbers = chapters or chapter_numbers()
    committed_rows = {number: read_canaries(number, folder).rows for number in numbers}
    results = []
    for number, canaries in _compute(numbers, arms, workers, False, progress).items():
        committed = committed_rows[number]
        for canary in canaries:
            state = _state(canary, committed.get(canary.arm))
            results.append(CanaryResult(number, canary.arm, state))
        gone = committed.keys() - canary_runs(number).keys()
        for arm in sorted(gone if arms is None else gone & set(arms)):
            results.append(CanaryResult(number, arm, "no such arm"))
        for name in moved_constants(number, folder):
            results.append(CanaryResult(number, name, "moved constant"))
    return results


def _state(canary: Canary, committed: CommittedCanary | None) -> State:
    if committed is None:
        return "missing"
    if canary.trace != committed.trace:
        return "moved trace"
    if canary.record != committed.record:
        return "moved record"
    return "equal"
