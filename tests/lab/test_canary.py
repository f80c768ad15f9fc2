"""Canaries: the trace sees what moves, the tiny runs repeat, and the committed files are whole."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from companion.evidence.canonical import LIBRARIES, fingerprint
from companion.lab.canary import (
    CANARIES,
    canary_runs,
    check_canaries,
    compute_canaries,
    read_canaries,
    write_constants,
)
from companion.lab.canary.recorder import Operations, Trace, entered_functions
from companion.lab.canary.sizes import tiny_config
from companion.lab.chapters import arm_version, chapter_numbers
from companion.paths import ROOT

CHAPTERS = chapter_numbers()
CHEAP = ("06", "gaussian_gradient")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 2.5e-7])),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        ([1, 2, 3], [1, 3, 2]),
        ({"a": 1.0}, {"b": 1.0}),
        (1.0, 1.0 + 2.3e-16),
        ([[1], [2]], [[1, 2]]),
    ],
)
def test_a_trace_tells_values_apart(one, other):
    hashes = []
    for value in (one, other, one):
        trace = Trace()
        trace.add("value", value)
        hashes.append(trace.hexdigest())
    assert hashes[0] == hashes[2] != hashes[1]


def test_numbers_that_are_rounded_count_in_any_order_and_whole_ones_not_at_all():
    def noted(*numbers: float) -> str:
        trace = Trace()
        for number in numbers:
            trace.note(number)
        return trace.hexdigest()

    assert noted(0.5, 0.25, 3.0) == noted(0.25, 0.5) == noted(0.5, 0.25, 0.5)
    assert noted(0.5, 0.25) != noted(0.5, 0.25 + 1e-16)
    assert noted(0.5) != noted()


def test_a_trace_refuses_what_it_cannot_read():
    with pytest.raises(TypeError, match="object"):
        Trace().add("value", object())


@pytest.mark.parametrize("number", CHAPTERS)
def test_every_arm_has_a_committed_canary_of_its_version(number):
    committed = read_canaries(number).rows
    assert committed.keys() == canary_runs(number).keys()
    for arm, row in committed.items():
        assert row.version == arm_version(number, arm), arm


def test_canaries_were_recorded_with_the_locked_libraries():
    lock = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text().split()
        if "==" in line
    )
    if any(lock.get(name) not in (None, version(name)) for name in LIBRARIES):
        pytest.skip("other library versions than the lock's are installed here")
    made_under = {read_canaries(number).fingerprint for number in CHAPTERS}
    assert made_under == {fingerprint(canonical=True)}


@pytest.mark.system
def test_a_canary_repeats_in_another_process():
    number, arm = CHEAP
    once, again = (compute_canaries(number, [arm])[0] for _ in range(2))
    assert once == again


def test_a_moved_canary_is_named(tmp_path):
    number, arm = CHEAP
    rows = json.loads((CANARIES / f"{number}.json").read_text(encoding="utf-8"))
    rows["arms"][arm]["trace"] = "0" * 16
    rows["arms"]["an_arm_of_old"] = rows["arms"][arm]
    (tmp_path / f"{number}.json").write_text(json.dumps(rows), encoding="utf-8")
    write_constants(number, tmp_path)
    results = check_canaries([number], [arm, "an_arm_of_old"], folder=tmp_path)
    assert {(r.arm, r.state) for r in results} == {
        (arm, "moved trace"),
        ("an_arm_of_old", "no such arm"),
    }


@pytest.mark.parametrize("text", ["", "{}", '{"arms": {"a": {"trace": "1"}}}', "[]"])
def test_a_damaged_file_of_canaries_is_refused_by_name(text, tmp_path):
    (tmp_path / "04.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"04\.json"):
        read_canaries("04", tmp_path)


@pytest.mark.parametrize("number", CHAPTERS)
def test_a_tiny_run_changes_sizes_and_no_choice(number):
    for arm, run in canary_runs(number).items():
        tiny = tiny_config(run)
        assert tiny.keys() == dict(run.config).keys(), arm
        for name in ("data", "order", "sampler", "loss", "score", "mixer", "weights", "seed"):
            assert tiny.get(name) == run.config.get(name), f"{arm}, {name}"
        assert replace(run, config=tiny).seed == 0


def test_operations_are_named_with_their_type():
    with Operations() as operations:
        torch.ones(2, dtype=torch.float64).exp().sum()
        torch.arange(3) + 1
    assert "aten.exp float64" in operations.names
    assert any(name.startswith("aten.add") and name.endswith("other") for name in operations.names)


def test_functions_that_are_entered_are_named_and_time_ends():
    with entered_functions() as entered:
        arm_version("04", "digits_random")
    assert "companion.lab.chapters:arm_version" in entered
    with entered_functions(0.05) as entered:
        while True:
            arm_version("04", "digits_random")
    assert "" in entered


def test_canaries_enter_what_their_evidence_enters():
    path = Path(CANARIES / "coverage.json")
    chapters = json.loads(path.read_text(encoding="utf-8"))
    missing = {
        f"{number}, {arm}": row["missing"]
        for number, arms in chapters.items()
        for arm, row in arms.items()
        if row["missing"]
    }
    assert chapters.keys() == set(CHAPTERS)
    assert missing == {}
