"""The asynchronous AutoAssist, with real processes: failures, time-outs, restarts, ends.

Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from autoassist_processes import (
    B,
    Make,
    assisted,
    base_of,
    breaks,
    class_losses,
    data,
    drive,
    is_gone,
    leaves,
    lingers,
    plain,
    shared_assistant,
    sleeps,
    start_and_close,
    wait_for,
)

from trainaug.methods.autoassist import WorkerError, workers

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
]


@pytest.fixture
def make() -> Iterator[Make]:
    with start_and_close() as start:
        yield start


# --- failures of the worker -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "args", "message"),
    [
        (base_of, (1.5,), r"ValueError: the base pass rate must be in \[0, 1\], got 1.5"),
        (base_of, (0.0,), "RuntimeError: (.|\n)*examples scanned|kept 0, too few for a batch"),
        (leaves, (), "exit code 3"),
    ],
)
def test_what_the_worker_raises_comes_back(make, build, args, message):
    batches = make(build, args)
    pid = batches.worker_pid
    for _ in range(2):
        with pytest.raises(WorkerError, match=message):
            next(iter(batches))
    assert is_gone(pid)


def test_batches_made_before_an_error_are_given(make):
    batches = make(breaks, (12,), queue_size=5, warm_up=5)
    got = iter(batches)
    assert len([next(got) for _ in range(12)]) == 12
    for left in (got, iter(batches)):
        with pytest.raises(WorkerError, match="EOFError: no more predictions"):
            next(left)


@pytest.mark.oracle("aa.10")
def test_a_killed_worker_is_named_and_a_new_one_goes_on(make):
    x, y = data()
    assistant = shared_assistant()
    batches = make(assisted, (assistant, x, y))
    drive(batches, y, lambda: batches.counters.get("num_steps", 0) >= 30)
    first = batches.worker_pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: is_gone(first))
    with pytest.raises(WorkerError, match=r"exit code -9: restart\(\)"):
        drive(batches, y, lambda: False)
    assert batches.worker_pid is None
    batches.update(torch.tensor([0]), torch.tensor([1.0]))  # harmless
    learnt, steps = assistant.class_bias.detach().clone(), batches.counters["num_steps"]
    assert float(learnt[1] - learnt[0]) > 0.1
    batches.restart()
    assert batches.attempt == 1
    assert batches.worker_pid != first
    again = next(iter(batches))
    assert again != next(iter(assisted(shared_assistant(), x, y, 0)[0])), "the same order again"
    # one step of the old worker may have come after the last message: its weights count
    torch.testing.assert_close(assistant.class_bias.detach(), learnt, rtol=0, atol=0)
    drive(batches, y, lambda: batches.counters["num_steps"] != steps)
    assert batches.counters["num_steps"] > steps, "the counters began anew"
    assert not torch.equal(assistant.class_bias.detach(), learnt)


@pytest.mark.oracle("aa.10")
def test_a_stopped_worker_never_blocks_feedback_and_times_out(make):
    x, y = data()
    batches = make(assisted, (shared_assistant(), x, y), feedback_slots=4)
    index = torch.arange(B)
    next(iter(batches))
    wait_for(lambda: batches._slots.depths()[0] == 20)
    os.kill(batches.worker_pid, signal.SIGSTOP)
    start = time.perf_counter()
    for _ in range(50):
        batches.update(index, class_losses(y, index))
        assert time.perf_counter() - start < 1.0
    assert batches.dropped_feedback == 46
    batches.timeout = 0.3
    got = iter(batches)
    for _ in range(20):
        next(got)
    start = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"0 of 1 batches within 0.3 s.*raise timeout"):
        next(got)
    assert 0.25 < time.perf_counter() - start < 3.0
    os.kill(batches.worker_pid, signal.SIGCONT)
    batches.timeout = 90.0
    next(iter(batches))
    drive(batches, y, lambda: batches.counters.get("num_steps", 0) >= 6)
    os.kill(batches.worker_pid, signal.SIGSTOP)  # closing kills it all the same


def test_feedback_of_a_stopped_worker_waits_until_a_restart_drops_it(make, monkeypatch):
    batches = make(plain, feedback_slots=4)
    index = torch.tensor(next(iter(batches)))
    batches.update(index, torch.ones(B))
    wait_for(lambda: batches.waiting_feedback == 0)  # learnt
    assert batches.dropped_feedback == 0
    os.kill(batches.worker_pid, signal.SIGSTOP)
    for sent in (1, 2, 3):
        batches.update(index, torch.ones(B))
        assert batches.waiting_feedback == sent
    assert batches.dropped_feedback == 0
    monkeypatch.setattr(workers, "_PATIENCE", 0.1)  # a stopped worker needs the last resort
    batches.restart()
    assert (batches.waiting_feedback, batches.dropped_feedback) == (0, 3)


@pytest.mark.parametrize("is_full", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_closing_ends_a_worker_at_once_and_with_success(make, monkeypatch, is_full):
    monkeypatch.setattr(workers, "_PATIENCE", 20.0)  # a busy machine is no reason for SIGTERM
    batches = make(lingers, queue_size=10 if is_full else 5000)
    next(iter(batches))
    if is_full:
        wait_for(lambda: batches._slots.depths()[0] == 10)
    process, codes = batches._process, []
    end = process.close
    monkeypatch.setattr(process, "close", lambda: (codes.append(process.exitcode), end()))
    batches.close()
    assert codes == [0]


def test_closing_does_not_wait_for_a_busy_worker(make):
    batches = make(sleeps, timeout=0.5)
    with pytest.raises(TimeoutError, match="0 of 10 batches"):
        next(iter(batches))
    pid = batches.worker_pid
    start = time.perf_counter()
    batches.close()
    assert time.perf_counter() - start < 10
    assert is_gone(pid)
    with pytest.raises(WorkerError, match="closed"):
        next(iter(batches))
    batches.update(torch.tensor([0]), torch.tensor([1.0]))
    assert batches.dropped_feedback == 1


# --- the ends of the Boss -------------------------------------------------------------------------

SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
import torch
import autoassist_processes as t
from trainaug.methods.autoassist import AsyncBatches

if __name__ == "__main__":
    options = dict(num_examples=t.N, batch_size=t.B, timeout=90.0)
    {first}
    print(batches.worker_pid, flush=True)
    {then}
"""
LOOP = """with batches:
        while True:
            for indices in batches:
                time.sleep(0.002)
                print("step", flush=True)"""


@pytest.fixture
def run_script(tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Start a Boss in a session of its own; what is left of it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(first: str, then: str) -> subprocess.Popen[str]:
        path = tmp_path / "boss.py"
        folder = str(Path(__file__).parent)
        path.write_text(SCRIPT.format(folder=folder, first=first, then=then), encoding="utf-8")
        boss = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a shell starts background jobs with SIGINT ignored; a terminal does not
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(boss)
        return boss

    yield run
    for boss in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(boss.pid, signal.SIGKILL)
        boss.communicate(timeout=10)


@pytest.mark.oracle("aa.10")
@pytest.mark.parametrize("build", ["plain", pytest.param("sleeps", marks=pytest.mark.soak)])
def test_a_worker_does_not_outlive_a_killed_boss(run_script, build):
    then = LOOP if build == "plain" else "time.sleep(600)"
    boss = run_script(f"batches = AsyncBatches(t.{build}, **options)", then)
    pid = int(boss.stdout.readline())
    if build == "plain":
        assert boss.stdout.readline() == "step\n"
    else:
        wait_for(lambda: psutil.Process(pid).num_threads() > 1)  # it watches its parent
    boss.kill()
    wait_for(lambda: is_gone(pid), 30.0)  # 1 s on an idle machine


@pytest.mark.oracle("aa.10")
@pytest.mark.parametrize("early", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_ctrl_c_ends_both_at_once(run_script, early):
    boss = run_script("batches = AsyncBatches(t.plain, **options)", LOOP)
    pid = int(boss.stdout.readline())
    if early:  # the worker still imports torch
        wait_for(lambda: psutil.Process(pid).cpu_times().user > 0.3)
    else:
        for _ in range(3):
            assert boss.stdout.readline() == "step\n"
    start = time.monotonic()
    os.killpg(boss.pid, signal.SIGINT)
    _, errors = boss.communicate(timeout=90)
    assert time.monotonic() - start < 30  # 3 s on an idle machine
    assert boss.returncode != 0
    assert errors.count("KeyboardInterrupt") == 1, errors
    assert errors.count("Traceback") == 1, errors
    assert "resource_tracker" not in errors
    wait_for(lambda: is_gone(pid), 30.0)  # 1 s on an idle machine


def test_a_boss_that_forgets_to_close_ends_in_silence(run_script):
    boss = run_script("batches = AsyncBatches(t.plain, **options)", "print(len(list(batches)))")
    pid = int(boss.stdout.readline())
    out, errors = boss.communicate(timeout=90)
    assert (out, errors, boss.returncode) == ("26\n", "", 0)
    assert is_gone(pid)


# --- scripts and notebooks that cannot start a worker

START = """
import sys
sys.path.insert(0, {folder!r})
from trainaug.methods.autoassist import AsyncBatches, WorkerError
from autoassist_processes import plain as imported

{define}
    try:
        with AsyncBatches({build}, {args}, num_examples=203, batch_size=8, timeout=60) as batches:
            print(len(next(iter(batches))))
    except (ValueError, WorkerError) as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""
BUILD = """
def build(*args, attempt):
    return imported(attempt)

class Thing:
    pass
"""
GUARDED = 'if __name__ == "__main__":'
CASES = {
    "cell": (f"{BUILD}if True:", "build", "()", r"ValueError .*build=build from __main__.*module"),
    "thing": (f"{BUILD}if True:", "imported", "(Thing(),)", r"WorkerError .*Thing.*importable"),
    "lambda": ("if True:", "lambda attempt: 0", "()", r"ValueError (build|.*__main__)"),
    "import": ("if True:", "imported", "()", "8"),
}


@pytest.mark.parametrize(
    "name", ["thing", *(pytest.param(n, marks=pytest.mark.soak) for n in CASES if n != "thing")]
)
def test_what_stands_in_a_cell_is_named_or_works(name):
    define, build, args, expected = CASES[name]
    folder = str(Path(__file__).parent)
    code = START.format(folder=folder, define=define, build=build, args=args)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    assert re.match(expected, done.stdout), done.stdout + done.stderr


SCRIPTS = {
    "unguarded": ("if True:", "imported", r"WorkerError .*before it could start.*if __name__"),
    "guarded": (
        GUARDED + BUILD.replace("\n", "\n    "),
        "build",
        r"WorkerError .*AttributeError.*importable",
    ),
}


@pytest.mark.parametrize("name", ["unguarded", pytest.param("guarded", marks=pytest.mark.soak)])
def test_scripts_that_workers_cannot_import_are_told_why(tmp_path, name):
    define, build, expected = SCRIPTS[name]
    path, folder = tmp_path / "boss.py", str(Path(__file__).parent)
    code = START.format(folder=folder, define=define, build=build, args="()")
    path.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=90)
    assert re.search(expected, done.stdout), done.stdout + done.stderr


def test_arguments_that_cannot_be_sent_are_named(make):
    with pytest.raises(ValueError, match=r"args\[1\] cannot be pickled.*lock"):
        make(plain, (1, threading.Lock()))
    with pytest.raises(ValueError, match="build cannot be pickled"):
        make(lambda attempt: plain(attempt))
