"""Compute the missing runs of a plan, in child processes of this machine or on a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace

from companion.evidence import canonical
from companion.evidence.store import Record, Run, Store
from companion.lab import processes
from companion.lab.conditions import conditions_of, is_canonical_run
from companion.lab.progress import Progress
from companion.lab.worker import Answer, Request

__all__ = [
    "Plan",
    "SweepFailedError",
    "check_backend",
    "gpu_worker_count",
    "missing_runs",
    "recompute",
    "run_sweep",
    "run_sweeps",
    "worker_count",
]

_GPU_BYTES = 4 << 30  # GPU memory of one run: its model, its data, and what CUDA itself takes


Plan = tuple[Sequence[Run], str]  # runs, and the digest of the code behind them


class SweepFailedError(RuntimeError):
    """Some runs failed; the others are finished and kept."""


def worker_count() -> int:
    """Number of workers of a sweep: ``TRAINAUG_WORKERS``, else one per usable core.

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
    """Number of workers on GPUs: ``TRAINAUG_WORKERS``, else what free memory and cores allow."""
    import torch

    if os.environ.get("TRAINAUG_WORKERS") or not torch.cuda.is_available():
        return worker_count() if os.environ.get("TRAINAUG_WORKERS") else 1
    devices = range(torch.cuda.device_count())
    free = sum(torch.cuda.mem_get_info(device)[0] // _GPU_BYTES for device in devices)
    return max(1, min(int(free), worker_count()))


def check_backend() -> None:
    """Refuse a ``BACKEND`` that the sweep does not have, before anything starts.

    Raises:
        ValueError: If ``BACKEND`` is unknown, or is Ray and Ray is not installed or would have to
            use a GPU.
    """
    backend = os.environ.get("BACKEND", "")
    if backend not in ("", "processes", "ray"):
        raise ValueError(f"BACKEND must be processes or ray, got {backend!r}")
    if backend == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ValueError("BACKEND=ray needs Ray: `pip install ray`, or unset BACKEND")
        if os.environ.get("DEVICE", "cpu") != "cpu":
            raise ValueError("BACKEND=ray computes runs of the CPU: unset DEVICE or BACKEND")


def missing_runs(runs: Sequence[Run], store: Store, code_digest: str) -> list[Run]:
    """The runs of a plan that the store does not hold yet, longest first.

    A long run that starts last would keep one core busy while the others are idle.
    """
    missing = [run for run in runs if store.read(run, conditions_of(run, code_digest)) is None]
    return sorted(missing, key=lambda run: -run.predicted_seconds)


def _kinds(runs: Sequence[Run]) -> Iterator[tuple[bool, int, list[int]]]:
    """Divide runs into groups: whether canonical, how many at once, and their indices.

    Runs on the CPU share the cores, those on a GPU its memory. Timings come last and one at a time,
    because nothing may disturb a measurement.
    """
    places = range(len(runs))
    timed = [i for i in places if not runs[i].deterministic]
    canonical_ones = [i for i in places if is_canonical_run(runs[i])]
    others = sorted(set(places) - set(timed) - set(canonical_ones))
    yield True, worker_count(), canonical_ones
    if others:
        yield False, gpu_worker_count(), others
    yield False, 1, timed


def _joined(requests: Sequence[Request], parts: int) -> list[Request]:
    """Join the requests of runs that one call can compute, into so many parts at most.

    With a part for each worker no core is idle, and the workers together hold in their caches what
    one call for all runs would hold. A run whose last attempt failed stays alone, because another
    run of its call may have been the reason.
    """
    groups: dict[object, list[Request]] = {}
    for number, request in enumerate(requests):
        (run,) = request.runs
        assert request.store is not None  # several records could not be sent back
        if run.together and not request.store.has_failed(run, request.conditions):
            key: object = (replace(run, seed=0).identity, request.conditions)
        else:
            key = number
        groups.setdefault(key, []).append(request)
    joined = []
    for group in groups.values():
        runs = tuple(run for request in group for run in request.runs)
        size = -(-len(runs) // parts)  # rounded up
        for start in range(0, len(runs), size):
            joined.append(replace(group[0], runs=runs[start : start + size]))
    return joined


def _answers(
    requests: Sequence[Request], count: int, *, is_canonical: bool
) -> Generator[tuple[int, Answer], None, None]:
    """Have all requests answered, by children of this process or as tasks of a Ray cluster."""
    environment = processes.child_environment(is_canonical=is_canonical)
    if os.environ.get("BACKEND") != "ray":
        return processes.answers(requests, count, environment)
    if any(request.conditions.device != "cpu" for request in requests):
        raise ValueError("BACKEND=ray computes runs of the CPU; these are of a GPU: unset BACKEND")
    from companion.lab import cluster

    # Ray decides how many runs a cluster computes at once, except for timings
    at_once = len(requests) if count > 1 and not os.environ.get("TRAINAUG_WORKERS") else count
    return cluster.answers(requests, at_once, environment)


def _noted_failures(request: Request, answer: Answer) -> list[str]:
    """Name the runs of a request that failed; write why, where their child could not do so."""
    reason = answer.ended or answer.failure
    store, conditions = request.store, request.conditions
    if not reason or store is None:
        return []
    if answer.ended:
        with suppress(OSError):
            for run in request.runs:
                store.write_failure(run, conditions, answer.ended)
    # of several runs, some may have been stored before the others failed
    failed = [run for run in request.runs if store.read(run, conditions) is None]
    return [f"{run.arm}, seed {run.seed}: {reason}" for run in failed]


def run_sweep(
    runs: Sequence[Run],
    runs_module: str,
    store: Store,
    code_digest: str,
    progress: Progress | None = None,
) -> None:
    """Compute what is missing of one plan, as `run_sweeps` does of several."""
    run_sweeps([(runs, code_digest)], runs_module, store, progress)


def run_sweeps(
    plans: Sequence[Plan],
    runs_module: str,
    store: Store,
    progress: Progress | None = None,
) -> None:
    """Compute the runs that are missing: those on the CPU, those on GPUs, then timings one by one.

    The numbers of canonical runs do not depend on the number of workers, on this process, or on
    the variables of the shell.

    Args:
        plans: Runs, and the digest of the code behind them.
        runs_module: Dotted name of the module whose ``execute`` computes one run, and whose
            ``execute_together`` computes several that allow it (`Run.together`).
        store: Store of the results.
        progress: Called with runs done, runs in all and predicted core-seconds left.

    Raises:
        SweepFailedError: If runs failed, naming them; the others are stored all the same.
        ValueError: If ``BACKEND`` or ``TRAINAUG_WORKERS`` is wrong.
        OSError: If the store cannot be written, before anything is computed.
    """
    check_backend()
    store.sweep_up()
    requests = [
        Request(runs_module, (run,), conditions_of(run, code_digest), store)
        for runs, code_digest in plans
        for run in missing_runs(runs, store, code_digest)
    ]
    total = sum(len(runs) for runs, _ in plans)
    done = total - len(requests)
    left = sum(run.predicted_seconds for request in requests for run in request.runs)
    failures = []
    if requests:
        store.check_writable()
        if others := canonical.conflicts():
            sys.stderr.write(f"runs ignore {', '.join(others)}: they have variables of their own\n")
    if progress is not None:
        progress(done, total, left)
    for is_canonical, count, places in _kinds([request.runs[0] for request in requests]):
        batch = [requests[position] for position in places]
        if is_canonical:  # elsewhere runs that are computed together may have other bytes
            batch = _joined(batch, count)
        with closing(_answers(batch, count, is_canonical=is_canonical)) as answers:
            for number, answer in answers:
                if answer.interrupted:
                    raise KeyboardInterrupt
                failures += _noted_failures(batch[number], answer)
                for run in batch[number].runs:
                    done, left = done + 1, left - run.predicted_seconds
                    if progress is not None:
                        progress(done, total, left)
    if failures:
        raise SweepFailedError(
            f"{len(failures)} of {total} runs failed; the others are kept and the failed ones "
            "are tried again next time:\n  " + "\n  ".join(failures[:5])
        )


def recompute(runs: Sequence[tuple[str, Run]], workers: int | None = None) -> Iterator[Record]:
    """Compute runs anew and store nothing; for verification.

    Args:
        runs: For each run, the dotted name of the module whose ``execute`` computes it, and the
            run.
        workers: Largest number of runs at the same time; by default that of a sweep.

    Yields:
        The records in the order of ``runs``, as they would be read from a file.

    Raises:
        SweepFailedError: If a run fails, naming it.
        ValueError: If ``BACKEND`` or ``TRAINAUG_WORKERS`` is wrong.
    """
    check_backend()
    records: dict[int, Record] = {}
    given = 0
    for is_canonical, count, places in _kinds([run for _, run in runs]):
        batch = [runs[position] for position in places]
        # the digest of the code only names folders of the store, which is not used here
        requests = [
            Request(module, (run,), conditions_of(run, ""), store=None) for module, run in batch
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
