"""Arms of ledgers and tables: each stands in its chapter's table under its own name."""

from __future__ import annotations

import re

import pytest

from companion.evidence.ledger import load_ledger
from companion.lab.chapters import chapter_numbers, load_chapter, package_of
from companion.paths import CHAPTERS, CLAIMS


@pytest.mark.parametrize("number", chapter_numbers())
def test_every_arm_is_a_literal_of_its_table(number: str) -> None:
    table = (CHAPTERS / package_of(number).rpartition(".")[2] / "arms.py").read_text("utf-8")
    literals = set(re.findall(r'"(\w+)"', table))
    chapter = load_chapter(number)
    read = {
        arm
        for claim in load_ledger(CLAIMS / f"{number}.yaml")
        for formula in claim.all_formulas()
        for arm in formula.arms
    }
    assert read, "a ledger that reads no arm"
    assert sorted(read - chapter.arms.keys()) == []
    assert sorted(chapter.arms.keys() - literals) == []


@pytest.mark.parametrize("number", chapter_numbers())
def test_every_tuned_value_was_chosen_and_every_choice_is_used(number: str) -> None:
    chapter = load_chapter(number)
    used = {
        (source, setting)
        for row in chapter.arms.values()
        for setting in row.tuned
        for source in row.sources(setting)
    }
    chosen = {(arm, setting) for arm, values in chapter.chosen.items() for setting in values}
    assert used == chosen
