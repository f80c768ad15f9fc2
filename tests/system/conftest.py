"""Start the real command in a process tree of its own, watch it, interrupt it, kill it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat import v4

from companion.paths import ROOT

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


INIT = """
from companion.lab.about import About

ABOUT = About(number="09", title="toy", prefix="toy")
"""
ARMS = """
import time
from dataclasses import dataclass

import torch

from companion.lab.arms import Profile as BaseProfile
from companion.lab.arms import Settings, arm
from companion.lab.results import make_result
from trainaug.training.randomness import stream


@dataclass(frozen=True, kw_only=True)
class Profile(BaseProfile):
    seeds: int = 24


@dataclass(frozen=True, kw_only=True)
class Draw(Settings):
    numbers: int = 50

    @property
    def data_hash(self):
        return "none"

    def shortened(self, share):
        return self

    def tiny(self):
        return self


def run_draw(settings, seed):
    time.sleep(0.1)
    values = torch.randn(settings.numbers, generator=stream(seed, "values"))
    return make_result({"sum": float(values.sum())}, {}, {})


def arms(profile):
    return [
        arm("few_draws", Draw(), run_draw, "seeds", 0.1),
        arm("many_draws", Draw(numbers=60), run_draw, "seeds", 0.1),
    ]
"""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose only chapter is a toy."""
    root = tmp_path_factory.mktemp("toy")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "trainaug", root / "trainaug", ignore=ignore)
    shutil.copytree(ROOT / "companion", root / "companion", ignore=ignore)
    chapters = root / "companion" / "chapters"
    for folder in chapters.glob("*/"):
        shutil.rmtree(folder)
    (chapters / "toy").mkdir()
    (chapters / "toy" / "__init__.py").write_text(INIT)
    (chapters / "toy" / "arms.py").write_text(ARMS)
    (root / "notebooks" / "profiles").mkdir(parents=True)
    (root / "notebooks" / "profiles" / "quick.yaml").write_text("{}\n")
    (root / "claims").mkdir()
    (root / "claims" / "09.yaml").write_text("[]\n")
    parameters = v4.new_code_cell(
        'profile = "quick"\nevidence = "recompute"', metadata={"tags": ["parameters"]}
    )
    run = v4.new_code_cell(
        "from companion import start\nctx = start('09', profile=profile, evidence=evidence)\n"
        "records = ctx.run()"
    )
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(
        v4.new_notebook(cells=[parameters, run], metadata=kernel),
        root / "notebooks" / "09_toy.ipynb",
    )
    return root


Launch = Callable[..., Tree]


@pytest.fixture
def launch(tmp_path: Path, checkout: Path) -> Iterator[Launch]:
    """Start the command with the given words; whatever is left is killed after the test."""
    yield from _launcher(tmp_path, checkout)


@pytest.fixture(scope="module")
def launch_once(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Iterator[Launch]:
    """The same for a fixture that serves a whole module."""
    yield from _launcher(tmp_path_factory.mktemp("logs"), checkout)


def _launcher(logs: Path, checkout: Path) -> Iterator[Launch]:
    started: list[Tree] = []

    def start(*words: str, runs: Path, site: Path | None = None, **extra: str) -> Tree:
        mark = uuid.uuid4().hex
        path = os.pathsep.join(str(folder) for folder in (checkout, site) if folder)
        environment = {name: value for name, value in os.environ.items() if name != "BACKEND"}
        environment |= {"TRAINAUG_RUNS": str(runs), "TRAINAUG_WORKERS": "2", MARK: mark}
        log = logs / f"{mark}.log"
        with log.open("wb") as stream:
            child = subprocess.Popen(
                [*COMMAND, *words],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment | extra | {"PYTHONPATH": path},
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
