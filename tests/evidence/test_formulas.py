"""Formulas of the ledger: what they may say, what they compute, what their hash sees."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.evidence.formulas import Formula, source_hash
from companion.lab.chapters import functions_of


def record(arm, **metrics):
    return {"arm": arm, "metrics": metrics, "curves": {"loss": [4.0, 2.0, 1.0]}}


RECORDS = [record("one", loss=4.0, steps=10.0), record("two", loss=2.0, steps=40.0)]


def total(*records):
    return sum(r["metrics"]["loss"] for r in records)


def scaled(one, factor, name):
    return factor * one["metrics"][name]


FUNCTIONS = {"total": total, "scaled": scaled}


@pytest.mark.parametrize(
    ("text", "of", "value"),
    [
        ("one - two", "loss", 2.0),
        ("100 * one - 100 * two", "loss", 200.0),
        ("log(one / two)", "loss", math.log(2)),
        ("log(one / two)", "steps", math.log(0.25)),
        ('one["steps"] / two["loss"]', "", 5.0),
        ('one["steps"] - two', "loss", 8.0),
        ('one.curve["loss"][-1]', "", 1.0),
        ('mean(one.curve["loss"])', "", 7 / 3),
        ('max(one.curve["loss"][0], one)', "loss", 4.0),
        ("min(one, two, 3)", "loss", 2.0),
        ("-one ** 2", "loss", -16.0),
        ("abs(two - one) + sqrt(one) + log2(one) + exp(0 * one)", "loss", 7.0),
        ("one < two", "steps", 1.0),
        ("one >= two", "steps", 0.0),
        ("total(one, two)", "", 6.0),
        ('scaled(two, 3, "steps")', "", 120.0),
        ('log(total(one) / scaled(one, 1, "loss"))', "", 0.0),
    ],
)
def test_arithmetic_on_arms(text, of, value):
    assert Formula(text, of).evaluate(RECORDS, FUNCTIONS) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one +",
        "one.loss",
        "[one]",
        "one if two else one",
        "lambda: 1",
        "one and two",
        "one.__class__",
        "one % two",
        "log()",
        "log(x=one)",
        "total(*one)",
        'one["a"]["b"]',
        "one < two < one",
        "'text'",
        "one[0]",
        "f'{one}'",
        "total(one.curve)",
        "(one := 1)",
    ],
)
def test_anything_else_is_refused_when_it_is_read(text):
    with pytest.raises(ValueError, match=r"formula|arithmetic"):
        Formula(text, "loss")


def test_a_bare_arm_needs_a_metric():
    with pytest.raises(ValueError, match=r"'one' .* `of` is empty"):
        Formula("one - 1")
    assert Formula("total(one)").evaluate(RECORDS, FUNCTIONS) == 4.0


def test_arms_and_functions_are_derived():
    formula = Formula('total(two, one) + log(three) - two["x"] + mean(four.curve["y"])', "loss")
    assert formula.arms == ["two", "one", "three", "four"]
    assert formula.functions == ["total"]


def test_what_is_absent_is_named():
    with pytest.raises(KeyError, match="no record of three"):
        Formula("three", "loss").evaluate(RECORDS)
    with pytest.raises(KeyError, match="gone"):
        Formula("one", "gone").evaluate(RECORDS)
    with pytest.raises(KeyError, match="gone"):
        Formula('mean(one.curve["gone"])').evaluate(RECORDS)


def test_two_records_of_an_arm_and_an_unknown_function_are_refused():
    with pytest.raises(ValueError, match="two records of 'one'"):
        Formula("one", "loss").evaluate([*RECORDS, record("one", loss=1.0)])
    # an arm that the formula does not read may stand twice
    assert Formula("one", "loss").evaluate([*RECORDS, record("two", loss=1.0)]) == 4.0
    with pytest.raises(ValueError, match="unknown function '__import__'"):
        Formula('__import__("os")').evaluate(RECORDS, FUNCTIONS)
    with pytest.raises(ValueError, match="unknown function 'gone'"):
        Formula("gone(one)").evaluate(RECORDS, FUNCTIONS)


@given(st.floats(0.1, 1e3), st.floats(0.1, 1e3))
def test_swapping_the_operands_of_a_ratio_turns_its_sign(a, b):
    records = [record("one", loss=a), record("two", loss=b)]
    there = Formula("log(one / two)", "loss").evaluate(records)
    back = Formula("log(two / one)", "loss").evaluate(records)
    assert there == pytest.approx(-back, abs=1e-12)


MODULE = """
import math
LIMIT = {limit}


def helper(x):
    return math.log(x) {sign} LIMIT


def number(record):
    '''{doc}'''
    {comment}
    return helper(record["metrics"]["loss"])
"""


def hash_of(tmp_path, **changes):
    """Hash of `number` in a module of the package, as a fresh process sees it."""
    text = {"limit": "2", "sign": "+", "doc": "Doc.", "comment": "# said"} | changes
    folder = tmp_path / "companion_toy"
    folder.mkdir(exist_ok=True)
    (folder / "toy.py").write_text(MODULE.format(**text))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import importlib.util as u;"
        "spec = u.spec_from_file_location('companion.toy', sys.argv[1] + '/toy.py');"
        "m = u.module_from_spec(spec); sys.modules['companion.toy'] = m;"
        "spec.loader.exec_module(m);"
        "from companion.evidence.formulas import source_hash; print(source_hash(m.number))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_hash_sees_code_helpers_and_constants_and_no_wording(tmp_path):
    first = hash_of(tmp_path)
    assert len(first) == 64
    assert hash_of(tmp_path, doc="Other words.", comment="# other") == first
    assert hash_of(tmp_path, limit="3") != first
    assert hash_of(tmp_path, sign="-") != first


@pytest.mark.parametrize("number", ["01", "02", "03", "04", "05", "06"])
def test_every_function_of_a_chapter_has_a_hash(number):
    hashes = [source_hash(function) for function in functions_of(number).values()]
    assert len(set(hashes)) == len(hashes)


def items_of(one, metric):
    return one.get("items", {}).get(metric)


def test_items_are_computed_as_the_whole():
    there = [{**each, "items": {"loss": np.array([1.0, 3.0])}} for each in RECORDS]
    there[1]["items"] = {"loss": np.array([0.5, 1.0])}
    assert Formula("100 * one - 100 * two", "loss").evaluate_items(there, items_of).tolist() == [
        50.0,
        200.0,
    ]
    for other in (Formula("total(one, two)"), Formula('one - two["steps"]', "loss")):
        assert other.evaluate_items(there, items_of) is None
    assert Formula("one - two", "loss").evaluate_items(RECORDS, items_of) is None
    with pytest.raises(KeyError, match="no record of two"):
        Formula("one - two", "loss").evaluate_items(there[:1], items_of)
