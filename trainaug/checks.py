"""Checks of arguments that all methods share, so that each has one wording of its error.

Functions that only compute (losses, scores, norms) let NaN through to their result, where a
training loop and `torch.amp.GradScaler` notice it. Functions that decide, count, order, project or
store refuse it, because their result would hide it.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

__all__ = [
    "class_labels",
    "finite",
    "indices",
    "sign_labels",
    "source_of_randomness",
    "whole_number",
    "widened",
]

_HALF = (torch.float16, torch.bfloat16)


def finite(name: str, values: Tensor) -> None:
    """Raise a ValueError that names the first row with NaN or infinity, if there is one.

    Args:
        name: What the values are, for the message.
        values: Tensor of any shape and type; integers always pass.
    """
    good = values.detach().isfinite()
    if bool(good.all()):
        return
    if values.ndim == 0:
        raise ValueError(f"{name} must be finite, got {float(values)}")
    row = (
        int((~good).flatten(1).any(1).nonzero()[0])
        if values.ndim > 1
        else int((~good).nonzero()[0])
    )
    held = values.detach()[row]
    shown = float(held[~held.isfinite()].flatten()[0]) if held.ndim else float(held)
    raise ValueError(f"{name} must be finite, row {row} holds {shown}")


def class_labels(y: Tensor, num_classes: int | None = None) -> Tensor:
    """Return class numbers as int64, whatever type of integer they come in.

    Unsigned bytes would act as a mask when they index, and wrap round below 0.

    Args:
        y: Class numbers, any shape, an integer type or bool.
        num_classes: Number of classes, to check the range; None for no check.

    Raises:
        ValueError: If ``y`` is floating point or complex, or a number is out of range.
    """
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"labels must be class numbers of an integer type, got {y.dtype}")
    labels = y.long()
    if num_classes is not None and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {low} to {high}")
    return labels


def sign_labels(y: Tensor) -> Tensor:
    """Return labels -1 and +1 in a signed type: floating ones as they are, integers as int64.

    Args:
        y: Labels, any shape. ``2 * y - 1`` of unsigned bytes gives 255 for -1 and is refused.

    Raises:
        ValueError: If a label is neither -1 nor +1, or the type is bool or complex.
    """
    if y.dtype == torch.bool or y.is_complex():
        raise ValueError(f"labels must be the numbers -1 and +1, got {y.dtype}")
    labels = y if y.is_floating_point() else y.long()
    good = (labels == 1) | (labels == -1)
    if not bool(good.all()):
        wrong = sorted(set(labels[~good].flatten()[:1000].tolist()))[:5]
        advice = "; unsigned bytes cannot hold -1: convert with .long() first"
        raise ValueError(
            f"labels must be -1 or +1, got {wrong}{advice if y.dtype == torch.uint8 else ''}"
        )
    return labels


def whole_number(name: str, value: int) -> int:
    """Return a count as an int.

    Args:
        name: What the count is called, for the message.
        value: A whole number of any type, say one of NumPy's.

    Raises:
        TypeError: If it is not a whole number; for a data set the message suggests its length.
    """
    try:
        return operator.index(value)
    except TypeError:
        hint = f"; of a data set pass len({name})" if hasattr(value, "__len__") else ""
        kind = type(value).__name__
        raise TypeError(f"{name} must be a whole number, got {kind}{hint}") from None


def source_of_randomness(name: str, generator: torch.Generator) -> torch.Generator:
    """Return the generator unchanged; the error for anything else says how to make one.

    Args:
        name: What it is called, for the message.
        generator: The generator to check.

    Raises:
        TypeError: If it is something else, such as a seed.
    """
    if not isinstance(generator, torch.Generator):
        kind = type(generator).__name__
        advice = "torch.Generator().manual_seed(0)"
        raise TypeError(f"{name} must be a torch.Generator, as {advice} gives it, got {kind}")
    return generator


def indices(index: Tensor, count: int) -> Tensor:
    """Return indices of examples as int64 on the CPU.

    Args:
        index: Shape ``(B,)``, an integer type.
        count: Number of examples, which are numbered from 0.

    Raises:
        TypeError: If ``index`` is not a tensor.
        ValueError: If its shape or type is another, or an index is out of range.
    """
    if not isinstance(index, Tensor):
        kind = type(index).__name__
        raise TypeError(f"indices must be a tensor (B,), as torch.tensor gives it, got {kind}")
    if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index must be of integers with shape (B,), got {index}")
    integers = index.detach().cpu().long()
    wrong = integers[(integers < 0) | (integers >= count)][:5].tolist()
    if wrong:
        raise ValueError(f"index must be from 0 to {count - 1}, got {wrong}")
    return integers


def widened(values: Tensor) -> Tensor:
    """Return half-precision values in float32, to add them up in; others unchanged."""
    return values.float() if values.dtype in _HALF else values
