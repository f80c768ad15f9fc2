"""Kill, interrupt and double the real command: finished runs are kept and the bytes are the same.

The command works on a toy chapter in a checkout of its own, whose runs take a tenth of a second.
``TRAINAUG_SOAK=n`` repeats the killing with n seeds (`make soak`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from companion import __main__ as cli

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals and sessions"),
]

WORDS = ("reproduce", "--profile", "quick", "9")
TOTAL = 48  # two arms, 24 seeds
SEEDS = range(int(os.environ.get("TRAINAUG_SOAK", "1")))

# loaded by every Python process of the tree: kills all of them, itself last, just before the
# rename that would finish a run, once so many runs are finished
SITECUSTOMIZE = """
import os, signal
from pathlib import Path

rename = Path.replace

def replace(self, target):
    target = Path(target)
    finished = len(list(target.parents[1].glob("*/result.json")))
    if target.name == "result.json" and finished >= int(os.environ["TRAINAUG_TEST_KILL_AT"]):
        import psutil

        mark = os.environ["TRAINAUG_TEST_MARK"]
        others = True
        while others:
            others = []
            for process in psutil.process_iter():
                try:
                    dead = process.status() == psutil.STATUS_ZOMBIE
                    mine = not dead and process.environ().get("TRAINAUG_TEST_MARK") == mark
                    if mine and process.pid != os.getpid():
                        process.kill()
                        others.append(process)
                except psutil.Error:
                    continue
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.replace = replace
"""


def results(runs: Path) -> dict[str, bytes]:
    """Bytes of every finished run of the chapter by key."""
    folder = runs / "quick" / "09"
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/result.json")}


def finished(runs: Path) -> int:
    return sum(1 for _ in (runs / "quick" / "09").glob("*/result.json"))


def assert_part_of(runs: Path, whole: dict[str, bytes]) -> None:
    """Every finished run is whole and has the bytes of the undisturbed one."""
    actual = results(runs)
    assert actual.keys() <= whole.keys(), "other keys: was the code edited during the test?"
    assert [key for key, text in actual.items() if text != whole[key]] == []
    for key in actual:
        json.loads((runs / "quick" / "09" / key / "provenance.json").read_text())
    assert list(runs.glob("quick/09/*/failure.json")) == []


def assert_complete(runs: Path, whole: dict[str, bytes]) -> None:
    assert_part_of(runs, whole)
    assert finished(runs) == len(whole) == TOTAL


def assert_nothing_runs(tree, seconds: float = 15) -> None:
    """No kernel and no worker outlives the command by more than ``seconds``."""
    end = time.monotonic() + seconds
    while left := tree.processes():
        assert time.monotonic() < end, [" ".join(process.cmdline()) for process in left]
        time.sleep(0.1)


class Undisturbed:
    """A run of the command that nobody disturbs; started at once, read when it is needed."""

    def __init__(self, launch, runs: Path) -> None:
        self.tree = launch(*WORDS, runs=runs)
        self.runs = runs

    def results(self) -> dict[str, bytes]:
        assert self.tree.finish() == 0, self.tree.text
        actual = results(self.runs)
        assert len(actual) == TOTAL
        return actual


@pytest.fixture(scope="module")
def undisturbed(launch_once, tmp_path_factory) -> Undisturbed:
    return Undisturbed(launch_once, tmp_path_factory.mktemp("undisturbed") / "runs")


def kill_at(launch, runs: Path, count: int) -> None:
    """Kill everything as soon as ``count`` runs are finished."""
    tree = launch(*WORDS, runs=runs)
    tree.wait_for(lambda: finished(runs) >= count)
    tree.kill()
    assert tree.child.returncode == -signal.SIGKILL


def kill_in_rename(launch, runs: Path, count: int) -> Path:
    """Kill everything in the middle of a write, after ``count`` finished runs; return what the
    write left."""
    site = runs.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    before = set(runs.glob("quick/09/*/.result.json.*.tmp"))
    tree = launch(*WORDS, runs=runs, site=site, TRAINAUG_TEST_KILL_AT=str(count))
    assert tree.finish() == -signal.SIGKILL, tree.text
    assert_nothing_runs(tree, 5)
    left = set(runs.glob("quick/09/*/.result.json.*.tmp")) - before
    written = [path for path in left if path.stat().st_size]
    assert written, "the kill did not come between write and rename"
    return written[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_command_continues_with_the_same_bytes(launch, tmp_path, undisturbed, seed):
    runs = tmp_path / "runs"
    generator = random.Random(seed)
    steps = ["kill", "rename", *(["kill"] if len(SEEDS) > 1 else [])]
    generator.shuffle(steps)
    counts = sorted(generator.sample(range(2, int(0.85 * TOTAL), 3), len(steps)))
    for step, count in zip(steps, counts, strict=True):
        if step == "kill":
            kill_at(launch, runs, count)
        else:
            left = kill_in_rename(launch, runs, count)
            whole = undisturbed.results()
            assert left.read_bytes() == whole[left.parent.name]
            assert not (left.parent / "result.json").exists()
        assert count <= finished(runs) < TOTAL
    whole = undisturbed.results()
    assert_part_of(runs, whole)
    kept = {path: path.stat().st_mtime_ns for path in runs.glob("quick/09/*/result.json")}
    last = launch(*WORDS, runs=runs)
    assert last.finish() == 0, last.text
    assert_complete(runs, whole)
    assert [p for p, moment in kept.items() if p.stat().st_mtime_ns != moment] == [], "run again"


@pytest.fixture(scope="module")
def interrupted_runs(tmp_path_factory) -> Path:
    """The store of an interrupted command."""
    return tmp_path_factory.mktemp("interrupted") / "runs"


def test_ctrl_c_keeps_finished_runs_and_leaves_no_process(launch, undisturbed, interrupted_runs):
    tree = launch(*WORDS, runs=interrupted_runs)
    tree.wait_for(lambda: finished(interrupted_runs) >= 4)
    os.killpg(tree.child.pid, signal.SIGINT)  # as a terminal does
    assert tree.finish(30) == 130, tree.text
    assert "interrupted: finished runs are kept" in tree.text
    assert "Traceback" not in tree.text
    assert_nothing_runs(tree)
    assert 4 <= finished(interrupted_runs) < TOTAL
    assert_part_of(interrupted_runs, undisturbed.results())


def test_two_commands_at_once_continue_it_to_the_same_bytes(launch, undisturbed, interrupted_runs):
    killed = set(interrupted_runs.glob("quick/09/*/.*.tmp"))  # swept up once they are an hour old
    pair = [launch(*WORDS, runs=interrupted_runs) for _ in "ab"]
    assert [tree.finish() for tree in pair] == [0, 0], "\n".join(tree.text for tree in pair)
    for tree in pair:
        assert_nothing_runs(tree)
    assert_complete(interrupted_runs, undisturbed.results())
    assert set(interrupted_runs.glob("quick/09/*/.*.tmp")) <= killed


def test_sigterm_ends_kernel_and_workers(launch, tmp_path):
    tree = launch(*WORDS, runs=tmp_path / "runs")
    tree.wait_for(
        lambda: any("ipykernel_launcher" in " ".join(p.cmdline()) for p in tree.processes())
    )
    tree.child.terminate()
    assert tree.finish(30) == 130, tree.text
    assert_nothing_runs(tree)


# --- exit codes -----------------------------------------------------------------------------------


@pytest.fixture
def exit_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Run the command in this process and return its exit code."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["companion", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("code", [0, 1])
def test_exit_code_says_whether_every_chapter_ran(exit_code, monkeypatch, code):
    monkeypatch.setattr("companion.pages.runner.reproduce", lambda *words, seed: code)
    assert exit_code("reproduce", "--profile", "quick", "6") == code


def test_exit_code_of_an_interrupt_is_130(exit_code, monkeypatch, capsys):
    def interrupt(*words: object, seed: int | None) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("companion.pages.runner.reproduce", interrupt)
    assert exit_code("reproduce", "6") == 130
    assert "finished runs are kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [(("reproduce", "--nothing"), "No such option"), (("nothing",), "No such command")],
)
def test_a_wrong_word_ends_with_code_2_and_is_named(exit_code, capsys, words, message):
    assert exit_code(*words) == 2
    assert message in capsys.readouterr().err
