"""Helpers of this package: tensors of nested batches, checked losses, and uncompiled models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainaug.structures import eagerly, map_tensors

__all__ = ["eager", "leaves", "per_example"]


def leaves(value: Any) -> list[Tensor]:
    """Return the tensors of a nested value, in order."""
    tensors: list[Tensor] = []

    def collect(t: Tensor) -> Tensor:
        tensors.append(t)
        return t

    map_tensors(collect, value)
    return tensors


def per_example(losses: Any, *shape: int) -> Tensor:
    """Return what a criterion gave, after checking that it has one loss for each example.

    Raises:
        ValueError: If it is not a tensor of this ``shape``.
    """
    if not isinstance(losses, Tensor) or losses.shape != shape:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"the criterion must give per-example losses {shape}, as with reduction='none', got "
            f"{got}"
        )
    return losses


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run models without compiled code or fused encoder layers, which torch.func cannot handle."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eagerly():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
