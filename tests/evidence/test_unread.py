"""What nothing reads: how it is found, that it is true, and that the page shows it."""

from __future__ import annotations

import json
import sys
from importlib import import_module

import pytest

from companion.evidence import store
from companion.lab.chapters import about, chapter_numbers
from companion.pages.judge import verdicts_text
from companion.pages.verdicts import verdicts_path
from companion.pages.views import key_figure_png
from companion.paths import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))
try:
    u, work = import_module("unread"), import_module("unread_work")
    rates = import_module("verdict_rates")
finally:
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def figures():
    return json.loads(u.TARGET.read_text(encoding="utf-8"))


def record(**sections):
    head = {"chapter": "01", "arm": "a", "version": 1, "seed": 1000, "data": "", "settings": {}}
    return head | sections


# --- the figures ----------------------------------------------------------------------------------


def test_the_page_shows_the_figures(figures):
    page = u.PAGE.read_text(encoding="utf-8")
    assert list(figures) == list(chapter_numbers())
    assert u.with_block(page, figures) == page


@pytest.mark.parametrize("number", chapter_numbers())
def test_claims_and_key_figures_need_no_unread_entry(number, figures, monkeypatch):
    unread = u.expanded(figures[number]["unread"], u.known_entries(number))
    picture = key_figure_png(number) if about(number).key_figure else None
    make, removed = store.Reference, []

    def without_unread(records, *rest):
        kept = [u.changed(each, unread.get(each["arm"], ()), "left out") for each in records]
        removed.extend(kept)
        return make(kept, *rest)

    monkeypatch.setattr(store, "Reference", without_unread)
    assert verdicts_text(number) == verdicts_path(number).read_text(encoding="utf-8")
    assert picture is None or key_figure_png(number) == picture
    assert removed


@pytest.mark.parametrize("number", chapter_numbers())
def test_every_row_stands_for_entries_of_each_of_its_arms(number, figures):
    known = u.known_entries(number)
    for row in figures[number]["unread"]:
        for arm in row["arms"]:
            assert any(u.fits(entry, row["entry"]) for entry in known[arm]), (row["entry"], arm)


def test_the_table_of_baselines_reads_nothing_else(figures):
    for number, arm, metric, _ in rates.BASELINES:
        unread = u.expanded(figures[number]["unread"], u.known_entries(number))
        assert f"metrics {metric}" not in unread.get(arm, ())


def test_most_of_what_is_not_unread_is_training_method_or_read(figures):
    shares = json.loads(u.SHARES.read_text(encoding="utf-8"))
    assert u.totals(figures, shares).share >= 85


def test_unread_seconds_are_left_out_of_both_sides():
    shares = {"01": {"core_seconds": 100.0, "shares": dict.fromkeys(u.KINDS, 0.2)}}
    figures = {"01": {"work": [{"seconds": {"measurement": 10.0, "data": 5.0}}]}}
    totals = u.totals(figures, shares)
    assert totals.unread == 15
    assert totals.share == pytest.approx(100 * (60 - 10) / (100 - 15))


# --- what is read ---------------------------------------------------------------------------------


def test_reading_by_name_is_noted():
    reads = u.Reads()
    traced = reads.traced(record(metrics={"loss": 1.0, "error": 2.0}, hits={"i2t": "1"}))
    assert traced["metrics"]["loss"] == 1.0
    assert traced["metrics"].get("error") == 2.0
    assert traced["metrics"].get("absent", 3) == 3
    assert traced.get("hits") == {"i2t": "1"}
    assert {"metrics loss", "metrics error", "hits"} <= reads.by_name["a"]
    assert not reads.in_loops


@pytest.mark.parametrize(
    "loop",
    [
        lambda metrics: [metrics[name] for name in metrics],
        lambda metrics: [metrics[name] for name in sorted(metrics.keys())],
        lambda metrics: list(metrics.values()),
        lambda metrics: [value for _, value in metrics.items()],
        lambda metrics: list(dict(metrics).values()),
        lambda metrics: list({**metrics}.values()),
    ],
)
def test_reading_in_a_loop_is_told_apart(loop):
    reads = u.Reads()
    assert loop(reads.traced(record(metrics={"error": 2.0, "loss": 1.0}))["metrics"]) == [2.0, 1.0]
    assert reads.in_loops["a"] == {"metrics error", "metrics loss"}
    assert not any(name.startswith("metrics ") for name in reads.by_name["a"])


def test_a_name_made_from_one_of_a_loop_counts_as_a_name():
    reads = u.Reads()
    metrics = reads.traced(record(metrics={"x/loss": 1.0, "x/error": 2.0}))["metrics"]
    assert [metrics[f"{name[:2]}loss"] for name in metrics if name == "x/error"] == [1.0]
    assert "metrics x/loss" in reads.by_name["a"]


def test_entries_are_left_out_raised_or_lowered():
    before = record(
        metrics={"Food & Drink": 1.0, "loss": 0.0}, curves={"loss": [1.0, 2.0]}, hits=""
    )
    names = ["metrics Food & Drink", "curves loss", "curves absent"]
    without = u.changed(before, [*names, "hits"], "left out")
    assert without == record(metrics={"loss": 0.0}, curves={})
    assert u.changed(before, names, "raised")["curves"]["loss"] == [2000.0, 3000.0]
    assert u.changed(before, names, "lowered")["metrics"] == {"Food & Drink": -2000.0, "loss": 0.0}
    assert before["metrics"]["Food & Drink"] == 1.0


# --- patterns -------------------------------------------------------------------------------------


def test_patterns_fit_what_is_unread_and_nothing_else():
    known = {
        "a": {"metrics x/1/loss", "metrics x/2/loss", "metrics x/2/error", "curves loss", "hits"},
        "b": {"metrics x/1/loss", "metrics x/2/loss", "metrics x/3/loss"},
    }
    unread = {"a": known["a"] - {"metrics x/2/error"}, "b": known["b"] - {"metrics x/3/loss"}}
    rows = u.patterns(unread, known)
    assert u.expanded(rows, known) == unread
    assert {"entry": "curves loss", "arms": ["a"]} in rows


def test_a_star_stands_for_a_part_where_all_of_them_are_unread():
    known = {"a": {"metrics x/1/loss", "metrics x/2/loss", "metrics x/2/error"}}
    rows = u.patterns({"a": known["a"] - {"metrics x/2/error"}}, known)
    assert rows == [{"entry": "metrics x/*/loss", "arms": ["a"]}]


# --- which part of the code computes which entries ------------------------------------------------


def test_all_work_exists():
    work.check_work()


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (work.Part("benchmarks/absent.py", "main"), "absent.py"),
        (work.Part("benchmarks/unread.py", "renamed"), "renamed"),
        (work.Part("benchmarks/unread.py", "Reads.renamed"), "renamed"),
        (work.Part("benchmarks/unread.py", "main", "removed = "), "removed = "),
    ],
)
def test_work_that_was_renamed_is_refused(part, problem):
    with pytest.raises(ValueError, match=problem):
        work.lines_of(part)


def test_of_a_loop_only_the_head_counts(tmp_path, monkeypatch):
    loop = "    for i in range(\n        3\n    ):\n        print(i)\n"
    source = f"def f():\n{loop}    x = (\n        1\n    )\n"
    (tmp_path / "code.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(work, "ROOT", tmp_path)
    assert work.lines_of(work.Part("code.py", "f", "for i")) == [range(2, 5)]
    assert work.lines_of(work.Part("code.py", "f", "x = ")) == [range(6, 9)]
    assert work.lines_of(work.Part("code.py", "f")) == []


def test_work_is_unread_if_all_that_it_computes_is():
    each = work.Work("01", (), ("metrics {name}/*", "curves {name}"), not_in="*_restart")
    known = {"metrics x/loss", "metrics x/error", "metrics y/loss", "curves x"}

    def is_unread(unread, name="x", arm="a"):
        return u.is_unread(each, arm, {"name": name}, known, unread)

    assert is_unread({"metrics x/loss", "metrics x/error", "curves x"})
    assert not is_unread({"metrics x/loss", "metrics x/error"})
    assert is_unread({"metrics y/loss"}, name="y")
    assert not is_unread(known, name="z")  # it computes nothing of this arm
    assert not is_unread(known, arm="a_restart")
