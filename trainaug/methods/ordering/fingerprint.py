"""Whether a model has changed, by the bytes of its parameters.

Autograd's version counters do not see what is written through ``p.data``, as many optimisers do.

Chapter: notebooks/04_curriculum.ipynb
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TOGETHER = 1 << 18  # numbers that are copied together, which saves calls where tensors are small


@torch.no_grad()
def fingerprint(model: nn.Module) -> Hashable:
    """Return what is equal as long as no bit of a parameter changes.

    The parameters are read as squares of 8-byte words, whose sums by row and by column are hashed:
    training that leaves all of them as they were is too unlikely to be met. The cost is that of
    reading the parameters. Those without memory, on the meta device or lazy, have no bits.

    Args:
        model: Any module.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> before = fingerprint(model)
        >>> model.weight.data[0, 1] += 1
        >>> fingerprint(model) == before
        False
    """
    sums = [_sums(bits) for bits in _joined(map(_bits, model.parameters()))]
    by_device = defaultdict(list)
    for of_row in sums:
        by_device[of_row.device].append(of_row)
    return hash(tuple(tuple(torch.cat(group).tolist()) for group in by_device.values()))


def _bits(p: Tensor) -> Tensor:
    """The memory of a tensor as a row of integers; empty if there is none."""
    if hasattr(p, "to_local"):  # the share of this process
        p = p.to_local()
    if torch.nn.parameter.is_lazy(p) or p.is_meta or not p.numel():
        return torch.empty(0, dtype=torch.int64, device="cpu")
    values = p.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    return values.contiguous().flatten().view(_INTEGERS[values.element_size()])


def _joined(rows: Iterable[Tensor]) -> list[Tensor]:
    """Small rows of a type on a device one after another, large ones as they are."""
    large, small = [], defaultdict(list)
    for row in rows:
        if row.numel() >= _TOGETHER:
            large.append(row)
        elif row.numel():
            small[row.dtype, row.device].append(row)
    return large + [torch.cat(group) for group in small.values()]


def _sums(bits: Tensor) -> Tensor:
    """Sums by row and by column of a square of 8-byte words, modulo $2^{64}$, and what is over."""
    size = bits.element_size()
    whole = bits.numel() * size // 8 * 8 // size
    words = bits[:whole]
    if words.storage_offset() * size % 8:  # part of a larger tensor
        words = words.clone()
    # Sums of int64 are the fastest by far, but there two signs of doubles would cancel.
    words = words.view(torch.int32 if size == 8 else torch.int64)
    width = max(1, round(len(words) ** 0.5))
    square = words[: len(words) // width * width].view(-1, width)
    rest = words[square.numel() :], bits[whole:].long()
    return torch.cat([square.sum(0), square.sum(1), *rest])  # int64, whatever the words are
