"""Bases of the batch samplers: epochs, each rank's share, resuming from the last batch trained on.

A loader with workers asks its sampler for batches long before they are trained on. So a sampler
remembers the batches that it has handed out, and reads from the loader's iterator which of them the
training loop has received. The others are part of its state, and come first after a resume.
"""

from __future__ import annotations

import itertools
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from trainaug.checks import source_of_randomness, whole_number
from trainaug.structures import StateDict

__all__ = [
    "EpochBatchSampler",
    "OrderedBatchSampler",
    "batch_sizes",
    "check_ranks",
    "from_all_ranks",
]

T = TypeVar("T")

_FRAMES = 12  # stack frames searched for the asking loader; each wrapper of a sampler adds one
_REMEMBERED = 64  # received batches that are remembered, for `state_dict(untrained=...)`


def check_ranks(num_replicas: int, rank: int) -> None:
    """Raise a ValueError unless ``rank`` is one of ``num_replicas`` processes."""
    if num_replicas < 1 or not 0 <= rank < num_replicas:
        raise ValueError(f"need 0 <= rank < num_replicas, got {rank=}, {num_replicas=}")


def batch_sizes(
    num_examples: int, batch_size: int, num_replicas: int = 1, *, drop_last: bool = False
) -> list[int]:
    """Return the sizes of an epoch's global batches, which the ranks share.

    The ranks' shares of a batch differ by at most one. All batches but the last have ``batch_size *
    num_replicas`` examples. Where the last would leave a rank without an example, the last two
    share their examples evenly.

    Raises:
        ValueError: If there is no batch, or too few examples to give each rank one in each batch.
    """
    size = batch_size * num_replicas
    if min(num_examples, batch_size) < 1 or (drop_last and size > num_examples):
        raise ValueError(f"no batch: {num_examples=}, {batch_size=}, {num_replicas=}, {drop_last=}")
    full, rest = divmod(num_examples, size)
    sizes = [size] * full
    if drop_last or rest == 0:
        return sizes
    if rest >= num_replicas:
        return [*sizes, rest]
    if not sizes or (size + rest) // 2 < num_replicas:
        raise ValueError(
            f"{num_examples} examples cannot give each of {num_replicas} ranks as many batches of "
            f"at most {batch_size}: set drop_last, or another batch_size"
        )
    return [*sizes[:-1], (size + rest + 1) // 2, (size + rest) // 2]


def from_all_ranks(value: T, num_replicas: int) -> list[T] | None:
    """Return the values of all ranks in rank order, or None where ranks cannot communicate.

    They can where `torch.distributed` is initialised with ``num_replicas`` processes. All of these
    must then make this call, which waits for every one of them.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_world_size() != num_replicas:
        return None
    values: list[Any] = [None] * num_replicas
    distributed.all_gather_object(values, value)
    return values


class EpochBatchSampler(Sampler[list[int]], ABC):
    """Base of samplers whose iterations are epochs, each given in batches.

    A subclass says how an epoch begins (`_begin`), what the next global batch is (`_next`), what
    `_next` changes (`_position`, `_return_to`) and what else belongs to its state (`_own_state`,
    `_load_own_state`). This class handles epochs, ranks, workers and resuming. Where the length of
    an epoch is known, ``len()`` is that of the present epoch until it is trained on, then that of
    the next. For an interrupted epoch it counts all batches, as PyTorch's loaders do.

    Args:
        num_replicas: Processes that train together. A global batch has ``num_replicas`` times
            ``batch_size`` examples; generators of equal seeds draw the same one in each process.
        rank: This process; it gets every ``num_replicas``-th example of a global batch.

    Attributes:
        epoch: Number of the epoch begun last, from 0; -1 before the first.
    """

    _fixed: tuple[str, ...] = ("num_replicas",)  # attributes in which a loaded state must agree

    def __init__(self, num_replicas: int = 1, rank: int = 0) -> None:
        check_ranks(num_replicas, rank)
        self.num_replicas, self.rank = num_replicas, rank
        self.epoch = -1
        self._begun = False  # whether the epoch may have batches left; else the next is to begin
        self._resuming = False  # whether the next iteration finishes an interrupted epoch
        self._resumes_exactly = False  # `set_epoch` asked for it, even if no batch of it is left
        self._iteration: object | None = None  # token of the running iteration, if there is one
        self._given: deque[tuple[int, list[int]]] = deque()  # the loader's number, global batch
        self._pending: deque[list[int]] = deque()  # from a loaded state: drawn, not trained on
        self._loader: Mapping[str, Any] | None = None  # attributes of the asking loader's iterator
        # A stateful loader, say torchdata's StatefulDataLoader, saves and loads the state itself.
        self._is_counted = False  # whether such a loader has just loaded a state
        self._snapshots: deque[tuple[int, StateDict]] = deque()  # the loader's number, state it got

    def __iter__(self) -> Iterator[list[int]]:
        # Read here, since the generator's body starts only with the first next(): the flag is for
        # the iteration that the loader asks for right after it has loaded a state.
        loader_counts, self._is_counted = self._is_counted, False
        return self._iterate(loader_counts)

    def _iterate(self, loader_counts: bool) -> Iterator[list[int]]:
        """Yield this rank's share of each batch of the next, or the rest of an interrupted, epoch.

        Args:
            loader_counts: Whether a stateful loader has just loaded the state. It counts this
                iteration as the interrupted epoch, so it must be empty if no batch is left.
        """
        self._loader = _asking_loader(sys._getframe(1))  # in a generator: the caller of next()
        self._given.clear()
        iteration_token = self._iteration = object()
        resumed, self._resuming = self._resuming, False
        try:
            if not resumed:
                self._begin_next()
            batch = self._draw()
            if resumed and not (batch or loader_counts or self._resumes_exactly):
                self._begin_next()  # nothing was left of the interrupted epoch
                batch = self._draw()
            while batch:
                self._given.append((self._batch_of_loader(), batch))
                self._forget()
                yield batch[self.rank :: self.num_replicas]
                if self._iteration is not iteration_token:
                    raise RuntimeError(
                        "another epoch was begun or loaded during this one: each loader that is "
                        "used at the same time needs its own sampler"
                    )
                batch = self._draw()
        finally:
            if self._iteration is iteration_token:
                self._iteration = None

    @property
    def next_epoch(self) -> int:
        """Number of the epoch that the next iteration begins, or finishes after an interruption."""
        return self.epoch if self._resuming and not self._is_over() else self.epoch + 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the next iteration's epoch; it draws what it would in an uninterrupted run.

        The present or interrupted epoch and the one that follows it simply go on. To enter any
        other, all draws of the epochs before it are repeated from the first.

        Raises:
            ValueError: If ``epoch`` is negative.
            RuntimeError: If the epochs before it depended on the training, and no `state_dict` of
                them was loaded.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        if epoch == self.epoch and self._resuming:
            self._resumes_exactly = True
            return
        if epoch == self.epoch and not self._is_over():
            return
        if epoch != self.epoch + 1:
            self._enter(epoch)
            self._iteration = None
        elif not self._resuming and not self._is_over():
            return
        self._forget_epoch()

    def state_dict(self, *, untrained: int = 0) -> StateDict:
        """Return all that decides what comes next, as of the last batch that was trained on.

        A batch counts as trained on once the training loop has received it, however many the
        loader's workers have fetched in advance. The state is the same on all ranks, unless a
        subclass says otherwise.

        Args:
            untrained: Batches that the loop has received but not trained on, say 1 where a library
                asks the loader for the next batch before it trains on the present one.

        Raises:
            ValueError: If the loop has not received so many remembered batches, or the loader does
                not keep their order.
        """
        # A stateful loader that asks counts the batches itself, so its state has none ahead.
        loader_counts = _asking_loader(sys._getframe(1)) is not None
        is_between = loader_counts and self._iteration is None and not self._resuming
        ahead = [] if loader_counts else self._untrained(untrained)
        state = {
            "settings": {name: getattr(self, name) for name in self._fixed},
            "epoch": self.epoch,
            "position": self._position() if self._begun and not is_between else None,
            "pending": [list(batch) for batch in (*ahead, *self._pending)],
            **self._own_state(),
        }
        if loader_counts:
            self._open_snapshots()
            self._snapshots.append((self._batch_of_loader(), state))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted epoch.

        Raises:
            ValueError: If the state belongs to a sampler with other sizes, say another batch size.
        """
        for name, value in state["settings"].items():
            if getattr(self, name) != value:
                size = f"{value} examples" if name == "num_examples" else f"{name}={value}"
                raise ValueError(f"state of {size}, need {getattr(self, name)}")
        self._load_own_state(state)
        self._forget_epoch()
        self.epoch, self._iteration = state["epoch"], None
        self._begun = self._resuming = state["position"] is not None
        self._pending.extend(list(batch) for batch in state["pending"])
        self._is_counted = _asking_loader(sys._getframe(1)) is not None
        if self._resuming:
            self._return_to(state["position"])

    @abstractmethod
    def _begin(self) -> None:
        """Begin the epoch ``self.epoch``, with the draws that are made once for all of it."""

    @abstractmethod
    def _next(self) -> list[int]:
        """Draw the next global batch; empty at the end of the epoch."""

    def _has_no_more(self) -> bool:
        """Whether it is known that `_next` would return no batch."""
        return False

    @abstractmethod
    def _position(self) -> Any:
        """Return what `_next` changes, as plain data and tensors that later calls do not alter."""

    @abstractmethod
    def _return_to(self, position: Any) -> None:
        """Restore what `_position` returned."""

    @abstractmethod
    def _own_state(self) -> StateDict:
        """Return the other state: fixed for an epoch, or changed by training instead of drawing."""

    @abstractmethod
    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `_own_state` returned; refuse what does not fit before changing anything."""

    def _enter(self, epoch: int) -> None:
        """Go to the start of ``epoch`` out of turn; overridden where that can be done."""
        self._refuse_to_enter(epoch)

    def _refuse_to_enter(self, epoch: int) -> NoReturn:
        raise RuntimeError(
            f"epoch {epoch} cannot be entered after epoch {self.epoch}: what it draws depends on "
            "the training; load the state_dict of the interrupted run"
        )

    def _begin_next(self) -> None:
        """Begin the epoch after the present one; if that fails, ``epoch`` stays as it was."""
        self._forget_epoch()
        self.epoch += 1
        try:
            self._begin()
        except BaseException:
            self.epoch -= 1
            raise
        self._begun = True

    def _forget_epoch(self) -> None:
        """Leave the epoch as if all its batches were trained on."""
        self._begun = self._resuming = self._resumes_exactly = False
        self._given.clear()
        self._pending.clear()
        self._snapshots.clear()
        if self._iteration is None:
            self._loader = None

    def _draw(self) -> list[int]:
        """Return the next global batch, first those that a loaded state holds."""
        return self._pending.popleft() if self._pending else self._next()

    def _batch_of_loader(self) -> int:
        """Return the number that the loader gives to the batch which is drawn now."""
        if self._loader is None:
            return 0
        # only a loader with workers has "_send_idx": batches that it has asked them for
        number: int = self._loader.get("_send_idx", self._loader["_num_yielded"])
        return number

    def _is_handed_out(self, number: int) -> bool:
        """Whether the training loop has received the loader's batch of this number."""
        if self._loader is None:
            return True
        if "_task_info" in self._loader:  # with workers: batches asked of them, not yet given
            return number not in self._loader["_task_info"]
        return bool(number < self._loader["_num_yielded"])

    def _forget(self) -> None:
        """Drop batches received before the last ``_REMEMBERED``: no state needs them."""
        while len(self._given) > _REMEMBERED and all(
            self._is_handed_out(self._given[position][0]) for position in (0, _REMEMBERED)
        ):
            self._given.popleft()

    def _untrained(self, number: int) -> list[list[int]]:
        """Return the last ``number`` batches that the loop has received, and those it has not."""
        handed_out = [batch for n, batch in self._given if self._is_handed_out(n)]
        ahead = [batch for n, batch in self._given if not self._is_handed_out(n)]
        if not 0 <= number <= len(handed_out):
            raise ValueError(f"untrained must be from 0 to {len(handed_out)}, got {number}")
        if number and self._loader is not None and not self._loader.get("_in_order", True):
            raise ValueError("a loader with in_order=False hides which batches came last")
        return [*handed_out[len(handed_out) - number :], *ahead]

    def _open_snapshots(self) -> list[StateDict]:
        """Return the states given to a stateful loader that it may still save.

        They belong to the last batch that was handed out and to later ones. So what is learnt from
        training on these batches must be written into them as well.
        """
        while len(self._snapshots) > 1 and self._is_handed_out(self._snapshots[1][0]):
            self._snapshots.popleft()
        return [state for _, state in self._snapshots]

    def _is_over(self) -> bool:
        """Whether the next iteration begins an epoch, since the last was finished or abandoned.

        With persistent workers this is so as soon as the last batch has been handed out.
        """
        if self._resuming:
            return self._has_no_more() and not self._pending and not self._resumes_exactly
        if self._iteration is not None:
            return False
        loader = self._loader
        if loader is None or "_task_info" not in loader or loader.get("_shutdown", False):
            return True
        all_handed_out = not loader["_task_info"] and loader.get("_persistent_workers", False)
        return bool(all_handed_out) and not self._awaits_last()

    def _awaits_last(self) -> bool:
        """Whether it is known that the last batch is still being trained on."""
        return False

    def __getstate__(self) -> StateDict:
        # Neither a loader's iterator nor an iteration over it can be copied or pickled. A stand-in
        # keeps what matters: batch 0 stands for those received, batch 1 for the others.
        given = deque((int(not self._is_handed_out(n)), batch) for n, batch in self._given)
        stand_in: StateDict = {
            "_loader": {"_num_yielded": 1},
            "_iteration": None,
            "_snapshots": deque(),
        }
        return vars(self) | stand_in | {"_given": given}


class OrderedBatchSampler(EpochBatchSampler):
    """Base of samplers that draw the order of an epoch's examples when it begins.

    Args:
        num_examples: Number of examples N.
        batch_size: Batch size B of each rank.
        generator: Source of the orders, with equal seeds on all ranks.
        drop_last: Leave out an incomplete last batch.
        num_replicas: Number of processes that train together.
        rank: Number of this process, from 0.

    Raises:
        TypeError: If ``num_examples`` or ``batch_size`` is not a whole number, or ``generator`` is
            not a generator.
    """

    _fixed = ("num_examples", "batch_size", "drop_last", "num_replicas")

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        generator: torch.Generator,
        drop_last: bool = False,
        *,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(num_replicas, rank)
        self.num_examples = whole_number("num_examples", num_examples)
        self.batch_size, self.drop_last = whole_number("batch_size", batch_size), drop_last
        self.generator = source_of_randomness("generator", generator)
        self._first_state: Tensor | None = None  # the generator's, before the first epoch
        self._order = torch.empty(0, dtype=torch.int64, device="cpu")
        self._ends: list[int] = []  # where each batch ends in `_order`
        self._place = 0  # batches drawn in this epoch

    @abstractmethod
    def _draw_epoch(self) -> tuple[Tensor, Sequence[int]]:
        """Return the order of this epoch's examples, on the CPU, and its global batches' sizes."""

    def _permutation(self, count: int) -> Tensor:
        g = self.generator
        return torch.randperm(count, generator=g, device=g.device).cpu()

    def _begin(self) -> None:
        first = self.generator.get_state() if self._first_state is None else self._first_state
        self._order, sizes = self._draw_epoch()
        self._ends = list(itertools.accumulate(sizes))
        self._place = 0
        self._first_state = first

    def _next(self) -> list[int]:
        if self._has_no_more():
            return []
        start = self._ends[self._place - 1] if self._place else 0
        self._place += 1
        batch: list[int] = self._order[start : self._ends[self._place - 1]].tolist()
        return batch

    def _has_no_more(self) -> bool:
        return self._place == len(self._ends)

    def _position(self) -> Any:
        return self._place

    def _return_to(self, position: Any) -> None:
        self._place = position

    def _enter(self, epoch: int) -> None:
        if self._first_state is not None:
            self.generator.set_state(self._first_state)
        self.epoch = -1
        for _ in range(epoch):
            self._begin_next()
            self._pass_over()

    def _pass_over(self) -> None:
        """Repeat the draws that `_next` makes in an epoch; here it makes none."""

    def _own_state(self) -> StateDict:
        return {
            "generator": self.generator.get_state(),
            "first_generator": self._first_state,
            "order": self._order,  # never changed in place
            "ends": list(self._ends),
        }

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self._first_state = state["first_generator"]
        self._order, self._ends = state["order"], list(state["ends"])


def _asking_loader(frame: FrameType | None) -> Mapping[str, Any] | None:
    """Return the attributes of the loader's iterator that is asking, or None if none is.

    It is recognised among the callers of ``frame`` by private attributes of torch's loaders. They
    are kept instead of the iterator, so that it can be freed, which ends its workers.
    """
    for _ in range(_FRAMES):
        if frame is None:
            break
        caller = frame.f_locals.get("self")
        if hasattr(caller, "_next_index") and isinstance(
            getattr(caller, "_num_yielded", None), int
        ):
            return vars(caller)
        frame = frame.f_back
    return None
