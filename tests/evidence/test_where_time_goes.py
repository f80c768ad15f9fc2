"""The page on time shows what the benchmark has stored."""

from __future__ import annotations

import importlib.util
import json

import pytest

from companion.paths import BENCHMARKS

spec = importlib.util.spec_from_file_location("where_time_goes", BENCHMARKS / "where_time_goes.py")
assert spec is not None
assert spec.loader is not None
w = importlib.util.module_from_spec(spec)
spec.loader.exec_module(w)


@pytest.fixture
def measured():
    return json.loads(w.TARGET.read_text(encoding="utf-8"))


def test_the_page_shows_the_table(measured):
    page = w.PAGE.read_text(encoding="utf-8")
    assert w.with_table(page, measured) == page
    assert w.PICTURE.is_file()


def test_shares_of_a_chapter_add_up(measured):
    for chapter in measured.values():
        assert sum(chapter["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert chapter["covered"] > 0.9


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([("trainaug/training/loop.py", "train.<locals>.take_step")], "training"),
        ([("trainaug/training/loop.py", "train"), ("trainaug/methods/x.py", "draw")], "method"),
        (
            [
                ("trainaug/training/loop.py", "train.<locals>.take_step"),
                ("trainaug/methods/hard_negatives/losses.py", "MaxOfHinges.forward"),
            ],
            "training",
        ),
        ([("companion/chapters/x/train.py", "run"), ("trainaug/data/idx.py", "read")], "data"),
        (
            [
                ("trainaug/training/loop.py", "train.<locals>.take_step"),
                (
                    "companion/chapters/gradient_clustering/trajectory.py",
                    "_Observer.observe",
                ),
            ],
            "measurement",
        ),
        ([("imports", "")], "rest"),
        ([], "rest"),
    ],
)
def test_a_stack_is_of_one_kind(frames, kind):
    assert w.kind_of(frames) == kind


def test_every_rule_fits_a_function():
    w.check_rules()


@pytest.mark.parametrize(
    "rule",
    [
        ("training", "/loop.py", "renamed"),
        ("measurement", "trainaug/training/removed", ""),
    ],
)
def test_a_rule_that_fits_no_function_is_refused(rule, monkeypatch):
    monkeypatch.setattr(w, "RULES", (*w.RULES, rule))
    with pytest.raises(ValueError, match=rule[1]):
        w.check_rules()
