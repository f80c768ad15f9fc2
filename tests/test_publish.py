"""Publishing, on copies of the committed results and runs that a test writes itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import yaml

from companion.evidence import store
from companion.evidence.ledger import load_ledger
from companion.evidence.store import (
    Store,
    canonical_json,
    read_reference,
    reference_folder,
    write_reference,
)
from companion.lab.chapters import load_chapter
from companion.lab.conditions import conditions_of
from companion.pages import judge as judging
from companion.pages import publish as module
from companion.pages import verdicts
from companion.pages.publish import (
    PublishRefusedError,
    machine_slowdown,
    publish,
    recover,
    replace_folder,
    tuned_edges,
)
from companion.paths import CLAIMS, RESULTS

NUMBER = "05"


@dataclass
class State:
    arm: str
    state: str = "equal"


def all_equal(chapters, arms):
    return [State(arm) for arm in arms]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the results that the code takes for the committed one, a clean ledger, no runs."""
    root = tmp_path / "results"
    shutil.copytree(RESULTS, root)
    functions = ("reference_folder", "read_reference", "write_reference", "write_record_set")
    for function in (getattr(store, name) for name in functions):
        defaults = [root if value == RESULTS else value for value in function.__defaults__]
        monkeypatch.setattr(function, "__defaults__", tuple(defaults))
    monkeypatch.setattr(verdicts, "RESULTS", root)
    for part in (verdicts, judging):  # the ledger names arms that the shortened plan has not
        monkeypatch.setattr(part, "known_arms", lambda chapter: None)
    monkeypatch.setattr(judging, "ROOT", tmp_path)
    monkeypatch.setattr(judging, "front_figure_path", lambda: root / "figures" / "claims.png")
    shutil.copy(RESULTS.parent / "README.md", tmp_path)
    monkeypatch.setattr(module, "Store", lambda profile: Store(profile, tmp_path / "runs"))
    monkeypatch.setattr(module, "_refuse_open_ledger", lambda number: None)
    _shorten(monkeypatch)
    return root


def _shorten(monkeypatch):
    """Let plan and record set hold the first arms only, so that a test takes a second."""
    chapter, reference = load_chapter(NUMBER), read_reference("standard", NUMBER)
    arms = some_arms(3)
    plan = [run for run in chapter.plan("standard") if run.arm in arms]
    monkeypatch.setattr(type(chapter), "plan", lambda self, profile, knobs=None: plan)
    rows = zip(reference.records, reference.provenance, strict=True)
    kept = [(record, row) for record, row in rows if record["arm"] in arms]
    # as every set was once, so that a group of arms leaves others to wait for
    early = replace(reference.record_set, canonical=False, note="made before canonical mode")
    write_reference("standard", NUMBER, kept, early)


def finish_runs(tmp_path, keep=lambda run: True, factor=1.0, **provenance):
    """Write finished runs of the plan whose results are those of the committed records."""
    chapter = load_chapter(NUMBER)
    reference = read_reference("standard", NUMBER)
    target = Store("standard", tmp_path / "runs")
    for run in filter(keep, chapter.plan("standard")):
        record, row = reference.find(run)
        result = {name: value for name, value in record.items() if name not in run.head}
        seconds = {name: factor * row[name] for name in ("wall_seconds", "core_seconds")}
        target.write(run, conditions_of(run, chapter.code_digest), result, seconds | provenance)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def some_arms(count):
    return list(dict.fromkeys(run.arm for run in load_chapter(NUMBER).plan("standard")))[:count]


def test_published_runs_are_the_evidence_and_say_where_they_come_from(copied, tmp_path):
    before = read_reference("standard", NUMBER)
    finish_runs(tmp_path, started="2030-01-02T03:04:05+00:00")
    publish(NUMBER, check=all_equal)
    after = read_reference("standard", NUMBER)
    assert sorted(map(canonical_json, after.records)) == sorted(map(canonical_json, before.records))
    about = after.record_set
    assert about.canonical
    assert about.note == ""
    assert about.started == "2030-01-02T03:04:05+00:00"
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert about.commit.startswith(head.stdout.strip())
    blob = f"HEAD:claims/{NUMBER}.yaml"
    ledger = subprocess.run(["git", "rev-parse", blob], capture_output=True, text=True, check=True)
    assert about.ledger == ledger.stdout.strip()
    assert set(about.criteria) == {c.id for c in load_ledger(CLAIMS / f"{NUMBER}.yaml")}
    assert not judging.outdated_verdicts([NUMBER])


def test_what_publishing_does_not_write_stays(copied, tmp_path):
    folder = copied / "standard" / NUMBER
    (folder / "tuning.csv").write_text("arm,setting\n", encoding="utf-8")
    finish_runs(tmp_path)
    publish(NUMBER, check=all_equal)
    assert (folder / "tuning.csv").read_text(encoding="utf-8") == "arm,setting\n"


def test_a_ledger_younger_than_the_runs_is_refused(copied, tmp_path):
    finish_runs(tmp_path, started="1990-01-01T00:00:00+00:00")
    old = files(reference_folder("standard", NUMBER))
    with pytest.raises(PublishRefusedError, match="criteria come before results"):
        publish(NUMBER, check=all_equal)
    assert files(reference_folder("standard", NUMBER)) == old


def test_a_rule_newer_than_its_runs_is_refused_unless_it_says_so(tmp_path, monkeypatch):
    entries = yaml.safe_load((CLAIMS / f"{NUMBER}.yaml").read_text("utf-8"))
    first = entries[0]
    assert first.pop("posed") == "after the data"
    arms = load_ledger(CLAIMS / f"{NUMBER}.yaml")[0].arms
    pairs = [({"arm": arm}, {"started": "2030-01-01T00:00:00+00:00"}) for arm in arms]
    monkeypatch.setattr(module, "CLAIMS", tmp_path)
    monkeypatch.setattr(module, "_ledger_blob", lambda number, moment: f"HEAD:claims/{number}.yaml")

    def refuse() -> None:
        (tmp_path / f"{NUMBER}.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
        module._refuse_newer_rules(NUMBER, pairs)

    refuse()  # it stood like this
    first["statement"] += " Other words."
    refuse()
    first["seeds"]["count"] += 1
    with pytest.raises(PublishRefusedError, match=rf"rules of {first['id']} are newer"):
        refuse()
    first["posed"] = "after the data"
    refuse()


def test_an_open_ledger_is_refused(monkeypatch):
    for answers in ({"ls-files": ""}, {"ls-files": "x", "status": " M claims/05.yaml"}):
        monkeypatch.setattr(module, "_git", lambda *a, answers=answers: answers.get(a[0], ""))
        with pytest.raises(PublishRefusedError, match="criteria come before results"):
            publish(NUMBER, check=all_equal)


def test_missing_and_damaged_runs_are_refused_by_arm(copied, tmp_path):
    first, second = some_arms(2)
    finish_runs(tmp_path, keep=lambda run: run.arm != first)
    with pytest.raises(PublishRefusedError, match=first):
        publish(NUMBER, check=all_equal)
    finish_runs(tmp_path)
    results = (tmp_path / "runs").glob("*/*/*/result.json")
    damaged = next(p for p in results if json.loads(p.read_bytes())["arm"] == second)
    damaged.write_text(damaged.read_text("utf-8").replace('"seed":1', '"seed":2'), "utf-8")
    with pytest.raises(PublishRefusedError, match=second):
        publish(NUMBER, check=all_equal)


@pytest.mark.parametrize("state", ["moved trace", "moved record", "missing", None])
def test_a_canary_that_is_not_equal_is_refused_by_arm(copied, tmp_path, state):
    first, *_ = some_arms(1)
    finish_runs(tmp_path)
    old = files(reference_folder("standard", NUMBER))

    def check(chapters, arms):
        states = [State(arm) for arm in arms if arm != first]
        return states + ([State(first, state)] if state else [])

    with pytest.raises(PublishRefusedError, match=first):
        publish(NUMBER, check=check)
    assert files(reference_folder("standard", NUMBER)) == old


def test_a_group_of_arms_replaces_only_its_records(copied, tmp_path):
    first, *others = list(dict.fromkeys(r.arm for r in load_chapter(NUMBER).plan("standard")))
    before = read_reference("standard", NUMBER)
    finish_runs(tmp_path, host="elsewhere")
    asked = []

    def check(chapters, arms):
        asked.extend(arms)
        return all_equal(chapters, arms)

    publish(NUMBER, arms=[first], check=check)
    chosen = {arm for arm in (first, *others) if arm.startswith(first)}
    assert set(asked) <= chosen
    after = read_reference("standard", NUMBER)
    assert len(after.records) == len(before.records)
    rows = zip(after.records, after.provenance, strict=True)
    assert {r["arm"] for r, row in rows if row["host"] == "elsewhere"} == chosen
    assert after.record_set.note == "evidence in progress"
    assert set(after.record_set.waiting) == {first, *others} - chosen
    publish(NUMBER, arms=others, check=all_equal)
    done = read_reference("standard", NUMBER).record_set
    assert (done.note, list(done.waiting)) == ("", [])


def test_a_group_after_a_bump_waits_only_for_the_bumped_arms(copied, tmp_path, monkeypatch):
    finish_runs(tmp_path)
    publish(NUMBER, check=all_equal)
    first, second, *_ = some_arms(3)
    present = module.arm_version
    monkeypatch.setattr(
        module, "arm_version", lambda number, arm: present(number, arm) + (arm == second)
    )
    publish(NUMBER, arms=[first], check=all_equal)
    waiting = read_reference("standard", NUMBER).record_set.waiting
    assert list(waiting) == ([] if second.startswith(first) else [second])


def test_an_unknown_group_is_refused(copied):
    with pytest.raises(PublishRefusedError, match="no_such_arm"):
        publish(NUMBER, arms=["no_such_arm"], check=all_equal)
    misspelt = some_arms(1)[0][:-1] + "_"
    with pytest.raises(PublishRefusedError, match=f"{misspelt}; did you mean .*{misspelt[:-1]}"):
        publish(NUMBER, arms=[misspelt], check=all_equal)


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_kill_leaves_the_old_set_or_the_new_one(copied, tmp_path, monkeypatch, where):
    finish_runs(tmp_path, host="elsewhere")
    folder = reference_folder("standard", NUMBER)
    old = files(folder)
    exchange = module.replace_folder

    def killed(new, target):
        if where == "after":
            exchange(new, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "replace_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(NUMBER, check=all_equal)
    hosts = {row["host"] for row in read_reference("standard", NUMBER).provenance}
    assert (files(folder) == old) == (where == "before")
    assert ("elsewhere" in hosts) == (where == "after")
    assert len(hosts) == 1
    monkeypatch.setattr(module, "replace_folder", exchange)
    publish(NUMBER, check=all_equal)
    assert {row["host"] for row in read_reference("standard", NUMBER).provenance} == {"elsewhere"}
    assert {path.name for path in copied.iterdir()} == {path.name for path in RESULTS.iterdir()}


def test_folders_are_replaced_where_the_system_cannot_exchange_them(tmp_path, monkeypatch):
    def no_library(*arguments, **settings):
        raise OSError

    monkeypatch.setattr(module.ctypes, "CDLL", no_library)
    new, target = tmp_path / "new", tmp_path / "deep" / "target"
    for text in ("one", "two"):
        new.mkdir()
        (new / "file").write_text(text, encoding="utf-8")
        replace_folder(new, target)
        assert (target / "file").read_text(encoding="utf-8") == text


def test_a_set_that_stood_aside_when_the_process_was_killed_comes_back(copied):
    folder = reference_folder("standard", NUMBER)
    old = files(folder)
    staging = copied / f".publishing-standard-{NUMBER}"
    staged = reference_folder("standard", NUMBER, staging)
    staged.parent.mkdir(parents=True)
    folder.rename(staged.with_name(f"{NUMBER}.old"))
    recover(NUMBER, "standard")
    assert files(folder) == old
    assert not staging.exists()


def test_runs_far_over_the_plan_of_new_arms_are_refused(copied, tmp_path, monkeypatch):
    finish_runs(tmp_path)
    chapter, reference = load_chapter(NUMBER), read_reference("standard", NUMBER)
    rows = zip(reference.records, reference.provenance, strict=True)
    known = [(record, row) for record, row in rows if record["arm"] == some_arms(1)[0]]
    write_reference("standard", NUMBER, known, reference.record_set)
    plan = [replace(run, predicted_seconds=0.01) for run in chapter.plan("standard")]
    monkeypatch.setattr(type(chapter), "plan", lambda self, profile, knobs=None: plan)
    with pytest.raises(PublishRefusedError, match="mend the plan"):
        publish(NUMBER, check=all_equal)


def test_a_slower_machine_or_mode_is_not_refused(copied, tmp_path):
    finish_runs(tmp_path, factor=5.0)
    publish(NUMBER, check=all_equal)
    assert read_reference("standard", NUMBER).record_set.canonical


def test_published_lines_are_the_bytes_of_the_results(copied):
    path = reference_folder("standard", NUMBER) / "records.jsonl"
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert all(canonical_json(json.loads(line)) == line for line in lines)


@pytest.mark.parametrize(
    ("value", "edges"),
    [(0.35, []), (0.015, ["digits_random.lr = 0.015"]), (8.0, ["digits_random.lr = 8.0"])],
)
def test_a_tuned_value_on_the_edge_of_what_was_tried_is_named(monkeypatch, value, edges):
    chapter = load_chapter("04")
    monkeypatch.setitem(chapter.chosen, "digits_random", {"lr": value})
    assert tuned_edges("04") == edges


def test_where_nothing_was_tuned_there_is_no_edge(monkeypatch):
    monkeypatch.setattr(module, "load_chapter", lambda number: SimpleNamespace(chosen={}))
    assert tuned_edges("04") == []


def test_slowdown_is_the_ratio_of_what_common_runs_took_and_at_least_one():
    reference = read_reference("standard", NUMBER)
    plan = load_chapter(NUMBER).plan("standard")
    then = [reference.find(run)[1] for run in plan]
    for factor, expected in ((3.0, 3.0), (1.0, 1.0), (0.2, 1.0)):
        now = [row | {"core_seconds": factor * row["core_seconds"]} for row in then]
        assert machine_slowdown(reference, plan, now) == pytest.approx(expected)


def test_without_common_runs_the_plan_itself_says_how_slow_the_machine_is():
    reference = read_reference("standard", NUMBER)
    plan = load_chapter(NUMBER).plan("standard")
    slow = [{"core_seconds": 4 * run.predicted_seconds} for run in plan]
    assert machine_slowdown(None, plan, slow) == pytest.approx(4.0)
    # nineteen common runs are too few to tell
    assert machine_slowdown(reference, plan[:19], slow[:19]) == pytest.approx(4.0)
