r"""GraB: order the next epoch by balancing gradients, the order that has a theorem.

Chapter: notebooks/04_curriculum.ipynb
Reference: Lu, Guo, De Sa, "GraB: Finding provably better data permutations than random
reshuffling", NeurIPS 2022, arXiv 2205.10733.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["GraBSampler"]


class GraBSampler(Sampler[int]):
    r"""Order of units (examples or fixed batches), balanced from one epoch to the next.

    The gradient $g$ of a visited unit is centred by the mean gradient of the epoch before,
    $c = g - \bar g$, and gets the sign $+$ if $\|S + c\| \le \|S - c\|$ for the signed sum $S$ so
    far. In the next epoch units of sign $+$ come first in order, those of sign $-$ last in
    reverse. Memory: three vectors of the gradient's size, and one number a unit.

    Args:
        num_units: Number of units, at least 1.
        dim: Length of a gradient, at least 1.
        generator: Source of the first order.
        device: Where the sums are kept.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        num_units: int,
        dim: int,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(num_units, dim) < 1:
            raise ValueError(f"need at least 1, got {num_units=} and {dim=}")
        self.num_units = num_units
        g = generator
        self.order: list[int] = torch.randperm(num_units, generator=g, device=g.device).tolist()
        zeros = torch.zeros(dim, device=device)
        self._signed, self._sum, self._mean = zeros, zeros.clone(), zeros.clone()
        self._front: list[int] = []
        self._back: list[int] = []

    def __len__(self) -> int:
        return self.num_units

    def __iter__(self) -> Iterator[int]:  # an interrupted epoch goes on where it stands
        yield from self.order[len(self._front) + len(self._back) :]

    @torch.no_grad()
    def record(self, unit: int, gradient: Tensor) -> None:
        """Take in the gradient ``(dim,)`` of a unit, in the order of the epoch.

        Raises:
            ValueError: If the gradient has another shape, or a unit comes out of order.
        """
        place = len(self._front) + len(self._back)
        if gradient.shape != self._sum.shape or self.order[place] != unit:
            raise ValueError(
                f"expected the gradient {tuple(self._sum.shape)} of unit {self.order[place]}, got "
                f"{tuple(gradient.shape)} of unit {unit}"
            )
        dtype = torch.promote_types(self._sum.dtype, gradient.dtype)
        vectors = (self._signed, self._sum, self._mean)
        self._signed, self._sum, self._mean = (vector.to(dtype) for vector in vectors)
        self._sum += gradient
        centred = gradient - self._mean
        # |S + c| <= |S - c| says the same as <S, c> <= 0
        if float(self._signed @ centred) <= 0:
            self._signed += centred
            self._front.append(unit)
        else:
            self._signed -= centred
            self._back.append(unit)
        if place + 1 == self.num_units:
            self.order = self._front + self._back[::-1]
            self._mean = self._sum / self.num_units
            self._front, self._back = [], []
            self._sum, self._signed = torch.zeros_like(self._sum), torch.zeros_like(self._sum)

    def state_dict(self) -> dict[str, Any]:
        """Return the order, the sums, and what the running epoch has recorded."""
        vectors = {"signed": self._signed, "sum": self._sum, "mean": self._mean}
        units = {"order": self.order, "front": self._front, "back": self._back}
        return {k: v.clone() for k, v in vectors.items()} | {k: list(v) for k, v in units.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self._signed, self._sum = state["signed"].clone(), state["sum"].clone()
        self._mean, self.order = state["mean"].clone(), list(state["order"])
        self._front, self._back = list(state["front"]), list(state["back"])
