"""The context of a chapter notebook, on the committed reference and on tiny own runs."""

from __future__ import annotations

import base64
import math
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib
import pytest
import torch
from scipy.stats import t

from companion.evidence import canonical
from companion.evidence.plots import figure
from companion.evidence.store import Store, read_reference
from companion.pages import context as module
from companion.pages.context import NoReferenceError, start
from companion.pages.pictures import png_bytes

TINY = {"seeds": 1, "gaussian_steps": 100, "digits_steps": 100, "fashion_steps": 100}


@pytest.fixture(scope="module")
def reference():
    context = start("6")
    context.run()
    return context


def test_reference_reads_every_run_and_computes_none(monkeypatch):
    monkeypatch.setattr(module, "run_sweep", lambda *a: pytest.fail("computed a run"))
    context = start("06")
    assert len(context.run()) == len(context.chapter.plan("standard"))


def test_first_table_says_where_the_numbers_come_from(capsys):
    start("6")
    shown = capsys.readouterr().out
    assert "reference: results/standard/06, " in shown
    assert "1000 to 1009" in shown
    assert f"torch {torch.__version__.split('+')[0]}" in shown


def test_the_evidence_says_how_it_was_made_and_what_is_to_be_recomputed(monkeypatch):
    committed = read_reference("standard", "06")
    arm = committed.records[0]["arm"]

    def described(newer=False, **about):
        version = about.get("versions", {}).get(arm, 1) + newer
        monkeypatch.setattr(module, "arm_version", lambda n, a: version if a == arm else 1)
        reference = replace(committed, record_set=replace(committed.record_set, **about))
        return module.describe_evidence("standard", "06", reference)

    made = {"canonical": True, "note": "", "commit": "1a2b3c4d5e6f"}
    assert described(**made) == "results/standard/06, canonical, commit 1a2b3c4"
    assert described(newer=True, **made | {"versions": {arm: 2}}).endswith("recompute")
    assert not described(**made | {"versions": {arm: 2}}).endswith("recompute")
    early = {"canonical": False, "note": "made before canonical mode"}
    assert described(newer=True, **early) == "results/standard/06, made before canonical mode"
    going = described(**made | {"note": "evidence in progress"})
    assert going == "results/standard/06, evidence in progress, commit 1a2b3c4"


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"profile": "fast"}, ValueError, "'fast'"),
        ({"evidence": "memory"}, ValueError, "'memory'"),
        ({"knobs": {"seedz": 3}}, ValueError, "seedz"),
        ({"knobs": {"seeds": -1}}, ValueError, "got -1"),
        ({"knobs": {"seeds": 11}}, NoReferenceError, 'set evidence = "recompute"'),
        ({"knobs": {"gaussian_steps": 777}}, NoReferenceError, "min"),
        ({"profile": "quick"}, NoReferenceError, "'quick'"),
    ],
)
def test_unknown_settings_stop_at_start(settings, error, text):
    with pytest.raises(error, match=re.escape(text)):
        start("6", **settings)


def test_unknown_or_missing_chapters_are_refused():
    with pytest.raises(ValueError, match="'9'"):
        start("9")
    with pytest.raises(ValueError, match="'7'"):
        start("7")


@pytest.mark.system
def test_recompute_never_reads_the_reference(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "read_reference", lambda *a: pytest.fail("read the reference"))
    monkeypatch.setattr(module, "Store", lambda profile: Store(profile, tmp_path))
    monkeypatch.setenv("TRAINAUG_WORKERS", "1")
    context = start("6", profile="quick", evidence="recompute", knobs=TINY)
    records = context.run()
    assert {record["seed"] for record in records} == {1000}
    context.verdicts()
    assert "Your own runs" not in capsys.readouterr().out  # quick decides nothing
    assert len(list(tmp_path.glob("quick/06/*/result.json"))) == len(records)


def one_seed(monkeypatch, change=lambda record: record):
    """Context of a chapter whose seed 1001 gives the evidence's records, but for ``change``."""
    committed = read_reference("standard", "06")
    computed = []

    def finished(store, runs, digest):
        return [(change(record), row) for record, row in map(committed.find, runs)]

    monkeypatch.setattr(module, "run_sweep", lambda runs, *a: computed.extend(runs))
    monkeypatch.setattr(module, "finished_runs", finished)
    context = start("6", evidence="seed 1001")
    context.run()
    assert {run.seed for run in computed} == {1001}
    return context, len(computed)


def test_one_seed_confirms_the_committed_records(monkeypatch, capsys):
    context, n = one_seed(monkeypatch)
    assert len(context.records) == len(context.chapter.plan("standard"))
    context.finish()
    shown = capsys.readouterr().out
    assert "seed 1001: results/standard/06, " in shown
    assert f"{n} of {n} records equal the evidence, byte for byte" in shown
    assert f"{len(context.records)} runs from results/standard/06" in shown


def test_one_seed_that_differs_shows_both(monkeypatch, capsys):
    def change(record):
        return record | {"metrics": {name: v + 1.0 for name, v in record["metrics"].items()}}

    _, n = one_seed(monkeypatch, change)
    shown = capsys.readouterr().out
    assert f"0 of {n} records equal the evidence; {n} differ" in shown
    assert re.search(r"arm +seed +metric +here +evidence", shown)


def test_an_effect_is_found_by_claim_and_setting(reference):
    judged = reference.judgements["lin.2"]
    assert reference.effect("lin.2") == judged.effects[0]
    last = judged.effects[-1]
    assert reference.effect("lin.2", last.name, last.part) == last
    with pytest.raises(KeyError, match="no setting 'nothing'"):
        reference.effect("lin.2", "nothing")
    with pytest.raises(KeyError):
        reference.effect("lin.99")


def test_own_runs_are_shown_beside_the_verdicts_without_a_word(reference, capsys):
    capsys.readouterr()
    own_runs = replace(reference, evidence="recompute")
    own_runs.verdicts()
    shown = capsys.readouterr().out
    assert "Your own runs, profile standard:" in shown
    assert "HOLDS" not in shown.split("Your own runs")[1]


def test_table_shows_mean_interval_and_n(reference, capsys):
    capsys.readouterr()
    reference.table({"row": {"seed": lambda records: float(records[0]["seed"])}}, digits=1)
    # mean of 1000 ... 1009 and t(9) sd / sqrt(10)
    assert "1004.5 [1002.3, 1006.7]" in capsys.readouterr().out


def test_table_shows_log_ratios_as_percent_saved_or_as_factors(reference, capsys):
    def halved_or_quartered(records):
        return math.log(0.5) if records[0]["seed"] % 2 else math.log(0.25)

    rows = {"row": {"cost": halved_or_quartered}}
    half = t.ppf(0.975, 9) * math.log(2) * math.sqrt(10 / 36) / math.sqrt(10)
    low, mean, high = (math.exp(math.log(0.125) / 2 + side * half) for side in (-1, 0, 1))
    capsys.readouterr()
    reference.table(rows, 1, shown="saved")
    saved = f"{100 - 100 * mean:.1f} [{100 - 100 * high:.1f}, {100 - 100 * low:.1f}]"
    assert saved in capsys.readouterr().out
    reference.table(rows, 3, shown="times")
    assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in capsys.readouterr().out
    reference.table({"row": {"cost": lambda records: math.log(4059.4)}}, 3, shown="times")
    assert "4059 [4059, 4059]" in capsys.readouterr().out


def test_table_counts_truth_values(reference, capsys):
    capsys.readouterr()
    reference.table({"row": {"early": lambda records: records[0]["seed"] < 1004}})
    assert capsys.readouterr().out.splitlines()[-1].split() == ["row", "4", "of", "10", "10"]


def test_table_counts_the_seeds_of_each_column(reference, capsys):
    def seed(records):
        return float(records[0]["seed"])

    def early_seed(records):
        if records[0]["seed"] >= 1006:
            raise KeyError("no record")
        return seed(records)

    capsys.readouterr()
    reference.table({"row": {"seed": seed, "early": early_seed}}, 1)
    assert capsys.readouterr().out.splitlines()[-1].endswith("  10, 6")
    reference.table({"row": {"seed": seed, "again": seed}}, 1)
    assert capsys.readouterr().out.splitlines()[-1].endswith("  10")


def test_full_records_are_those_of_the_full_reference(reference, monkeypatch, capsys):
    records = reference.full_records()
    assert len(records) > len(reference.records)
    capsys.readouterr()
    reference.full_table({"row": {"seed": lambda records: float(records[0]["seed"])}}, 1)
    assert capsys.readouterr().out.splitlines()[-1].startswith("row")
    monkeypatch.setattr(module, "read_reference", lambda *a: None)
    assert reference.full_records() == []
    reference.full_table({})
    assert capsys.readouterr().out == "full profile: no reference yet\n"


def test_values_skip_seeds_that_did_not_run_an_arm(reference):
    assert len(reference.values(lambda records: float(records[0]["seed"]))) == 10

    def first_half(records):
        if records[0]["seed"] > 1004:
            raise KeyError("not run")
        return 1.0

    assert reference.values(first_half) == [1.0] * 5

    def nowhere(records):
        raise KeyError("not run")

    with pytest.raises(KeyError, match="not run"):
        reference.values(nowhere)


def test_rows_print_plain_values(reference, capsys):
    capsys.readouterr()
    reference.rows([("a", 0.123456)], ["name", "value"], 3)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["a", "0.123"]


def test_verdicts_name_claim_word_and_records(reference, capsys):
    capsys.readouterr()
    reference.verdicts()
    shown = capsys.readouterr().out
    for claim, judged in reference.judgements.items():
        assert f"{claim}  {judged.word.upper()}" in shown
    assert "records: full" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_check_and_breaks(reference, capsys):
    reference.check("a <= b", "because", -1.0)
    reference.check("a = b", "rounding", 1e-12)
    reference.check("not shown", "because", -1.0, quiet=True)
    assert "not shown" not in capsys.readouterr().out
    for violation in (1e-3, float("nan"), float("inf")):
        with pytest.raises(AssertionError, match="a <= b fails"):
            reference.check("a <= b", "because", violation, quiet=True)
    reference.breaks("wrong", lambda: reference.check("line two", "because", 1.0))
    assert "line two fails, as it must" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="no line of the proof noticed"):
        reference.breaks("harmless", lambda: None)


def test_streams_repeat_and_differ(reference):
    draws = [torch.rand(3, generator=reference.stream(name)) for name in ("a", "a", "b")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_figure_is_shown_as_png_with_its_text_alternative(reference, monkeypatch):
    shown = []

    def display(bundle, **options):
        shown.append((bundle, options))

    monkeypatch.setattr("IPython.display.display", display)
    alt = 'a "line" < b'
    with matplotlib.rc_context():
        for _ in range(2):
            drawn, axes = figure()
            axes[0].plot([0, 1], [1, 0])
            reference.show(drawn, alt)
    (bundle, options), again = shown
    assert again[0] == bundle
    assert bundle["text/plain"] == f"Figure: {alt}"
    assert base64.b64decode(bundle["image/png"]) == png_bytes(drawn, alt)
    width, height = drawn.get_size_inches() * 100  # at the size on the page, half of its pixels
    assert options["metadata"]["image/png"] == {"alt": alt, "width": width, "height": height}


OPENED = """
{before}
from companion.pages.context import start
from companion.evidence import canonical
import torch

start("06")
start("06")
print(canonical.is_canonical(), torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("before", ["", "import numpy"])
def test_a_notebook_without_the_variables_becomes_canonical_or_says_that_it_is_not(before):
    done = subprocess.run(
        [sys.executable, "-c", OPENED.format(before=before)],
        capture_output=True,
        text=True,
        env=canonical.native_environment(),
        check=True,
    )
    last = done.stdout.splitlines()[-1]
    if before:
        assert last.startswith("False")
        assert done.stderr.count(canonical.LATE) == 1
    else:
        assert last == "True AVX2"
        assert done.stderr == ""


def test_the_progress_of_a_sweep_has_one_switch(monkeypatch):
    runs = []

    def sweep(plan, execute, store, digest, progress):
        runs.append(progress)

    monkeypatch.setattr(module, "run_sweep", sweep)
    monkeypatch.setattr(module, "collect_records", lambda *a: ([], False))
    context = start("06", profile="quick", evidence="recompute")
    monkeypatch.setitem(sys.modules, "ipykernel", None)  # as if a person had opened a notebook
    for value in ("off", "on"):
        monkeypatch.setenv("TRAINAUG_PROGRESS", value)
        context.run()
    assert [progress is None for progress in runs] == [True, False]


def test_finish_says_where_it_came_from(reference, capsys):
    capsys.readouterr()
    reference.finish()
    shown = capsys.readouterr().out
    assert "235 runs from results/standard/06" in shown
    assert "next: 08_scoreboard" in shown
