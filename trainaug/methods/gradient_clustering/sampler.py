"""Draw from every cluster equally often, with weights that keep the mean gradient unbiased.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020; the cycling follows the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["StratifiedSampler"]


class StratifiedSampler(Sampler[list[int]]):
    r"""Batches that go round the clusters in random order, one example from each.

    Within a cluster examples come without replacement, reshuffled when it is exhausted. Every place
    in a batch is uniform over the M clusters that are not empty, so the mean of
    $w_ig_i$ with ``weights`` $w_i=MN_{a_i}/N$ has the full mean gradient as expectation, for any
    batch size; its variance is that of the stratified estimator where the size is a multiple of M.
    Weights reach $M\max_kN_k/N$: clipping the gradient then biases it.

    Until ``set_clusters`` the order is that of random reshuffling, the weights are one. An epoch
    has as many batches as random reshuffling, the last one smaller unless ``drop_last``.

    Args:
        num_examples: N.
        batch_size: B, at least 1.
        generator: Source of the orders.
        drop_last: Leave out an incomplete last batch.

    Raises:
        ValueError: If there is no batch, or the clusters do not fit the examples.

    Example:
        >>> sampler = StratifiedSampler(6, 2, torch.Generator().manual_seed(0))
        >>> sampler.set_clusters(torch.tensor([0, 0, 0, 0, 0, 7]))
        >>> [5 in batch for batch in sampler]
        [True, True, True]
        >>> sampler.weights(torch.tensor([0, 5]))
        tensor([1.6667, 0.3333])
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        generator: torch.Generator,
        drop_last: bool = False,
    ) -> None:
        if min(num_examples, batch_size) < 1 or (drop_last and batch_size > num_examples):
            raise ValueError(f"no batch: {num_examples=}, {batch_size=}, {drop_last=}")
        self.num_examples, self.batch_size = num_examples, batch_size
        self.generator, self.drop_last = generator, drop_last
        self._cluster_of: Tensor | None = None  # (N,) numbers 0 to M - 1
        self._members: list[list[int]] = []
        self._queues: list[list[int]] = []  # what is left of each cluster
        self._round: list[int] = []  # clusters left of the present round
        self._order: list[int] = []  # what is left of the epoch, without clusters
        self._batches_left = 0
        self._resuming = False

    @property
    def num_clusters(self) -> int:
        """M, the clusters that are not empty; 0 before the first clustering."""
        return len(self._members)

    def set_clusters(self, assign: Tensor) -> None:
        """Take a new partition; in mid-epoch it holds from the next batch on.

        Args:
            assign: Label of each example, any integers, ``(N,)``.
        """
        if assign.shape != (self.num_examples,) or assign.is_floating_point():
            raise ValueError(
                f"assign must be {self.num_examples} integers, got {tuple(assign.shape)}, "
                f"{assign.dtype}"
            )
        labels, numbers = torch.unique(assign.cpu(), return_inverse=True)
        self._cluster_of = numbers
        order = numbers.argsort(stable=True)
        sizes = torch.bincount(numbers, minlength=len(labels))
        self._members = [part.tolist() for part in order.split(sizes.tolist())]
        self._queues = [[] for _ in self._members]
        self._round = []
        self._order = []

    def weights(self, index: Tensor) -> Tensor:
        """Return the weights $MN_{a_i}/N$ of examples ``(B,)``, float32 on their device."""
        if self._cluster_of is None:
            return torch.ones(index.shape, device=index.device)
        sizes = torch.bincount(self._cluster_of).float()
        values = (len(sizes) * sizes / self.num_examples)[self._cluster_of[index.cpu()]]
        return values.to(index.device)

    def __len__(self) -> int:
        rounding = 0 if self.drop_last else self.batch_size - 1
        return (self.num_examples + rounding) // self.batch_size

    def _permuted(self, values: list[int]) -> list[int]:
        g = self.generator
        return [
            values[i] for i in torch.randperm(len(values), generator=g, device=g.device).tolist()
        ]

    def _next(self) -> int:
        if not self._members:
            return self._order.pop(0)
        if not self._round:
            self._round = self._permuted(list(range(len(self._members))))
        cluster = self._round.pop(0)
        if not self._queues[cluster]:
            self._queues[cluster] = self._permuted(self._members[cluster])
        return self._queues[cluster].pop(0)

    def __iter__(self) -> Iterator[list[int]]:
        if not self._resuming or self._batches_left == 0:
            self._batches_left = len(self)
            if not self._members:
                self._order = self._permuted(list(range(self.num_examples)))
        self._resuming = False
        while self._batches_left > 0:
            last = self._batches_left == 1 and not self.drop_last
            size = (self.num_examples - 1) % self.batch_size + 1 if last else self.batch_size
            batch = [self._next() for _ in range(size)]
            self._batches_left -= 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the partition, what is left of clusters, round and epoch, and the generator."""
        clusters = self._cluster_of
        return {
            "clusters": None if clusters is None else clusters.clone(),
            "queues": [list(queue) for queue in self._queues],
            "round": list(self._round),
            "order": list(self._order),
            "batches_left": self._batches_left,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted epoch."""
        if state["clusters"] is None:
            self._cluster_of, self._members = None, []
        else:
            self.set_clusters(state["clusters"])
        self._queues = [list(queue) for queue in state["queues"]]
        self._round, self._order = list(state["round"]), list(state["order"])
        self._batches_left, self._resuming = state["batches_left"], True
        self.generator.set_state(state["generator"])
