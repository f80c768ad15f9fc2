"""The command as a user types it, in its own process."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from companion import __main__ as command
from companion.__main__ import app
from companion.evidence.ledger import load_ledger
from companion.lab import chapters as lab_chapters
from companion.lab import tune as lab_tune
from companion.lab.chapters import chapter_numbers, load_chapter
from companion.pages.canaries import Outcome
from companion.paths import CLAIMS as LEDGERS
from companion.paths import ROOT

CLAIMS = {claim.id for path in sorted(LEDGERS.glob("*.yaml")) for claim in load_ledger(path)}


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
    assert lines[-1].startswith("rules posed after the data: ")
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

    def check(numbers, *, skipped, say):
        asked.append((numbers, skipped))
        faults = ["chapter 05, one: moved trace: a bug"] if numbers == ["05"] else []
        return Outcome(2, faults)

    monkeypatch.setattr("companion.pages.canaries.check", check)
    moved = CliRunner().invoke(app, ["canaries", "5"])
    assert moved.exit_code == 1
    assert "chapter 05, one" in moved.output
    assert CliRunner().invoke(app, ["canaries", "--changed"]).exit_code == 0
    assert asked == [(["05"], "none"), (list(chapter_numbers()), "recorded code")]


REFUSED = {
    "reproduce 6 --profile fast": "unknown profile 'fast'",
    "reproduce 6 --seed first": "expected a seed, such as 1000, or all",
    "reproduce 6 -p step=3": "unknown parameter 'step'",
    "reproduce 6 -p seeds": "expected NAME=VALUE",
    "reproduce 42": "unknown chapter '42'",
    "reproduce 7": "unknown chapter '7'",
    "publish 7": "unknown chapter '7'",
    "publish --profile fast": "unknown profile 'fast'",
    "tune 42": "unknown chapter '42'",
    "judge 00": "unknown chapter '00'",
    "verify --sample -3": "above 0, got -3",
    "verify --seconds 0": "above 0, got 0.0",
    "run digits_randon": "no chapter has an arm 'digits_randon'; did you mean digits_random",
    "run family_max -p margni=1": "no setting 'margni'; did you mean margin",
    "run family_max --seeds 0": "seeds must be at least 1, got 0",
}


def test_bad_input_ends_in_one_line_and_code_two_and_loads_no_heavy_library():
    code = (
        "import sys; from companion import __main__ as command\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['companion', *line.split()]\n"
        "    try: command.main()\n"
        "    except SystemExit as stop: print(stop.code)\n"
        "print([n for n in ('torch', 'scipy', 'papermill', 'nbformat') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, *REFUSED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == ["2"] * len(REFUSED) + ["[]"]
    lines = done.stderr.splitlines()
    assert len(lines) == len(REFUSED)
    for line, text in zip(lines, REFUSED.values(), strict=True):
        assert line.startswith("companion: ")
        assert text in line


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command(option):
    shown = CliRunner().invoke(app, [option]).output
    assert all(name in shown for name in ("reproduce", "run", "judge", "claims"))


def test_the_version_is_that_of_the_package():
    shown = CliRunner().invoke(app, ["--version"]).output
    assert shown == f"trainaug {importlib.metadata.version('trainaug')}\n"


def test_a_disk_that_takes_nothing_is_named_in_one_line(monkeypatch, capsys):
    def full(**options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/quick")

    monkeypatch.setattr(command, "app", full)
    monkeypatch.setattr("companion.evidence.canonical.enter", lambda: "")
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "companion: No space left on device: runs/quick\n"


def test_tune_runs_the_searches_of_a_chapter_and_writes_beside_its_arms(monkeypatch):
    calls = []

    def tune(number, searches, path, *, workers, say, choice):
        calls.append((number, searches, path, choice))
        assert workers >= 1
        say("trials 1/1")

    monkeypatch.setattr(lab_tune, "tune", tune)  # the real one takes minutes and writes files
    done = CliRunner().invoke(app, ["tune", "4"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == ["trials 1/1"]
    chapter = load_chapter("04")
    assert calls == [("04", chapter.searches, chapter.tuned_path, chapter.choice)]
    assert chapter.tuned_path.is_file()


def test_tune_says_so_where_there_is_nothing_to_tune(monkeypatch):
    chapter = replace(load_chapter("04"), searches=())
    monkeypatch.setattr(lab_chapters, "load_chapter", lambda number: chapter)
    done = CliRunner().invoke(app, ["tune", "4"])
    assert (done.exit_code, done.output) == (0, "chapter 04: nothing to tune\n")
