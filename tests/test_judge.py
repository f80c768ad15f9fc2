"""Judging committed records: verdict files, notebooks, and what a changed rule does to them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from companion.evidence import store
from companion.evidence.claims import verdicts_json
from companion.evidence.store import read_reference, reference_folder, write_reference
from companion.experiments.chapters import TITLES, load_chapter, notebook_path
from companion.pages import judge as module
from companion.pages.judge import ADVICE, judge, notebook_faults, outdated_verdicts, verdicts_text
from companion.pages.verdicts import committed_judgements, read_verdicts, verdicts_path
from companion.paths import RESULTS

BUILT = [number for number in TITLES if load_chapter(number)]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the results that the code takes for the committed one."""
    root = tmp_path / "results"
    shutil.copytree(RESULTS, root)
    for function in (store.reference_folder, store.read_reference, store.write_reference):
        defaults = [root if value == RESULTS else value for value in function.__defaults__]
        monkeypatch.setattr(function, "__defaults__", tuple(defaults))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    shutil.copy(RESULTS.parent / "README.md", tmp_path)
    return root


@pytest.mark.parametrize("number", BUILT)
def test_committed_verdicts_are_what_the_judge_says(number):
    assert not outdated_verdicts([number]), ADVICE


@pytest.mark.parametrize("number", [*BUILT, "08"])
def test_committed_notebooks_show_the_committed_verdicts(number):
    assert not notebook_faults(number), ADVICE


@pytest.mark.parametrize("profile", ["standard", "full"])
def test_verdicts_are_read_as_they_were_written(profile):
    for number in BUILT:
        text = verdicts_path(number, profile).read_text(encoding="utf-8")
        assert verdicts_json(read_verdicts(number, profile)) == text


def test_a_hand_edited_verdict_is_noticed_and_mended(copied):
    path = verdicts_path("05", "standard")
    before = path.read_text(encoding="utf-8")
    rows = json.loads(before)
    rows[0]["verdict"] = "reproduced" if rows[0]["verdict"] != "reproduced" else "contradicted"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert outdated_verdicts(["05"]) == {path: before}
    said: list[str] = []
    judge(["05"], say=said.append)
    assert path.read_text(encoding="utf-8") == before
    assert any(rows[0]["id"] in line for line in said)
    assert not outdated_verdicts(["05"])


def test_a_damaged_verdict_file_is_named_with_the_command(copied):
    path = verdicts_path("05", "standard")
    for text in ("[{", '[{"id": "csa.1"}]', '{"id": 3}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"verdicts\.json.*python -m companion judge 05"):
            read_verdicts("05", "standard")
    assert path in outdated_verdicts(["05"])


def test_a_rule_that_changed_since_the_publication_gives_no_verdict(copied):
    reference = read_reference("standard", "05")
    claims = {judgement.id: judgement for judgement in read_verdicts("05", "standard")}
    changed, kept = [name for name, j in claims.items() if j.verdict == "contradicted"][:2]
    criteria = {changed: "0" * 64, kept: claims[kept].criterion_hash}
    about = replace(reference.record_set, criteria=criteria)
    write_reference(
        "standard", "05", zip(reference.records, reference.provenance, strict=True), about
    )
    judged = {row["id"]: row for row in json.loads(verdicts_text("05"))}
    assert judged[changed]["verdict"] == "inconclusive"
    assert judged[changed]["reason"] == "criterion changed"
    assert judged[kept]["verdict"] == "contradicted"


def test_listings_show_a_ledger_that_has_moved_on(copied):
    path = verdicts_path("05", "standard")
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows[0]["criterion_hash"] = "0" * 64
    path.write_text(json.dumps(rows), encoding="utf-8")
    listed = {judgement.id: judgement for judgement in committed_judgements()}
    assert listed[rows[0]["id"]].reason == "criterion changed"


def test_a_notebook_that_shows_another_word_is_named(tmp_path, monkeypatch):
    text = notebook_path("05").read_text(encoding="utf-8")
    claim = next(j for j in read_verdicts("05", "standard") if j.verdict == "contradicted")
    shown = f"{claim.id}  {claim.tier}  CONTRADICTED"
    assert shown in text
    copy = tmp_path / notebook_path("05").name
    copy.write_text(text.replace(shown, shown.replace("CONTRADICTED", "REPRODUCED")), "utf-8")
    monkeypatch.setattr(module, "notebook_path", lambda number: copy)
    assert claim.id in notebook_faults("05")


def test_render_executes_only_the_notebooks_that_show_something_else(copied, monkeypatch):
    executed = []
    monkeypatch.setattr(module, "execute_notebook", lambda path: executed.append(path.name[:2]))
    monkeypatch.setattr(module, "write_key_figure", lambda number: None)
    monkeypatch.setattr(module, "notebook_faults", lambda n: ["csa.1"] if n == "05" else [])
    judge(BUILT, ["standard"])
    assert executed == []
    judge(BUILT, ["standard"], render=True)
    assert executed == ["05"]


def test_a_chapter_without_records_has_no_verdicts(copied):
    shutil.rmtree(reference_folder("full", "05"))
    with pytest.raises(LookupError, match="05"):
        verdicts_text("05", "full")
    assert read_verdicts("05", "full") == []
    assert not outdated_verdicts(["05"])
