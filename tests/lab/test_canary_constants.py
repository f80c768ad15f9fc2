"""Defaults of settings: no record and no canary sees one that moves, so they are committed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from companion.lab.canary import check, moved_constants, write_constants
from companion.lab.canary.check import CANARIES, CanaryResult, check_canaries
from companion.lab.canary.sizes import default_settings
from companion.lab.chapters import chapter_numbers


@pytest.mark.parametrize("number", chapter_numbers())
def test_committed_constants_are_todays(number):
    assert moved_constants(number) == []


def test_every_chapter_has_its_constants():
    stored = json.loads((CANARIES / "constants.json").read_text(encoding="utf-8"))
    assert sorted(stored) == sorted(chapter_numbers())


def edit(folder: Path, kind: str, **values: Any) -> None:
    """Change what is stored of a kind of settings of chapter 4."""
    path = folder / "constants.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["04"].setdefault(kind, {}).update(values)
    path.write_text(json.dumps(stored), encoding="utf-8")


def test_another_default_is_named(tmp_path):
    write_constants("04", tmp_path)
    assert moved_constants("04", tmp_path) == []
    edit(tmp_path, "Training", target_accuracy=0.8)
    edit(tmp_path, "Selection", snapshots=[0, 4, 16, 64, 255])
    edit(tmp_path, "Earlier", lr=0.1)  # a kind that is no more
    assert moved_constants("04", tmp_path) == [
        "Earlier.lr",
        "Selection.snapshots",
        "Training.target_accuracy",
    ]


def test_a_setting_that_is_new_has_not_moved_and_one_that_is_gone_has(tmp_path):
    write_constants("04", tmp_path)
    path = tmp_path / "constants.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["04"]["Timing"] = {"earlier": stored["04"]["Timing"].pop("lr")}
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert moved_constants("04", tmp_path) == ["Timing.earlier"]


def test_writing_one_chapter_leaves_the_others(tmp_path):
    write_constants("06", tmp_path)
    write_constants("04", tmp_path)
    stored = json.loads((tmp_path / "constants.json").read_text(encoding="utf-8"))
    assert stored == {number: default_settings(number) for number in ("04", "06")}


@pytest.mark.parametrize("text", ["", "[1]", '{"04": 1}'])
def test_damaged_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "constants.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"constants.json: no constants in there"):
        moved_constants("04", tmp_path)


def test_check_names_what_moved_beside_the_canaries(monkeypatch, tmp_path):
    write_constants("04", tmp_path)
    edit(tmp_path, "Training", target_accuracy=0.8)
    (tmp_path / "04.json").write_bytes((CANARIES / "04.json").read_bytes())

    @dataclass
    class Equal:
        """A canary that equals whatever is committed, without running it."""

        arm: str

    def compute(numbers: Any, *options: Any) -> dict[str, list[Equal]]:
        return {number: [Equal("digits_random")] for number in numbers}

    monkeypatch.setattr(check, "_compute", compute)
    monkeypatch.setattr(check, "_state", lambda canary, committed: "equal")
    assert check_canaries(["04"], ["digits_random"], folder=tmp_path) == [
        CanaryResult("04", "digits_random", "equal"),
        CanaryResult("04", "Training.target_accuracy", "moved constant"),
    ]
