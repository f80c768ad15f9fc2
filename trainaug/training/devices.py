"""Where computation runs: CUDA, MPS or CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["device_of", "map_tensors", "pick_device", "to_device"]


def pick_device(choice: str = "auto", *, dtype: torch.dtype = torch.float32) -> torch.device:
    """Return the device to run on: of ``"auto"`` the first there is of CUDA, MPS, CPU.

    MPS has no float64: work of that ``dtype`` stays on the CPU instead. ValueError if ``choice``
    is unknown, RuntimeError if it is absent here.
    """
    mps = torch.backends.mps.is_available()
    present = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if choice not in ("auto", *present):
        raise ValueError(f"device must be auto, cuda, mps or cpu, got {choice!r}")
    name = next(d for d in present if present[d]) if choice == "auto" else choice
    if not present[name]:
        raise RuntimeError(f"no {name!r} device here: choose 'auto' or 'cpu'")
    return torch.device("cpu" if name == "mps" and dtype == torch.float64 else name)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; ValueError if there is none."""
    for parameter in model.parameters():
        return parameter.device
    raise ValueError(f"{type(model).__name__} has no parameters, so no device")


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``function`` to each tensor in nested tuples, lists and dicts; leave the rest."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def to_device(value: Any, device: torch.device) -> Any:
    """Return ``value`` with each tensor in it on ``device``."""
    return map_tensors(lambda t: t.to(device), value)
