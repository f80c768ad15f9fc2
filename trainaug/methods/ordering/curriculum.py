r"""Curricula with a pacing function, which says what share of the sorted examples is in use.

Progress $\tau = t/T$ goes from 0 to 1, any other value is a ValueError; $b$ is the share at the
start, $a$ the progress from which all examples are in use.

Chapter: notebooks/04_curriculum.ipynb
Reference: Wu, Dyer, Neyshabur, "When do curricula work?", ICLR 2021, arXiv 2012.03107; Hacohen,
Weinshall, "On the power of curriculum learning", ICML 2019, arXiv 1904.03626.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trainaug.batches import EpochBatchSampler, batch_sizes
from trainaug.checks import source_of_randomness
from trainaug.structures import StateDict

__all__ = [
    "Order",
    "PacedSampler",
    "exponential_pacing",
    "linear_pacing",
    "root_pacing",
    "step_pacing",
]

Order = Literal["ascending", "descending", "random"]
_WHOLE = 1 << 13  # permuting so many examples costs less than a batch


def _checked(progress: float, a: float, b: float) -> None:
    """Raise a ValueError unless progress is in [0, 1], and a and b are in (0, 1]."""
    if not 0 <= progress <= 1:  # NaN is refused, too
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    if not (0 < a <= 1 and 0 < b <= 1):
        raise ValueError(f"a and b must be in (0, 1], got {a=} and {b=}")


def _size(share: float, count: int) -> int:
    """Return the size of a share of ``count`` examples, rounded up."""
    return math.ceil(share * count - 1e-9)  # 0.07 * 100 is above 7 by rounding alone


def linear_pacing(progress: float, *, a: float, b: float) -> float:
    r"""Return the share $\min(1, b + (1 - b)\tau/a)$.

    Linear pacing of Wu, Dyer, Neyshabur (2021).

    Args:
        progress: $\tau$, in [0, 1].
        a: Progress from which all examples are in use, in (0, 1].
        b: Share at the start, in (0, 1].

    Returns:
        A share in (0, 1] that never falls, and is 1 from ``a`` on.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> [linear_pacing(progress, a=0.5, b=0.5) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.5, 0.75, 1.0, 1.0]
    """
    return root_pacing(progress, a=a, b=b, q=1.0)


def root_pacing(progress: float, *, a: float, b: float, q: float = 2.0) -> float:
    r"""Return the share $\min(1, (b^q + (1 - b^q)\tau/a)^{1/q})$.

    With ``q=1`` it is `linear_pacing`; with a larger ``q`` the share grows fastest at first. This
    is the root family of Wu, Dyer, Neyshabur (2021), in the form that Platanios et al. (2019),
    arXiv 1903.09848, use for competence.

    Args:
        progress: $\tau$, in [0, 1].
        a: Progress from which all examples are in use, in (0, 1].
        b: Share at the start, in (0, 1].
        q: Degree of the root, positive and finite.

    Returns:
        A share in (0, 1] that never falls, and is 1 from ``a`` on.

    Raises:
        ValueError: If a number is out of range.
    """
    _checked(progress, a, b)
    if not 0 < q < math.inf:
        raise ValueError(f"q must be positive, got {q}")
    return min(1.0, (b**q + (1 - b**q) * progress / a) ** (1 / q)) if progress < a else 1.0


def step_pacing(progress: float, *, a: float, b: float) -> float:
    r"""Return the share $b$ while $\tau < a$, then 1.

    Step pacing of Wu, Dyer, Neyshabur (2021).

    Args:
        progress: $\tau$, in [0, 1].
        a: Progress from which all examples are in use, in (0, 1].
        b: Share before that, in (0, 1].

    Returns:
        A share in (0, 1]: ``b`` or 1.

    Raises:
        ValueError: If a number is out of range.
    """
    _checked(progress, a, b)
    return b if progress < a else 1.0


def exponential_pacing(progress: float, *, b: float, c: float, every: float) -> float:
    r"""Return the share $\min(1, b\,c^{\lfloor\tau/\Delta\rfloor})$.

    It follows the fixed exponential pacing of Hacohen, Weinshall (2019). `PacedSampler` accepts it
    only if it reaches 1 at progress 1.

    Args:
        progress: $\tau$, in [0, 1].
        b: Share at the start, in (0, 1].
        c: Factor by which the share grows at each step, above 1 and finite.
        every: $\Delta$, the progress between two steps, in (0, 1].

    Returns:
        A share in (0, 1] that never falls.

    Raises:
        ValueError: If a number is out of range.
    """
    _checked(progress, every, b)
    if not 1 < c < math.inf:
        raise ValueError(f"c must be above 1, got {c}")
    return min(1.0, b * c ** math.floor(progress / every + 1e-9))


class PacedSampler(EpochBatchSampler):
    """Batches drawn from a growing pool: the first examples of a list sorted by difficulty.

    While the pool stays the same, all its examples are used, in random order, before any comes
    again; when it grows, a new pass begins. With ``pacing`` always 1 this is random reshuffling.
    One iteration, and so one epoch, is a whole run of ``num_steps`` batches.

    Args:
        scores: Difficulty of each example, ``(n,)``; equal ones keep the order of their indices.
        batch_size: Examples in a batch of each rank; fewer at the end of a pass.
        generator: Source of all draws, with equal seeds on all ranks.
        pacing: Maps progress in [0, 1] to a share in (0, 1]; it never falls, and is 1 at 1.
        num_steps: Number of batches; runs of different pacing are comparable at equal steps.
        order: ``ascending``: easiest first. ``descending``: the exact reverse. ``random``: a
            random list with the same pacing, the control of every curriculum.
        num_replicas: Number of processes that train together; each takes its share of every global
            batch, so ``num_steps`` is the same for all. With ``batch_size=1`` the end of a pass is
            left out if it is too small to share.
        rank: Number of this process.

    Raises:
        ValueError: If the scores are not finite or not ``(n,)``, the pacing breaks its rules, or
            the first pool is smaller than a batch of all ranks.
        TypeError: If the generator is not a ``torch.Generator``.
    """

    _fixed = ("num_examples", "batch_size", "num_steps", "num_replicas")

    def __init__(
        self,
        scores: Tensor,
        batch_size: int,
        generator: torch.Generator,
        *,
        pacing: Callable[[float], float],
        num_steps: int,
        order: Order = "ascending",
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(num_replicas, rank)
        if scores.ndim != 1 or not bool(scores.isfinite().all()):
            raise ValueError(f"scores must be finite and (n,), got shape {tuple(scores.shape)}")
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
        if num_steps < 1 or batch_size < 1:
            raise ValueError(f"need >= 1, got {num_steps=} and {batch_size=}")
        shares = [pacing(i / 1000) for i in range(1001)]
        rising = all(low <= high for low, high in itertools.pairwise(shares))
        if not (shares[0] > 0 and shares[-1] == 1 and rising):
            raise ValueError(
                f"pacing must rise from above 0 to 1, got {shares[0]} at 0, {shares[-1]} at 1, "
                f"{'never' if rising else 'sometimes'} falling"
            )
        least = batch_size * num_replicas
        if _size(shares[0], len(scores)) < least:
            raise ValueError(f"the first pool, {shares[0]} of {len(scores)}, is below {least}")
        self.pacing, self.num_steps, self.batch_size = pacing, num_steps, batch_size
        self.num_examples = len(scores)
        self.generator = source_of_randomness("generator", generator)
        ranked = scores.cpu().argsort(stable=True)
        if order == "descending":
            ranked = ranked.flip(0)
        elif order == "random":
            ranked = torch.randperm(len(scores), generator=generator, device=generator.device).cpu()
        self._ranked = ranked
        self._first_state = generator.get_state()
        self._go_to(0, 0, 0, torch.empty(0, dtype=torch.int64, device="cpu"))

    def __len__(self) -> int:
        return self.num_steps

    @property
    def ranked(self) -> list[int]:
        """All examples in the order in which they come into use."""
        ranked: list[int] = self._ranked.tolist()
        return ranked

    def pool_size(self, step: int) -> int:
        """Return how many examples are in use at a step, $\\lceil p(t/T)\\,n\\rceil$.

        Args:
            step: t, from 0 to ``num_steps``, which is T.

        Returns:
            The size of the pool, from 1 to n.
        """
        return _size(self.pacing(step / self.num_steps), len(self._ranked))

    def _go_to(self, step: int, pool: int, number: int, places: Tensor) -> None:
        """Go to a step: the pass over ``pool`` examples has given ``number`` batches.

        ``places`` are positions in the ranked list, in the order of this pass. The names of the
        arguments are the keys of the state.
        """
        self._step, self._pool, self._number, self._places = step, pool, number, places
        self._sizes: list[int] = []  # sizes of all batches of the pass
        if pool:
            drop_last = self.num_replicas > 1 and self.batch_size == 1
            self._sizes = batch_sizes(pool, self.batch_size, self.num_replicas, drop_last=drop_last)
        self._given_places = sum(self._sizes[:number])

    def _begin(self) -> None:
        self._go_to(0, 0, 0, self._places[:0])

    def _has_no_more(self) -> bool:
        return self._step == self.num_steps

    def _next(self) -> list[int]:
        """Draw the next global batch; begin a new pass if the pool has grown or is used up."""
        if self._has_no_more():
            return []
        size = self.pool_size(self._step)
        if size != self._pool or self._number == len(self._sizes):
            self._go_to(self._step, size, 0, self._drawn(size))
        start = self._given_places
        end = start + self._sizes[self._number]
        self._step += 1
        self._number += 1
        self._given_places = end
        batch: list[int] = self._ranked[self._places[start:end]].tolist()
        return batch

    def _drawn(self, size: int) -> Tensor:
        """Return a random order of a pool; of a large pool only what the steps to come will use."""
        g = self.generator
        if size > _WHOLE:
            global_size = self.batch_size * self.num_replicas
            # Count what is used before the pool grows, up to a quarter of it.
            last, used = self._step, 0
            while last < self.num_steps and self.pool_size(last) == size and 4 * used < size:
                last, used = last + 1, used + global_size
            if 4 * used < size:
                drawn: dict[int, None] = {}  # distinct, in the order of drawing
                while len(drawn) < used:
                    numbers = torch.randint(size, (2 * used,), generator=g, device=g.device)
                    drawn |= dict.fromkeys(numbers.tolist())
                return torch.tensor(list(drawn)[:used], dtype=torch.int64, device="cpu")
        return torch.randperm(size, generator=g, device=g.device).cpu()

    def _position(self) -> Any:
        state = {"step": self._step, "pool": self._pool, "number": self._number}
        return state | {"places": self._places}  # never changed in place

    def _return_to(self, position: Any) -> None:
        self._go_to(**position)

    def _enter(self, epoch: int) -> None:
        self.generator.set_state(self._first_state)
        self.epoch = -1
        for _ in range(epoch):
            self._begin_next()
            while self._next():
                pass

    def _own_state(self) -> StateDict:
        return {
            "ranked": self._ranked,
            "generator": self.generator.get_state(),
            "first_generator": self._first_state,
        }

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._ranked, self._first_state = state["ranked"], state["first_generator"]
        self.generator.set_state(state["generator"])
