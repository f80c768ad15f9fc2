"""Timings of chapter 6: batched descent, the Fourier program, enclosures, imports, the notebook."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.paths import NOTEBOOKS
from trainaug.data.binary import binary_problem
from trainaug.data.gaussian import gaussian_problem
from trainaug.methods.linear_robustness import (
    NORMS,
    FourierNorm,
    enclosure,
    max_margin,
    norm,
    signed_rows,
    steepest_descent_paths,
)

SIZES = (100, 50, 25, 12, 10, 6, 3)
SEEDS = (0, 1, 2)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def gaussian_rows() -> list[Tensor]:
    """Draw the signed rows of 21 Gaussian problems in 100 dimensions."""
    drawn = [gaussian_problem(n, 100, seed=seed) for n in SIZES for seed in SEEDS]
    return [signed_rows(torch.from_numpy(X), torch.from_numpy(y)) for X, y in drawn]


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack problems of different sizes: rows ``(P, N, D)`` and their mask ``(P, N)``."""
    Z = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(z) for z in rows])
    return Z, torch.arange(Z.shape[1]) < lengths.unsqueeze(1)


def _batched_seconds(rows: list[Tensor], steps: int) -> float:
    """Seconds of one call for all problems and norms."""
    Z, mask = padded(rows)
    start = time.perf_counter()
    steepest_descent_paths(Z, NORMS, record_at=[steps], mask=mask)
    return time.perf_counter() - start


def _solo_seconds(rows: list[Tensor], steps: int) -> float:
    """Seconds of one call per problem and norm."""
    start = time.perf_counter()
    for z in rows:
        for kind in NORMS:
            steepest_descent_paths(z.unsqueeze(0), [kind], record_at=[steps])
    return time.perf_counter() - start


def batched_descent(steps: int = 10_000) -> dict[str, Any]:
    """Time one call for 21 problems x 3 norms on one thread."""
    rows = gaussian_rows()
    with _one_thread():
        _batched_seconds(rows, 20)  # warm up
        return {"seconds": _batched_seconds(rows, steps), "steps": steps, "problems": len(rows)}


def batched_against_solo(steps: int = 2_000, repetitions: int = 3) -> dict[str, Any]:
    """Time one call against 63 calls, one problem and one norm each, in interleaved repetitions.

    Returns:
        The seconds of each repetition and the median of the paired ratios solo / batched.
    """
    rows = gaussian_rows()
    batched, solo = [], []
    with _one_thread():
        _batched_seconds(rows, 20)
        _solo_seconds(rows, 20)
        for _ in range(repetitions):
            batched.append(_batched_seconds(rows, steps))
            solo.append(_solo_seconds(rows, steps))
    ratios = [s / b for s, b in zip(solo, batched, strict=True)]
    return {
        "steps": steps,
        "batched_seconds": batched,
        "solo_seconds": solo,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }


def _full_complex_seconds(X: Tensor, y: Tensor, shape: tuple[int, ...]) -> tuple[float, str]:
    """Seconds and status of the Fourier program in its plainest form.

    That form has all frequencies and complex constants, although half of them suffice for real
    signals.
    """
    import cvxpy as cp

    Z = signed_rows(X, y)
    attack = FourierNorm("linf", shape)
    scale = float(norm(Z, attack).max())
    F = attack.transform(torch.eye(Z.shape[1], dtype=torch.float64)).T.numpy()
    start = time.perf_counter()
    w = cp.Variable(Z.shape[1])
    problem = cp.Problem(cp.Minimize(cp.norm1(F @ w)), [(Z / scale).numpy() @ w >= 1])
    problem.solve(solver="CLARABEL", direct_solve_method="qdldl")  # as max_margin does
    return time.perf_counter() - start, str(problem.status)


def half_spectrum(data: str) -> dict[str, Any]:
    """Time the half-spectrum program against the full complex one, n = 100, set-up included.

    ``max_margin`` demands that the solver's status be *optimal*; the full program's is returned.
    """
    if data == "gaussian":
        shape: tuple[int, ...] = (100,)
        X, y = map(torch.from_numpy, gaussian_problem(100, 100, seed=0))
        repetitions = 21
    else:
        shape = (28, 28)
        X, y = map(torch.from_numpy, binary_problem(data, (1, 9), n=100, seed=0)[:2])
        repetitions = 1
    half, full, statuses = [], [], []
    with _one_thread():
        max_margin(X, y, FourierNorm("linf", shape))  # fills the cache of the basis
        for _ in range(repetitions):
            start = time.perf_counter()
            max_margin(X, y, FourierNorm("linf", shape))
            half.append(time.perf_counter() - start)
            seconds, status = _full_complex_seconds(X, y, shape)
            full.append(seconds)
            statuses.append(status)
    ratios = [f / h for f, h in zip(full, half, strict=True)]
    ratio = statistics.median(ratios)
    return {"half": half, "full": full, "full_status": statuses, "ratios": ratios, "ratio": ratio}


def enclosure_seconds() -> dict[str, Any]:
    """Time the proved enclosure of one Fashion-MNIST pair's margin, n = 100, for every attack."""
    X, y = map(torch.from_numpy, binary_problem("fashion_mnist", (1, 9), n=100, seed=0)[:2])
    seconds: dict[str, Any] = {}
    with _one_thread():
        for attack in (*NORMS, FourierNorm("linf", (28, 28)), FourierNorm("l1", (28, 28))):
            best = max_margin(X, y, attack)
            start = time.perf_counter()
            proved = enclosure(X, y, attack, best.w, best.lam)
            seconds[str(attack)] = {"seconds": time.perf_counter() - start, "width": proved.width}
    return {"attacks": seconds, "seconds": max(row["seconds"] for row in seconds.values())}


_IMPORT = """
import importlib, json, sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
importlib.import_module(sys.argv[1])
print(json.dumps([middle - start, time.perf_counter() - middle]))
"""


def import_seconds(module: str, repetitions: int = 7) -> dict[str, Any]:
    """Time ``import module`` beyond ``import torch``, in fresh processes.

    Each process times both imports, torch first, so that starting Python and loading torch, whose
    times vary by tenths of a second, do not affect the difference.

    Returns:
        Seconds of both imports in each process, and the median of what ``module`` adds.
    """
    pairs = []
    for _ in range(repetitions + 1):
        command = [sys.executable, "-c", _IMPORT, module]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        pairs.append(json.loads(done.stdout))
    pairs = pairs[1:]  # the first one fills the file cache
    return {
        "module": module,
        "torch_seconds": [torch_seconds for torch_seconds, _ in pairs],
        "extra_seconds": [extra for _, extra in pairs],
        "median_seconds": statistics.median(extra for _, extra in pairs),
    }


def open_chapter(path: Path = NOTEBOOKS / "06_linear_robustness.ipynb") -> dict[str, Any]:
    """Time the execution of the chapter's notebook in its default settings.

    The kernel works in an empty folder, and the notebook file is not changed.

    Raises:
        FileNotFoundError: If the notebook does not exist.
    """
    import nbformat
    from nbclient import NotebookClient

    if not path.is_file():
        raise FileNotFoundError(f"no notebook at {path}")
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        start = time.perf_counter()
        client.execute()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "cells": sum(c.cell_type == "code" for c in notebook.cells)}


if __name__ == "__main__":
    for run in (batched_descent, batched_against_solo):
        print(json.dumps({run.__name__: run()}, indent=1))
    for name in ("trainaug", "trainaug.methods.linear_robustness"):
        print(json.dumps({"import_seconds": import_seconds(name)}, indent=1))
