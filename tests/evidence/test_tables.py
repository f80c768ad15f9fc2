"""Tables: alignment, rounding, and nothing at the end of a line."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
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


def judged(mean=3.0, sd=0.5, n=12, **changes):
    """A judgement of values that are spread evenly about a mean."""
    base = {
        "id": "csa.1",
        "tier": "headline",
        "origin": "authors",
        "scope": "scaled",
        "statement": "word " * 30,
        "published": {"value": "+5.9 | COCO", "where": "t", "work": "w", "read": "text"},
        "kind": "effect",
        "worth": "1.0 points",
        "of": "x",
        "settings": [{"name": "digits", "number": "a"}],
        "seeds": {"from": 1000, "count": n},
    } | changes
    z = np.linspace(-1, 1, n)
    values = mean + sd * z / z.std(ddof=1)
    records = [{"arm": "a", "seed": 1000 + k, "metrics": {"x": v}} for k, v in enumerate(values)]
    entry = {k: v for k, v in base.items() if v is not None}
    return judge(Claim.model_validate(entry), records, {})


@pytest.mark.parametrize(
    ("mean", "sd", "words"),
    [
        (3.0, 0.5, "holds, at least 1.0 points"),
        (0.5, 0.3, "holds, small: less than 1.0 points"),
        (1.0, 0.75, "holds"),
        (0.0, 0.5, "no effect of 1.0 points or more"),
        (-1.2, 2.0, "no gain of 1.0 points or more"),
        (-3.0, 0.5, "opposite, at least 1.0 points"),
        (0.5, 2.0, "open"),
    ],
)
def test_a_word_stands_with_its_number(mean, sd, words):
    actual = judged(mean, sd)
    assert t.phrase(actual, actual.worth) == words


def test_effects_are_shown_in_the_units_of_readers():
    assert t.shown_effect(judged().effects[0]) == "3.00 points [2.68, 3.32]"
    saved = judged(math.log(2), 0.1, worth="20 percent").effects[0]
    assert t.shown_effect(saved) == "50.0 % [46.7, 53.1]"
    dearer = judged(-math.log(2), 0.1, worth="20 percent").effects[0]
    assert t.shown_effect(dearer).startswith("-100.0 % ")
    times = judged(math.log(4), 0.1, worth="factor 2").effects[0]
    assert t.shown_effect(times).startswith("4.000 times [3.7")
    level = judged(3.0, kind="bound", worth=None, unit="points", below=5.0).effects[0]
    assert t.shown_effect(level) == "3.00 points [2.68, 3.32]"
    both = t.shown_effect(judged().effects[0], both=True)
    assert both.startswith("3.00 points [2.68, 3.32], 99 % [2.")


def test_no_logarithm_is_ever_shown():
    for worth in ("20 percent", "factor 2"):
        actual = judged(0.7, 0.2, worth=worth)
        texts = [t.verdict_blocks([actual]), t.verdict_table([actual]), t.own_numbers([actual])]
        assert not [text for text in texts if "log ratio" in text]


def test_verdict_table_has_one_line_a_claim():
    lines = t.verdict_table([judged(), judged(0.5, 2.0, id="csa.2")], width=20).split("\n")
    assert lines[0].split() == ["claim", "who", "scale", "statement", "found", "word"]
    assert lines[2].split()[:3] == ["csa.1", "authors", "scaled"]
    assert "word word word …" in lines[2]
    assert lines[2].endswith("holds, at least 1.0 points")
    assert lines[3].endswith("open")
    assert len(lines) == 4


def test_verdict_blocks_say_who_what_and_on_which_grounds():
    actual = replace(
        judged(0.5, 2.0, note="A note.", beside=[
            {"label": "beside it", "kind": "none", "worth": "1.0 points", "of": "x",
             "settings": [{"name": "again", "number": "a"}]},
        ]),
        records="full", early=True, standard_word="holds", standard_seeds=7,
        standard_settings=1, posed="after the data",
    )  # fmt: skip
    block = t.verdict_blocks([actual])
    assert block.split("\n")[0] == "csa.1  OPEN"
    for text in (
        "headline, the authors, scaled",
        "published: +5.9 | COCO (read: text)",
        "digits",
        "n = 12; open",
        "seeds would find the smallest effect",
        "beside, beside it: ",
        "made before canonical mode",
        "canonical standard records, 7 seeds: “holds”",
        "rule posed after the data",
        "A note.",
    ):
        assert text in " ".join(block.split()), text
    assert not [line for line in block.split("\n") if line != line.rstrip()]


def test_a_script_gets_numbers_and_units():
    row = t.verdict_json_row(judged(math.log(2), 0.1, worth="20 percent"))
    assert row["unit"] == "log ratio"
    assert row["worth"] == pytest.approx(-math.log(0.8))
    assert row["shown"] == "20 percent"
    [setting] = row["settings"]
    assert setting["mean"] == pytest.approx(math.log(2))
    assert setting["sign"][0] < setting["size"][0] < setting["mean"] < setting["size"][1]
    assert (row["word"], setting["word"], setting["n"]) == ("holds", "holds", 12)
