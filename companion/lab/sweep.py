"""Compute the missing runs of a plan, each in a process that is started for it.

The environment of those processes is given explicitly (`canonical`), so neither the variables of
the shell nor what this process has already imported can move a number.
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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress

from companion.evidence import canonical
from companion.evidence.store import Record, Run, Store
from companion.lab.conditions import conditions_of, is_canonical_run
from companion.lab.worker import Answer, Request
from companion.paths import ROOT

__all__ = [
    "SweepFailedError",
    "check_backend",
    "child_environment",
    "gpu_worker_count",
    "missing_runs",
    "recompute",
    "run_sweep",
    "worker_count",
]

Progress = Callable[[int, int, float], None]

# Of libraries that a run may load only while it runs, when the limits of `compute` are set already.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


_GPU_BYTES = 4 << 30  # of one run: its model, its data, and what CUDA itself takes


class SweepFailedError(RuntimeError):
    """Some runs failed; the others are finished and kept."""


def worker_count() -> int:
    """Workers of a sweep: ``TRAINAUG_WORKERS``, else one a usable core.

    Raises:
        ValueError: If ``TRAINAUG_WORKERS`` is not a positive whole number.
    """
    if asked := os.environ.get("TRAINAUG_WORKERS"):
        if not asked.isdigit() or int(asked) < 1:
            raise ValueError(f"TRAINAUG_WORKERS must be a positive whole number, got {asked!r}")
        return int(asked)
    import joblib

    return int(joblib.cpu_count())


def gpu_worker_count() -> int:
    """Workers of a sweep on GPUs: ``TRAINAUG_WORKERS``, else as many as memory and cores allow."""
    import torch

    if os.environ.get("TRAINAUG_WORKERS") or not torch.cuda.is_available():
        return worker_count() if os.environ.get("TRAINAUG_WORKERS") else 1
    devices = range(torch.cuda.device_count())
    free = sum(torch.cuda.mem_get_info(device)[0] // _GPU_BYTES for device in devices)
    return max(1, min(int(free), worker_count()))


def check_backend() -> None:
    """Refuse a ``BACKEND`` that the sweep does not have.

    Raises:
        ValueError: If one is asked for.
    """
    backend = os.environ.get("BACKEND", "")
    if backend == "ray":
        raise ValueError("BACKEND=ray: a Ray cluster cannot compute runs at present; unset BACKEND")
    if backend not in ("", "processes"):
        raise ValueError(f"BACKEND must be processes, got {backend!r}")


def missing_runs(runs: Sequence[Run], store: Store, code_digest: str) -> list[Run]:
    """The runs of a plan that the store does not hold yet, longest first."""
    missing = [run for run in runs if store.read(run, conditions_of(run, code_digest)) is None]
    return sorted(missing, key=lambda run: -run.predicted_seconds)


class _Worker:
    """A child process that computes runs, and the thread that listens to it.

    Args:
        environment: All of its variables.
        heard: Where answers go; ``None`` in place of an answer says that the process has ended.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        heard: queue.SimpleQueue[tuple[_Worker, Answer | None]],
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "companion.lab.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # a group of its own, so that what a run has started can be ended with it, and so that
            # Ctrl-C comes to this process alone, which then ends the worker
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()

    def _listen(self, heard: queue.SimpleQueue[tuple[_Worker, Answer | None]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n"):  # else it died in the middle of it
                    heard.put((self, Answer(**json.loads(line))))
        heard.put((self, None))

    def ask(self, request: Request) -> None:
        """Send a request; a process that has ended is noticed by its silence."""
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
        # no process of the group may be left; on macOS that is a refusal of permission
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with suppress(BrokenPipeError):
            self.process.stdin.close()


def child_environment(*, is_canonical: bool) -> dict[str, str]:
    """Environment of children of one kind: they import the package that this process has."""
    make = canonical.canonical_environment if is_canonical else canonical.native_environment
    environment = make()
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(path)}


def _next(
    heard: queue.SimpleQueue[tuple[_Worker, Answer | None]], workers: Sequence[_Worker]
) -> tuple[_Worker, Answer | None]:
    """Wait for a worker to answer or to end."""
    while True:
        try:
            return heard.get(timeout=1.0)
        except queue.Empty:
            # a process that a run started may hold the pipe open after the worker has ended
            for worker in workers:
                if worker.process.poll() is not None:
                    return worker, None


def _answers(
    requests: Sequence[Request], count: int, *, is_canonical: bool
) -> Generator[tuple[int, Answer], None, None]:
    """Have at most ``count`` workers answer all requests; yield place and answer as they come.

    A worker that ends makes its request a failure, and another takes its place.

    Raises:
        RuntimeError: If a worker cannot start.
    """
    environment = child_environment(is_canonical=is_canonical)
    heard: queue.SimpleQueue[tuple[_Worker, Answer | None]] = queue.SimpleQueue()
    waiting = deque(enumerate(requests))
    busy: dict[_Worker, int | None] = {}  # None while it starts

    def hire() -> None:
        busy[_Worker(environment, heard)] = None

    try:
        for _ in range(min(count, len(requests))):
            hire()
        while busy:
            worker, answer = _next(heard, list(busy))
            if worker not in busy:
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


def _kinds(runs: Sequence[Run]) -> Iterator[tuple[bool, int, list[int]]]:
    """Divide runs: whether canonical, how many at once, their places.

    Runs of a CPU share the cores, those of a GPU its memory. Timings come last and one at a time:
    nothing may disturb a measurement.
    """
    places = range(len(runs))
    timed = [i for i in places if not runs[i].deterministic]
    canonical_ones = [i for i in places if is_canonical_run(runs[i])]
    others = sorted(set(places) - set(timed) - set(canonical_ones))
    yield True, worker_count(), canonical_ones
    if others:
        yield False, gpu_worker_count(), others
    yield False, 1, timed


def run_sweep(
    runs: Sequence[Run],
    runs_module: str,
    store: Store,
    code_digest: str,
    progress: Progress | None = None,
) -> None:
    """Compute what is missing; timing and GPU runs go last, one at a time.

    The numbers of canonical runs do not depend on the number of workers, on this process, or on
    the variables of the shell.

    Args:
        runs: The plan.
        runs_module: Dotted name of the module whose ``execute`` computes one run.
        store: Where results go.
        code_digest: Digest of the code behind ``execute``.
        progress: Called with runs done, runs in all and predicted core-seconds left.

    Raises:
        SweepFailedError: If runs failed, naming them; the others are stored all the same.
        ValueError: If ``BACKEND`` or ``TRAINAUG_WORKERS`` is wrong.
    """
    check_backend()
    store.sweep_up()
    missing = missing_runs(runs, store, code_digest)
    left = sum(run.predicted_seconds for run in missing)
    done = len(runs) - len(missing)
    failures = []
    if missing and (others := canonical.conflicts()):
        sys.stderr.write(f"runs ignore {', '.join(others)}: they have variables of their own\n")
    if progress is not None:
        progress(done, len(runs), left)
    for is_canonical, count, places in _kinds(missing):
        batch = [missing[number] for number in places]
        requests = [
            Request(runs_module, run, conditions_of(run, code_digest), store) for run in batch
        ]
        with closing(_answers(requests, count, is_canonical=is_canonical)) as answers:
            for number, answer in answers:
                run = batch[number]
                if answer.interrupted:
                    raise KeyboardInterrupt
                if answer.ended:  # it could not note that itself any more
                    store.write_failure(run, conditions_of(run, code_digest), answer.ended)
                if failure := answer.ended or answer.failure:
                    failures.append(f"{run.arm}, seed {run.seed}: {failure}")
                done, left = done + 1, left - run.predicted_seconds
                if progress is not None:
                    progress(done, len(runs), left)
    if failures:
        raise SweepFailedError(
            f"{len(failures)} of {len(runs)} runs failed; the others are kept and the failed ones "
            "are tried again next time:\n  " + "\n  ".join(failures[:5])
        )


def recompute(runs: Sequence[tuple[str, Run]], workers: int | None = None) -> Iterator[Record]:
    """Compute runs anew and store nothing; for verification.

    Args:
        runs: The module whose ``execute`` computes it, and the run.
        workers: How many at once, `worker_count` by default.

    Returns:
        The records in the order of ``runs``, as a file would give them back.

    Raises:
        SweepFailedError: If a run fails, naming it.
        ValueError: If ``BACKEND`` or ``TRAINAUG_WORKERS`` is wrong.
    """
    check_backend()
    records: dict[int, Record] = {}
    given = 0
    for is_canonical, count, places in _kinds([run for _, run in runs]):
        batch = [runs[position] for position in places]
        # no digest: what is computed anew is looked up nowhere
        requests = [
            Request(module, run, conditions_of(run, ""), store=None) for module, run in batch
        ]
        at_once = min(count, workers or count)
        with closing(_answers(requests, at_once, is_canonical=is_canonical)) as answers:
            for number, answer in answers:
                _, run = batch[number]
                if answer.interrupted:
                    raise KeyboardInterrupt
                if failure := answer.ended or answer.failure:
                    raise SweepFailedError(f"{run.arm}, seed {run.seed}: {failure}")
                assert answer.record is not None  # no store was named
                records[places[number]] = answer.record
                while given in records:
                    yield records.pop(given)
                    given += 1
