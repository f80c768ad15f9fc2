"""Every committed view follows from the committed records: one edited digit is noticed."""

from __future__ import annotations

import io
import re
import subprocess

import numpy as np
import pytest
import yaml
from PIL import Image

from companion.evidence.store import read_reference, reference_folder
from companion.lab.chapters import about, chapter_numbers, load_chapter
from companion.pages.verdicts import criteria, read_verdicts
from companion.pages.views import (
    front_figure_path,
    front_figure_png,
    key_figure_path,
    key_figure_png,
    render_readme,
)
from companion.paths import CLAIMS, RESULTS, ROOT

PUBLISHED = [
    (profile, number)
    for number in chapter_numbers()
    for profile in ("standard", "full")
    if (reference_folder(profile, number) / "records.jsonl").is_file()
]
PICTURED = [number for number in chapter_numbers() if about(number).key_figure]


def test_every_chapter_has_a_standard_reference() -> None:
    assert [n for profile, n in PUBLISHED if profile == "standard"] == list(chapter_numbers())


@pytest.mark.parametrize(("profile", "number"), PUBLISHED)
def test_the_evidence_is_the_plan(profile: str, number: str) -> None:
    chapter, reference = load_chapter(number), read_reference(profile, number)
    plan = chapter.plan(profile)
    assert len(reference.records) == len(plan)
    assert all(reference.find(run) for run in plan)


@pytest.mark.parametrize(("profile", "number"), PUBLISHED)
def test_canonical_evidence_says_where_it_comes_from(profile: str, number: str) -> None:
    about = read_reference(profile, number).record_set
    if not about.canonical:
        assert about.note
        return
    for named in (about.commit.removesuffix("-dirty"), about.ledger):
        command = ["git", "-C", str(ROOT), "cat-file", "-e", named]
        assert subprocess.run(command, check=False).returncode == 0, named


@pytest.mark.parametrize(("profile", "number"), PUBLISHED)
def test_criteria_are_the_ones_that_the_records_were_published_or_posed_with(
    profile: str, number: str
) -> None:
    assert dict(read_reference(profile, number).record_set.criteria) == criteria(number)


def _ledger_of(blob: str) -> dict[str, dict[str, object]]:
    command = ["git", "-C", str(ROOT), "cat-file", "blob", blob]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    entries = yaml.safe_load(done.stdout) if done.returncode == 0 else []
    return {entry["id"]: entry for entry in entries}


@pytest.mark.parametrize("number", chapter_numbers())
def test_a_rule_stood_in_the_ledger_of_its_records_or_says_that_it_came_after(number: str) -> None:
    wording = {"statement", "published", "note", "front", "tier", "posed", "origin", "scope"}

    def rule(entry: dict[str, object]) -> dict[str, object]:
        return {name: value for name, value in entry.items() if name not in wording}

    now = {e["id"]: e for e in yaml.safe_load((CLAIMS / f"{number}.yaml").read_text("utf-8"))}
    for judged in read_verdicts(number):
        entry = now[judged.id]
        if entry.get("posed") == "after the data" or not judged.records:
            continue
        reference = read_reference(judged.records, number)
        stood = _ledger_of(reference.record_set.ledger).get(judged.id)
        assert stood is not None
        assert rule(stood) == rule(entry), judged.id


@pytest.mark.parametrize("number", chapter_numbers())
def test_the_ledger_was_committed_before_the_results(number: str) -> None:
    def first_commit(path: str) -> str:
        command = ["git", "-C", str(ROOT), "log", "--diff-filter=A", "--format=%H", "--", path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[
            -1
        ]

    ledger = first_commit(f"claims/{number}.yaml")
    records = first_commit(f"results/standard/{number}/records.jsonl")
    order = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", ledger, records]
    assert ledger != records
    assert subprocess.run(order, check=False).returncode == 0


def test_readme_follows_from_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == render_readme(text)
    assert text.count("<!-- generated:") == 2
    assert "()" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def test_readme_holds_no_measured_number_outside_its_marks() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"<!-- generated.*?<!-- end -->|```.*?```", "", text, flags=re.DOTALL)
    assert set(re.findall(r"\d+\.\d+", prose)) <= {"3.11"}


@pytest.mark.parametrize("number", PICTURED)
def test_the_key_figures_follow_from_the_records(number: str) -> None:
    # pictures are compared, not files: compression may change with the version of Pillow
    committed = np.asarray(Image.open(key_figure_path(number)).convert("RGB"))
    drawn = np.asarray(Image.open(io.BytesIO(key_figure_png(number))).convert("RGB"))
    np.testing.assert_array_equal(committed, drawn)


def test_the_front_figure_follows_from_the_verdicts() -> None:
    committed = np.asarray(Image.open(front_figure_path()).convert("RGB"))
    drawn = np.asarray(Image.open(io.BytesIO(front_figure_png())).convert("RGB"))
    np.testing.assert_array_equal(committed, drawn)


@pytest.mark.parametrize("number", PICTURED)
def test_the_key_figures_carry_their_text_alternative(number: str) -> None:
    with Image.open(key_figure_path(number)) as picture:
        picture.load()
        assert picture.info == {"Description": about(number).alt}


def test_no_results_are_orphaned() -> None:
    known = {reference_folder(profile, number) for profile, number in PUBLISHED}
    assert {path.parent for path in RESULTS.glob("*/*/records.jsonl")} == known
