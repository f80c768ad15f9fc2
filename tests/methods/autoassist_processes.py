"""Asynchronous AutoAssist in tests: what workers build, which they import, and waiting for them."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from torch import Tensor

from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    AsyncBatches,
    ImageAssistant,
)

N, B = 203, 8  # the last batch of a full pass has 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data() -> tuple[Tensor, Tensor]:
    y = torch.arange(N) % 2
    return torch.randn(N, 4, generator=seeded(1)), y


# --- what the worker builds -----------------------------------------------------------------------


def ones(index: Tensor) -> Tensor:
    return torch.ones(len(index))


def plain(attempt: int, drop_last: bool = False) -> tuple[AssistedSampler, None]:
    g, k = seeded(7 + attempt), seeded(8)
    return AssistedSampler(N, B, ones, g, k, base=1.0, drop_last=drop_last), None


def assisted(
    assistant: ImageAssistant, x: Tensor, y: Tensor, attempt: int
) -> tuple[AssistedSampler, AssistantTrainer]:
    trainer = AssistantTrainer(assistant, lambda i: (x[i], y[i]), lr=0.5)
    g, k = seeded(20 + attempt), seeded(30 + attempt)
    sampler = AssistedSampler(
        N, B, trainer.predict, g, k, base=0.3, confidence=lambda: trainer.confidence
    )
    return sampler, trainer


def base_of(base: float, attempt: int) -> tuple[AssistedSampler, None]:
    zeros = lambda index: torch.zeros(len(index))  # noqa: E731
    return AssistedSampler(N, B, zeros, seeded(1), seeded(2), base=base), None


def breaks(after: int, attempt: int) -> tuple[AssistedSampler, None]:
    calls = iter(range(after))

    def predict(index: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise EOFError("no more predictions")
        return torch.ones(len(index))

    return AssistedSampler(N, B, predict, seeded(1), seeded(2), base=1.0), None


def sleeps(attempt: int) -> tuple[AssistedSampler, None]:
    time.sleep(600)
    return plain(attempt)


def lingers(attempt: int) -> tuple[AssistedSampler, None]:
    atexit.register(time.sleep, 600)  # what is taken down at an ordinary end
    return plain(attempt)


def leaves(attempt: int) -> tuple[AssistedSampler, None]:
    sys.exit(3)


# --- help -----------------------------------------------------------------------------------------

Make = Callable[..., AsyncBatches]


@contextlib.contextmanager
def start_and_close() -> Iterator[Make]:
    """Make `AsyncBatches` and see that closing them leaves no process and no open file."""
    made: list[AsyncBatches] = []
    multiprocessing.resource_tracker.ensure_running()
    files, children = psutil.Process().num_fds(), set(multiprocessing.active_children())

    def start(build: Any, args: tuple[Any, ...] = (), **options: Any) -> AsyncBatches:
        options = {"num_examples": N, "batch_size": B, "timeout": 90.0} | options
        made.append(AsyncBatches(build, args, **options))
        return made[-1]

    yield start
    for batches in made:
        batches.close()
        batches.close()
        assert batches.worker_pid is None
        batches._slots = None  # type: ignore[assignment]
    made.clear()
    assert set(multiprocessing.active_children()) <= children
    assert psutil.Process().num_fds() <= files + 4  # what a test itself may still share


def is_gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def class_losses(y: Tensor, index: Tensor) -> Tensor:
    return 0.1 + 1.9 * (y[index] == 1)  # class 1 is hard


def shared_assistant() -> ImageAssistant:
    return ImageAssistant(4, 2, seeded(3)).share_memory()


def drive(batches: AsyncBatches, y: Tensor, until: Callable[[], bool]) -> int:
    """Be a Boss of 1 ms a step until a condition; every batch must be well-formed."""
    end = time.monotonic() + 120
    steps = 0
    while True:
        for indices in batches:
            assert 0 < len(set(indices)) == len(indices) <= B
            time.sleep(0.001)
            batches.update(torch.tensor(indices), class_losses(y, torch.tensor(indices)))
            steps += 1
            if until():
                return steps
            assert time.monotonic() < end, "it did not happen"
