"""Execute notebooks with papermill, several at once, each in a child process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from companion.evidence.canonical import canonical_environment

__all__ = ["Job", "execute_notebooks", "last_error"]

_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """A notebook to execute.

    Attributes:
        number: Two digits.
        source: The notebook.
        target: Where the executed one goes.
        parameters: Values for its parameters cell.
    """

    number: str
    source: Path
    target: Path
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class _Running:
    job: Job
    child: subprocess.Popen[bytes]
    log: Path
    started: float

    def reason(self) -> str:
        """Why the notebook failed; nothing if it did not."""
        if self.child.returncode == 0:
            return ""
        return last_error(self.log.read_text(encoding="utf-8", errors="replace"))


def execute_notebooks(
    jobs: Sequence[Job], at_once: int, root: Path
) -> Generator[tuple[str, str, float], None, None]:
    """Execute notebooks in canonical mode; yield what came of each as it ends.

    Args:
        jobs: What to execute.
        at_once: Kernels at once.
        root: The folder of raw runs, which the notebooks read.

    Yields:
        Number of the notebook, why it failed (nothing if it did not), and its seconds.
    """
    waiting, running = deque(jobs), list[_Running]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(_start(waiting.popleft(), Path(folder), root))
                time.sleep(_LOOK_SECONDS)
                for each in [each for each in running if each.child.poll() is not None]:
                    running.remove(each)
                    yield each.job.number, each.reason(), time.monotonic() - each.started
        finally:
            for each in running:
                _end(each.child)


def _start(job: Job, folder: Path, root: Path) -> _Running:
    job.target.parent.mkdir(parents=True, exist_ok=True)
    # a file keeps the types of the values; on the command line papermill would guess them
    file = folder / f"{job.number}.yaml"
    file.write_text(yaml.safe_dump(dict(job.parameters)), encoding="utf-8")
    command = [sys.executable, "-m", "papermill", str(job.source), str(job.target), "-k", "python3"]
    command += ["-f", str(file), "--no-progress-bar", "--cwd", str(job.source.parent)]
    log = folder / f"{job.number}.txt"
    with log.open("w") as stream:
        switches = {"TRAINAUG_RUNS": str(root), "TRAINAUG_PROGRESS": "off"}
        child = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=canonical_environment() | switches,
        )
    return _Running(job, child, log, time.monotonic())


def _end(child: subprocess.Popen[bytes]) -> None:
    """Interrupt papermill, which ends its kernel; kill it if it does not obey."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def last_error(log: str) -> str:
    """The last line of a log that names an error."""
    lines = [line for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        name = line.split(":")[0]
        if name.replace(".", "").isidentifier() and name.endswith(
            ("Error", "Exception", "Interrupt")
        ):
            return line.strip()
    return lines[-1] if lines else "papermill failed without a message"
