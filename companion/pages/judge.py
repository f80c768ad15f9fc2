"""Apply the ledgers to the committed records: verdicts, README and, if asked, the notebooks.

Nothing is recomputed, so a new claim or a moved margin shows its word in seconds. `publish`
promotes runs to records; everything that follows from records follows here.

A claim has one word. It comes from the records of *full* where they hold its arms, else from those
of *standard*. Beside a word from records that were made before canonical mode stands the word that
the canonical records of *standard* give, at the seeds that they have.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

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
    known_arms,
    mark_changed_criteria,
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

    A claim whose rule is another one than its records were published with, or the rules were posed
    for (`pose`), is *open* with the reason *criterion changed*.

    Raises:
        LookupError: If the chapter has no record set.
    """
    chapter = load_chapter(number)
    references = {profile: read_reference(profile, number) for profile in PROFILES}
    known = {profile: each for profile, each in references.items() if each is not None}
    if not known:
        raise LookupError(f"chapter {number} has no records")
    arms = known_arms(chapter)
    ledger = load_ledger(CLAIMS / f"{number}.yaml")
    return [_judge_on_evidence(claim, chapter, known, arms) for claim in ledger]


#: Why a claim that was added to records without saying so has no word.
NEW_RULE = f"its rule is newer than its records: say `posed: {AFTER}` and pose it, or publish"


def _judge_on_evidence(
    claim: Claim, chapter: Chapter, references: dict[str, Reference], arms: set[str]
) -> Judgement:
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
    about = references[source].record_set
    judgement = replace(judgement, records=source, early=not about.canonical)
    [judgement] = mark_changed_criteria([judgement], about.criteria)
    if judgement.has_values and claim.id not in about.criteria and claim.posed != AFTER:
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
    """Text of a chapter's file of verdicts as it follows from ledger and committed records.

    Raises:
        LookupError: If the chapter has no record set.
    """
    return verdicts_json(evidence_judgements(number))


def _judged_chapters(numbers: Sequence[str]) -> list[str]:
    return [
        number
        for number in numbers
        if any((reference_folder(p, number) / "records.jsonl").is_file() for p in PROFILES)
    ]


def outdated_verdicts(numbers: Sequence[str] = chapter_numbers()) -> dict[Path, str]:
    """The verdict files that differ from what the judge says, each with the text it should have."""
    texts = {verdicts_path(number): verdicts_text(number) for number in _judged_chapters(numbers)}
    return {path: text for path, text in texts.items() if _text(path) != text}


def judge(
    numbers: Sequence[str] = chapter_numbers(),
    *,
    render: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the verdicts of chapters and the README; with ``render`` the notebooks they changed.

    Args:
        numbers: Two-digit chapters.
        render: Whether to execute notebooks and draw key figures as well.
        say: Called with one line for each file written.
    """
    for path, text in outdated_verdicts(numbers).items():
        for line in _moved_words(_text(path), text):
            say(f"chapter {path.stem}: {line}")
        write_atomic(path, text)
        say(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}")
    picture, path = front_figure_png(), front_figure_path()
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
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each has a kernel, a process of its own
        list(pool.map(execute_notebook, map(notebook_path, outdated)))


def pose(number: str) -> list[str]:
    """Accept the committed ledger of a chapter for records that exist already.

    Args:
        number: Two-digit chapter.

    Returns:
        Ids of the claims whose rule is new to a record set.

    Raises:
        ValueError: If the ledger is not committed, or a claim whose rule changed does not say that
            it was posed after the data.
    """
    path = CLAIMS / f"{number}.yaml"
    changes = ["git", "-C", str(ROOT), "status", "--porcelain", "--", str(path)]
    if subprocess.run(changes, capture_output=True, text=True, check=True).stdout.strip():
        raise ValueError(f"commit {path.name} first: rules come before verdicts")
    ledger = {claim.id: claim for claim in load_ledger(path)}
    rules = criteria(number)
    changed: dict[str, None] = {}
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
    """The claims whose word is another one, in words; a damaged old file says nothing."""
    try:
        old = {row["id"]: row["word"] for row in json.loads(before or "[]")}
    except (ValueError, TypeError, KeyError):
        old = {}
    new = {row["id"]: row["word"] for row in json.loads(after)}
    return [
        f"{claim}: {old.get(claim, 'not judged before')}, now {word}"
        for claim, word in new.items()
        if old.get(claim) != word
    ]


def _shown_text(path: Path) -> str:
    """All that the cells of a notebook have printed, or shown as plain text or as HTML."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = []
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        if output.get("name") == "stdout":
            shown.append("".join(output["text"]))
        data = output.get("data", {})
        shown += ["".join(data.get(kind, ())) for kind in ("text/plain", "text/html")]
    return "\n".join(shown)


def notebook_faults(number: str) -> list[str]:
    """What a committed notebook shows otherwise than the committed verdicts and record sets.

    Args:
        number: Two digits; the scoreboard and the first notebook show every chapter.

    Returns:
        Ids of claims whose block differs, and chapters whose record set or table is another one.
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
