"""What Boss and Assistant hand to each other: slots in shared memory and tiny messages; the
Assistant's side of it. Nothing here starts a process: `workers` does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from trainaug.methods.autoassist.assistant import AssistantTrainer, check_losses
from trainaug.methods.autoassist.sampler import AssistedSampler

__all__ = ["Build", "Event"]

Build = Callable[..., tuple[AssistedSampler, AssistantTrainer | None]]


class Event(NamedTuple):
    """What a process did, between two readings of ``time.perf_counter``, which all share.

    ``batches`` were ready for the Boss at the end, ``feedbacks`` not yet used by the Assistant.
    """

    who: Literal["boss", "assistant"]
    what: Literal["warm_up", "wait", "form", "learn"]
    start: float
    end: float
    batches: int
    feedbacks: int


class Formed(NamedTuple):
    """A batch is in a slot; ``used`` feedbacks were learnt from when it was decided."""

    slot: int
    rows: int
    used: int
    scanned: int
    kept: int


class PassEnd(NamedTuple):
    """The pass is over, after scanning a rest without a batch."""

    keep_rate: float
    scanned: int
    kept: int


class Used(NamedTuple):
    """A feedback slot is free again; the trainer's counters are now these."""

    slot: int
    counters: dict[str, Any]


class Failed(NamedTuple):
    """The worker raised."""

    text: str


Message = Formed | PassEnd | Used | Failed


class Slots:
    """Places for batches and feedback in shared memory, and four counts with one writer each.

    Who may write to a slot follows from messages, so nobody locks anything.

    Args:
        num_batches: Slots for batches.
        num_feedbacks: Slots for feedback.
        batch_size: Rows of each.
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
        """Add one to a count, before the message that tells of it."""
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
        """Return index and losses, not copied."""
        return self.fed_index[slot, :count], self.losses[slot, :count]


class Maker:
    """A sampler and its Assistant at work: form a batch, learn from a feedback.

    Args:
        build: Gives sampler and trainer for ``args`` and the keyword ``attempt``.
        args: As said.
        attempt: Number of restarts.
        sizes: Number of examples and batch size that the sampler must have.
        counters: Of the trainer that died, or nothing.

    Raises:
        ValueError: If the sampler has other sizes.
    """

    def __init__(
        self,
        build: Build,
        args: tuple[Any, ...],
        attempt: int,
        sizes: tuple[int, int],
        counters: dict[str, Any],
    ) -> None:
        self.sampler, self.trainer = build(*args, attempt=attempt)
        found = self.sampler.num_examples, self.sampler.batch_size
        if found != sizes:
            raise ValueError(f"num_examples and batch_size of the sampler are {found}, not {sizes}")
        if self.trainer is not None:
            vars(self.trainer).update(counters)
        self.used = 0
        self._pass = iter(self.sampler)

    def form(self) -> tuple[list[int], Formed | PassEnd]:
        """Return the next batch, empty at the end of a pass, and what to tell of it (slot -1)."""
        sampler = self.sampler
        scanned, kept = sampler.scanned, sampler.kept
        batch = next(self._pass, [])
        scanned, kept = sampler.scanned - scanned, sampler.kept - kept
        if batch:
            return batch, Formed(-1, len(batch), self.used, scanned, kept)
        self._pass = iter(sampler)
        return batch, PassEnd(sampler.keep_rates[-1], scanned, kept)

    def learn(self, index: Tensor, losses: Tensor) -> dict[str, Any]:
        """Make one step of the Assistant, if there is one, and return the trainer's counters."""
        self.used += 1
        if self.trainer is None:
            return {}
        self.trainer.feedback(index, losses)
        return {name: getattr(self.trainer, name) for name in self.trainer._counters}


class Gone(Exception):
    """The Boss closed the pipe or died."""


class Loop:
    """The worker's end of the pipe, and its choice of what to do next."""

    def __init__(self, pipe: Connection, slots: Slots, train_when: int, trace: bool) -> None:
        self.pipe, self.slots, self.train_when, self.trace = pipe, slots, train_when, trace
        self.free = deque(range(len(slots.index)))
        self.fed: deque[tuple[int, int]] = deque()  # slot, count
        self.events: list[Event] = []

    def run(self, maker: Maker) -> NoReturn:
        while True:
            self.receive()
            start = clock()
            num_ready = len(self.slots.index) - len(self.free)
            if self.fed and num_ready >= self.train_when:
                slot, count = self.fed.popleft()
                counters = maker.learn(*self.slots.feedback(slot, count))
                self.slots.count("used")
                self.record("learn", start)
                self.send(Used(slot, counters))
            elif self.free:
                batch, message = maker.form()
                if isinstance(message, Formed):
                    message = message._replace(slot=self.free.popleft())
                    self.slots.put(message.slot, batch)
                    self.slots.count("made")
                self.record("form", start)
                self.send(message)
            else:
                self.pipe.poll(None)
                self.record("wait", start)

    def receive(self) -> None:
        """Take all messages that have come."""
        try:
            while self.pipe.poll():
                match self.pipe.recv():
                    case int(slot):
                        self.free.append(slot)
                    case (slot, count):
                        self.fed.append((slot, count))
                    case _:
                        raise Gone
        except (EOFError, OSError):
            raise Gone from None

    def send(self, message: Message) -> None:
        events, self.events = self.events, []
        try:
            self.pipe.send((message, events))
        except OSError:
            raise Gone from None

    def record(self, what: Any, start: float) -> None:
        if self.trace:
            self.events.append(Event("assistant", what, start, clock(), *self.slots.depths()))


def check_feedback(index: Tensor, losses: Tensor, num_examples: int, batch_size: int) -> None:
    """Raise unless every loss is finite and belongs to one of the N examples.

    Raises:
        ValueError: If the shapes differ, or there are none or more than B.
        TypeError: If the index is not of integers.
        IndexError: If an example does not exist, naming it.
        FloatingPointError: If a loss is NaN or infinite, naming the example.
    """
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"indices must be integers, got {index.dtype}")
    if index.ndim == 1 and not 0 < len(index) <= batch_size:
        raise ValueError(f"need 1 to {batch_size} losses, got {len(index)}")
    outside = (index < 0) | (index >= num_examples)
    if bool(outside.any()):
        raise IndexError(f"no example {int(index[outside][0])} among {num_examples}")
    check_losses(index, losses)


def clock() -> float:
    """Seconds of the clock that the processes of a machine share."""
    return time.perf_counter()


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return _share(torch.zeros(shape, dtype=dtype, device="cpu"))


def _share(t: Tensor) -> Tensor:
    return t.share_memory_()  # type: ignore[no-any-return, no-untyped-call]
