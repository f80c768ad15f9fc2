"""AutoAssist without waiting: sampler and Assistant run in another process than the Boss.

Reference: Zhang, Yu, Dhillon, "AutoAssist", NeurIPS 2019, arXiv 1905.03381: the Boss's queue of
batches and the Assistant's of losses. Here a queue consists of slots in shared memory and of a pipe
that says which slots are full or free.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import signal
import sys
from collections import deque
from collections.abc import Iterator
from multiprocessing import connection, current_process, resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
import torch.multiprocessing as mp
from torch import Tensor

from trainaug.methods.autoassist.channels import (
    Event,
    Failed,
    Formed,
    Message,
    PassEnd,
    Slots,
    Started,
    Used,
    check_feedback,
    clock,
)
from trainaug.methods.autoassist.loop import Build, Maker, Packed, work
from trainaug.structures import StateDict

__all__ = ["AsyncBatches", "WorkerError"]

_PATIENCE = 2.0  # seconds that a worker has to end by itself, and again after SIGTERM


class WorkerError(RuntimeError):
    """The worker raised, or died; the message has the traceback, or the exit code and signal."""


class AsyncBatches:
    """Batches formed by another process, which learns from the Boss's losses in between.

    An iteration is one pass of the sampler and gives lists of indices, as the training loop wants
    them; a pass that is left early goes on in the next iteration. `tensors` gives data instead.
    Call `update` after a step. A worker is started at once, by ``spawn``: scripts need the usual
    ``if __name__ == "__main__":``, and notebooks must import ``build``, and the classes of what is
    in ``args``, from a module. Use in a ``with`` statement, or call `close`.

    The worker forms batches ahead until ``queue_size`` are ready. When ``train_when`` are ready and
    losses have come, it takes one step of the Assistant first. Which state of the Assistant decides
    on a batch thus depends on timing: runs repeat only with ``base=1``, with constant predictions
    or with ``synchronous``.

    Args:
        build: Importable function, not one of a notebook's cell, that returns an `AssistedSampler`
            and its `AssistantTrainer`, or ``None`` if there is nothing to learn. It is called in
            the worker as ``build(*args, attempt=attempt)``, where ``attempt`` counts restarts; use
            it in the seeds, or a restart repeats orders.
        args: Arguments of ``build``, picklable. Tensors and modules among them are moved to shared
            memory, so that the Boss sees an Assistant learn, and its weights outlive the worker.
        num_examples: N, as in the sampler.
        batch_size: B, as in the sampler.
        x: Inputs ``(N, ...)`` on the CPU, for `tensors`; moved to shared memory. Needs ``y``.
        y: Targets ``(N, ...)``, likewise.
        queue_size: Most batches that are ready at a time.
        warm_up: Batches that must be ready before the first is given, at most ``queue_size``.
        feedback_slots: Most feedbacks that wait for the Assistant at a time.
        train_when: Ready batches from which the Assistant may learn, at most ``queue_size``.
        timeout: Seconds to wait for a batch, the start of the worker included.
        trace: Whether to fill ``events`` and ``staleness``, which grow with every step.
        synchronous: Do the same work here, without a process: batches are formed when asked for
            and the Assistant learns in `update`.

    Attributes:
        steps: Batches given.
        waited_seconds: Time spent waiting for batches, without the warm-up.
        warm_up_seconds: Time spent on the warm-up.
        dropped_feedback: Feedbacks thrown away since no slot was free or the worker had ended.
        scanned, kept, keep_rates: As of the sampler, up to the batch given last.
        counters: Counters of the trainer at its last step; after a restart it goes on with them.
        attempt: Restarts so far.
        staleness: With ``trace``, for each batch: feedbacks sent when it was given, less those that
            the Assistant had learnt from when it was decided. It is at most ``feedback_slots`` plus
            ``queue_size``, plus one for the batch at work.

    Raises:
        ValueError: If a setting is out of range, ``x`` and ``y`` are not both of N examples on the
            CPU, or a worker could not import ``build`` or unpickle ``args``.
        RuntimeError: In a script that starts a worker whenever it is imported, and in a loader's
            worker, which cannot start one.
        WorkerError: While iterating, if the worker raised, died or was closed.
        TimeoutError: While iterating, if no batch came within ``timeout``, though the worker lives.
    """

    def __init__(
        self,
        build: Build,
        args: tuple[Any, ...] = (),
        *,
        num_examples: int,
        batch_size: int,
        x: Tensor | None = None,
        y: Tensor | None = None,
        queue_size: int = 20,
        warm_up: int = 10,
        feedback_slots: int = 20,
        train_when: int = 5,
        timeout: float = 60.0,
        trace: bool = False,
        synchronous: bool = False,
    ) -> None:
        if min(num_examples, batch_size, warm_up, feedback_slots, train_when) < 1:
            raise ValueError(
                f"need >= 1: {num_examples=}, {batch_size=}, {warm_up=}, {feedback_slots=},"
                f" {train_when=}"
            )
        if max(warm_up, train_when) > queue_size or not timeout > 0:
            raise ValueError(
                f"need warm_up, train_when <= queue_size and timeout > 0, got {warm_up},"
                f" {train_when}, {queue_size} and {timeout}"
            )
        for data in (x, y):
            both = x is not None and y is not None
            if data is not None and not (both and len(data) == num_examples and data.is_cpu):
                raise ValueError(f"need x and y of {num_examples} examples, both on the CPU")
        self._build, self._args, self._sizes = build, args, (num_examples, batch_size)
        self.warm_up, self.train_when, self.timeout = warm_up, train_when, timeout
        self.trace, self.synchronous = trace, synchronous
        self.steps, self.waited_seconds, self.warm_up_seconds = 0, 0.0, 0.0
        self.dropped_feedback, self.scanned, self.kept, self.attempt = 0, 0, 0, 0
        self.keep_rates: list[float] = []
        self.counters: StateDict = {}
        self.staleness: list[int] = []
        self._events: list[Event] = []
        self._slots = Slots(queue_size, feedback_slots, batch_size, x, y)
        self._process: Any = None
        self._pipe: Any = None
        self._maker: Maker | None = None
        self._failure = ""  # why there will be no more batches
        self._start()

    @property
    def events(self) -> list[Event]:
        """What both processes did, sorted by start; between its waits the Boss was at work."""
        return sorted(self._events, key=lambda event: event.start)

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, or None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def waiting_feedback(self) -> int:
        """Number of feedbacks that the Assistant has not learnt from yet."""
        return self._slots.depths()[1]

    def __iter__(self) -> Iterator[list[int]]:
        for *_, index in self._pass():
            yield index.tolist()

    def tensors(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate over a pass as batches of data.

        Returns:
            An iterator of ``(x, y, index)``: inputs ``(B, ...)``, targets ``(B, ...)`` and the
            numbers of the examples, int64 ``(B,)``, copies on the CPU; the last batch of a pass
            may be smaller.

        Yields:
            Inputs ``(B, ...)``, targets ``(B, ...)`` and indices ``(B,)``.

        Raises:
            ValueError: If the data was not given.
        """
        if not self._slots.data:
            raise ValueError("give x and y to get them in batches")
        return ((x, y, index) for x, y, index in self._pass())

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Send the Boss's losses to the Assistant, never waiting.

        Where no slot is free, or the worker has ended, they are thrown away and counted in
        ``dropped_feedback``.

        Args:
            indices: Numbers of the examples, 1 to B of them, ``(b,)``, of any integer type, from 0
                to N - 1.
            values: Their losses ``(b,)``.

        Raises:
            ValueError: If the shapes differ, or there is no loss or more than B.
            TypeError: If the indices are not integers.
            IndexError: If an example does not exist, naming it.
            FloatingPointError: If a loss is NaN or infinite, naming the example.
        """
        index, losses = indices.detach().cpu(), values.detach().cpu()
        check_feedback(index, losses, *self._sizes)
        if self._maker is not None:
            start = clock()
            self.counters = self._maker.learn(index, losses)
            self._record("assistant", "learn", start)
            return
        if not self._free_feedback:
            self._pump(0)
        if not self._free_feedback or self._failure:
            self.dropped_feedback += 1
            return
        slot = self._free_feedback.pop()
        self._slots.put_feedback(slot, index, losses)
        self._slots.count("given")
        self._given += 1
        self._send((slot, len(index)))

    def restart(self) -> None:
        """End the worker and start a new one, in a new pass with the Assistant as it is.

        The Assistant keeps its weights, if they came through ``args``, and the trainer its counters
        (SGD has no other state). Ready batches are thrown away, and so are unused feedbacks, which
        count as dropped.
        """
        self.close()
        self.dropped_feedback += self.waiting_feedback
        self.attempt += 1
        self._start()

    def close(self) -> None:
        """End the worker; safe to call again."""
        self._failure = self._failure or "closed"
        self._maker = None
        self._ready.clear()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._pipe.close()
            process.join(_PATIENCE)
            if process.exitcode is None:
                process.terminate()
                process.join(_PATIENCE)
        finally:
            if process.exitcode is None:
                process.kill()
            process.join()
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        """Empty all queues and start a worker, or build here if ``synchronous``."""
        self._slots.counts.zero_()
        self._ready: deque[Formed | PassEnd] = deque()
        self._free_feedback = list(range(len(self._slots.losses)))
        self._given, self._is_warm = 0, False
        self._failure = ""
        self._started = False
        maker_args = (self._build, self._args, self.attempt, self._sizes, self.counters)
        if self.synchronous:
            self._maker = Maker(*maker_args)
            return
        _check_startable(self._build)
        context = mp.get_context("spawn")
        self._pipe, worker_end = context.Pipe()
        process = context.Process(
            target=work,
            args=(worker_end, self.train_when, self.trace, Packed((self._slots, maker_args))),
            name="autoassist",
            daemon=True,
        )
        resource_tracker.ensure_running()  # started later, it would unblock SIGINT again
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the worker inherits it
        try:
            process.start()
            self._process = process
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            self._pipe.close()
            raise ValueError(
                f"{_unpicklable(self._build, self._args)} cannot be pickled for the worker: "
                f"{error}; build must be a function of a module, no lambda or local function, and "
                "args picklable"
            ) from error
        finally:
            worker_end.close()  # the worker now has the only copy, which closes when it ends
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _pass(self) -> Iterator[list[Tensor]]:
        """Yield the batches of one pass, or the rest of one that was left early."""
        is_empty = True
        while True:
            batch = self._next()
            if batch is not None:
                is_empty = False
                yield batch
            elif not is_empty:  # else the pass before was left at its last batch
                return

    def _next(self) -> list[Tensor] | None:
        """Return the next batch, or ``None`` once at the end of each pass."""
        start = clock()
        if self._maker is not None:
            indices, message = self._maker.form()
            self._record("assistant", "form", start)
            index = torch.tensor(indices, dtype=torch.int64, device="cpu")
            batch = [*(t[index] for t in self._slots.data), index]
            self._given = self._maker.feedbacks_used
        else:
            self._await_batches(start)
            message = self._ready.popleft()
        self.scanned += message.scanned
        self.kept += message.kept
        if isinstance(message, PassEnd):
            self.keep_rates.append(message.keep_rate)
            return None
        if self._maker is None:
            batch = self._slots.take(message.slot, message.rows)
            self._slots.count("taken")
            self._send(message.slot)
        self.steps += 1
        if self.trace:
            self.staleness.append(self._given - message.used)
        return batch

    def _await_batches(self, start: float) -> None:
        """Wait until enough messages are ready; ``start`` is when the Boss began to wait."""
        needed = 1 if self._is_warm else self.warm_up
        while not self._failure and self._num_ready() < needed:
            remaining = start + self.timeout - clock()
            if remaining <= 0:
                raise TimeoutError(
                    f"{self._num_ready()} of {needed} batches within {self.timeout} s, though the"
                    f" worker {self.worker_pid} lives: forming them takes long (raise timeout,"
                    " base, or make the Assistant's features cheaper), or it is stopped"
                )
            self._pump(remaining)
        if not self._ready:
            failure = self._failure
            self.close()
            raise WorkerError(failure)
        self._record("boss", "wait" if self._is_warm else "warm_up", start)
        if self._is_warm:
            self.waited_seconds += clock() - start
        else:
            self.warm_up_seconds += clock() - start
        self._is_warm = True

    def _num_ready(self) -> int:
        """Count what is ready for the Boss: batches, and after the warm-up also ends of passes."""
        ends = 0 if self._is_warm else sum(isinstance(m, PassEnd) for m in self._ready)
        return len(self._ready) - ends

    def _pump(self, timeout: float) -> None:
        """Take all messages that have come; wait up to ``timeout`` seconds for the first."""
        # the sentinel is ready once the process has ended, so a dead worker is not waited for
        while not self._failure and connection.wait([self._pipe, self._process.sentinel], timeout):
            timeout = 0
            try:
                message, events = self._pipe.recv() if self._pipe.poll() else _raise_end_of_file()
            except (EOFError, OSError):
                self._process.join(_PATIENCE)
                self._failure = _death(self._process.exitcode, self._started)
            except BaseException:
                self._failure = "interrupted while a message came: call restart()"
                raise
            else:
                self._events += events
                self._handle(message)

    def _handle(self, message: Message) -> None:
        """Store what a message of the worker says."""
        match message:
            case Used(slot, counters):
                self._free_feedback.append(slot)
                self.counters = counters
            case Started():
                self._started = True
            case Failed(text):
                self._failure = f"the worker raised\n{text}{_advice(text)}"
            case _:
                self._ready.append(message)

    def _send(self, what: object) -> None:
        """Send to the worker; if it has ended, waiting for the next batch will notice."""
        with contextlib.suppress(OSError):
            self._pipe.send(what)

    def _record(self, who: Any, what: Any, start: float) -> None:
        """With ``trace``, add an event that ends now."""
        if self.trace:
            self._events.append(Event(who, what, start, clock(), *self._slots.depths()))


def _check_startable(build: Any) -> None:
    """Raise where it is certain that a worker cannot start."""
    if getattr(current_process(), "_inheriting", False):  # a spawned process imports its script
        raise RuntimeError(
            "a worker imports the script that started it, and this one starts a worker at import: "
            'put AsyncBatches under if __name__ == "__main__":'
        )
    if current_process().daemon:
        raise RuntimeError("a worker of a loader cannot start one: use synchronous=True there")
    while isinstance(build, functools.partial):
        build = build.func
    module = getattr(build, "__module__", None) or type(build).__module__
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    importable = getattr(main, "__spec__", None) is not None or (file and Path(file).exists())
    if module == "__main__" and not importable:
        name = getattr(build, "__qualname__", type(build).__qualname__)
        raise ValueError(
            f"a worker cannot import build={name} from __main__, which has no file, as in a "
            "notebook: move it to a module, a file beside the notebook, and import it from there"
        )


def _unpicklable(build: Any, args: tuple[Any, ...]) -> str:
    """Name the first of ``build`` and ``args`` that cannot be pickled."""
    for name, value in (("build", build), *((f"args[{i}]", arg) for i, arg in enumerate(args))):
        try:
            pickle.dumps(value)
        except Exception:
            return name
    return "build or args"


def _death(code: int | None, started: bool) -> str:
    """Say why a worker ended without a message."""
    advice = "restart() goes on with its Assistant"
    if code is not None and code < 0:
        name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
        memory = ", as where memory runs out" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{memory}, exit code {code}: {advice}"
    if started:
        return f"the worker died with exit code {code}: {advice}"
    return (
        f"the worker died with exit code {code} before it could start; its own words are on stderr."
        " It first imports the script that started it: that must work, and what starts workers "
        'must stand under if __name__ == "__main__":'
    )


def _advice(text: str) -> str:
    """Return advice if a traceback ends with a name that ``__main__`` lacks, else nothing."""
    if "main__" in text.rstrip().rpartition("\n")[2]:
        return (
            "\nbuild, and the classes of args, must be importable from a module: a worker sees "
            'neither a notebook\'s cells nor what stands under if __name__ == "__main__":'
        )
    return ""


def _raise_end_of_file() -> NoReturn:
    """Raise what a pipe raises at its end: woken without a message, so the worker has ended."""
    raise EOFError
