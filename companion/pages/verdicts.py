"""The committed verdicts, read without judging anything: for listings, README and checks.

`companion.pages.judge` writes them from the committed records, and a test compares the two. This
module loads neither torch nor a notebook library, so that a listing appears at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from companion.evidence.claims import Judgement
from companion.evidence.ledger import criterion_hash, load_ledger
from companion.evidence.store import reference_folder
from companion.experiments.chapters import TITLES, functions_of
from companion.paths import CLAIMS

__all__ = [
    "committed_judgements",
    "criteria",
    "mark_changed_criteria",
    "read_verdicts",
    "verdicts_path",
]


def verdicts_path(number: str, profile: str) -> Path:
    """Where the committed verdicts of a chapter stand."""
    return reference_folder(profile, number) / "verdicts.json"


def read_verdicts(number: str, profile: str) -> list[Judgement]:
    """Read the committed verdicts of a chapter; none if it has no record set.

    Raises:
        ValueError: If the file is damaged, with its name and the command that makes it again.
    """
    path = verdicts_path(number, profile)
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Judgement.from_json(row) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, run `python -m companion judge {number}`: {error}"
        ) from error


def criteria(number: str, profile: str) -> dict[str, str]:
    """Hash of every deciding rule of a chapter's ledger as it stands today, by claim."""
    ledger = load_ledger(CLAIMS / f"{number}.yaml")
    functions = functions_of(number)
    return {claim.id: criterion_hash(claim.at(profile), functions) for claim in ledger}


def mark_changed_criteria(
    judgements: Sequence[Judgement], hashes: Mapping[str, str]
) -> list[Judgement]:
    """Take the verdict from claims whose rule has another hash than ``hashes`` says.

    A claim without an entry keeps its verdict: it is new, and nothing says that it has changed.
    """
    return [
        replace(judgement, verdict="inconclusive", reason="criterion changed")
        if hashes.get(judgement.id, judgement.criterion_hash) != judgement.criterion_hash
        else judgement
        for judgement in judgements
    ]


def committed_judgements(profile: str = "standard") -> list[Judgement]:
    """The committed verdicts of all chapters; *criterion changed* where the ledger has moved on."""
    judged = []
    for number in TITLES:
        if verdicts_path(number, profile).is_file():
            rules = criteria(number, profile)
            judged += mark_changed_criteria(read_verdicts(number, profile), rules)
    return judged
