"""Apply the ledgers to the committed records: verdicts, README and, if asked, the notebooks.

Nothing is recomputed, so a new claim or a changed threshold gets its word in seconds. `publish`
turns runs into committed records; this module makes everything that follows from the records.

A claim has one word. It comes from the records of *full* if they have its arms, else from those of
*standard*. A word from records that were made before canonical mode is accompanied by the word that
the canonical records of *standard* give at the seeds that they have.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from companion.evidence.claims import Judgement, verdicts_json
from companion.evidence.claims import judge as judge_claim
from companion.evidence.ledger import AFTER, Claim, load_ledger
from companion.evidence.store import (
    Reference,
    read_reference,
    reference_folder,
    write_atomic,
    write_record_set,
)
from companion.evidence.tables import verdict_blocks
from companion.lab.chapters import Chapter, about, chapter_numbers, load_chapter, notebook_path
from companion.pages.context import describe_evidence
from companion.pages.scoreboard import chapter_html, whole_text
from companion.pages.verdicts import (
    criteria,
    judge_records,
    known_arms,
    mark_changed_criteria,
    read_ledger,
    read_verdicts,
    verdicts_path,
)
from companion.pages.views import (
    execute_notebook,
    front_figure_path,
    front_figure_png,
    render_readme,
    write_key_figure,
)
from companion.paths import CLAIMS, ROOT

__all__ = [
    "ADVICE",
    "PROFILES",
    "evidence_judgements",
    "judge",
    "notebook_faults",
    "outdated_verdicts",
    "pose",
    "verdicts_text",
]

PROFILES = ("full", "standard")  # in the order in which their records decide
OVERVIEWS = ("00", "08")  # notebooks that show every chapter
ADVICE = "run `make judge`, and `make judge-render` for the notebooks"


def evidence_judgements(number: str) -> list[Judgement]:
    """Judge a chapter's claims on its committed records.

    A claim is *open* with the reason *criterion changed* if its rule is not the one that is stated
    in its record set, by publishing the records or by `pose`.

    Raises:
        LookupError: If the chapter has no record set.
    """
    chapter = load_chapter(number)
    references = {profile: read_reference(profile, number) for profile in PROFILES}
    known = {profile: each for profile, each in references.items() if each is not None}
    if not known:
        raise LookupError(f"chapter {number} has no records")
    arms = known_arms(chapter)
    ledger = read_ledger(number)
    return [_judge_on_evidence(claim, chapter, known, arms) for claim in ledger]


#: Why a claim has no word whose rule was added after the records without saying so.
NEW_RULE = f"its rule is newer than its records: say `posed: {AFTER}` and pose it, or publish"


def _judge_on_evidence(
    claim: Claim, chapter: Chapter, references: dict[str, Reference], arms: set[str]
) -> Judgement:
    """Judge a claim on the first record set that has values for it.

    Args:
        claim: The claim.
        chapter: Its chapter.
        references: Record sets by profile, in the order in which they decide.
        arms: Names of all arms of the chapter.
    """

    def judged(profile: str, *, all_there_are: bool = False) -> Judgement:
        return judge_claim(
            claim,
            references[profile].records,
            chapter.functions,
            known_arms=arms,
            all_there_are=all_there_are,
        )

    judgement, source = None, ""
    for profile in references:
        candidate = judged(profile)
        if judgement is None or candidate.has_values:
            judgement, source = candidate, profile
        if judgement.has_values:
            break
    assert judgement is not None
    record_set = references[source].record_set
    judgement = replace(judgement, records=source, early=not record_set.canonical)
    [judgement] = mark_changed_criteria([judgement], record_set.criteria)
    is_new = claim.id not in record_set.criteria
    if judgement.has_values and is_new and claim.posed != AFTER:
        judgement = replace(judgement, word="open", addition="", reason=NEW_RULE)
    also_standard = "standard" in references and source != "standard"
    if also_standard and judgement.early and judgement.has_values:
        other = judged("standard", all_there_are=True)
        if other.has_values and references["standard"].record_set.canonical:
            seeds = min(effect.n for effect in other.effects)
            judgement = replace(
                judgement,
                standard_word=other.word,
                standard_seeds=seeds,
                standard_settings=len(other.effects),
            )
    return judgement


def verdicts_text(number: str) -> str:
    """Text that a chapter's file of verdicts should have, by its ledger and committed records.

    Raises:
        LookupError: If the chapter has no record set.
    """
    return verdicts_json(evidence_judgements(number))


def _judged_chapters(numbers: Sequence[str]) -> list[str]:
    """Those of the chapters that have committed records."""
    return [
        number
        for number in numbers
        if any((reference_folder(p, number) / "records.jsonl").is_file() for p in PROFILES)
    ]


def outdated_verdicts(numbers: Sequence[str] = chapter_numbers()) -> dict[Path, str]:
    """The verdict files that are not up to date, each with the text that it should have."""
    texts = {verdicts_path(number): verdicts_text(number) for number in _judged_chapters(numbers)}
    return {path: text for path, text in texts.items() if _text(path) != text}


def judge(
    numbers: Sequence[str] = chapter_numbers(),
    *,
    render: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the verdicts of chapters and the README; with ``render`` outdated notebooks, too.

    Args:
        numbers: Two-digit chapters.
        render: Whether to execute outdated notebooks and draw their key figures.
        say: Called with one line for each file that was written or is outdated.
    """
    for number in sorted(set(numbers) - set(_judged_chapters(numbers))):
        # nothing to judge yet, but what is wrong with the ledger is said before anything is run
        judge_records(load_chapter(number), [])
        say(f"chapter {number}: the ledger is in order; there are no records yet")
    for path, text in outdated_verdicts(numbers).items():
        for line in _moved_words(_text(path), text):
            say(f"chapter {path.stem}: {line}")
        write_atomic(path, text)
        say(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}")
    picture = front_figure_png()
    path = front_figure_path()
    if not path.is_file() or path.read_bytes() != picture:
        write_atomic(path, picture)
        say(f"wrote {path.name}")
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    if (after := render_readme(before)) != before:
        write_atomic(readme, after)
        say(f"wrote {readme.name}")
    outdated = [n for n in (*numbers, *OVERVIEWS) if notebook_faults(n)]
    if not render:
        for number in outdated:
            name = notebook_path(number).name
            say(f"{name} shows older results: `make judge-render CHAPTERS={number}`")
        return
    for number in outdated:
        say(f"executing {notebook_path(number).name}")
        if number in chapter_numbers() and about(number).key_figure:
            write_key_figure(number)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads wait; the kernels are processes
        list(pool.map(execute_notebook, map(notebook_path, outdated)))


def pose(number: str) -> list[str]:
    """State the rules of the committed ledger in the record sets of a chapter that exist already.

    Args:
        number: Two-digit chapter.

    Returns:
        Ids of the claims whose rule is new to a record set.

    Raises:
        ValueError: If the ledger is not committed, names an unknown work, arm or function, or a
            claim with a new rule does not say that it was posed after the data.
    """
    path = CLAIMS / f"{number}.yaml"
    changes = ["git", "-C", str(ROOT), "status", "--porcelain", "--", str(path)]
    if subprocess.run(changes, capture_output=True, text=True, check=True).stdout.strip():
        raise ValueError(f"commit {path.name} first: rules come before verdicts")
    judge_records(load_chapter(number), [])  # refuses a ledger that cannot be judged
    ledger = {claim.id: claim for claim in load_ledger(path)}
    rules = criteria(number)
    changed: dict[str, None] = {}  # an ordered set
    for profile in PROFILES:
        reference = read_reference(profile, number)
        if reference is None or dict(reference.record_set.criteria) == rules:
            continue
        new = [name for name in rules if reference.record_set.criteria.get(name) != rules[name]]
        if silent := [name for name in new if ledger[name].posed != AFTER]:
            raise ValueError(
                f"chapter {number}: the rule of {', '.join(silent)} is newer than its {profile} "
                f"records; say `posed: {AFTER}`, or publish fresh records"
            )
        changed |= dict.fromkeys(new)
        write_record_set(profile, number, replace(reference.record_set, criteria=rules))
    return list(changed)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _moved_words(before: str, after: str) -> list[str]:
    """Say which claims have a different word now; without a readable old file, all of them."""
    try:
        old = {row["id"]: row["word"] for row in json.loads(before or "[]")}
    except (ValueError, TypeError, KeyError):
        old = {}
    return [
        f"{row['id']}: {old.get(row['id'], 'not judged before')}, now {_word_and_reason(row)}"
        for row in json.loads(after)
        if old.get(row["id"]) != row["word"]
    ]


def _word_and_reason(row: Mapping[str, Any]) -> str:
    """Word of a row of verdicts and why, if it is open with the reasons of its settings."""
    effects = row["effects"] if row["word"] == "open" else []
    reasons = dict.fromkeys([row["reason"], *(effect["reason"] for effect in effects)])
    shown = "; ".join(filter(None, reasons))
    return f"{row['word']} ({shown})" if shown else str(row["word"])


def _shown_text(path: Path) -> str:
    """All text that the cells of a notebook have printed, or shown as plain text or HTML."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = []
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        if output.get("name") == "stdout":
            shown.append("".join(output["text"]))
        data = output.get("data", {})
        shown += ["".join(data.get(kind, ())) for kind in ("text/plain", "text/html")]
    return "\n".join(shown)


def notebook_faults(number: str) -> list[str]:
    """List what a committed notebook shows that is not in the committed verdicts and record sets.

    Args:
        number: Two digits of a notebook; the first one and the scoreboard show every chapter.

    Returns:
        Ids of claims whose block is outdated, and chapters whose record set or table is.
    """
    if number in chapter_numbers() and not _judged_chapters((number,)):
        return []
    shown = _shown_text(notebook_path(number))
    if number not in chapter_numbers():
        return [
            f"claims of chapter {each}"
            for each in _judged_chapters(chapter_numbers())
            if whole_text(each, read_verdicts(each)) not in shown
            or chapter_html(read_verdicts(each)) not in shown
        ]
    reference = read_reference("standard", number)
    faults = []
    if reference is None or describe_evidence("standard", number, reference) not in shown:
        faults.append(f"evidence of chapter {number}")
    return faults + [
        judgement.id
        for judgement in read_verdicts(number)
        if verdict_blocks([judgement]) not in shown
    ]
