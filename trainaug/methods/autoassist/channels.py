"""How Boss and Assistant exchange data: slots in shared memory, and small messages about them."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainaug.methods.autoassist.assistant import check_losses
from trainaug.structures import StateDict

__all__ = ["Event"]


class Event(NamedTuple):
    """What a process did between ``start`` and ``end``, in seconds of `clock`.

    At the end ``batches`` were ready for the Boss and ``feedbacks`` waited for the Assistant.
    """

    who: Literal["boss", "assistant"]
    what: Literal["warm_up", "wait", "form", "learn"]
    start: float
    end: float
    batches: int
    feedbacks: int


class Formed(NamedTuple):
    """A batch of ``rows`` examples is in ``slot``, formed after learning from ``used`` feedbacks.

    Since the message before, ``scanned`` examples were scanned, and ``kept`` of them were kept.
    """

    slot: int
    rows: int
    used: int
    scanned: int
    kept: int


class PassEnd(NamedTuple):
    """The pass is over with this share kept; the last examples scanned gave no further batch."""

    keep_rate: float
    scanned: int
    kept: int


class Used(NamedTuple):
    """A feedback was learnt from: its slot is free, and the trainer's counters are these."""

    slot: int
    counters: StateDict


class Started(NamedTuple):
    """The worker runs, but has not built sampler and Assistant yet."""


class Failed(NamedTuple):
    """The worker raised; ``text`` is the end of its traceback."""

    text: str


Message = Formed | PassEnd | Used | Started | Failed


class Slots:
    """Slots for batches and feedback in shared memory, and four counts with one writer each.

    Messages decide who may write to a slot, so no lock is needed.

    Args:
        num_batches: Slots for batches.
        num_feedbacks: Slots for feedback.
        batch_size: Most examples in a slot.
        x: Inputs ``(N, ...)`` on the CPU, moved to shared memory, or ``None``.
        y: Targets ``(N, ...)``, likewise.
    """

    def __init__(
        self,
        num_batches: int,
        num_feedbacks: int,
        batch_size: int,
        x: Tensor | None,
        y: Tensor | None,
    ) -> None:
        self.index = _shared((num_batches, batch_size), torch.int64)
        self.data = [] if x is None or y is None else [_share(x), _share(y)]
        self.rows = [_shared((num_batches, batch_size, *t.shape[1:]), t.dtype) for t in self.data]
        self.fed_index = _shared((num_feedbacks, batch_size), torch.int64)
        self.losses = _shared((num_feedbacks, batch_size), torch.float64)
        self.counts = _shared((4,), torch.int64)

    def count(self, what: Literal["made", "taken", "given", "used"]) -> None:
        """Add one to a count; to be called before the message about it is sent."""
        self.counts[("made", "taken", "given", "used").index(what)] += 1

    def depths(self) -> tuple[int, int]:
        """Return how many batches are ready and how many feedbacks unused."""
        made, taken, given, used = self.counts.tolist()
        return made - taken, given - used

    def put(self, slot: int, batch: list[int]) -> None:
        """Write the indices of a batch, and its rows of the data."""
        index = torch.tensor(batch, dtype=torch.int64, device="cpu")  # (B,)
        self.index[slot, : len(batch)] = index
        for rows, data in zip(self.rows, self.data, strict=True):
            torch.index_select(data, 0, index, out=rows[slot, : len(batch)])

    def take(self, slot: int, count: int) -> list[Tensor]:
        """Return copies of a batch: the rows of the data, if any, and the index."""
        return [t[slot, :count].clone() for t in (*self.rows, self.index)]

    def put_feedback(self, slot: int, index: Tensor, losses: Tensor) -> None:
        """Write the Boss's losses of examples."""
        self.fed_index[slot, : len(index)] = index
        self.losses[slot, : len(index)] = losses

    def feedback(self, slot: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the indices and the losses in a feedback slot, ``(count,)`` each, not copied."""
        return self.fed_index[slot, :count], self.losses[slot, :count]


def check_feedback(index: Tensor, losses: Tensor, num_examples: int, batch_size: int) -> None:
    """Raise unless every loss is finite and belongs to one of the N examples.

    Raises:
        ValueError: If the shapes differ, or there is no loss or more than ``batch_size``.
        TypeError: If the index is not of integers.
        IndexError: If an example does not exist, naming it.
        FloatingPointError: If a loss is NaN or infinite, naming the example.
    """
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"indices must be integers, got {index.dtype}")
    index = index.long()
    if index.ndim == 1 and not 0 < len(index) <= batch_size:
        raise ValueError(f"need 1 to {batch_size} losses, got {len(index)}")
    outside = (index < 0) | (index >= num_examples)
    if bool(outside.any()):
        raise IndexError(f"no example {int(index[outside][0])} among {num_examples}")
    check_losses(index, losses)


def clock() -> float:
    """Return the seconds of a clock that all processes of a machine share."""
    return time.perf_counter()


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return _share(torch.zeros(shape, dtype=dtype, device="cpu"))


def _share(t: Tensor) -> Tensor:
    return t.share_memory_()  # type: ignore[no-any-return, no-untyped-call]
