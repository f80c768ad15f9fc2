"""Batches in which no two items belong together, so that every other pair is a true negative.

Chapter: notebooks/01_vse_hard_negatives.ipynb
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["DistinctGroupBatchSampler"]


class DistinctGroupBatchSampler(Sampler[list[int]]):
    """Batches of distinct groups; each epoch visits every item once in a fresh random order.

    The items of a group stand side by side in a random order of groups and are dealt to the
    batches in turn. All batches have ``batch_size`` items or a few fewer, equal up to one.

    Args:
        groups: Group of each item, say its picture's number, shape ``(N,)``.
        batch_size: Largest size of a batch, at least 1.
        generator: Source of the orders.

    Raises:
        ValueError: If ``groups`` is empty or not one-dimensional, ``batch_size`` is below 1, or a
            group has more items than there are batches.

    Example:
        >>> sampler = DistinctGroupBatchSampler(
        ...     torch.tensor([0, 0, 1, 1, 2, 2]), 3, torch.Generator().manual_seed(0)
        ... )
        >>> [len({index // 2 for index in batch}) for batch in sampler]
        [3, 3]
    """

    def __init__(self, groups: Tensor, batch_size: int, generator: torch.Generator) -> None:
        if groups.ndim != 1 or len(groups) == 0 or batch_size < 1:
            raise ValueError(f"need groups (N,) and a batch, got {groups.shape}, {batch_size=}")
        self.num_batches = -(-len(groups) // batch_size)
        counts = torch.unique(groups, return_counts=True)[1]
        if int(counts.max()) > self.num_batches:
            raise ValueError(
                f"a group has {int(counts.max())} items, but there are only {self.num_batches} "
                f"batches: batch_size must be smaller than {batch_size}"
            )
        self.groups, self.generator = groups.cpu(), generator
        self._remaining: list[list[int]] = []
        self._resuming = False

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._remaining if self._resuming else []
        self._resuming = False
        if not batches:
            batches = self._draw()
        for number, batch in enumerate(batches):
            self._remaining = batches[number + 1 :]
            yield batch

    def _draw(self) -> list[list[int]]:
        g = self.generator
        size = len(self.groups)
        shuffled = torch.randperm(size, generator=g, device=g.device).cpu()
        kinds, inverse = torch.unique(self.groups[shuffled], return_inverse=True)
        places = torch.randperm(len(kinds), generator=g, device=g.device).cpu()
        order = shuffled[places[inverse].argsort(stable=True)]  # groups side by side
        turn = torch.randperm(self.num_batches, generator=g, device=g.device).tolist()
        return [order[start :: self.num_batches].tolist() for start in turn]

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state and the batches left of the epoch."""
        return {"generator": self.generator.get_state(), "remaining": list(self._remaining)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted epoch."""
        self.generator.set_state(state["generator"])
        self._remaining, self._resuming = list(state["remaining"]), True
