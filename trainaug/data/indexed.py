"""A data set of two tensors that returns ``(x, y, index)`` for one item or for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["IndexedDataset"]


class IndexedDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Inputs and targets returned with their index, so that samplers can learn from losses.

    ``dataset[indices]`` reads a whole batch at once. With a loader, give the batch sampler as
    sampler: ``DataLoader(dataset, sampler=batch_sampler, batch_size=None)``. The ordinary
    ``DataLoader(dataset, batch_sampler=batch_sampler)`` gives the same batches more slowly. Even if
    the loader has workers, the ``state_dict()`` of a batch sampler of this library is the state
    after the last batch that the training loop received. If the loop fetches n batches ahead of its
    training, as Accelerate does with n = 1, call ``state_dict(untrained=n)``.

    Args:
        x: Inputs, shape ``(N, ...)``.
        y: Targets, shape ``(N, ...)``, on the same device.

    Raises:
        ValueError: If the lengths differ or a tensor has no first dimension.

    Example:
        >>> dataset = IndexedDataset(torch.tensor([10.0, 20.0, 30.0]), torch.tensor([0, 1, 0]))
        >>> dataset[[2, 0]]
        (tensor([30., 10.]), tensor([0, 0]), tensor([2, 0]))
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise ValueError(f"x and y must be of one length, got {x.shape} and {y.shape}")
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> IndexedDataset:
        """Return the same data set with its tensors on a device.

        Args:
            device: Device to move to; what is there already is not copied.
        """
        return IndexedDataset(self.x.to(device), self.y.to(device))

    def __getitem__(self, index: int | Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the items at an index or at a batch of indices.

        Args:
            index: An integer, or a list or tensor of any integer type, shape ``(B,)``; negative
                ones count from the end.

        Returns:
            ``x``, ``y`` and the non-negative int64 index, each with a leading ``B`` for a batch.

        Raises:
            IndexError: If an index is out of range.
            TypeError: If indices are not integers.
        """
        if type(index) is list and index and type(index[0]) is int:  # six times as fast
            rows = torch.from_numpy(np.array(index)).to(self.x.device)  # (B,)
            low, high = min(index), max(index)
        else:
            rows = torch.as_tensor(index, device=self.x.device)  # () or (B,)
            low, high = 0, -1  # not known yet
        if rows.dtype != torch.int64:
            if rows.numel() and (rows.dtype == torch.bool or rows.is_floating_point()):
                raise TypeError(f"indices must be integers, got {rows.dtype}")
            rows = rows.long()  # in int8 the sum with the length may wrap round
        if high < low and rows.numel():
            low, high = int(rows.min()), int(rows.max())
        count = self.x.shape[0]
        if low < -count or high >= count:
            raise IndexError(f"index out of range for {count} items: {index}")
        if low < 0 or not isinstance(index, list):  # a copy: a tensor shares the caller's memory
            rows = torch.where(rows < 0, rows + count, rows)
        return self.x[rows], self.y[rows], rows
