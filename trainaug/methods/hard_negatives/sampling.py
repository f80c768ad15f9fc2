"""Batches in which no two items belong together, so that every other pair is a true negative.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri et al., VSE++, BMVC 2018, whose batches may hold two captions of one picture while
its losses leave out the diagonal alone; batches of distinct groups in their stead are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainaug.batches import OrderedBatchSampler
from trainaug.structures import StateDict

__all__ = ["DistinctGroupBatchSampler"]


class DistinctGroupBatchSampler(OrderedBatchSampler):
    """Batches of distinct groups; each epoch visits every item once in a fresh random order.

    The groups are put in random order, with the items of each next to each other, and the items are
    dealt to the batches in turn. Batches have ``batch_size`` items or a few fewer; their sizes
    differ by at most one. With several ranks all this holds for the global batch, so that gathered
    embeddings are of distinct groups, too.

    Args:
        groups: Group of each item, say its picture's number, an integer type, shape ``(N,)``.
        batch_size: Largest size of a batch, at least 1, of each rank.
        generator: Source of the orders, with equal seeds on all ranks.
        num_replicas: Number of processes that train together.
        rank: Number of this process, from 0.

    Raises:
        ValueError: If ``groups`` is empty, not one-dimensional or not of integers, ``batch_size``
            is below 1, a group has more items than there are batches, or a rank would get an
            empty batch; when a state is loaded, if it belongs to other groups.

    Example:
        >>> sampler = DistinctGroupBatchSampler(
        ...     torch.tensor([0, 0, 1, 1, 2, 2]), 3, torch.Generator().manual_seed(0)
        ... )
        >>> [len({index // 2 for index in batch}) for batch in sampler]
        [3, 3]
    """

    def __init__(
        self,
        groups: Tensor,
        batch_size: int,
        generator: torch.Generator,
        *,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if groups.ndim != 1 or len(groups) == 0 or batch_size < 1:
            raise ValueError(f"need groups (N,) and a batch, got {groups.shape}, {batch_size=}")
        if groups.is_floating_point() or groups.is_complex():
            raise ValueError(f"groups must be numbers of an integer type, got {groups.dtype}")
        super().__init__(len(groups), batch_size, generator, num_replicas=num_replicas, rank=rank)
        self.num_batches = -(-len(groups) // (batch_size * num_replicas))  # rounded up
        self.groups = groups.cpu()
        kinds, self._kind_of, counts = torch.unique(
            self.groups.long(), return_inverse=True, return_counts=True
        )
        self._num_kinds = len(kinds)
        if int(counts.max()) > self.num_batches:
            raise ValueError(
                f"a group has {int(counts.max())} items, but there are only {self.num_batches} "
                f"batches: batch_size must be smaller than {batch_size}"
            )
        if len(groups) // self.num_batches < num_replicas:
            raise ValueError(
                f"{len(groups)} items in {self.num_batches} batches do not give each of "
                f"{num_replicas} ranks one: set another batch_size than {batch_size}"
            )

    def __len__(self) -> int:
        return self.num_batches

    def _draw_epoch(self) -> tuple[Tensor, list[int]]:
        """Draw the order of the items, batch by batch, and return it with the batches' sizes."""
        shuffled = self._permutation(self.num_examples)
        group_ranks = self._permutation(self._num_kinds)
        # sorted by the ranks of their groups, the items of a group are next to each other
        order = shuffled[group_ranks[self._kind_of[shuffled]].argsort(stable=True)]
        starts = self._permutation(self.num_batches).tolist()
        batches = [order[start :: self.num_batches] for start in starts]
        return torch.cat(batches), [len(batch) for batch in batches]

    def _own_state(self) -> StateDict:
        return super()._own_state() | {"kinds": self._kind_of}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        if not torch.equal(state["kinds"], self._kind_of):
            raise ValueError("state of other groups than those of this sampler")
        super()._load_own_state(state)
