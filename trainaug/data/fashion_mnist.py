"""Fashion-MNIST as tensors, with a validation part taken from the official training set.

Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms", arXiv 1708.07747.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from trainaug.data import registry
from trainaug.data.indexed import IndexedDataset
from trainaug.data.splits import draw_of_each_class

__all__ = ["fashion_mnist_tensors"]

CLASSES = 10
VALIDATION_PER_CLASS = 500


def fashion_mnist_tensors(
    split: Literal["train", "val", "test"], *, seed: int = 0
) -> IndexedDataset:
    """Load one part of Fashion-MNIST.

    The validation part is 500 pictures per class, drawn with ``seed`` from the official training
    set; the training part is the other 55 000, in the official order; the test part is the official
    10 000.

    Args:
        split: Which part to load.
        seed: Seed of the training/validation split, non-negative; it does not affect the test part.

    Returns:
        Pictures float32 in [0, 1], shape ``(N, 1, 28, 28)``, and classes int64, shape ``(N,)``, on
        the CPU. An item's index is its position in this part.

    Raises:
        ValueError: If the split is unknown.
        DataUnavailableError: If the set is not in the cache.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be train, val or test, got {split!r}")
    data = registry.load("fashion_mnist")
    part = "test" if split == "test" else "train"
    x, y = data[f"{part}_x"], data[f"{part}_y"]
    if split != "test":
        counts = dict.fromkeys(range(CLASSES), VALIDATION_PER_CLASS)
        rows = draw_of_each_class(y, counts, np.random.default_rng(seed))
        if split == "train":
            rows = np.setdiff1d(np.arange(len(y)), rows)
        x, y = x[rows], y[rows]
    pictures = x.astype(np.float32)[:, None] / np.float32(255)  # (N, 1, 28, 28)
    return IndexedDataset(torch.from_numpy(pictures), torch.from_numpy(y.astype(np.int64)))
