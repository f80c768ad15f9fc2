"""Kernels that replace torch's own in the processes that execute runs.

In canonical mode torch multiplies with MKL's compatible kernels, which are three to four times
slower than its usual ones. NumPy's OpenBLAS, whose kernels canonical mode pins as well, gives the
same bytes on every processor at nearly the usual speed. MKL's square root begins with an
approximate instruction, which each vendor implements in its own way; NumPy's is correctly rounded.
It is replaced here because torch takes roots inside other operations (`corrcoef`, batch
normalisation under ``vmap``). The replacement applies to all that a run computes, networks and
methods alike, so no code in the library has to know about it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["REPLACED", "install"]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product ``(..., N, M)`` of matrices ``(..., N, K)`` and ``(..., K, M)`` by NumPy."""
    out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype)
    # NumPy refuses tensors with requires_grad; autograd works above the kernels, so this is safe
    np.matmul(a.detach().numpy(), b.detach().numpy(), out=out.numpy())
    return out


def _takes_route(*tensors: Tensor) -> bool:
    """Whether NumPy computes the product; it cannot read tensors that torch negates lazily."""
    return all(t.dtype == torch.float32 and not t.is_neg() for t in tensors)


# The three products fall back to the ``out`` variants, which are not replaced: the functions
# themselves would call the replacement again.
def _mm(a: Tensor, b: Tensor) -> Tensor:
    if _takes_route(a, b):
        return _product(a, b)
    out = a.new_empty((a.shape[0], b.shape[1]))
    torch.ops.aten.mm.out(a, b, out=out)
    return out


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    if _takes_route(a, b):
        return _product(a, b)
    out = a.new_empty((*a.shape[:2], b.shape[2]))
    torch.ops.aten.bmm.out(a, b, out=out)
    return out


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta == 1 and alpha == 1 and _takes_route(c, a, b):
        return _product(a, b).add_(c)
    out = a.new_empty((a.shape[0], b.shape[1]))
    torch.ops.aten.addmm.out(c, a, b, beta=beta, alpha=alpha, out=out)
    return out


def _sqrt(x: Tensor) -> Tensor:
    """Square root by NumPy, or by torch for types that this module does not replace."""
    if x.dtype in (torch.float32, torch.float64) and not x.is_neg():
        out = torch.empty_like(x)
        with np.errstate(invalid="ignore"):  # the root of a negative number is nan, as in torch
            np.sqrt(x.detach().numpy(), out=out.numpy())
    else:
        out = torch.empty_like(x, dtype=torch.result_type(x, 1.0))
        torch.ops.aten.sqrt.out(x, out=out)
    return out


REPLACED = {"mm": _mm, "bmm": _bmm, "addmm": _addmm, "sqrt": _sqrt}


@cache
def install() -> torch.library.Library:
    """Replace torch's CPU kernels of `REPLACED` for the rest of this process.

    Returns:
        The library object. The replacement lasts as long as this object, which the cache keeps.
    """
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, kernel in REPLACED.items():
        library.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]
    return library
