"""The worker's side of asynchronous AutoAssist: forming batches and learning, alternately."""

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

# build(*args, attempt=number of restarts)
Build = Callable[..., tuple[AssistedSampler, AssistantTrainer | None]]


class Packed:
    """Values that the worker's own code unpickles, so that it can report what goes wrong.

    All tensors for a worker must be in one of these, since the same shared memory cannot be sent to
    a process twice.
    """

    def __init__(self, values: Any) -> None:
        self.values = values
        self.pickled = b""

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        """Pickle the values to bytes, which stay bytes until `unpack`."""
        return _packed, (bytes(ForkingPickler.dumps(self.values)),)

    def unpack(self) -> Any:
        """Return the values, in the worker."""
        return ForkingPickler.loads(self.pickled) if self.pickled else self.values


def _packed(pickled: bytes) -> Packed:
    """Return, in the worker, the values as they came."""
    packed = Packed(None)
    packed.pickled = pickled
    return packed


class Maker:
    """A sampler and its Assistant at work: form a batch, or learn from feedback.

    Args:
        build: Returns sampler and trainer, called as ``build(*args, attempt=attempt)``.
        args: Positional arguments of ``build``.
        attempt: Number of restarts so far.
        sizes: Number of examples and batch size that the sampler must have.
        counters: Counters of the trainer before the restart, as `learn` returned them, or empty.

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
        self.feedbacks_used = 0
        self._pass = iter(self.sampler)

    def form(self) -> tuple[list[int], Formed | PassEnd]:
        """Return the next batch, empty at the end of a pass, and the message about it.

        The caller replaces the message's slot of -1.
        """
        sampler = self.sampler
        scanned_before, kept_before = sampler.scanned, sampler.kept
        batch = next(self._pass, [])
        scanned = sampler.scanned - scanned_before
        kept = sampler.kept - kept_before
        if batch:
            return batch, Formed(-1, len(batch), self.feedbacks_used, scanned, kept)
        self._pass = iter(sampler)
        return batch, PassEnd(sampler.keep_rates[-1], scanned, kept)

    def learn(self, index: Tensor, losses: Tensor) -> StateDict:
        """Make one step of the Assistant, if there is one, and return the trainer's counters."""
        self.feedbacks_used += 1
        if self.trainer is None:
            return {}
        self.trainer.update(index, losses)
        # The Boss keeps the counters: after a restart a new trainer goes on with them.
        return {name: getattr(self.trainer, name) for name in self.trainer._counters}


class Gone(Exception):
    """The Boss closed the pipe or died."""


class Loop:
    """The worker's end of the pipe, and its choice of what to do next."""

    def __init__(self, pipe: Connection, slots: Slots, train_when: int, trace: bool) -> None:
        self.pipe, self.slots, self.train_when, self.trace = pipe, slots, train_when, trace
        self.free = deque(range(len(slots.index)))  # batch slots to fill
        self.fed: deque[tuple[int, int]] = deque()  # feedback to learn from: slot, count
        self.events: list[Event] = []

    def run(self, maker: Maker) -> NoReturn:
        """Learn or form, whichever is due, else wait; ended by `Gone`."""
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
                    case int(slot):  # the Boss has taken the batch out of it
                        self.free.append(slot)
                    case (slot, count):  # feedback is in it
                        self.fed.append((slot, count))
                    case _:  # None: the Boss closes
                        raise Gone
        except (EOFError, OSError):
            raise Gone from None

    def send(self, message: Message) -> None:
        """Send a message, and the events since the one before."""
        events, self.events = self.events, []
        _tell(self.pipe, message, events)

    def record(self, what: Any, start: float) -> None:
        """With ``trace``, add an event that ends now."""
        if self.trace:
            self.events.append(Event("assistant", what, start, clock(), *self.slots.depths()))


def work(pipe: Connection, train_when: int, trace: bool, packed: Packed) -> None:
    """Run the worker's process, until the Boss is gone.

    Args:
        pipe: The worker's end of the pipe.
        train_when: As in `AsyncBatches`.
        trace: As in `AsyncBatches`.
        packed: The slots, and the arguments of a `Maker`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the Boss, which then ends this
    threading.Thread(target=_watch_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        _tell(pipe, Started(), [])
        slots, maker_args = packed.unpack()
        Loop(pipe, slots, train_when, trace).run(Maker(*maker_args))
    except Gone:
        os._exit(0)  # at once: to unload torch's modules takes a second
    except Exception:
        with contextlib.suppress(Gone):
            _tell(pipe, Failed(traceback.format_exc()[-4000:]), [])
        raise SystemExit(1) from None


def _tell(pipe: Connection, message: Message, events: list[Event]) -> None:
    """Send a message with events; `Gone` if nobody listens."""
    try:
        pipe.send((message, events))
    except OSError:
        raise Gone from None


def _watch_parent() -> None:
    """End this process once its parent has ended, whatever it is doing then."""
    parent = parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:
        if connection.wait([parent.sentinel], 1.0):
            break
    os._exit(1)
