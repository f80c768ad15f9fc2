"""Comparison with the reference, parameters, reports; the real command is in tests/system."""

from __future__ import annotations

import copy
from dataclasses import replace

import nbformat
import pytest

from companion.evidence.canonical import fingerprint
from companion.evidence.store import Store, read_reference
from companion.lab.chapters import load_chapter
from companion.lab.conditions import conditions_of
from companion.pages import runner as module
from companion.pages.canaries import Outcome
from companion.pages.execution import last_error
from companion.pages.runner import notebook_parameters, reproduce

NUMBER = "05"


@pytest.fixture(scope="module")
def reference():
    """The standard evidence of a chapter as if it had been made here in canonical mode."""
    committed = read_reference("standard", NUMBER)
    machine = fingerprint(canonical=True)
    rows = [row | {"fingerprint": machine} for row in committed.provenance]
    about = replace(committed.record_set, canonical=True, note="", waiting=[])
    return replace(committed, provenance=rows, record_set=about)


def skip_computing(monkeypatch, fails=lambda number: ""):
    """Let all runs be there, and notebooks end at once."""

    def execute(jobs, at_once, root):
        yield from ((job.number, fails(job.number), 0.1) for job in jobs)

    monkeypatch.setattr(module, "_compute", lambda plans, store: None)
    monkeypatch.setattr(module, "_failures", lambda store, plan, digest: [])
    monkeypatch.setattr(module, "execute_notebooks", execute)


def reproduced(reference, tmp_path, monkeypatch, change=lambda record: record, seed=None):
    """Reproduce a chapter whose runs give the evidence's records, but for ``change``."""

    def finished(store, plan, digest):
        pairs = (reference.find(run) for run in plan)
        return [(change(copy.deepcopy(record)), row) for record, row in filter(None, pairs)]

    monkeypatch.setattr(module, "read_reference", lambda profile, number: reference)
    skip_computing(monkeypatch)
    monkeypatch.setattr(module, "finished_runs", finished)
    monkeypatch.setattr(module.canaries, "check", lambda *a, **k: Outcome(compared=2))
    code = reproduce("standard", [NUMBER], seed=seed, root=tmp_path)
    return code, (tmp_path / "standard" / "report.md").read_text(encoding="utf-8")


def test_equal_records_end_well_and_are_counted_in_the_first_line(reference, tmp_path, monkeypatch):
    code, report = reproduced(reference, tmp_path, monkeypatch)
    n = sum(row["deterministic"] for row in reference.provenance)
    assert code == 0
    first = report.splitlines()[0]
    assert first == f"{n} of {n} records equal the evidence, byte for byte"


def test_a_moved_record_is_an_error_that_names_it_and_shows_both(reference, tmp_path, monkeypatch):
    arm, seed = reference.records[0]["arm"], reference.records[0]["seed"]

    def change(record):
        if (record["arm"], record["seed"]) == (arm, seed):
            record["metrics"] = {name: 0.5 * value for name, value in record["metrics"].items()}
        return record

    code, report = reproduced(reference, tmp_path, monkeypatch, change)
    assert code == 1
    assert f"1 differ: {arm} seed {seed}" in report.splitlines()[0]
    assert f"{arm} seed {seed}: other bytes" in report
    metric, value = sorted(
        reference.records[0]["metrics"].items(), key=lambda each: each[0].count("/")
    )[0]
    assert f"| {arm} | {seed} | {metric} | {0.5 * value!r} | {value!r} |" in report


def of_seed(plan, seed):
    return [run for run in plan if run.seed == seed and run.deterministic]


def test_one_seed_is_compared_with_the_evidence_that_the_notebook_shows(
    reference, tmp_path, monkeypatch
):
    jobs = []
    make_job = module._job

    def noted(number, store, settings):
        jobs.append(settings)
        return make_job(number, store, settings)

    monkeypatch.setattr(module, "_job", noted)
    code, report = reproduced(reference, tmp_path, monkeypatch, seed=1003)
    n = len(of_seed(load_chapter(NUMBER).plan("standard"), 1003))
    assert code == 0
    assert report.splitlines()[0] == f"{n} of {n} records equal the evidence, byte for byte"
    assert "2 of 2 canaries are equal." in report
    assert jobs == [{"profile": "standard", "evidence": "seed 1003"}]


def test_one_seed_that_moved_is_an_error_and_shows_both(reference, tmp_path, monkeypatch):
    def change(record):
        record["metrics"] = {name: 0.5 * value for name, value in record["metrics"].items()}
        return record

    code, report = reproduced(reference, tmp_path, monkeypatch, change, seed=1000)
    runs = of_seed(load_chapter(NUMBER).plan("standard"), 1000)
    assert code == 1
    assert report.startswith(f"0 of {len(runs)} records equal the evidence; {len(runs)} differ: ")
    assert "| arm | seed | metric | here | evidence |" in report
    assert "| claim |" not in report  # one seed has no interval


def test_a_moved_canary_is_an_error_of_the_reproduction(reference, tmp_path, monkeypatch):
    code, _ = reproduced(reference, tmp_path, monkeypatch, seed=1000)
    assert code == 0
    fault = "chapter 05, plain: moved trace: a bug"
    monkeypatch.setattr(
        module.canaries, "check", lambda *a, **k: Outcome(compared=2, faults=[fault])
    )
    assert reproduce("standard", [NUMBER], seed=1000, root=tmp_path) == 1
    report = (tmp_path / "standard" / "report.md").read_text(encoding="utf-8")
    assert "1 of 2 canaries are equal." in report
    assert f"MOVED {fault}" in report


def test_all_seeds_of_a_chapter_without_evidence_are_computed(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(module, "read_reference", lambda profile, number: None)
    skip_computing(monkeypatch)
    monkeypatch.setattr(module, "_compute", lambda each, store: plans.extend(each))
    monkeypatch.setattr(module, "finished_runs", lambda store, runs, digest: [])
    assert reproduce("standard", [NUMBER], seed=1000, root=tmp_path) == 0
    assert len(plans[0][0]) == len(load_chapter(NUMBER).plan("standard"))
    report = (tmp_path / "standard" / "report.md").read_text(encoding="utf-8")
    assert "no evidence yet" in report


def test_one_seed_elsewhere_says_what_compares_the_intervals(reference, tmp_path, monkeypatch):
    rows = [row | {"fingerprint": "another-native"} for row in reference.provenance]
    code, report = reproduced(replace(reference, provenance=rows), tmp_path, monkeypatch, seed=1000)
    assert code == 0
    assert "SEED=all` compares the intervals" in report.splitlines()[0]


def test_another_fingerprint_compares_intervals(reference, tmp_path, monkeypatch):
    rows = [row | {"fingerprint": "another"} for row in reference.provenance]
    elsewhere = replace(reference, provenance=rows)

    def ours(store, plan, digest):
        return [reference.find(run) for run in plan]

    monkeypatch.setattr(module, "read_reference", lambda profile, number: elsewhere)
    skip_computing(monkeypatch)
    monkeypatch.setattr(module, "finished_runs", ours)
    assert reproduce("standard", [NUMBER], root=tmp_path) == 0
    first = (tmp_path / "standard" / "report.md").read_text(encoding="utf-8").splitlines()[0]
    assert "another fingerprint" in first
    assert "byte for byte" not in first


def test_evidence_from_before_canonical_mode_is_no_error(reference, tmp_path, monkeypatch):
    about = replace(reference.record_set, canonical=False, note="made before canonical mode")
    early = replace(reference, record_set=about)

    def change(record):
        return record | {"metrics": {name: v - 1.0 for name, v in record["metrics"].items()}}

    code, report = reproduced(early, tmp_path, monkeypatch, change)
    assert code == 0
    assert "not compared: chapter 5" in report.splitlines()[0]


def test_a_changed_knob_shows_own_result_beside_the_evidence(reference, tmp_path, monkeypatch):
    def change(record):
        return record | {
            "settings": record["settings"] | {"lr": 0.123},
            "metrics": {name: 0.5 * value for name, value in record["metrics"].items()},
        }

    code, report = reproduced(reference, tmp_path, monkeypatch, change)
    assert code == 0
    assert "records are not in the evidence" in report.splitlines()[0]
    assert "| claim | setting | here | evidence |" in report


def test_data_that_is_not_available_is_its_own_outcome(reference, tmp_path, monkeypatch):
    reason = "DataUnavailableError: cannot get libreoffice_help (LibreOffice's help). Tried:\n  - x"
    skip_computing(monkeypatch)
    monkeypatch.setattr(module, "_failures", lambda store, plan, digest: [reason])
    assert reproduce("standard", ["03"], root=tmp_path) == 0
    report = (tmp_path / "standard" / "report.md").read_text(encoding="utf-8")
    assert report.splitlines()[0] == "data not available here: chapter 3 (libreoffice_help)"


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (
            "fashion_mnist is not in the cache (/x/y); run `python -m trainaug.data fetch`",
            "fashion_mnist",
        ),
        ("DataUnavailableError: cannot get cifar10 (CIFAR-10). Tried:", "cifar10"),
        ("DataUnavailableError: /x: no data_batch_1 there", "/x: no data_batch_1 there"),
    ],
)
def test_the_data_set_is_named(message, name):
    assert module._data_name(message) == name


def test_a_sweep_without_data_is_told_from_other_failures(tmp_path):
    chapter = load_chapter(NUMBER)
    store, plan, digest = Store("standard", tmp_path), chapter.plan("standard")[:2], "0" * 64
    reasons = ["DataUnavailableError: fashion_mnist is not in the cache", "ValueError: x"]
    for run, reason in zip(plan, reasons, strict=True):
        store.write_failure(run, conditions_of(run, digest), reason)
    assert module._failures(store, plan, digest) == reasons


def test_unknown_names_stop_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_compute", lambda *a: pytest.fail("runs were started"))
    for arguments, text in (
        (("standard", ["06"], {"step": 3}), "'step'"),
        (("standard", ["06"], {"evidence": "reference"}), "'evidence'"),
        (("fast", ["06"], {}), "'fast'"),
        (("standard", ["07"], {}), "'07'"),
        (("standard", ["06"], {"seeds": "many"}), "many"),
    ):
        with pytest.raises(ValueError, match=text):
            reproduce(*arguments, root=tmp_path)
    with pytest.raises(ValueError, match="no arm has seed 7, expected 1000 to 1009"):
        reproduce("standard", ["06"], seed=7, root=tmp_path)
    with pytest.raises(ValueError, match="changed knobs"):
        reproduce("standard", ["06"], {"seeds": 3}, seed=1000, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_chapter_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fails(number):
        return "AssertionError: line (b) fails" if number == "06" else ""

    skip_computing(monkeypatch, fails)
    monkeypatch.setattr(module, "finished_runs", lambda store, plan, digest: [])
    assert reproduce("quick", root=tmp_path) == 1
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
    assert last_error(log) == "ValueError: unknown profile 'fast'"
    assert last_error("") == "papermill failed without a message"
