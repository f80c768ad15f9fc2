"""One arm with settings changed, beside the evidence."""

from __future__ import annotations

import math
import re

import pytest

from companion.chapters.ordering.train import Training
from companion.evidence.store import read_reference
from companion.lab import run as module
from companion.lab.chapters import chapter_numbers, load_chapter
from companion.lab.run import beside_evidence, evidence_of, main, parse_changes


@pytest.mark.parametrize("number", chapter_numbers())
def test_evidence_is_of_the_same_version_and_equals_itself(number: str) -> None:
    reference = read_reference("standard", number)
    assert reference is not None
    arms = load_chapter(number).arms
    record = next(r for r in reference.records if arms[r["arm"]].deterministic)
    source, known = evidence_of(record)
    assert source == f"results/standard/{number}"
    assert {each["version"] for each in known.values()} == {record["version"]}
    rows = beside_evidence([record])
    assert rows
    assert all(row.difference == 0 and math.isnan(row.error) for row in rows)


def test_no_evidence_of_another_version_is_compared_with() -> None:
    reference = read_reference("standard", "04")
    assert reference is not None
    record = {**reference.records[0], "version": 99}
    assert evidence_of(record) == ("", {})
    assert all(math.isnan(row.difference) for row in beside_evidence([record]))


def test_text_becomes_what_its_setting_holds() -> None:
    changes = {"steps": "40", "lr": "1", "order": "grab", "noise": 0.5}
    parsed = parse_changes(Training(), changes)
    assert parsed == {"steps": 40, "lr": 1.0, "order": "grab", "noise": 0.5}
    assert type(parsed["lr"]) is float
    taus = parse_changes(load_chapter("02").arm("features_grid").settings, {"taus": "(1.0, 2.0)"})
    assert taus == {"taus": (1.0, 2.0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": "40"}, "unknown setting 'stepz'.*steps"),
        ({"steps": "many"}, "steps must be of kind int, got 'many'"),
        ({"steps": "4.5"}, "steps must be of kind int, got 4.5"),
        ({"order": "backwards"}, "order must be of kind .*got 'backwards'"),
    ],
)
def test_what_is_no_setting_or_no_value_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_changes(Training(), changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits_rndom"], "did you mean digits_random"),
        (["digits_random", "-p", "steps"], "expected SETTING=VALUE"),
        (["digits_random", "--seeds", "0"], "seeds must be at least 1"),
        (["digits_random", "-p", "data=moons"], "digits_random: unknown data set 'moons'"),
        (["svm_digits", "-p", "data=moons"], "svm_digits: data must be one of .* got 'moons'"),
        (["images_0_uniform", "-p", "data=moons"], "data must be one of .* got 'moons'"),
        (["digits_mlp_0", "-p", "data=moons"], "data must be one of .* got 'moons'"),
        (["digits_10_erm", "-p", "data=moons"], "data must be one of .* got 'moons'"),
    ],
)
def test_a_wrong_word_ends_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown)
    assert shown.count("\n") == 1


def test_data_that_cannot_be_read_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(settings: Training) -> str:
        raise FileNotFoundError(2, "No such file or directory", "moons.npz")

    monkeypatch.setattr(Training, "data_hash", property(absent))
    assert main(["digits_random", "--seeds", "1"]) == 2
    shown = capsys.readouterr().err
    assert "digits_random: " in shown
    assert "moons.npz" in shown
    assert shown.count("\n") == 1


def test_what_was_changed_is_said_with_its_usual_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = read_reference("standard", "04")
    assert reference is not None
    record = next(r for r in reference.records if r["arm"] == "digits_random")
    monkeypatch.setattr(module, "run_arm", lambda *args, **options: [record])
    assert main(["digits_random", "-p", "momentum=0.5", "--only", "loss"]) == 0
    shown = capsys.readouterr().out
    assert "digits_random, momentum = 0.5 instead of 0.9, seeds 1000 to 1000" in shown
    assert "evidence: results/standard/04" in shown
    assert "test/loss" in shown
    assert "accuracy" not in shown
