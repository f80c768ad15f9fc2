"""The tables of the pages on the sources: complete, and never at odds with the verdicts."""

from __future__ import annotations

import re

import pytest

from companion.pages import abstracts as ab
from companion.pages.verdicts import committed_judgements

SOURCES = ab.ABSTRACTS.parent


@pytest.fixture(scope="module")
def judged():
    return {each.id: each for each in committed_judgements()}


def test_every_claim_stands_on_the_page_of_its_work(judged):
    tables = ab.source_tables()
    shown = {
        page: "\n".join(
            table
            for name, table in tables.items()
            if name in {each.name for each in ab.load_abstracts() if each.page == page}
            or name.startswith(f"{page}_")
        )
        for page in ab.PAGES
    }
    for page, prefixes in ab.PAGES.items():
        for each in judged.values():
            if each.id.partition(".")[0] in prefixes:
                row = next(line for line in shown[page].splitlines() if f"[`{each.id}`]" in line)
                assert f"**{each.word}" in row, each.id


def test_every_table_is_included_by_its_page_and_no_other_is():
    included = {
        (path.stem, name)
        for path in SOURCES.glob("*.md")
        for name in re.findall(r"\{include\} tables/(\w+)\.md", path.read_text(encoding="utf-8"))
    }
    pages = {each.name: each.page for each in ab.load_abstracts()}
    wanted = {(pages.get(name, name.rpartition("_")[0]), name) for name in ab.source_tables()}
    assert included == wanted


def test_a_sentence_has_its_claims_in_order_and_its_text_once(judged):
    sentences = (
        ab.Sentence("First.", ("aa.1", "aa.2"), "A remark."),
        ab.Sentence("Second.", (), "Background."),
    )
    rows = ab.abstract_table(ab.Abstract("some", "page", sentences), judged).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["1", "", "", "2"]
    assert "First." in rows[0]
    assert ["`aa.1`" in rows[0], "`aa.2`" in rows[1], "A remark." in rows[2]] == [True] * 3
    assert "Background." in rows[3]


@pytest.mark.parametrize("entry", ["{says: Nothing stands beside it.}", "{says: x, claim: [aa.1]}"])
def test_an_entry_without_claim_and_remark_or_misspelt_is_refused(tmp_path, entry):
    path = tmp_path / "abstracts.yaml"
    path.write_text(f"some: {{page: some, sentences: [{entry}]}}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="some"):
        ab.load_abstracts(path)


def test_an_unknown_claim_is_refused(judged):
    abstract = ab.Abstract("some", "page", (ab.Sentence("x", ("aa.999",), ""),))
    with pytest.raises(KeyError, match=r"aa\.999"):
        ab.abstract_table(abstract, judged)
