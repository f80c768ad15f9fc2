"""What every batch sampler shares: the epoch, the share of a rank, and resuming where training is.

A loader with workers asks its sampler for batches long before they are trained on. So a sampler
notes where it stood after each batch, and learns from the loader's iterator which of them have been
handed to the training loop: that, and not what the sampler has given away, is its state.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from torch.utils.data import Sampler

__all__ = ["EpochBatchSampler", "batch_sizes", "check_ranks"]

_FRAMES = 12  # between a sampler and the loader that asks it: wrappers of samplers add one each
_REMEMBERED = 64  # batches that were trained on, for `untrained`


def check_ranks(num_replicas: int, rank: int) -> None:
    """Raise a ValueError unless ``rank`` is one of ``num_replicas`` processes."""
    if num_replicas < 1 or not 0 <= rank < num_replicas:
        raise ValueError(f"need 0 <= rank < num_replicas, got {rank=}, {num_replicas=}")


def batch_sizes(
    num_examples: int, batch_size: int, num_replicas: int = 1, *, drop_last: bool = False
) -> list[int]:
    """Sizes of an epoch's global batches, of which each rank gets an equal share up to one.

    All have ``batch_size * num_replicas`` examples but the last. Where that would leave a rank
    without an example, the last two share their examples evenly.

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


class EpochBatchSampler(Sampler[list[int]]):
    """Base of samplers that give an epoch in batches, one iteration an epoch.

    A subclass says how an epoch begins (`_begin`), what the next global batch is (`_next`), what
    `_next` changes (`_position`, `_return_to`) and what else is its state (`_own_state`,
    `_load_own_state`); here are epochs, ranks, workers and resuming.

    Args:
        num_replicas: Processes that train together; global batches have so many times
            ``batch_size`` examples, drawn alike in all of them from generators of equal seeds.
        rank: This process; it gets every ``num_replicas``-th example of a global batch.

    Attributes:
        epoch: Number of the epoch begun last, from 0; -1 before the first.
    """

    def __init__(self, num_replicas: int = 1, rank: int = 0) -> None:
        check_ranks(num_replicas, rank)
        self.num_replicas, self.rank = num_replicas, rank
        self.epoch = -1
        self._resuming = False
        self._start: Any = None  # position at the start of the iteration
        self._given: deque[tuple[int, Any]] = deque()  # batch of the loader, position after it
        self._loader: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        self._loader = _asking_loader(sys._getframe(1))
        self._given.clear()
        resumed, self._resuming = self._resuming, False
        if not resumed:
            self._begin_next()
        self._start = self._position()
        batch = self._next()
        if resumed and not batch:  # the interrupted epoch was over
            self._begin_next()
            self._start = self._position()
            batch = self._next()
        while batch:
            self._given.append((self._batch_of_loader(), self._position()))
            self._forget()
            yield batch[self.rank :: self.num_replicas] if self.num_replicas > 1 else batch
            batch = self._next()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; it draws what it would in a run from the start.

        The next epoch in turn, or an interrupted one, simply goes on. Any other is entered by
        drawing again, from the first, what the epochs before it draw.

        Raises:
            ValueError: If ``epoch`` is negative.
            RuntimeError: If the epochs before it depended on the training, and no `state_dict` of
                them was loaded.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        if epoch == self.epoch and self._resuming:
            return
        self._resuming = False
        if epoch != self.epoch + 1:
            self._enter(epoch)

    def state_dict(self, *, untrained: int = 0) -> dict[str, Any]:
        """Return all that decides what comes next, as of the last batch that was trained on.

        A batch counts as trained on when the training loop has got it, however many its loader's
        workers have fetched in advance.

        Args:
            untrained: Batches that the loop got but has not trained on, say 1 where a library asks
                the loader for the next batch before it trains on the present one.

        Raises:
            ValueError: If there are not so many, or the loader does not keep the order of batches.
        """
        if _asking_loader(sys._getframe(1)) is not None:  # it counts what it has fetched itself
            position = self._position() if self.epoch >= 0 else None
        else:
            position = self._present(untrained)
        own = self._own_state()
        return {"epoch": self.epoch, "position": position, **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted epoch."""
        self._load_own_state(state)
        self.epoch = state["epoch"]
        self._given.clear()
        self._loader, self._start = None, state["position"]
        self._resuming = state["position"] is not None
        if self._resuming:
            self._return_to(state["position"])

    def _begin(self) -> None:
        """Draw what is drawn when the epoch ``self.epoch`` begins."""
        raise NotImplementedError

    def _next(self) -> list[int]:
        """Draw the next global batch; empty at the end of the epoch."""
        raise NotImplementedError

    def _position(self) -> Any:
        """What `_next` changes: cheap, safe from later changes, plain data and tensors."""
        raise NotImplementedError

    def _return_to(self, position: Any) -> None:
        """Take back a position."""
        raise NotImplementedError

    def _own_state(self) -> dict[str, Any]:
        """What stays the same during an epoch, or follows the training rather than the loader."""
        raise NotImplementedError

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `_own_state` gave."""
        raise NotImplementedError

    def _enter(self, epoch: int) -> None:
        """Go to the place where ``epoch`` begins, out of turn."""
        raise RuntimeError(
            f"epoch {epoch} cannot be entered: what came before it depends on the training; load "
            "the state_dict of the interrupted run"
        )

    def _begin_next(self) -> None:
        self.epoch += 1
        self._begin()

    def _batch_of_loader(self) -> int:
        """Number of the loader's batch for which a batch is drawn now."""
        if self._loader is None:
            return 0
        number: int = self._loader.get("_send_idx", self._loader["_num_yielded"])
        return number

    def _trained(self) -> int:
        """Of the batches remembered, how many the training loop has got."""
        if self._loader is None:
            return len(self._given)
        handed_out = self._loader.get("_rcvd_idx", self._loader["_num_yielded"])
        return sum(number < handed_out for number, _ in self._given)

    def _forget(self) -> None:
        """Keep the positions that a state may still need."""
        remembered = len(self._given) if self._loader is None else self._trained()
        for _ in range(remembered - _REMEMBERED):
            self._start = self._given.popleft()[1]

    def _present(self, untrained: int = 0) -> Any:
        """Position after the last batch that was trained on; None before the first epoch."""
        if self._loader is not None and not self._loader.get("_in_order", True):
            raise ValueError("a loader with in_order=False hides which batches were trained on")
        trained = self._trained() - untrained
        if untrained < 0 or trained < 0:
            raise ValueError(f"untrained must be from 0 to {self._trained()}, got {untrained}")
        return self._given[trained - 1][1] if trained else self._start

    def __getstate__(self) -> dict[str, Any]:
        # A loader's iterator can be neither copied nor sent to another process.
        return vars(self) | {"_loader": None}


def _asking_loader(frame: FrameType | None) -> Mapping[str, Any] | None:
    """Attributes of the loader's iterator that is asking, if one is.

    They outlive the iterator: no reference to itself is kept, so that its workers end with it.
    """
    for _ in range(_FRAMES):
        if frame is None:
            break
        asking = frame.f_locals.get("self")
        if hasattr(asking, "_num_yielded") and hasattr(asking, "_next_index"):
            return vars(asking)
        frame = frame.f_back
    return None
