"""The state that a mixer shares with its copies in the workers of a loader.

Chapter: notebooks/05_cascading_sum.ipynb
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainaug.structures import StateDict

__all__ = ["SharedCount"]

LARGEST = 256  # weights that fit; workers cannot see memory that is allocated later


class SharedCount:
    """K and the fixed weights of a mix, in memory that the processes of a loader share.

    Forked and spawned workers read what the main process writes. A deep copy, like one loaded from
    a file, has memory of its own.

    Args:
        k: Samples in a mix.
    """

    def __init__(self, k: int) -> None:
        with torch.inference_mode(False):
            numbers = torch.zeros(3, 2 + LARGEST, dtype=torch.float64, device="cpu")
        self._open(numbers)
        self.write(k, None)

    def _open(self, numbers: Tensor) -> None:
        """Share ``numbers`` with other processes and keep views of its parts."""
        # Rows 0 and 1 hold K, the number of weights and the weights; row 2 counts the writes. A
        # write fills the row that is not being read, and its count then makes readers turn to it.
        self._numbers = numbers.share_memory_()  # type: ignore[no-untyped-call]
        *self._rows, last = self._numbers.unbind()
        self._turn = last[0]
        # K is read for every batch, and one call to torch takes longer than the rest of a read.
        self._seen = memoryview(self._numbers.numpy())

    def write(self, k: int, weights: Tensor | None) -> None:
        """Store K and the weights, ``(K,)`` or None."""
        count = 0 if weights is None else len(weights)
        if count > LARGEST:
            raise ValueError(f"at most {LARGEST} weights can be set, got {count}")
        turn = int(self._turn) + 1
        row = self._rows[turn % 2]
        row[0], row[1] = k, count
        if weights is not None:
            row[2 : 2 + count] = weights.detach()
        self._turn.fill_(turn)

    def read(self) -> tuple[int, Tensor | None]:
        """Return K and the weights, float64 on the CPU."""
        while True:
            turn = self._seen[2, 0]
            row = int(turn) % 2
            k, count = int(self._seen[row, 0]), int(self._seen[row, 1])
            weights = self._rows[row][2 : 2 + count].clone() if count else None
            if self._seen[2, 0] == turn:  # else the row may have been written to meanwhile
                return k, weights

    def __getstate__(self) -> StateDict:
        """Return the memory itself, which a spawned worker then shares."""
        return {"numbers": self._numbers}

    def __setstate__(self, state: StateDict) -> None:
        """Use the memory of ``state``: in a worker the one shared already, else a copy to share."""
        self._open(state["numbers"].cpu())
