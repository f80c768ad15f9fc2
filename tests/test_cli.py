"""The command as a user types it, in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from companion.__main__ import app
from companion.chapters.autoassist import tuning as tuning_03
from companion.chapters.cascading_sum import tuning as tuning_05
from companion.chapters.gradient_clustering import tuning as tuning_02
from companion.chapters.hard_negatives import tuning as tuning_01
from companion.chapters.linear_robustness import tuning
from companion.chapters.ordering import tuning as tuning_04
from companion.lab.chapters import TITLES
from companion.paths import ROOT

CLAIMS = {f"lin.{k}" for k in range(1, 9)} | {f"vse.{k}" for k in range(1, 10)}
CLAIMS |= {f"gc.{k}" for k in range(1, 15)}
CLAIMS |= {f"aa.{k}" for k in range(1, 14)}
CLAIMS |= {f"ord.{k}" for k in range(1, 13) if k != 6} | {f"csa.{k}" for k in range(1, 16)}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "companion", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, check=False
    )


def test_claims_as_json_have_what_a_script_needs():
    done = run("claims", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in json.loads(done.stdout)}
    assert set(rows) == CLAIMS
    row = rows["lin.2"]
    names = {"id", "tier", "origin", "scope", "kind", "worth", "unit", "shown", "word", "addition"}
    assert names <= set(row)
    for setting in row["settings"]:
        assert {"name", "n", "mean", "sd", "sign", "size", "word"} <= set(setting)
        assert setting["n"] == 10
    by_words = {row["word"] for row in rows.values()}
    assert by_words <= {"holds", "opposite", "no effect", "no gain", "mixed", "open"}


def test_claims_table_has_every_claim():
    lines = run("claims").stdout.splitlines()
    heads = ("aa.", "csa.", "gc.", "lin.", "ord.", "vse.")
    assert {line.split()[0] for line in lines if line.startswith(heads)} == CLAIMS


def test_listing_the_claims_loads_no_heavy_library():
    code = (
        "import sys; from companion.__main__ import app; app(['claims'], standalone_mode=False);"
        "print([n for n in ('torch', 'scipy', 'papermill', 'nbformat') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command_is_canonical_and_benchmarks_are_not(monkeypatch):
    code = (
        "import sys; from companion import __main__ as command; sys.argv = ['companion', 'claims'];"
        "import atexit, os; atexit.register(lambda: print(os.environ.get('MKL_CBWR'),"
        " os.environ.get('OPENBLAS_L2_SIZE'))); command.main()"
    )
    plain = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=plain | {"OPENBLAS_L2_SIZE": "1"},
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "COMPATIBLE None"
    environments = []

    def started(command, *, check, env):
        environments.append(env)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setattr(subprocess, "run", started)
    assert CliRunner().invoke(app, ["bench", "--check"]).exit_code == 0
    assert "MKL_CBWR" not in environments[0]


def test_moved_canaries_end_in_code_one(monkeypatch):
    asked = []

    def check(numbers, *, changed, say):
        asked.append((numbers, changed))
        return ["chapter 05, one: moved trace: a bug"] if numbers == ["05"] else []

    monkeypatch.setattr("companion.pages.canaries.check", check)
    moved = CliRunner().invoke(app, ["canaries", "5"])
    assert moved.exit_code == 1
    assert "chapter 05, one" in moved.output
    assert CliRunner().invoke(app, ["canaries", "--changed"]).exit_code == 0
    assert asked == [(["05"], False), (tuple(TITLES), True)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("reproduce", "6", "--profile", "fast"), "unknown profile 'fast'"),
        (("reproduce", "6", "-p", "step=3"), "unknown parameter 'step'"),
        (("reproduce", "6", "-p", "seeds"), "expected NAME=VALUE"),
        (("reproduce", "42"), "unknown chapter '42'"),
        (("reproduce", "7"), "chapter 07 is not built yet"),
        (("publish", "7"), "not built"),
    ],
)
def test_bad_input_ends_in_one_line_and_code_two(arguments, text):
    done = run(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_tune_calls_the_chapters_that_have_something_to_tune(monkeypatch):
    calls = []

    def tune(workers, say):
        calls.append(workers)
        say("trials 1/1")

    chapters = (
        tuning,
        tuning_01,
        tuning_02,
        tuning_03,
        tuning_04,
        tuning_05,
    )  # the real ones take minutes and write files
    for chapter in chapters:
        monkeypatch.setattr(chapter, "tune", tune)
    done = CliRunner().invoke(app, ["tune", "7", "6"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == ["chapter 07: nothing to tune", "trials 1/1"]
    assert len(calls) == 1
    assert calls[0] >= 1
    # all chapters by default
    lines = CliRunner().invoke(app, ["tune"]).output.splitlines()
    assert len(lines) == len(TITLES)
    assert [x for x in lines if not x.endswith("nothing to tune")] == ["trials 1/1"] * len(chapters)
    assert len(calls) == len(chapters) + 1


def test_tune_refuses_an_unknown_chapter():
    done = run("tune", "42")
    assert done.returncode == 2
    assert "unknown chapter '42'" in done.stderr
