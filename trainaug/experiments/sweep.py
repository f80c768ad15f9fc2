"""Compute the missing runs of a plan: one process a core, one thread each, nothing twice."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import joblib
import torch
from threadpoolctl import threadpool_limits

from trainaug.evidence.store import Run, Store

__all__ = ["SweepFailedError", "compute", "missing_runs", "run_sweep", "worker_count"]

Execute = Callable[[Run], dict[str, Any]]
Progress = Callable[[int, int, float], None]


class SweepFailedError(RuntimeError):
    """Some runs failed; the others are finished and kept."""


def worker_count() -> int:
    """Workers of a sweep: ``TRAINAUG_WORKERS``, else one a GPU, else one a usable core.

    Raises:
        ValueError: If ``TRAINAUG_WORKERS`` is not a positive whole number.
    """
    if asked := os.environ.get("TRAINAUG_WORKERS"):
        if not asked.isdigit() or int(asked) < 1:
            raise ValueError(f"TRAINAUG_WORKERS must be a positive whole number, got {asked!r}")
        return int(asked)
    return torch.cuda.device_count() or int(joblib.cpu_count())


def compute(run: Run, execute: Execute) -> tuple[dict[str, Any], dict[str, float]]:
    """Execute one run on one thread.

    Returns:
        The result, and the wall and processor seconds it took.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            wall, processor = time.perf_counter(), time.process_time()
            result = execute(run)
            spent = {
                "wall_seconds": round(time.perf_counter() - wall, 3),
                "core_seconds": round(time.process_time() - processor, 3),
            }
    finally:
        torch.set_num_threads(threads)
    return result, spent


def missing_runs(runs: Sequence[Run], store: Store, code_digest: str) -> list[Run]:
    """The runs of a plan that the store does not hold yet, longest first."""
    missing = [run for run in runs if store.read(run, code_digest) is None]
    return sorted(missing, key=lambda run: -run.predicted_seconds)


def _compute_and_store(run: Run, execute: Execute, store: Store, code_digest: str) -> str | None:
    try:
        result, spent = compute(run, execute)
        store.write(run, code_digest, result, spent)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        detail = "".join(traceback.format_exception(error)[-3:])
        store.write_failure(run, code_digest, f"{reason}\n{detail}")
        return f"{run.arm}, seed {run.seed}: {reason}"
    return None


def run_sweep(
    runs: Sequence[Run],
    execute: Execute,
    store: Store,
    code_digest: str,
    progress: Progress | None = None,
) -> None:
    """Compute what is missing; runs that are not deterministic go last, one at a time.

    ``BACKEND=ray`` sends the same call to a Ray cluster. The numbers depend neither on the
    backend nor on the number of workers.

    Args:
        runs: The plan.
        execute: Function of the chapter that computes one run.
        store: Where results go.
        code_digest: Digest of the code behind ``execute``.
        progress: Called with runs done, runs in all and predicted core-seconds left.

    Raises:
        SweepFailedError: If runs failed, naming them; the others are stored all the same.
    """
    store.sweep_up()
    missing = missing_runs(runs, store, code_digest)
    left = sum(run.predicted_seconds for run in missing)
    done = len(runs) - len(missing)
    failures = []
    together = [run for run in missing if run.deterministic]
    alone = [run for run in missing if not run.deterministic]
    for batch, workers in ((together, worker_count()), (alone, 1)):
        if progress is not None:
            progress(done, len(runs), left)
        if not batch:
            continue
        settings: dict[str, Any] = {"backend": "loky", "inner_max_num_threads": 1}
        if (backend := os.environ.get("BACKEND", "loky")) != "loky":
            settings = {"backend": _registered(backend)}
        with joblib.parallel_config(n_jobs=min(workers, len(batch)), **settings):
            jobs = (
                joblib.delayed(_compute_and_store)(run, execute, store, code_digest)
                for run in batch
            )
            outcomes = joblib.Parallel(return_as="generator", batch_size=1, pre_dispatch="all")
            for run, failure in zip(batch, outcomes(jobs), strict=True):
                done, left = done + 1, left - run.predicted_seconds
                if failure is not None:
                    failures.append(failure)
                if progress is not None:
                    progress(done, len(runs), left)
    if failures:
        raise SweepFailedError(
            f"{len(failures)} of {len(runs)} runs failed; the others are kept and the failed ones "
            "are tried again next time:\n  " + "\n  ".join(failures[:5])
        )


def _registered(backend: str) -> str:
    if backend != "ray":
        raise ValueError(f"BACKEND must be loky or ray, got {backend!r}")
    from ray.util.joblib import register_ray

    register_ray()
    return backend
