"""Child processes that compute runs, in an environment that is given explicitly.

So neither the variables of the shell nor the modules that this process has imported can change a
number.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress

from companion.evidence import canonical
from companion.lab.worker import Answer, Request
from companion.paths import ROOT

__all__ = ["Worker", "answers", "child_environment", "next_answer"]

# Thread limits for libraries that a run loads only after `worker.compute` has set its own limits.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class Worker:
    """A child process that computes runs, and the thread that listens to it.

    Args:
        environment: All of its environment variables.
        heard: Queue of answers, each with its worker; ``None`` in place of an answer says that the
            process has ended.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        heard: queue.SimpleQueue[tuple[Worker, Answer | None]],
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "companion.lab.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # its own process group, so that processes that a run has started can be ended with it,
            # and so that Ctrl-C reaches this process alone, which then ends the worker
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()

    def _listen(self, heard: queue.SimpleQueue[tuple[Worker, Answer | None]]) -> None:
        """Put each line of the process into the queue as an answer, and ``None`` at its end."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n"):  # otherwise the process died while writing it
                    heard.put((self, Answer(**json.loads(line))))
        heard.put((self, None))

    def ask(self, request: Request) -> None:
        """Send a request; if the process has ended, `next_answer` reports it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request.to_json()).encode() + b"\n")
            self.process.stdin.flush()

    def how_it_ended(self) -> str:
        """Say in words how the process ended."""
        code = self.process.wait()
        kind = f"signal {-code}" if code < 0 else f"code {code}"
        return f"the process ended with {kind}"

    def dismiss(self) -> None:
        """Tell the process that there is nothing more to do."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.kill()

    def kill(self) -> None:
        """End the process and all that it started."""
        assert self.process.stdin is not None
        # raised if no process of the group is left; macOS then reports missing permission
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with suppress(BrokenPipeError):
            self.process.stdin.close()


def child_environment(*, is_canonical: bool) -> dict[str, str]:
    """Environment of canonical or native children, which import this process's own package."""
    make = canonical.canonical_environment if is_canonical else canonical.native_environment
    environment = make()
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(path)}


def next_answer(
    heard: queue.SimpleQueue[tuple[Worker, Answer | None]], workers: Sequence[Worker]
) -> tuple[Worker, Answer | None]:
    """Wait until a worker answers; ``None`` in place of the answer says that it has ended."""
    while True:
        try:
            return heard.get(timeout=1.0)
        except queue.Empty:
            # the queue may hear nothing: a process that a run started can hold the pipe open
            # after its worker has ended
            for worker in workers:
                if worker.process.poll() is not None:
                    return worker, None


def answers(
    requests: Sequence[Request], count: int, environment: Mapping[str, str]
) -> Generator[tuple[int, Answer], None, None]:
    """Have workers answer all requests; yield each answer as it comes, with its request's index.

    If a worker ends, its request fails and another worker takes its place.

    Args:
        requests: What to compute.
        count: Largest number of workers at the same time.
        environment: All environment variables of the workers.

    Raises:
        RuntimeError: If a worker cannot start.
    """
    heard: queue.SimpleQueue[tuple[Worker, Answer | None]] = queue.SimpleQueue()
    waiting = deque(enumerate(requests))
    busy: dict[Worker, int | None] = {}  # index of its request; None while it starts

    def hire() -> None:
        busy[Worker(environment, heard)] = None

    try:
        for _ in range(min(count, len(requests))):
            hire()
        while busy:
            worker, answer = next_answer(heard, list(busy))
            if worker not in busy:  # its end was noticed twice
                continue
            number = busy.pop(worker)
            if answer is None:
                ending = worker.how_it_ended()
                worker.kill()
                if number is None:
                    raise RuntimeError(f"a process for runs could not start: {ending}")
                if waiting:
                    hire()
                answer = Answer(ended=ending)
            elif waiting:
                busy[worker], request = waiting.popleft()
                worker.ask(request)
            else:
                worker.dismiss()
            if number is not None:
                yield number, answer
    finally:
        for worker in busy:
            worker.kill()
