"""Start the real command in a process tree of its own, watch it, interrupt it, kill it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

MARK = "TRAINAUG_TEST_MARK"
COMMAND = [sys.executable, "-m", "companion"]


@dataclass
class Tree:
    """The running command of the book with all that it started.

    The Jupyter kernel has its own session and orphans lose their parent, so the processes are
    found by a variable that each inherits.
    """

    child: subprocess.Popen[bytes]
    mark: str
    log: Path

    @property
    def text(self) -> str:
        """What the command has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Living processes of the tree, orphans among them."""
        actual = []
        for process in psutil.process_iter():
            try:
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark:
                    actual.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return actual

    def kill(self) -> None:
        """Send SIGKILL to every process; all stop first so that none can start another."""
        stopped: set[int] = set()
        while new := {p.pid: p for p in self.processes() if p.pid not in stopped}:
            for process in new.values():
                _try(process.suspend)
            stopped |= new.keys()
        while left := self.processes():
            for process in left:
                _try(process.kill)
            time.sleep(0.02)
        self.child.wait(30)

    def finish(self, timeout: float = 900) -> int:
        """Wait for the end and return the exit code."""
        return self.child.wait(timeout)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 600) -> None:
        """Wait until ``condition`` holds; the command must not end before."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.child.poll() is None, f"the command ended too early:\n{self.text}"
            assert time.monotonic() < end, f"nothing happened within {timeout} s:\n{self.text}"
            time.sleep(0.01)


def _try(signal_process: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        signal_process()


Launch = Callable[..., Tree]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start the command with the given words; whatever is left is killed after the test."""
    yield from _launcher(tmp_path)


@pytest.fixture(scope="module")
def launch_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """The same for a fixture that serves a whole module."""
    yield from _launcher(tmp_path_factory.mktemp("logs"))


def _launcher(logs: Path) -> Iterator[Launch]:
    started: list[Tree] = []

    def start(*words: str, runs: Path, extra: Mapping[str, str] | None = None) -> Tree:
        mark = uuid.uuid4().hex
        environment = {k: v for k, v in os.environ.items() if k not in ("BACKEND", "PYTHONPATH")}
        environment |= {"TRAINAUG_RUNS": str(runs), "TRAINAUG_WORKERS": "2", MARK: mark}
        log = logs / f"{mark}.log"
        with log.open("wb") as stream:
            child = subprocess.Popen(
                [*COMMAND, *words],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment | dict(extra or {}),
                cwd=logs,
                start_new_session=True,
                # a shell starts background jobs with SIGINT ignored; a terminal does not
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        started.append(Tree(child, mark, log))
        return started[-1]

    yield start
    for tree in started:
        tree.kill()
