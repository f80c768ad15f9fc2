"""Judging committed records: verdict files, notebooks, and what a changed rule does to them."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import pytest

from companion.evidence import store
from companion.evidence.claims import verdicts_json
from companion.evidence.store import read_reference, reference_folder, write_record_set
from companion.lab.chapters import chapter_numbers, notebook_path
from companion.pages import judge as module
from companion.pages import verdicts
from companion.pages.judge import (
    ADVICE,
    evidence_judgements,
    judge,
    notebook_faults,
    outdated_verdicts,
    pose,
)
from companion.pages.verdicts import committed_judgements, criteria, read_verdicts, verdicts_path
from companion.paths import RESULTS

CHAPTERS = chapter_numbers()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the results that the code takes for the committed one."""
    root = tmp_path / "results"
    shutil.copytree(RESULTS, root)
    functions = ("reference_folder", "read_reference", "write_reference", "write_record_set")
    for function in (getattr(store, name) for name in functions):
        defaults = [root if value == RESULTS else value for value in function.__defaults__]
        monkeypatch.setattr(function, "__defaults__", tuple(defaults))
    monkeypatch.setattr(verdicts, "RESULTS", root)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "front_figure_path", lambda: root / "figures" / "claims.png")
    shutil.copy(RESULTS.parent / "README.md", tmp_path)
    return root


@pytest.mark.parametrize("number", CHAPTERS)
def test_committed_verdicts_are_what_the_judge_says(number):
    assert not outdated_verdicts([number]), ADVICE


@pytest.mark.parametrize("number", ["00", *CHAPTERS, "08"])
def test_committed_notebooks_show_the_committed_verdicts(number):
    assert not notebook_faults(number), ADVICE


@pytest.mark.parametrize("number", CHAPTERS)
def test_verdicts_are_read_as_they_were_written(number):
    text = verdicts_path(number).read_text(encoding="utf-8")
    assert verdicts_json(read_verdicts(number)) == text


def test_a_hand_edited_verdict_is_noticed_and_mended(copied):
    path = verdicts_path("05")
    before = path.read_text(encoding="utf-8")
    rows = json.loads(before)
    rows[0]["word"] = "holds" if rows[0]["word"] != "holds" else "opposite"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert outdated_verdicts(["05"]) == {path: before}
    said: list[str] = []
    judge(["05"], say=said.append)
    assert path.read_text(encoding="utf-8") == before
    assert any(rows[0]["id"] in line for line in said)
    assert not outdated_verdicts(["05"])


def test_a_damaged_verdict_file_is_named_with_the_command(copied):
    path = verdicts_path("05")
    for text in ("[{", '[{"id": "csa.1"}]', '{"id": 3}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"05\.json.*make judge CHAPTERS=05"):
            read_verdicts("05")
    assert path in outdated_verdicts(["05"])


def test_a_word_comes_from_full_where_full_has_its_arms_and_else_from_standard():
    judged = [each for number in CHAPTERS for each in evidence_judgements(number)]
    answered = [each for each in judged if each.has_values]
    assert {each.records for each in answered} <= {"full", "standard"}
    for each in answered:
        full = read_reference(
            "full",
            each.id and next(n for n in CHAPTERS if any(j.id == each.id for j in read_verdicts(n))),
        )
        assert each.early == (each.records == "full" and not full.record_set.canonical)
        assert not each.standard_word or each.early


def stamped(number, profile, rules):
    about = replace(read_reference(profile, number).record_set, criteria=rules)
    write_record_set(profile, number, about)


def test_a_rule_that_changed_since_the_publication_gives_no_word(copied):
    known = {each.id: each for each in evidence_judgements("05") if each.word != "open"}
    changed, kept = list(known)[:2]
    for profile in ("full", "standard"):
        stamped("05", profile, criteria("05") | {changed: "0" * 64})
    judged = {each.id: each for each in evidence_judgements("05")}
    assert (judged[changed].word, judged[changed].reason) == ("open", "criterion changed")
    assert judged[kept].word == known[kept].word


def test_listings_show_a_ledger_that_has_moved_on(copied):
    path = verdicts_path("05")
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows[0]["criterion"] = "0" * 64
    path.write_text(json.dumps(rows), encoding="utf-8")
    listed = {judgement.id: judgement for judgement in committed_judgements()}
    assert listed[rows[0]["id"]].reason == "criterion changed"


@pytest.fixture
def own_ledger(copied, tmp_path, monkeypatch):
    """A ledger, among the others in a repository, that may be changed and committed."""
    folder = tmp_path / "claims"
    shutil.copytree(RESULTS.parent / "claims", folder)
    for part in (module, verdicts):
        monkeypatch.setattr(part, "CLAIMS", folder)

    def git(*words):
        name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "claims")
    git("commit", "-qm", "ledger")
    return folder / "05.yaml", lambda: git("commit", "-qam", "changed")


def test_swapped_operands_show_as_a_changed_criterion_until_they_are_posed(own_ledger):
    path, commit = own_ledger
    assert pose("05") == []
    before = {each.id: each for each in evidence_judgements("05")}
    text = path.read_text(encoding="utf-8")
    swapped = text.replace(
        "digits_10_csa4 - 100 * digits_10_erm", "digits_10_erm - 100 * digits_10_csa4"
    )
    assert swapped != text
    path.write_text(swapped, encoding="utf-8")
    moved = [j.id for j in evidence_judgements("05") if j.reason == "criterion changed"]
    assert moved
    with pytest.raises(ValueError, match=r"commit 05\.yaml first"):
        pose("05")
    commit()
    assert set(moved) <= set(pose("05"))
    after = {each.id: each for each in evidence_judgements("05")}
    assert not [j for j in after.values() if j.reason == "criterion changed"]
    assert after[moved[0]].effects[0].mean == pytest.approx(-before[moved[0]].effects[0].mean)


def test_unknown_names_of_a_ledger_are_said_with_those_that_are_alike(own_ledger):
    path, commit = own_ledger
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("100 * digits_10_erm", "100 * digits_10_emr"), encoding="utf-8")
    commit()
    for command in (judge, lambda numbers: pose(*numbers)):
        with pytest.raises(ValueError, match=r"unknown arm 'digits_10_emr'; did you mean .*_erm"):
            command(["05"])
    path.write_text(text.replace("of: test/accuracy", "of: test/acuracy"), encoding="utf-8")
    said: list[str] = []
    verdicts_path("05").unlink()
    judge(["05"], say=said.append)
    assert any("test/acuracy; did you mean test/accuracy" in line for line in said)


def test_a_work_that_is_not_in_the_bibliography_is_named(own_ledger):
    path, commit = own_ledger
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("simionescu2022deep", "simionescu2020deep", 1), encoding="utf-8")
    commit()
    named = r"05\.yaml: claim csa\.1: .*'simionescu2020deep'; did you mean simionescu2022deep"
    for command in (judge, lambda numbers: pose(*numbers)):
        with pytest.raises(ValueError, match=named):
            command(["05"])


def test_a_rule_that_is_new_to_its_records_must_say_so(own_ledger):
    path, commit = own_ledger
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("posed: after the data", "posed: before the data"), "utf-8")
    commit()
    assert pose("05") == []  # when a rule was posed is no part of it
    stamped("05", "full", {})
    stamped("05", "standard", {})
    with pytest.raises(ValueError, match="say `posed: after the data`"):
        pose("05")
    # and it has no word until it says so
    judged = [each for each in evidence_judgements("05") if each.has_values]
    assert judged
    assert {(each.word, each.reason) for each in judged} == {("open", module.NEW_RULE)}


def test_a_notebook_that_shows_another_word_is_named(tmp_path, monkeypatch):
    text = notebook_path("05").read_text(encoding="utf-8")
    claim = next(j for j in read_verdicts("05") if j.word == "open")
    shown = f"{claim.id}  OPEN"
    assert shown in text
    copy = tmp_path / notebook_path("05").name
    copy.write_text(text.replace(shown, f"{claim.id}  HOLDS"), "utf-8")
    monkeypatch.setattr(module, "notebook_path", lambda number: copy)
    assert claim.id in notebook_faults("05")


def test_render_executes_only_the_notebooks_that_show_something_else(copied, monkeypatch):
    executed = []
    monkeypatch.setattr(module, "execute_notebook", lambda path: executed.append(path.name[:2]))
    monkeypatch.setattr(module, "write_key_figure", lambda number: None)
    monkeypatch.setattr(module, "notebook_faults", lambda n: ["csa.1"] if n == "05" else [])
    judge(CHAPTERS)
    assert executed == []
    judge(CHAPTERS, render=True)
    assert executed == ["05"]


def test_a_chapter_without_records_has_no_verdicts(copied):
    for profile in ("full", "standard"):
        shutil.rmtree(reference_folder(profile, "05"))
    with pytest.raises(LookupError, match="05"):
        evidence_judgements("05")
    verdicts_path("05").unlink()
    assert read_verdicts("05") == []
    assert not outdated_verdicts(["05"])
