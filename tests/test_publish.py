"""Verification and publishing, on copies of the committed results."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from trainaug import publish as module
from trainaug.evidence import store
from trainaug.evidence.store import canonical_json, read_reference, write_reference
from trainaug.evidence.tables import verdict_table
from trainaug.experiments.chapters import load_chapter
from trainaug.paths import RESULTS
from trainaug.publish import (
    PublishRefusedError,
    machine_slowdown,
    publish,
    sample_runs,
    tuned_edges,
    verify,
    verify_sample,
)
from trainaug.views import mark_changed_criteria, reference_judgements


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the results that the code takes for the committed one."""
    root = tmp_path / "results"
    shutil.copytree(RESULTS, root)
    for function in (store.reference_folder, store.read_reference, store.write_reference):
        defaults = [root if value == RESULTS else value for value in function.__defaults__]
        monkeypatch.setattr(function, "__defaults__", tuple(defaults))
    return root


def only(monkeypatch, wanted):
    """Let the chapter's plan hold only some runs, so that a test takes seconds."""
    chapter = load_chapter("06")
    runs = [run for run in chapter.plan("standard") if wanted(run)]
    monkeypatch.setattr(type(chapter), "plan", lambda self, profile, knobs=None: runs)
    return runs


def on_the_reference_machine(monkeypatch):
    """Compare bytes, as on the machine that the committed reference comes from."""
    [fingerprint] = {row["fingerprint"] for row in read_reference("standard", "06").provenance}
    monkeypatch.setattr(module, "environment_fingerprint", lambda: fingerprint)


def quick_runs(run):
    return run.arm == "digits_max_margin"


def test_verify_recomputes_one_seed_of_every_arm(copied, monkeypatch):
    runs = only(monkeypatch, quick_runs)
    outcome = verify("06")
    assert len(outcome.checked) == 1
    assert f"seed {runs[0].seed}" in outcome.checked[0]
    assert not outcome.moved
    assert not outcome.stale


def test_verify_restamps_a_stale_reference_whose_numbers_hold(copied, monkeypatch):
    only(monkeypatch, quick_runs)
    before = read_reference("standard", "06")
    rows = zip(before.records, before.provenance, strict=True)
    write_reference("standard", "06", rows, "0" * 64)
    outcome = verify("06")
    assert not outcome.moved
    after = read_reference("standard", "06")
    assert {row["code_digest"] for row in after.provenance} == {load_chapter("06").code_digest}
    assert sorted(map(canonical_json, after.records)) == sorted(map(canonical_json, before.records))


def test_verify_names_the_arm_that_moved_and_keeps_the_stamp(copied, monkeypatch):
    runs = only(monkeypatch, quick_runs)
    reference = read_reference("standard", "06")
    record, _ = reference.find(runs[0])
    on_the_reference_machine(monkeypatch)
    record["metrics"]["3/8/l2/eps_star"] *= 1.5
    rows = zip(reference.records, reference.provenance, strict=True)
    write_reference("standard", "06", rows, "0" * 64)
    outcome = verify("06")
    assert len(outcome.moved) == 1
    assert "digits_max_margin" in outcome.moved[0]
    stamps = {row["code_digest"] for row in read_reference("standard", "06").provenance}
    assert stamps == {"0" * 64}


def test_another_machine_is_compared_by_prediction_interval(copied, monkeypatch):
    only(monkeypatch, quick_runs)
    monkeypatch.setattr(module, "environment_fingerprint", lambda: "another")
    assert not verify("06").moved
    exact = module.compute

    def far_off(run, execute):
        result, spent = exact(run, execute)
        result["metrics"]["3/8/l2/eps_star"] *= 5
        return result, spent

    monkeypatch.setattr(module, "compute", far_off)
    assert "3/8/l2/eps_star" in verify("06").moved[0]


def test_metrics_that_some_seeds_lack_are_compared_where_three_have_them():
    everywhere = [0.50, 0.52, 0.48, 0.51, 0.49]

    def moved(have, fresh):
        others = [{"metrics": {"all": value}} for value in everywhere]
        for record, value in zip(others, [0.30, 0.32, 0.31], strict=False):
            if have > 0:
                record["metrics"]["some"] = value
            have -= 1
        return module._same(others[0], others, {"metrics": fresh}, bytes_count=False)

    assert moved(3, {"all": 0.53, "some": 0.33}) == ""
    assert moved(3, {"all": 0.53, "some": 0.9}) == "some = 0.9 against 0.3"
    assert moved(2, {"all": 0.53, "some": 90.0}) == ""  # two tell nothing of the spread
    assert moved(2, {"all": 0.9, "some": 0.3}) == "all = 0.9 against 0.5"
    for have in (1, 3):
        assert moved(have, {"all": 0.53}) == "no some"


def test_a_truth_value_may_be_another_on_another_machine_but_a_constant_may_not():
    others = [{"metrics": {"reached": 1.0, "optimum": 0.5}} for _ in range(5)]

    def moved(reached, optimum):
        fresh = {"metrics": {"reached": reached, "optimum": optimum}}
        return module._same(others[0], others, fresh, bytes_count=False)

    assert moved(1.0, 0.5) == moved(0.0, 0.5 + 1e-9) == ""
    assert moved(0.5, 0.5) == "reached = 0.5 against 1"
    assert moved(0.0, 0.51) == "optimum = 0.51 against 0.5"


def test_the_sample_depends_on_the_records_and_keeps_its_budget(copied):
    chapter = load_chapter("06")
    first = sample_runs(chapter, "standard", 6, 90.0)
    assert first == sample_runs(chapter, "standard", 6, 90.0)
    assert len(first) == 6
    short = sample_runs(chapter, "standard", 6, 3.0)
    assert sum(run.predicted_seconds for run in short) <= 3.0
    path = copied / "standard" / "06" / "records.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert sample_runs(chapter, "standard", 6, 90.0) != first


def edit_until_drawn(runs):
    """Edit a digit of one record until the sample, which follows the edit, draws that record."""
    chapter = load_chapter("06")
    for step in range(1, 200):
        reference = read_reference("standard", "06")
        record, _ = reference.find(runs[0])
        value = record["metrics"]["3/8/l2/gap"]
        record["metrics"]["3/8/l2/gap"] = float(f"{value * (1 + 1e-3 * step):.6g}")
        rows = zip(reference.records, reference.provenance, strict=True)
        write_reference("standard", "06", rows, chapter.code_digest)
        if runs[0] in sample_runs(chapter, "standard", 1, 90.0):
            return
    raise AssertionError("never drawn")


def test_an_edited_digit_in_a_drawn_record_is_found(copied, monkeypatch):
    runs = only(monkeypatch, quick_runs)
    edit_until_drawn(runs)
    on_the_reference_machine(monkeypatch)
    monkeypatch.setattr(module, "TITLES", ("06",))
    outcome = verify_sample(1, 90.0)
    assert len(outcome.checked) == 2  # standard and full
    assert "standard" in outcome.moved[0]
    assert "other bytes" in outcome.moved[0]


def test_a_missing_reference_is_an_error_and_an_unbuilt_chapter_is_not(copied, monkeypatch):
    said: list[str] = []
    only(monkeypatch, quick_runs)
    shutil.rmtree(copied / "standard" / "06")
    monkeypatch.setattr(module, "TITLES", ("07", "06"))
    with pytest.raises(LookupError, match="no reference"):
        verify_sample(1, 1.0, said.append)
    assert "chapter 07: not built" in said
    assert verify("07").checked == []


def test_publish_refuses_what_is_not_committed_or_not_run(copied, monkeypatch):
    with pytest.raises(PublishRefusedError, match="not built"):
        publish("07")
    monkeypatch.setattr(module, "_git", lambda *a: "" if a[0] == "ls-files" else "clean")
    with pytest.raises(PublishRefusedError, match="criteria come before results"):
        publish("06")
    monkeypatch.setattr(module, "_git", lambda *a: "claims/06.yaml" if a[0] == "ls-files" else "")

    def absent(*arguments):
        raise LookupError("3 of 150 runs are not computed yet")

    monkeypatch.setattr(module, "collect_records", absent)
    with pytest.raises(PublishRefusedError, match="make reproduce"):
        publish("06")


def test_publish_refuses_a_run_far_over_its_plan(copied, monkeypatch):
    reference = read_reference("standard", "06")
    chapter = load_chapter("06")
    monkeypatch.setattr(module, "_git", lambda *a: "claims/06.yaml" if a[0] == "ls-files" else "")
    monkeypatch.setattr(module, "collect_records", lambda *a: (reference.records, False))
    slow = {"core_seconds": 1.31 * sum(r.predicted_seconds for r in chapter.plan("standard")) / 150}
    monkeypatch.setattr(module.Store, "provenance", lambda self, run, digest: slow)
    monkeypatch.setattr(module, "machine_slowdown", lambda *a: 1.0)
    with pytest.raises(PublishRefusedError, match="mend the plan"):
        publish("06")


def test_published_lines_are_the_bytes_of_the_results(copied):
    lines = (copied / "standard" / "06" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(canonical_json(json.loads(line)) == line for line in lines)


def test_a_tuned_value_on_the_edge_is_named(tmp_path):
    path = tmp_path / "tuned.yaml"
    assert tuned_edges(path) == []
    inside, edge = "{value: 0.1, grid: [0.01, 0.1, 1.0]}", "{value: 1.0, grid: [0.01, 0.1, 1.0]}"
    path.write_text(f"sgd: {{lr: {inside}}}\nadam: {{lr: {edge}}}\n", encoding="utf-8")
    assert tuned_edges(path) == ["adam.lr = 1.0"]


def test_a_changed_criterion_takes_the_verdict(copied):
    judged = [judgement for judgement, _ in reference_judgements()]
    assert {j.id for j in judged if j.reason == "criterion changed"} == set()
    other = [replace(j, criterion_hash="0" * 64) if j.id == "lin.2" else j for j in judged]
    marked = {j.id: j for j in mark_changed_criteria(other, "standard", "06")}
    assert marked["lin.2"].verdict == "inconclusive"
    assert marked["lin.2"].reason == "criterion changed"
    assert marked["lin.1"].verdict == "reproduced"
    assert "(criterion changed)" in verdict_table(list(marked.values()))


def test_slowdown_is_the_median_ratio_of_common_runs_and_at_least_one():
    chapter = load_chapter("06")
    reference = read_reference("standard", "06")
    plan = chapter.plan("standard")
    then = [reference.find(run)[1] for run in plan]
    for factor, expected in ((3.0, 3.0), (1.0, 1.0), (0.2, 1.0)):
        now = [row | {"core_seconds": factor * row["core_seconds"]} for row in then]
        assert machine_slowdown(reference, plan, now) == pytest.approx(expected)
    slow = [row | {"core_seconds": 9 * row["core_seconds"]} for row in then]
    assert machine_slowdown(None, plan, slow) == 1.0
    assert machine_slowdown(reference, plan[:19], slow[:19]) == 1.0  # too few to tell
