"""Freshness by canaries, with a recorder that answers at once; and the sample of records."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from companion.evidence.canonical import fingerprint
from companion.evidence.digest import behaviour_digest
from companion.evidence.store import read_reference
from companion.lab.chapters import package_of
from companion.pages import canaries as module
from companion.pages.canaries import check, committed_canaries, outdated, verify_sample


@dataclass
class State:
    chapter: str
    arm: str
    state: str


class Recorder:
    """Answers with the given states and counts how often it was asked."""

    def __init__(self, **states):
        self.states = states
        self.asked: list[str] = []

    def __call__(self, chapters):
        self.asked += chapters
        return [
            State(number, arm, state) for number in chapters for arm, state in self.states.items()
        ]


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """No committed canaries, unless a test writes some."""
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def commit(results, number="05", code="", **versions):
    path = results / "canaries" / f"{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    arms = {arm: {"version": v, "trace": "t", "record": "r"} for arm, v in versions.items()}
    path.write_text(json.dumps({"code": code, "arms": arms}), encoding="utf-8")


def test_equal_canaries_are_no_fault(tmp_path):
    recorder = Recorder(one="equal", two="equal")
    assert check(["05"], compare=recorder, passed=tmp_path / "passed.json").faults == []


@pytest.mark.parametrize("state", ["moved trace", "moved record", "missing"])
def test_a_fault_names_arm_and_what_moved(state, tmp_path):
    recorder = Recorder(one="equal", two=state)
    [fault] = check(["05"], compare=recorder, passed=tmp_path / "passed.json").faults
    assert "two" in fault
    assert state in fault
    assert not (tmp_path / "passed.json").exists()


def test_a_bumped_version_asks_for_another_recording(results, tmp_path, monkeypatch):
    commit(results, one=1, two=2)
    monkeypatch.setattr(module, "arm_version", lambda number, arm: 2)
    assert outdated("05") == ["one"]
    recorder = Recorder(one="equal", two="equal")
    passed = tmp_path / "passed.json"
    [fault] = check(["05"], skipped="recorded code", compare=recorder, passed=passed).faults
    assert "one" in fault
    assert "re-record" in fault


def test_changed_skips_the_recorded_code_and_all_does_not(results, tmp_path):
    commit(results, code=behaviour_digest(package_of("05")), one=1)
    recorder = Recorder(one="equal")
    check(["05"], skipped="recorded code", compare=recorder, passed=tmp_path / "passed.json")
    assert recorder.asked == []
    check(["05"], compare=recorder, passed=tmp_path / "passed.json")
    assert recorder.asked == ["05"]


def test_code_that_has_passed_here_is_skipped_until_it_changes(tmp_path, monkeypatch):
    recorder, passed = Recorder(one="equal"), tmp_path / "passed.json"
    for _ in range(2):
        check(["05"], skipped="recorded code", compare=recorder, passed=passed)
    assert recorder.asked == ["05"]
    monkeypatch.setattr(module, "behaviour_digest", lambda package: "other")
    check(["05"], skipped="recorded code", compare=recorder, passed=passed)
    assert recorder.asked == ["05", "05"]


def test_recorded_code_is_checked_once_on_this_machine(results, tmp_path):
    commit(results, code=behaviour_digest(package_of("05")), one=1)
    recorder, passed = Recorder(one="equal"), tmp_path / "passed.json"
    for _ in range(2):
        check(["05"], skipped="passed here", compare=recorder, passed=passed)
    assert recorder.asked == ["05"]


def test_other_libraries_are_checked_again(tmp_path, monkeypatch):
    recorder, passed = Recorder(one="equal"), tmp_path / "passed.json"
    check(["05"], skipped="recorded code", compare=recorder, passed=passed)
    monkeypatch.setattr(module, "fingerprint", lambda canonical: "another")
    check(["05"], skipped="recorded code", compare=recorder, passed=passed)
    assert recorder.asked == ["05", "05"]


def test_a_damaged_memory_is_forgotten_and_damaged_canaries_are_named(results, tmp_path):
    passed = tmp_path / "passed.json"
    passed.write_text("{", encoding="utf-8")
    recorder = Recorder(one="equal")
    assert check(["05"], skipped="recorded code", compare=recorder, passed=passed).faults == []
    path = results / "canaries" / "05.json"
    path.parent.mkdir(parents=True)
    for text in (
        "{",
        '{"arms": 3}',
        '{"arms": {"one": {}}}',
        '{"arms": {"one": {"version": "x"}}}',
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"05\.json"):
            committed_canaries("05")


def test_a_chapter_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown chapter '07'"):
        check(["07"], compare=Recorder(one="equal"), passed=tmp_path / "passed.json")


def test_the_digest_sees_more_than_the_chapter(tmp_path):
    root = tmp_path
    files = {
        "companion/chapters/cascading_sum/arms.py": "x = 1\n",
        "companion/chapters/cascading_sum/tuned.toml": "a = 1\n",
        "companion/lab/chapters.py": "v = 1\n",
        "companion/lab/sweep.py": "y = 1\n",
        "companion/lab/worker.py": "w = 1\n",
        "companion/evidence/store.py": "DIGITS = 12\n",
        "companion/evidence/tables.py": "z = 1\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")

    def digest():
        module.behaviour_digest.__globals__["code_digest"].cache_clear()
        return behaviour_digest("companion.chapters.cascading_sum", root)

    first = digest()
    for name, text in files.items():
        (root / name).write_text(f"# said\n{text}".replace("1", "2"), encoding="utf-8")
        assert (digest() != first) == (name != "companion/evidence/tables.py"), name
        (root / name).write_text(text, encoding="utf-8")
        assert digest() == first


@pytest.fixture
def canonical_evidence(monkeypatch):
    """The standard evidence of chapter 5 as if it had been made here in canonical mode."""
    reference = read_reference("standard", "05")
    machine = fingerprint(canonical=True)
    rows = [row | {"fingerprint": machine} for row in reference.provenance]
    about = replace(reference.record_set, canonical=True, note="")
    fresh = replace(reference, provenance=rows, record_set=about)
    monkeypatch.setattr(module, "read_reference", lambda profile, number: fresh)
    return fresh


def answers(monkeypatch, reference, change=lambda record: record):
    def recompute(runs):
        return [change(dict(reference.find(run)[0])) for _, run in runs]

    monkeypatch.setattr(module, "recompute", recompute)


def test_a_sample_of_equal_records_is_equal_and_keeps_its_budget(canonical_evidence, monkeypatch):
    answers(monkeypatch, canonical_evidence)
    outcome = verify_sample(4, 90.0, ["05"])
    assert (len(outcome.checked), outcome.moved) == (4, [])
    assert verify_sample(4, 90.0, ["05"]).checked == outcome.checked
    assert verify_sample(4, 0.0, ["05"]).checked == []


def test_a_moved_record_of_the_sample_is_named(canonical_evidence, monkeypatch):
    answers(monkeypatch, canonical_evidence, lambda record: record | {"metrics": {}})
    outcome = verify_sample(1, 90.0, ["05"])
    assert outcome.moved == outcome.checked
    assert "seed" in outcome.moved[0]


def test_evidence_that_bytes_say_nothing_about_is_not_sampled(monkeypatch):
    reference = read_reference("standard", "05")
    about = replace(reference.record_set, canonical=False, note="made before canonical mode")
    early = replace(reference, record_set=about)
    monkeypatch.setattr(module, "read_reference", lambda profile, number: early)
    answers(monkeypatch, early)
    said: list[str] = []
    assert verify_sample(4, 90.0, ["05"], said.append).checked == []
    assert said == ["chapter 05: no canonical evidence"]
