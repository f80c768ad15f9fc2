"""Batches whose parts lie in tuples, lists and dicts, and models inside wrappers."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["eager", "leaves", "mapped", "per_example", "unwrapped"]


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``function`` to each tensor in nested tuples, lists and dicts; leave the rest."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, MutableMapping):
        result = copy.copy(value)  # also of a subclass that cannot be made of a dict
        for key in list(result):
            result[key] = mapped(function, value[key])
        return result
    if isinstance(value, tuple | list):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def leaves(value: Any) -> list[Tensor]:
    """Return the tensors of a nested value, in order."""
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        found.append(t)
        return t

    mapped(note, value)
    return found


def per_example(losses: Any, *shape: int) -> Tensor:
    """Return what a criterion gave if it has one loss for each example.

    Raises:
        ValueError: If the shape is another.
    """
    if not isinstance(losses, Tensor) or losses.shape != shape:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"the criterion must give per-example losses {shape}, as with reduction='none', got "
            f"{got}"
        )
    return losses


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile`` and the data-parallel wrappers.

    It has the same parameters, and calling it communicates with no other process.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run models without compiled code and fused encoder layers, which torch.func cannot enter."""
    fused = torch.backends.mha.get_fastpath_enabled()
    stance: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
        stance = torch.compiler.set_stance("force_eager")
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with stance:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
