"""The worker's side of asynchronous AutoAssist: forming batches and learning, by turns."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

import torch
from torch import Tensor

from trainaug.methods.autoassist.assistant import AssistantTrainer
from trainaug.methods.autoassist.channels import (
    Event,
    Failed,
    Formed,
    Message,
    PassEnd,
    Slots,
    Started,
    Used,
    clock,
)
from trainaug.methods.autoassist.sampler import AssistedSampler
from trainaug.structures import StateDict

__all__ = ["Build"]

Build = Callable[..., tuple[AssistedSampler, AssistantTrainer | None]]


class Packed:
    """Values that are unpickled by the worker's own code, where what goes wrong can be told.

    All tensors that a worker gets must be in one: a process cannot be handed the same shared memory
    twice.
    """

    def __init__(self, values: Any) -> None:
        self.values = values
        self.pickled = b""

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return _packed, (bytes(ForkingPickler.dumps(self.values)),)

    def unpack(self) -> Any:
        """Return the values, in the worker."""
        return ForkingPickler.loads(self.pickled) if self.pickled else self.values


def _packed(pickled: bytes) -> Packed:
    packed = Packed(None)
    packed.pickled = pickled
    return packed


class Maker:
    """A sampler and its Assistant at work: form a batch, learn from a feedback.

    Args:
        build: Gives sampler and trainer for ``args`` and the keyword ``attempt``.
        args: As said.
        attempt: Number of restarts.
        sizes: Number of examples and batch size that the sampler must have.
        counters: Of the trainer that died, or nothing.

    Raises:
        ValueError: If the sampler has other sizes, or several ranks whose Assistants differ.
    """

    def __init__(
        self,
        build: Build,
        args: tuple[Any, ...],
        attempt: int,
        sizes: tuple[int, int],
        counters: StateDict,
    ) -> None:
        self.sampler, self.trainer = build(*args, attempt=attempt)
        built = self.sampler.num_examples, self.sampler.batch_size
        if built != sizes:
            raise ValueError(f"num_examples and batch_size of the sampler are {built}, not {sizes}")
        if self.sampler.num_replicas > 1 and self.trainer is not None:
            raise ValueError(
                "a worker cannot ask the Assistants of other ranks, so their batches would not be "
                "parts of one: give each rank its own examples, or no Assistant"
            )
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

    def learn(self, index: Tensor, losses: Tensor) -> StateDict:
        """Make one step of the Assistant, if there is one, and return the trainer's counters."""
        self.used += 1
        if self.trainer is None:
            return {}
        self.trainer.update(index, losses)
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
        _tell(self.pipe, message, events)

    def record(self, what: Any, start: float) -> None:
        if self.trace:
            self.events.append(Event("assistant", what, start, clock(), *self.slots.depths()))


def work(pipe: Connection, train_when: int, trace: bool, packed: Packed) -> None:
    """Run the worker's process, until the Boss is gone.

    Args:
        pipe: The worker's end.
        train_when: As in `AsyncBatches`.
        trace: As in `AsyncBatches`.
        packed: The slots, and the arguments of a `Maker`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        _tell(pipe, Started(), [])
        slots, what = packed.unpack()
        Loop(pipe, slots, train_when, trace).run(Maker(*what))
    except Gone:
        os._exit(0)  # at once: to take torch's modules down takes a second
    except Exception:
        with contextlib.suppress(Gone):
            _tell(pipe, Failed(traceback.format_exc()[-4000:]), [])
        raise SystemExit(1) from None


def _tell(pipe: Connection, message: Message, events: list[Event]) -> None:
    try:
        pipe.send((message, events))
    except OSError:
        raise Gone from None


def _watch_parent() -> None:
    """End this process with its parent, whatever it is doing."""
    parent = parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:
        if connection.wait([parent.sentinel], 1.0):
            break
    os._exit(1)
