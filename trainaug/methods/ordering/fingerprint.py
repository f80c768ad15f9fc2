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
_FACTORS = (-7046029254386353131, -4658895280553007687)  # odd, of splitmix64


@torch.no_grad()
def fingerprint(model: nn.Module) -> Hashable:
    """Return what is equal as long as no bit of a parameter changes.

    Sums over the bits, weighted by position: other bits give another value but for a chance of
    about $2^{-64}$. The model is only read; the cost is that of reading the parameters once.
    Parameters without memory, on the meta device or not yet initialised, have no bits.

    Args:
        model: Any module.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> before = fingerprint(model)
        >>> model.weight.data[0, 1] += 1
        >>> fingerprint(model) == before
        False
    """
    sums = [_weighted_sum(bits) for bits in _joined(map(_bits, model.parameters()))]
    return tuple(int(value) for value in _on_cpu(sums))


def _bits(p: Tensor) -> Tensor:
    """The memory of a tensor as a row of integers; empty if there is none."""
    if hasattr(p, "to_local"):  # the share of this process
        p = p.to_local()
    if p.is_meta or not p.numel() or torch.nn.parameter.is_lazy(p):
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


def _weighted_sum(bits: Tensor) -> Tensor:
    """Sum of 8-byte words with weights by row and by column of a square, modulo $2^{64}$."""
    size = bits.element_size()
    whole = bits.numel() * size // 8 * 8 // size
    words = bits[:whole]
    if words.storage_offset() * size % 8:  # part of a larger tensor
        words = words.clone()
    words = words.view(torch.int64)  # whose sums are several times as fast as those of others
    width = max(1, round(len(words) ** 0.5))
    square = words[: len(words) // width * width].view(-1, width)
    rest = words[square.numel() :], bits[whole:].long()
    sums = torch.cat([square.sum(0), square.sum(1), *rest])
    weights = torch.arange(1, len(sums) + 1, device=sums.device)
    for factor in _FACTORS:
        weights = weights * factor
        weights = weights ^ (weights >> 29)
    return (sums * (2 * weights + 1)).sum()


def _on_cpu(sums: list[Tensor]) -> Iterable[Tensor]:
    """Values from one device after another, with one wait for each."""
    groups = defaultdict(list)
    for value in sums:
        groups[value.device].append(value)
    return [value for group in groups.values() for value in torch.stack(group).cpu()]
