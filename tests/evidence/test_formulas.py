"""Formulas of the ledger: what they may say, what they compute, what their hash sees."""

from __future__ import annotations

import importlib.util
import itertools
import math
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
    ("text", "metric_name", "value"),
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
def test_arithmetic_on_arms(text, metric_name, value):
    assert Formula(text, metric_name).evaluate(RECORDS, FUNCTIONS) == pytest.approx(
        value, rel=1e-15
    )


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
    with pytest.raises(ValueError, match=r"unknown function 'totel' .*; did you mean total\?"):
        Formula("totel(one)").evaluate(RECORDS, FUNCTIONS)


@given(st.floats(0.1, 1e3), st.floats(0.1, 1e3))
def test_swapping_the_operands_of_a_ratio_turns_its_sign(a, b):
    records = [record("one", loss=a), record("two", loss=b)]
    there = Formula("log(one / two)", "loss").evaluate(records)
    back = Formula("log(two / one)", "loss").evaluate(records)
    assert there == pytest.approx(-back, abs=1e-12)


MODULE = """
import importlib.util
import itertools
import math
LIMIT = {limit}


def helper({parameters}):
    {local} = math.log(x) {sign} LIMIT
    return y * {local}


def number(record):
    '''{doc}'''
    {comment}
    return helper(x=record["metrics"]["loss"], y=2)
"""
AS_WRITTEN = {
    "limit": "2",
    "parameters": "x, y",
    "local": "logarithm",
    "sign": "+",
    "doc": "Doc.",
    "comment": "# said",
}


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """Hash of `number` in a module of the package whose text has some parts changed."""
    files = (tmp_path / f"toy_{number}.py" for number in itertools.count())

    def hashed(**changes: str) -> str:
        path = next(files)  # another file each time: the source is read through a cache
        path.write_text(MODULE.format(**AS_WRITTEN | changes))
        spec = importlib.util.spec_from_file_location("companion.toy", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "companion.toy", module)
        spec.loader.exec_module(module)
        return source_hash(module.number)

    return hashed


def test_the_hash_sees_code_helpers_constants_and_parameters_and_no_wording(hash_of):
    first = hash_of()
    assert len(first) == 64
    assert hash_of(doc="Other words.", comment="# other") == first
    assert hash_of(local="value") == first
    assert hash_of(limit="3") != first
    assert hash_of(sign="-") != first
    assert hash_of(parameters="y, x") != first
    assert hash_of(local="y") != first  # it would hide the parameter


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
