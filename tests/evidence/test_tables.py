"""Tables: alignment, rounding, and nothing at the end of a line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.evidence import tables as t
from companion.evidence.claims import judge
from companion.evidence.ledger import Claim

ROWS = [
    {"arm": "max of hinges", "n": 10, "loss": 0.123456789, "note": ""},
    {"arm": "sum", "n": 5, "loss": None, "note": "a|b\nc"},
]


def test_text_table_is_aligned():
    assert t.text_table(ROWS, ["arm", "n", "loss", "note"]).split("\n") == [
        "arm             n    loss  note",
        "-------------  --  ------  -----",
        "max of hinges  10  0.1235",
        "sum             5       –  a|b c",
    ]


def test_markdown_table_escapes_and_aligns():
    assert t.markdown_table(ROWS, ["arm", "n", "note"]).split("\n") == [
        "| arm | n | note |",
        "| --- | --: | --- |",
        "| max of hinges | 10 |  |",
        "| sum | 5 | a\\|b c |",
    ]


def test_empty_tables_have_a_head_and_unknown_columns_raise():
    assert t.text_table([], ["a", "bc"]) == "a  bc\n-  --"
    assert t.markdown_table([], ["a"]) == "| a |\n| --- |"
    with pytest.raises(KeyError, match="gone"):
        t.text_table(ROWS, ["gone"])


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries({"a": st.text(), "b": st.floats() | st.none()})))
def test_no_line_ends_in_a_space(rows):
    for make in (t.text_table, t.markdown_table):
        lines = make(rows, ["a", "b"]).split("\n")
        assert len(lines) == len(rows) + 2
        assert all(line == line.rstrip() for line in lines)


def test_numbers_have_fixed_decimals_and_no_negative_zero():
    assert t.fmt_number(1.005, 1) == "1.0"
    assert t.fmt_number(-0.004, 2) == "0.00"
    assert t.fmt_number(-0.006, 2) == "-0.01"
    assert t.fmt_number(-0.4, 0) == "0"
    assert t.fmt_number(None, 2) == "–"
    assert t.fmt_interval(1.234, -0.001, 2.5, 2) == "1.23 [0.00, 2.50]"
    assert t.fmt_interval(None, None, None, 2) == "–"


def judgements():
    source = {"work": "w", "where": "t", "published": "+5.9 | COCO", "read": "text"}
    base = {"tier": "extended", "source": source, "seeds": 5}
    gain = {"unit": "points", "reproduced": "> 0", "contradicted": "< 1.0"}
    both = [{"estimand": "x", **gain}, {"estimand": "y", **gain}]
    gap = [{"estimand": "z", "unit": "relative", "tolerance": 1e-5}]
    entries = [
        {"id": "a.1", "statement": "word " * 30, "kind": "statistical", "all_of": both, **base},
        {"id": "a.2", "statement": "exact", "kind": "exact", "all_of": gap, **base},
        {"id": "a.3", "statement": "later", "kind": "timing", "not_tested": "later", **base},
    ]
    records = [
        {"arm": "m", "seed": 1000 + k, "x": 5 + k % 2, "y": (-9) ** (k % 2), "z": -1e-9 * k}
        for k in range(5)
    ]
    estimands = {name: lambda rs, name=name: rs[0][name] for name in "xyz"}
    return [judge(Claim.model_validate(each), records, estimands) for each in entries]


def test_verdict_table_has_one_line_an_estimand():
    lines = t.verdict_table(judgements(), width=20).split("\n")
    assert lines[0].split() == [
        "claim",
        "tier",
        "statement",
        "published",
        "estimand",
        "ours",
        "n",
        "verdict",
    ]
    assert lines[2].split()[:2] == ["a.1", "extended"]
    assert "word word word …" in lines[2]
    assert "5.40 [4.72, 6.08] points" in lines[2]
    assert "inconclusive (under-powered: " in lines[2]
    assert lines[3].split() == ["y", "-3.0", "[-9.8,", "3.8]", "points", "5"]
    assert "4.0e-09, tolerance 1e-05" in lines[4]
    assert lines[5].endswith("not tested")
    assert len(lines) == 6


def test_verdict_table_in_markdown_holds_the_same_cells():
    lines = t.verdict_table(judgements(), "markdown").split("\n")
    assert len(lines) == 6
    assert lines[4] == (
        "| a.2 | extended | exact | +5.9 \\| COCO | z | 4.0e-09, tolerance 1e-05 | 5 | reproduced |"
    )
    assert t.verdict_table(judgements(), "markdown") == "\n".join(lines)
    with pytest.raises(ValueError, match="got 'html'"):
        t.verdict_table([], "html")


def test_verdict_blocks_hold_rule_reason_and_every_estimand():
    blocks = t.verdict_blocks(judgements()).split("\n\n")
    assert [block.split("\n")[0].split("(")[0].strip() for block in blocks] == [
        "a.1  extended  INCONCLUSIVE",
        "a.2  extended  REPRODUCED",
        "a.3  extended  NOT TESTED",
    ]
    first = blocks[0].split("\n")
    assert first[1].startswith("  word word")
    assert "published: +5.9 | COCO (read: text)" in blocks[0]
    assert "x  5.40 [4.72, 6.08] points" in blocks[0]
    assert "n=5  reproduced > 0 | contradicted < 1.0" in blocks[0]
    assert "because: " in blocks[0]
    assert "z  4.0e-09, tolerance 1e-05  n=5" in blocks[1]
    assert "because: later" in blocks[2]
    assert not [line for line in "\n".join(blocks).split("\n") if line != line.rstrip()]
