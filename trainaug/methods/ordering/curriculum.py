r"""Curricula with a pacing function: which share of the sorted examples is in use when.

Progress $\tau = t/T$ goes from 0 to 1, and another is a ValueError; $b$ is the share at the start,
$a$ the progress at which all examples are in use.

Chapter: notebooks/04_curriculum.ipynb
Reference: Wu, Dyer, Neyshabur, "When do curricula work?", ICLR 2021, arXiv 2012.03107; Hacohen,
Weinshall, "On the power of curriculum learning", ICML 2019, arXiv 1904.03626.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = [
    "Order",
    "PacedSampler",
    "exponential_pacing",
    "linear_pacing",
    "root_pacing",
    "step_pacing",
]

Order = Literal["ascending", "descending", "random"]


def _checked(progress: float, a: float, b: float) -> None:
    if not 0 <= progress <= 1:  # NaN is refused, too
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    if not (0 < a <= 1 and 0 < b <= 1):
        raise ValueError(f"a and b must be in (0, 1], got {a=} and {b=}")


def _size(share: float, count: int) -> int:
    return math.ceil(share * count - 1e-9)  # 0.07 * 100 is above 7 by rounding alone


def linear_pacing(progress: float, *, a: float, b: float) -> float:
    r"""Share $\min(1, b + (1 - b)\tau/a)$.

    Example:
        >>> [linear_pacing(progress, a=0.5, b=0.5) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.5, 0.75, 1.0, 1.0]
    """
    return root_pacing(progress, a=a, b=b, q=1.0)


def root_pacing(progress: float, *, a: float, b: float, q: float = 2.0) -> float:
    r"""Share $\min(1, (b^q + (1 - b^q)\tau/a)^{1/q})$ with $q > 0$."""
    _checked(progress, a, b)
    if not 0 < q < math.inf:
        raise ValueError(f"q must be positive, got {q}")
    return min(1.0, (b**q + (1 - b**q) * progress / a) ** (1 / q)) if progress < a else 1.0


def step_pacing(progress: float, *, a: float, b: float) -> float:
    r"""Share $b$ while $\tau < a$, then 1."""
    _checked(progress, a, b)
    return b if progress < a else 1.0


def exponential_pacing(progress: float, *, b: float, c: float, every: float) -> float:
    r"""Share $\min(1, b\,c^{\lfloor\tau/\Delta\rfloor})$ with $c > 1$, grown ``every`` $\Delta$."""
    _checked(progress, every, b)
    if not 1 < c < math.inf:
        raise ValueError(f"c must be above 1, got {c}")
    return min(1.0, b * c ** math.floor(progress / every + 1e-9))


class PacedSampler(Sampler[list[int]]):
    """Batches drawn from the first examples of a sorted list, ever more of them.

    While the pool stays the same it is used up in a random order before any example comes again;
    when it grows a new pass begins. With ``pacing`` always 1 this is random reshuffling.

    Args:
        scores: Difficulty of each example, ``(n,)``; equal ones keep the order of their indices.
        pacing: Maps progress in [0, 1] to a share in (0, 1]; never falls, and is 1 at 1.
        num_steps: Batches to give; runs of different pacing are comparable at equal steps.
        batch_size: Examples in a batch, fewer at the end of a pass.
        order: ``ascending``: easiest first. ``descending``: the exact reverse. ``random``: a
            random list with the same pacing, the control without which no curriculum is judged.
        generator: Source of all draws.

    Raises:
        ValueError: If the scores are not finite or not ``(n,)``, the pacing breaks its rules, or
            the first pool is smaller than a batch.
    """

    def __init__(
        self,
        scores: Tensor,
        pacing: Callable[[float], float],
        num_steps: int,
        batch_size: int,
        *,
        order: Order = "ascending",
        generator: torch.Generator,
    ) -> None:
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
        if _size(shares[0], len(scores)) < batch_size:
            raise ValueError(f"the first pool, {shares[0]} of {len(scores)}, is below {batch_size}")
        self.pacing, self.num_steps, self.batch_size = pacing, num_steps, batch_size
        self.generator = generator
        ranked = scores.cpu().argsort(stable=True)
        if order == "descending":
            ranked = ranked.flip(0)
        elif order == "random":
            ranked = torch.randperm(len(scores), generator=generator, device=generator.device).cpu()
        self.ranked: list[int] = ranked.tolist()
        self._step, self._pool = 0, 0
        self._queue: list[int] = []
        self._resuming = False

    def __len__(self) -> int:
        return self.num_steps

    def pool_size(self, step: int) -> int:
        """Examples in use at a step: $\\lceil p(t/T)\\,n\\rceil$."""
        return _size(self.pacing(step / self.num_steps), len(self.ranked))

    def __iter__(self) -> Iterator[list[int]]:
        if not self._resuming:
            self._step, self._pool, self._queue = 0, 0, []
        self._resuming = False
        g = self.generator
        while self._step < self.num_steps:
            size = self.pool_size(self._step)
            if size != self._pool or not self._queue:
                places = torch.randperm(size, generator=g, device=g.device).tolist()
                self._pool, self._queue = size, [self.ranked[place] for place in places]
            batch, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
            self._step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, the list, and where the run stands."""
        return {
            "generator": self.generator.get_state(),
            "ranked": list(self.ranked),
            "step": self._step,
            "pool": self._pool,
            "queue": list(self._queue),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.generator.set_state(state["generator"])
        self.ranked, self._queue = list(state["ranked"]), list(state["queue"])
        self._step, self._pool, self._resuming = state["step"], state["pool"], True
