"""Comparison with the reference, parameters, reports; the real command is in tests/system."""

from __future__ import annotations

import copy
from dataclasses import replace

import nbformat
import pytest

from trainaug import reproduce as module
from trainaug.compare import compare
from trainaug.evidence.store import read_reference
from trainaug.experiments.chapters import load_chapter
from trainaug.notebook import chapter_judgements
from trainaug.reproduce import notebook_parameters, reproduce


@pytest.fixture(scope="module")
def reference():
    return read_reference("standard", "06")


@pytest.fixture(scope="module")
def judged(reference):
    return chapter_judgements(load_chapter("06"), reference.records, "standard")


def changed(reference, arm: str, metric: str, factor: float):
    records = copy.deepcopy(reference.records)
    for record in records:
        if record["arm"] == arm and metric in record["metrics"]:
            record["metrics"][metric] *= factor
    return records


def test_equal_records_agree_on_any_machine(reference, judged):
    for same in (True, False):
        assert compare(reference.records, reference, judged, judged, same_machine=same) == []


def test_one_digit_differs_on_the_same_machine(reference, judged):
    records = copy.deepcopy(reference.records)
    name = next(iter(records[3]["metrics"]))
    records[3]["metrics"][name] += 1e-9
    found = compare(records, reference, judged, judged, same_machine=True)
    assert found == [f"{records[3]['arm']}, seed {records[3]['seed']}: other bytes"]


def test_rounding_passes_elsewhere_and_a_moved_mean_does_not(reference, judged):
    chapter = load_chapter("06")
    metric = "n=50/linf/radius@40000"
    for factor, differs in ((1 + 1e-9, False), (0.98, True)):
        records = changed(reference, "gaussian_coordinate", metric, factor)
        ours = chapter_judgements(chapter, records, "standard")
        found = compare(records, reference, ours, judged, same_machine=False)
        assert any("gaussian_diagonal: mean" in line for line in found) == differs


def test_a_turned_verdict_is_a_difference_and_a_weaker_one_is_not(reference, judged):
    def with_verdict(verdict):
        return [replace(j, verdict=verdict) if j.id == "lin.2" else j for j in judged]

    records = reference.records
    turned = compare(records, reference, with_verdict("contradicted"), judged, same_machine=False)
    assert turned == ["lin.2: reproduced became contradicted"]
    assert not compare(records, reference, with_verdict("inconclusive"), judged, same_machine=False)


def test_exact_claims_must_agree(reference, judged):
    weaker = [replace(j, verdict="inconclusive") if j.id == "lin.1" else j for j in judged]
    found = compare(reference.records, reference, weaker, judged, same_machine=False)
    assert found == ["lin.1: reproduced became inconclusive"]


def test_unknown_names_stop_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_execute", lambda *a: pytest.fail("a notebook was started"))
    for arguments, text in (
        (("standard", ["06"], {"step": 3}), "'step'"),
        (("standard", ["06"], {"evidence": "reference"}), "'evidence'"),
        (("fast", ["06"], {}), "'fast'"),
        (("standard", ["07"], {}), "07 is not built"),
        (("standard", ["06"], {"seeds": "many"}), "many"),
    ):
        with pytest.raises(ValueError, match=text):
            reproduce(*arguments, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_chapter_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    started = []

    def execute(number, *rest):
        started.append(number)
        if number == "06":
            raise RuntimeError("AssertionError: line (b) fails")

    monkeypatch.setattr(module, "_execute", execute)
    assert reproduce("quick", root=tmp_path) == 1
    assert started == ["00", "01", "02", "03", "04", "05", "06", "08"]
    report = (tmp_path / "quick" / "report.md").read_text(encoding="utf-8")
    assert "Chapter 06 failed: AssertionError: line (b) fails" in report
    assert "| 08 | ran |" in report
    assert "Chapter 06 failed" in capsys.readouterr().out


def test_parameters_of_a_notebook_are_read_with_their_types(tmp_path):
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell('profile = "standard"  # a\nseeds = 3  # b\nfast = True  # c')
    cell.metadata["tags"] = ["parameters"]
    notebook.cells = [cell]
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "P"}
    path = tmp_path / "x.ipynb"
    nbformat.write(notebook, path)
    assert notebook_parameters(path) == {"profile": "standard", "seeds": 3, "fast": True}


def test_last_error_is_found_in_a_log():
    log = "Traceback\n  File x\nValueError: unknown profile 'fast'\n\n"
    assert module._last_error(log) == "ValueError: unknown profile 'fast'"
    assert module._last_error("") == "papermill failed without a message"
