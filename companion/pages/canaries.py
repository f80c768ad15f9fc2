"""Freshness: canaries, the tiny runs of every arm, compared with the committed ones.

A canary that moved shows a bug, or the arm's version must be raised in the same commit. The digest
of the code decides nothing; it only allows to skip a chapter whose code has passed before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from companion.evidence.canonical import fingerprint
from companion.evidence.digest import behaviour_digest
from companion.evidence.store import (
    Record,
    Reference,
    Run,
    canonical_json,
    read_reference,
    write_atomic,
)
from companion.lab.chapters import (
    EXECUTE,
    Chapter,
    arm_version,
    chapter_numbers,
    load_chapter,
    package_of,
)
from companion.lab.progress import sweep_progress
from companion.lab.sweep import recompute, worker_count
from companion.paths import RESULTS, RUNS

__all__ = [
    "CanaryState",
    "Check",
    "Outcome",
    "Sample",
    "Skipped",
    "check",
    "committed_canaries",
    "outdated",
    "verify_sample",
]

ADVICE = {
    "moved trace": "a bug, or bump the version of that arm in its chapter's arms.py "
    "in the same commit",
    "moved record": "a bug, or bump the version of that arm in its chapter's arms.py "
    "in the same commit",
    "moved constant": "canaries replace it, so none sees it: a bug, or bump the version of the "
    "arms that use it and record the canaries of the chapter",
    "missing": "record a canary for it: python -m companion.lab.canary record",
    "no such arm": "no plan has this arm: record the chapter's canaries again",
    "older version": "its version was bumped: re-record its canary",
}


class CanaryState(Protocol):
    """What the comparison says about one arm, such as a `CanaryResult`."""

    @property
    def chapter(self) -> str: ...

    @property
    def arm(self) -> str: ...

    @property
    def state(self) -> str: ...


Check = Callable[[Sequence[str]], Sequence[CanaryState]]
#: Chapters that are skipped: none; those whose code has passed on this machine; also those whose
#: code is the one that the canaries were recorded with.
Skipped = Literal["none", "passed here", "recorded code"]


@dataclass
class Outcome:
    """Outcome of comparing canaries.

    Attributes:
        compared: How many were compared.
        faults: Chapter, arm, what moved, and what to do.
    """

    compared: int = 0
    faults: list[str] = field(default_factory=list)


def _check_canaries(chapters: Sequence[str]) -> Sequence[CanaryState]:
    from companion.lab.canary import canary_runs, check_canaries

    total = sum(len(canary_runs(number)) for number in chapters)
    done = 0
    with sweep_progress("canaries", worker_count(), lines=True) as show:

        def note(arm: str) -> None:
            nonlocal done
            done += 1
            if show is not None:  # all count alike: how long a tiny run takes is not predicted
                show(done, total, total - done)

        return check_canaries(chapters, workers=worker_count(), progress=note)


def committed_canaries(number: str) -> Mapping[str, Any]:
    """The committed canaries of a chapter: ``code``, and ``arms`` with version and hashes.

    Raises:
        ValueError: If the file is damaged, with its name.
    """
    path = RESULTS / "canaries" / f"{number}.json"
    if not path.is_file():
        return {"code": "", "arms": {}}
    try:
        stored: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if any(not isinstance(arm["version"], int) for arm in stored["arms"].values()):
            raise ValueError("a version is not a whole number")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return stored


def outdated(number: str) -> list[str]:
    """Arms of a chapter whose present version is newer than that of their committed canary."""
    arms = committed_canaries(number)["arms"]
    return [arm for arm, row in arms.items() if row["version"] < arm_version(number, arm)]


def check(
    numbers: Sequence[str] = chapter_numbers(),
    *,
    skipped: Skipped = "none",
    say: Callable[[str], None] = lambda line: None,
    compare: Check = _check_canaries,
    passed: Path = RUNS / "canaries.json",
) -> Outcome:
    """Compare the canaries of chapters with the committed ones.

    Args:
        numbers: Two-digit chapters.
        skipped: Which chapters are skipped.
        say: Called with one line per chapter.
        compare: Runs the canaries and compares them.
        passed: File with the digests of the code that has passed on this machine.
    """
    known = _read_passed(passed)
    outcome, digests = Outcome(), dict[str, str]()
    machine = fingerprint(canonical=True)
    for number in numbers:
        if committed_canaries(number).get("fingerprint", machine) != machine:
            say(f"chapter {number}: canaries of other library versions, nothing to compare with")
            continue
        code = behaviour_digest(package_of(number))
        digest = f"{code}-{machine}"
        is_known = skipped != "none" and known.get(number) == digest
        is_recorded = skipped == "recorded code" and committed_canaries(number)["code"] == code
        if (is_known or is_recorded) and not outdated(number):
            say(f"chapter {number}: canaries skipped, the code has passed before")
            continue
        digests[number] = digest
    states = compare(list(digests)) if digests else ()
    for number, digest in digests.items():
        compared = {each.arm: each.state for each in states if each.chapter == number}
        moved = {arm: state for arm, state in compared.items() if state != "equal"}
        moved |= dict.fromkeys(outdated(number), "older version")
        say(f"chapter {number}: {len(compared) - len(moved)} of {len(compared)} canaries are equal")
        outcome.compared += len(compared)
        outcome.faults += [
            f"chapter {number}, {arm}: {state}: {ADVICE[state]}" for arm, state in moved.items()
        ]
        if compared and not moved:
            known[number] = digest
            write_atomic(passed, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return outcome


def _read_passed(path: Path) -> dict[str, str]:
    """Digests of the code that has passed before, by chapter; none if the file cannot be read."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


@dataclass
class Sample:
    """Outcome of a sample of records computed anew.

    Attributes:
        checked: Chapter, arm and seed of each record.
        moved: Those whose bytes are not the evidence's.
    """

    checked: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)


def verify_sample(
    count: int,
    seconds: float,
    numbers: Sequence[str] = chapter_numbers(),
    say: Callable[[str], None] = lambda line: None,
) -> Sample:
    """Compute a few records of each chapter's canonical evidence anew and compare their bytes.

    Args:
        count: Largest number of records per chapter.
        seconds: Largest number of core-seconds per chapter, by the plan.
        numbers: Two-digit chapters.
        say: Called with a line for each record, and for each chapter that has none to compare.
    """
    chosen: list[tuple[Chapter, Run, Record]] = []
    for number in numbers:
        chapter = load_chapter(number)
        reference = read_reference("standard", number)
        if reference is None or not reference.record_set.canonical:
            say(f"chapter {number}: no canonical evidence")
            continue
        sample = _sample(chapter, reference, count, seconds)
        chosen += [(chapter, run, record) for run, record in sample]
    outcome = Sample()
    fresh = recompute([(EXECUTE, run) for chapter, run, _ in chosen])
    for (chapter, run, record), again in zip(chosen, fresh, strict=True):
        name = f"chapter {chapter.number}: {run.arm}, seed {run.seed}"
        outcome.checked.append(name)
        if canonical_json(again) != canonical_json(record):
            outcome.moved.append(name)
            say(f"{name}: other bytes")
        else:
            say(f"{name}: equal")
    return outcome


def _sample(
    chapter: Chapter, reference: Reference, count: int, seconds: float
) -> list[tuple[Run, Record]]:
    """Choose records by a hash that depends on all of them, so that new evidence changes it."""
    machine = fingerprint(canonical=True)
    salt = hashlib.sha256("".join(row["checksum"] for row in reference.provenance).encode())
    candidates = []
    for run in chapter.plan("standard"):
        pair = reference.find(run) if run.deterministic else None
        # records of another fingerprint or an older version may rightly have other bytes
        if pair and pair[1]["fingerprint"] == machine and pair[0]["version"] == run.version:
            rank = hashlib.sha256(f"{salt.hexdigest()}{run.key}".encode()).hexdigest()
            candidates.append((rank, run, pair[0]))
    chosen: list[tuple[Run, Record]] = []
    spent = 0.0
    for _, run, record in sorted(candidates, key=lambda each: each[0]):
        if len(chosen) < count and spent + run.predicted_seconds <= seconds:
            chosen.append((run, record))
            spent += run.predicted_seconds
    return chosen
