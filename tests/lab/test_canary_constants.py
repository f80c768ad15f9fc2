"""Constants that canaries replace: no canary sees their values, so these are committed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from companion.chapters.gradient_clustering import speed
from companion.chapters.ordering import problems
from companion.lab.canary import check, moved_constants, write_constants
from companion.lab.canary.check import CANARIES, CanaryResult, check_canaries
from companion.lab.canary.sizes import full_size_constants
from companion.lab.chapters import TITLES, load_chapter

BUILT = [number for number in TITLES if load_chapter(number) is not None]


@pytest.mark.parametrize("number", BUILT)
def test_committed_constants_are_todays(number):
    assert moved_constants(number) == []


def test_every_chapter_has_its_constants():
    stored = json.loads((CANARIES / "constants.json").read_text(encoding="utf-8"))
    assert sorted(stored) == sorted(BUILT)


def test_other_value_is_named(monkeypatch):
    monkeypatch.setattr(speed, "EVERY", speed.EVERY + 1)
    assert moved_constants("02") == ["speed.EVERY"]


def test_other_value_deep_inside_is_named(monkeypatch):
    parts = {data: dict(sizes) for data, sizes in problems.PARTS.items()}
    parts["digits"]["val"] -= 1
    monkeypatch.setattr(problems, "PARTS", parts)
    assert moved_constants("04") == ["problems.PARTS"]


def test_constant_that_is_new_or_gone_is_named(tmp_path):
    write_constants("02", tmp_path)
    stored = json.loads((tmp_path / "constants.json").read_text(encoding="utf-8"))
    stored["02"]["speed.LATER"] = stored["02"].pop("speed.EVERY")
    (tmp_path / "constants.json").write_text(json.dumps(stored), encoding="utf-8")
    assert moved_constants("02", tmp_path) == ["speed.EVERY", "speed.LATER"]


def test_writing_one_chapter_leaves_the_others(tmp_path):
    write_constants("02", tmp_path)
    write_constants("04", tmp_path)
    stored = json.loads((tmp_path / "constants.json").read_text(encoding="utf-8"))
    assert stored == {number: full_size_constants(number) for number in ("02", "04")}


@pytest.mark.parametrize("text", ["", "[1]", '{"02": 1}'])
def test_damaged_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "constants.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"constants.json: no constants in there"):
        moved_constants("02", tmp_path)


def test_check_names_the_constant(monkeypatch):
    monkeypatch.setattr(speed, "EVERY", speed.EVERY + 1)

    @dataclass
    class Equal:
        """A canary that equals whatever is committed, without running it."""

        arm: str

    def compute(number: str, arms: Any, **options: Any) -> list[Equal]:
        return [Equal("speed_0_uniform")]

    monkeypatch.setattr(check, "compute_canaries", compute)
    monkeypatch.setattr(check, "_state", lambda canary, committed: "equal")
    assert check_canaries(["02"], ["speed_0_uniform"]) == [
        CanaryResult("02", "speed_0_uniform", "equal"),
        CanaryResult("02", "speed.EVERY", "moved constant"),
    ]
