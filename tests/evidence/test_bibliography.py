"""What the pages and the ledgers cite is in the bibliography."""

from __future__ import annotations

from pathlib import Path

import pytest

from companion.evidence.bibliography import check_works, cited_works, known_works
from companion.evidence.ledger import load_ledger
from companion.paths import CLAIMS, ROOT

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


def test_every_work_is_known_by_its_key():
    entries = (ROOT / "references.bib").read_text(encoding="utf-8").count("\n@")
    assert len(known_works()) >= entries  # the first entry may begin the file
    assert "faghri2018vsepp" in known_works()


def test_an_unknown_work_is_named_with_those_that_are_alike():
    check_works([], "page")
    with pytest.raises(ValueError, match=r"page: .*'faghri2018vsep'; did you mean faghri2018vsepp"):
        check_works(["faghri2020study", "faghri2018vsep"], "page")


def test_all_forms_of_a_citation_are_read():
    text = "[ab2001c], [ab2002c; ab2003c], {cite:p}`ab2004c,  ab2005c`, {cite}`ab2006c`, [a](b.md)"
    assert cited_works(text) == [f"ab200{number}c" for number in range(1, 7)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_cite_known_works(page: Path):
    check_works(cited_works(page.read_text(encoding="utf-8")), page.name)


@pytest.mark.parametrize("ledger", sorted(CLAIMS.glob("*.yaml")), ids=lambda path: path.name)
def test_ledgers_cite_known_works(ledger: Path):
    check_works({claim.published.work for claim in load_ledger(ledger)}, ledger.name)


def test_some_pages_do_cite():
    assert sum(bool(cited_works(page.read_text(encoding="utf-8"))) for page in PAGES) >= 6
