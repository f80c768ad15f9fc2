"""A sampler that draws from every cluster equally often, with weights that remove the bias.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020; the cycling follows the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainaug.batches import OrderedBatchSampler, batch_sizes, from_all_ranks
from trainaug.checks import indices as checked_indices
from trainaug.structures import StateDict

__all__ = ["StratifiedSampler"]


class StratifiedSampler(OrderedBatchSampler):
    r"""Batches that visit the clusters round by round, in random order, one example per visit.

    Within a cluster, examples are drawn without replacement, and reshuffled when it is exhausted.
    Every position of a batch is uniform over the M clusters that are not empty, so the mean of
    $w_ig_i$ with the ``weights`` $w_i=MN_{a_i}/N$ is an unbiased estimate of the mean gradient for
    any batch size. Its variance is that of the stratified estimator if the size is a multiple of M.
    Weights can be as large as $M\max_kN_k/N$; clipping the gradient then biases it.

    Until ``set_clusters`` is called, the order is that of random reshuffling and the weights are 1.
    An epoch has as many batches as under random reshuffling, the last one smaller unless
    ``drop_last``. With several ranks all this holds for the global batch.

    Args:
        num_examples: Number of examples, N.
        batch_size: Batch size of each rank, B, at least 1.
        generator: Source of the orders, with equal seeds on all ranks.
        drop_last: Leave out an incomplete last batch.
        num_replicas: Number of processes that train together.
        rank: Number of this process.

    Raises:
        ValueError: If there is no batch, too few examples to give each rank one in each batch, or
            the clusters do not fit the examples.

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
        *,
        drop_last: bool = False,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(
            num_examples, batch_size, generator, drop_last, num_replicas=num_replicas, rank=rank
        )
        self._sizes = batch_sizes(num_examples, batch_size, num_replicas, drop_last=drop_last)
        self._cluster_of: Tensor | None = None  # (N,) numbers 0 to M - 1
        self._starts_of_queues: list[int] = []  # of each cluster's part of `_queues`
        self._ends_of_queues: list[int] = []
        # Whether clusters were set after drawing began: earlier epochs can then not be drawn again.
        self._clustered_later = False
        self._leave_clusters()

    @property
    def num_clusters(self) -> int:
        """The number M of clusters that are not empty; 0 before the first clustering."""
        return len(self._ends_of_queues)

    def set_clusters(self, assign: Tensor) -> None:
        """Take a new partition; in the middle of an epoch it applies from the next batch on.

        With several ranks, call it on all of them after the same batch. If `torch.distributed` is
        initialised with ``num_replicas`` processes, all of them get the partition of rank 0.

        Args:
            assign: Label of each example, any integers, ``(N,)``.

        Raises:
            ValueError: If there are not N integers.
            RuntimeError: In the middle of an epoch, if a loader's workers have already fetched
                batches of the old partition, which would get weights of the new one.
        """
        if assign.shape != (self.num_examples,) or assign.is_floating_point():
            raise ValueError(
                f"assign must be {self.num_examples} integers, got {tuple(assign.shape)}, "
                f"{assign.dtype}"
            )
        ahead = 0 if self._is_over() else len(self._untrained(0)) + len(self._pending)
        if ahead:
            raise RuntimeError(
                f"{ahead} batches of the old clusters were fetched but are not yet trained on: set "
                "clusters between epochs, or use num_workers=0"
            )
        labels = assign.cpu().long()
        on_ranks = from_all_ranks(labels, self.num_replicas) if self.num_replicas > 1 else None
        self._partition(labels if on_ranks is None else on_ranks[0])
        self._clustered_later |= self._first_state is not None

    def weights(self, indices: Tensor) -> Tensor:
        """Return the weights $MN_{a_i}/N$ of some examples, or ones before the first clustering.

        They are float32, in the shape and on the device of ``indices``.

        Args:
            indices: Integers in [0, N), any shape.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If an index is not an integer or is out of range.
        """
        flat = indices.flatten() if isinstance(indices, Tensor) else indices  # refused below
        i = checked_indices(flat, self.num_examples).reshape(indices.shape)
        if self._cluster_of is None:
            return torch.ones(indices.shape, device=indices.device)
        return self._cluster_weights[self._cluster_of[i]].to(indices.device)

    def __len__(self) -> int:
        return len(self._sizes)

    def _partition(self, labels: Tensor) -> None:
        """Set the clusters, their weights and their members, and empty the queues."""
        kinds, self._cluster_of = torch.unique(labels, return_inverse=True)
        counts = torch.bincount(self._cluster_of, minlength=len(kinds))
        self._cluster_weights = len(kinds) * counts.float() / self.num_examples
        self._members = self._cluster_of.argsort(stable=True)  # examples, cluster by cluster
        self._starts_of_queues = (counts.cumsum(0) - counts).tolist()
        self._ends_of_queues = counts.cumsum(0).tolist()
        self._empty_queues()

    def _leave_clusters(self) -> None:
        self._cluster_of = None
        self._cluster_weights = self._members = torch.empty(0, device="cpu")
        self._starts_of_queues, self._ends_of_queues = [], []
        self._empty_queues()

    def _empty_queues(self) -> None:
        self._queues = self._members.tolist()  # each cluster's part is shuffled on the first visit
        self._next_of_queues = list(self._ends_of_queues)  # at its end a queue is empty
        self._round: list[int] = []  # clusters in the order of the present round
        self._turn = 0  # how many clusters of the round have been visited

    def _shuffled(self, count: int) -> list[int]:
        order: list[int] = self._permutation(count).tolist() if count > 1 else [0]
        return order

    def _refill(self, cluster: int) -> int:
        """Shuffle a cluster's part of the queues, and return where it starts."""
        start: int = self._starts_of_queues[cluster]
        end = self._ends_of_queues[cluster]
        if end - start > 1:
            order = self._permutation(end - start)
            self._queues[start:end] = self._members[start:end][order].tolist()
        return start

    def _draw_epoch(self) -> tuple[Tensor, list[int]]:
        if self.num_clusters:  # no order: the clusters are visited as the batches are drawn
            return torch.empty(0, dtype=torch.int64, device="cpu"), self._sizes
        return self._permutation(self.num_examples), self._sizes

    def _next(self) -> list[int]:
        """Draw the next global batch, an example from each cluster in the order of the rounds."""
        if not self.num_clusters or self._has_no_more():
            return super()._next()
        size = self._sizes[self._place]
        self._place += 1
        batch: list[int] = []
        while len(batch) < size:
            if self._turn == len(self._round):
                self._round, self._turn = self._shuffled(self.num_clusters), 0
            # The rest of the round, or as much of it as the batch still needs.
            visited = self._round[self._turn : self._turn + size - len(batch)]
            self._turn += len(visited)
            for cluster in visited:
                position = self._next_of_queues[cluster]
                if position == self._ends_of_queues[cluster]:
                    position = self._refill(cluster)
                self._next_of_queues[cluster] = position + 1
                batch.append(self._queues[position])
        return batch

    def _pass_over(self) -> None:
        while self.num_clusters and self._next():
            pass

    def _enter(self, epoch: int) -> None:
        if self._clustered_later:
            self._refuse_to_enter(epoch)
        self._empty_queues()
        super()._enter(epoch)

    def _own_state(self) -> StateDict:
        clusters = self._cluster_of
        return super()._own_state() | {
            "clusters": clusters,  # never changed in place
            "clustered_later": self._clustered_later,
            "queues": torch.tensor(self._queues, dtype=torch.int64, device="cpu"),
            "next_of_queues": list(self._next_of_queues),
            "round": list(self._round),
            "turn": self._turn,
        }

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        super()._load_own_state(state)
        if state["clusters"] is None:
            self._leave_clusters()
        else:
            self._partition(state["clusters"])
        self._clustered_later = state["clustered_later"]
        self._queues = state["queues"].tolist()
        self._next_of_queues = list(state["next_of_queues"])
        self._round = list(state["round"])
        self._turn = state["turn"]
