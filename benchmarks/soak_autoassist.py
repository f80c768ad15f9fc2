"""Feed many tiny batches through asynchronous AutoAssist, killing the worker half-way: `make soak`.

``python benchmarks/soak_autoassist.py --batches 20000`` prints seconds and memory. It fails if a
batch is malformed, if feedback is neither learnt from nor counted as dropped or waiting, if the
batches take too long, or if memory, open files or shared-memory files grow.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    AsyncBatches,
    ImageAssistant,
    WorkerError,
)

N, B, D, K = 1000, 4, 8, 4
MEBIBYTE = 2**20
GROWTH = 16 * MEBIBYTE  # of resident memory after warming up, for allocator and caches: no leak
SECONDS = 0.05  # per batch, on a busy machine


def build(
    assistant: ImageAssistant, x: Tensor, y: Tensor, attempt: int
) -> tuple[AssistedSampler, AssistantTrainer]:
    """Make sampler and Assistant in the worker, which receives this function by its name.

    ``attempt``, the number of restarts, enters the seeds, so that a new worker draws other numbers.
    """
    trainer = AssistantTrainer(assistant, lambda index: (x[index], y[index]))
    order, decisions = (torch.Generator().manual_seed(2 * attempt + i) for i in (0, 1))
    return AssistedSampler(N, B, trainer.predict, order, decisions, base=0.3), trainer


def soak(num_batches: int = 20_000, seconds: float | None = None) -> dict[str, Any]:
    """Take so many batches, check each, kill the worker half-way and restart it.

    Args:
        num_batches: Number of batches, at least 1000.
        seconds: Limit of the whole; by default 50 ms per batch and 60 s for two starts.

    Returns:
        Seconds, restarts, and what became of the feedback; growth since the end of warming up of
        memory in MiB (of each worker over its own life), of open files, and of files in shared
        memory.

    Raises:
        AssertionError: If something is out of bounds.
    """
    assert num_batches >= 1000, num_batches
    limit = num_batches * SECONDS + 60 if seconds is None else seconds
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, D, generator=generator), torch.arange(N) % K
    assistant = ImageAssistant(D, K, generator).share_memory()
    boss = psutil.Process()
    shared_before = _shared_files()
    children = set(multiprocessing.active_children())
    start = time.perf_counter()
    worker_growth: list[int] = []
    settled = num_batches // 10  # batches of a worker until its memory is measured first
    killed_at = num_batches // 2
    taken = of_worker = 0  # batches in all, and of the present worker
    with AsyncBatches(build, (assistant, x, y), num_examples=N, batch_size=B, x=x, y=y) as batches:
        worker = psutil.Process(batches.worker_pid)

        def take_pass(until: int) -> None:
            """Take one pass over the data, or less if ``until`` batches have been taken in all."""
            nonlocal taken, of_worker, worker, at_first, files
            for inputs, targets, index in batches.tensors():
                _check_batch(inputs, targets, index, x, y)
                batches.update(index, (targets == 0) + 0.1)  # class 0 is hard
                taken += 1
                of_worker += 1
                assert time.perf_counter() - start < limit, f"{taken} batches in {limit} s"
                if of_worker == settled:
                    at_first[worker.pid] = worker.memory_info().rss
                    at_first.setdefault(boss.pid, boss.memory_info().rss)
                    files = boss.num_fds() if files is None else files
                if taken == until:
                    return

        at_first: dict[int, int] = {}
        files: int | None = None
        while taken < killed_at:
            take_pass(killed_at)
        worker_growth.append(worker.memory_info().rss - at_first[worker.pid])
        before = assistant.class_bias.detach().clone()
        os.kill(worker.pid, signal.SIGKILL)
        message = ""
        try:
            while True:  # batches that were ready are still handed out
                take_pass(num_batches)
        except WorkerError as error:
            message = str(error)
        assert "exit code -9" in message, message
        # the Assistant's shared weights survive the worker that trained them
        assert float((assistant.class_bias.detach() - before).abs().max()) < 0.1
        batches.restart()
        worker = psutil.Process(batches.worker_pid)
        of_worker = 0
        while taken < num_batches:
            take_pass(num_batches)
        worker_growth.append(worker.memory_info().rss - at_first[worker.pid])
        growth = boss.memory_info().rss - at_first[boss.pid]
        more_files = boss.num_fds() - (files or 0)
        assert batches.steps == num_batches
        counts = {
            "batches": batches.steps,
            "seconds": time.perf_counter() - start,
            "restarts": batches.attempt,
            "dropped_feedback": batches.dropped_feedback,
            "assistant_steps": batches.counters["num_steps"],
            "waiting_feedback": batches.waiting_feedback,
            "boss_mebibytes": growth / MEBIBYTE,
            "worker_mebibytes": [more / MEBIBYTE for more in worker_growth],
            "boss_resident_mebibytes": boss.memory_info().rss / MEBIBYTE,
            "worker_resident_mebibytes": worker.memory_info().rss / MEBIBYTE,
            "open_files": more_files,
        }
    stages = ("assistant_steps", "dropped_feedback", "waiting_feedback")
    lost = num_batches - sum(counts[stage] for stage in stages)
    assert 0 <= lost <= 1, counts  # the killed worker may not have counted its last step
    counts["shared_files"] = _shared_files() - shared_before
    assert set(multiprocessing.active_children()) == children, "a worker is left"
    assert max(growth, *worker_growth) < GROWTH, counts
    assert more_files <= 0, counts
    assert counts["shared_files"] <= 0, counts
    bias = assistant.class_bias.detach()
    # the losses given to `update` make class 0 hard, and the Assistant must have learnt that
    assert bool((bias[0] > bias[1:]).all()), f"class 0 is the hard one: {bias}"
    return counts


def _check_batch(inputs: Tensor, targets: Tensor, index: Tensor, x: Tensor, y: Tensor) -> None:
    """Check that a batch has the right size, no example twice, and the data of its indices."""
    assert 0 < len(index) <= B, index
    assert len(index.unique()) == len(index), index
    assert torch.equal(inputs, x[index]), index
    assert torch.equal(targets, y[index]), index


def _shared_files() -> int:
    """Number of torch's files in shared memory; 0 if the system does not show them."""
    folder = Path("/dev/shm")
    return sum(1 for _ in folder.glob("torch_*")) if folder.is_dir() else 0


def main() -> None:
    """Read the number of batches, take them, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=20_000)
    torch.set_num_threads(1)
    print(json.dumps(soak(parser.parse_args().batches), indent=1))


if __name__ == "__main__":
    main()
