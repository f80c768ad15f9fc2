"""The committed verdicts, read without judging anything: for listings, README and checks.

`companion.pages.judge` writes them from the committed records, and a test compares the two. This
module loads neither torch nor a notebook library, so that a listing appears at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from companion.evidence.bibliography import check_works
from companion.evidence.claims import Judgement, Record, judge
from companion.evidence.ledger import Claim, criterion_hash, load_ledger
from companion.lab.chapters import Chapter, chapter_numbers, functions_of
from companion.paths import CLAIMS, RESULTS

__all__ = [
    "CHANGED",
    "committed_judgements",
    "criteria",
    "judge_records",
    "known_arms",
    "mark_changed_criteria",
    "read_ledger",
    "read_verdicts",
    "verdicts_path",
]

CHANGED = "criterion changed"


def verdicts_path(number: str) -> Path:
    """Path of the committed verdicts of a chapter."""
    return RESULTS / "verdicts" / f"{number}.json"


def read_verdicts(number: str) -> list[Judgement]:
    """Read the committed verdicts of a chapter; none if it has no records.

    Raises:
        ValueError: If the file is damaged, with its name and the command that makes it again.
    """
    path = verdicts_path(number)
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Judgement.from_json(row) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, run `make judge CHAPTERS={number}`: {error}"
        ) from error


def criteria(number: str) -> dict[str, str]:
    """Hash of every deciding rule of a chapter's ledger as it stands today, by claim."""
    ledger = load_ledger(CLAIMS / f"{number}.yaml")
    functions = functions_of(number)
    return {claim.id: criterion_hash(claim, functions) for claim in ledger}


def mark_changed_criteria(
    judgements: Sequence[Judgement], hashes: Mapping[str, str]
) -> list[Judgement]:
    """Make claims *open* whose rule has another hash than ``hashes`` states.

    A claim without an entry keeps its word, because it is new and cannot have changed.
    """
    return [
        replace(judgement, word="open", addition="", reason=CHANGED)
        if hashes.get(judgement.id, judgement.criterion) != judgement.criterion
        else judgement
        for judgement in judgements
    ]


def committed_judgements() -> list[Judgement]:
    """The committed verdicts of all chapters; *open* where the ledger's rule has changed since."""
    judged = []
    for number in chapter_numbers():
        if verdicts_path(number).is_file():
            judged += mark_changed_criteria(read_verdicts(number), criteria(number))
    return judged


def read_ledger(number: str) -> list[Claim]:
    """Read the claims of a chapter, to judge them.

    Raises:
        ValueError: If an entry is wrong, or names a work that is not in the bibliography.
    """
    path = CLAIMS / f"{number}.yaml"
    ledger = load_ledger(path)
    for claim in ledger:
        check_works([claim.published.work], f"{path.name}: claim {claim.id}")
    return ledger


def known_arms(chapter: Chapter) -> set[str]:
    """Names of all arms that any profile of the chapter runs."""
    return {run.arm for profile in ("standard", "full", "paper") for run in chapter.plan(profile)}


def judge_records(
    chapter: Chapter, records: Sequence[Record], *, all_there_are: bool = False
) -> list[Judgement]:
    """Judge every claim of a chapter's ledger on some records.

    Args:
        chapter: The chapter.
        records: Records of its runs.
        all_there_are: Whether fewer seeds than the ledger asks for may decide; for comparisons.

    Raises:
        ValueError: If the ledger names an unknown work, arm or function, or cannot be judged.
    """
    arms = known_arms(chapter)
    return [
        judge(claim, records, chapter.functions, known_arms=arms, all_there_are=all_there_are)
        for claim in read_ledger(chapter.number)
    ]
