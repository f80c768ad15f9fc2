"""Apply the ledgers to the committed records: verdicts, README and, if asked, the notebooks.

Nothing is recomputed, so a new claim or a moved margin shows its verdict in seconds. `publish`
promotes runs to records; everything that follows from records follows here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from companion.evidence.claims import verdicts_json
from companion.evidence.store import read_reference, reference_folder, write_atomic
from companion.evidence.tables import verdict_blocks
from companion.experiments.chapters import TITLES, load_chapter, notebook_path
from companion.pages.notebook import describe_evidence, evidence_judgements
from companion.pages.verdicts import read_verdicts, verdicts_path
from companion.pages.views import KEY_FIGURES, execute_notebook, render_readme, write_key_figure
from companion.paths import ROOT

__all__ = [
    "ADVICE",
    "PROFILES",
    "judge",
    "notebook_faults",
    "outdated_verdicts",
    "verdicts_text",
]

PROFILES = ("standard", "full")
SCOREBOARD = "08"
ADVICE = "run `make judge`, and `python -m companion judge --render` for the notebooks"


def verdicts_text(number: str, profile: str = "standard") -> str:
    """Text of ``verdicts.json`` as it follows from ledger and committed records.

    A claim whose rule is another one than its records were published with is *inconclusive*, with
    the reason *criterion changed*.

    Raises:
        LookupError: If the chapter has no record set.
    """
    chapter, reference = load_chapter(number), read_reference(profile, number)
    if chapter is None or reference is None:
        raise LookupError(f"chapter {number} has no {profile} records")
    return verdicts_json(evidence_judgements(chapter, reference, profile))


def _sets(numbers: Sequence[str], profiles: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (number, profile)
        for number in numbers
        for profile in profiles
        if (reference_folder(profile, number) / "records.jsonl").is_file()
    ]


def outdated_verdicts(
    numbers: Sequence[str] = tuple(TITLES), profiles: Sequence[str] = PROFILES
) -> dict[Path, str]:
    """The verdict files that differ from what the judge says, each with the text it should have."""
    texts = {verdicts_path(n, p): verdicts_text(n, p) for n, p in _sets(numbers, profiles)}
    return {path: text for path, text in texts.items() if _text(path) != text}


def judge(
    numbers: Sequence[str] = tuple(TITLES),
    profiles: Sequence[str] = PROFILES,
    *,
    render: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the verdicts of chapters and the README; with ``render`` the notebooks they changed.

    Args:
        numbers: Two-digit chapters.
        profiles: Record sets to judge.
        render: Whether to execute notebooks and draw key figures as well.
        say: Called with one line for each file written.
    """
    for path, text in outdated_verdicts(numbers, profiles).items():
        for line in _moved_words(_text(path), text):
            say(f"{path.parent.parent.name}/{path.parent.name}: {line}")
        write_atomic(path, text)
        say(f"wrote {path.relative_to(path.parents[3])}")
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    if (after := render_readme(before)) != before:
        write_atomic(readme, after)
        say(f"wrote {readme.name}")
    outdated = [n for n in (*numbers, SCOREBOARD) if notebook_faults(n)]
    for number in outdated:
        path = notebook_path(number)
        if not render:
            say(f"{path.name} shows older results: `python -m companion judge --render {number}`")
            continue
        say(f"executing {path.name}")
        if number in KEY_FIGURES:
            write_key_figure(number)
        execute_notebook(path)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _moved_words(before: str, after: str) -> list[str]:
    """The claims whose word is another one, in words; a damaged old file says nothing."""
    try:
        old = {row["id"]: row["verdict"] for row in json.loads(before or "[]")}
    except (ValueError, TypeError, KeyError):
        old = {}
    new = {row["id"]: row["verdict"] for row in json.loads(after)}
    return [
        f"{claim}: {old.get(claim, 'not judged before')}, now {word}"
        for claim, word in new.items()
        if old.get(claim) != word
    ]


def _shown_text(path: Path) -> tuple[str, str]:
    """All code of a notebook, and all that its cells have printed."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    printed = ["".join(output["text"]) for output in outputs if output.get("name") == "stdout"]
    return "\n".join("".join(cell["source"]) for cell in code), "\n".join(printed)


def notebook_faults(number: str) -> list[str]:
    """What a committed notebook shows otherwise than the committed verdicts and record sets.

    Args:
        number: Two digits; ``"08"`` is the scoreboard, which shows every chapter.

    Returns:
        Ids of claims whose block differs, and chapters whose record set is another one.
    """
    if number == SCOREBOARD:
        numbers = [each for each, _ in _sets(tuple(TITLES), ("standard",))]
    else:
        numbers = [each for each, _ in _sets((number,), ("standard",))]
    if not numbers:
        return []
    source, printed = _shown_text(notebook_path(number))
    shows_full = ".verdicts_at_full()" in source
    faults = []
    for each in numbers:
        reference = read_reference("standard", each)
        if reference is None or describe_evidence("standard", each, reference) not in printed:
            faults.append(f"evidence of chapter {each}")
        faults += [
            judgement.id
            for judgement in read_verdicts(each, "standard")
            if verdict_blocks([judgement]) not in printed
        ]
        faults += [
            f"{judgement.id} at full"
            for judgement in (read_verdicts(each, "full") if shows_full else ())
            if f"{judgement.id} at full: {judgement.verdict}\n" not in printed
        ]
    return faults
