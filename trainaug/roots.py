r"""Square root and logarithms whose bytes do not depend on the processor.

On a CPU torch takes these from a vector library that begins with the approximate instructions
``rcp`` and ``rsqrt``, and each vendor implements those in its own way. NumPy's square root is
correctly rounded, and its logarithms are the same on every x86-64 machine in canonical mode
(`docs/portability.md`). Values come from there; gradients of every order are built from divisions,
which are exact everywhere. At 0 they are those of torch: $\sqrt{\cdot}'(0) = \log'(0) = \infty$, so
a gradient of 0 that meets them becomes ``nan``.

On other devices, in other types than float32 and float64, and inside ``torch.compile`` the
functions are torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["log", "log2", "log10", "power", "sqrt"]


def _by_numpy(function: Callable[..., Any], x: Tensor) -> Tensor:
    """Apply a NumPy function to a CPU tensor and keep its type and memory layout."""
    x = x.detach().resolve_neg()  # `numpy()` refuses a tensor whose sign is still to be flipped
    result = torch.empty_like(x)
    with np.errstate(divide="ignore", invalid="ignore"):  # as in torch, inf and nan are results
        function(x.numpy(), out=result.numpy())
    return result


class _Elementwise(torch.autograd.Function):
    """What an elementwise function needs for ``vmap``: batches are only further dimensions."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int, ...], x: Tensor) -> tuple[Tensor, int]:
        """Apply to all batches at once."""
        return cls.apply(x), in_dims[0]


class _SquareRoot(_Elementwise):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _by_numpy(np.sqrt, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient / (2 * ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Any:
        return tangent / (2 * ctx.saved_tensors[0])


class _Logarithm(_Elementwise):
    """Natural logarithm; the subclasses name another function and the logarithm of its base."""

    function: Callable[..., Any] = np.log
    scale = 1.0

    @classmethod
    def forward(cls, x: Tensor) -> Tensor:
        return _by_numpy(cls.function, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @classmethod
    def backward(cls, ctx: Any, gradient: Tensor) -> Any:
        return gradient / (cls.scale * ctx.saved_tensors[0])

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor) -> Any:
        return tangent / (cls.scale * ctx.saved_tensors[0])


class _Logarithm2(_Logarithm):
    function = np.log2
    scale = math.log(2)


class _Logarithm10(_Logarithm):
    function = np.log10
    scale = math.log(10)


def _is_covered(x: Tensor) -> bool:
    """Whether this module's functions apply to ``x``; torch's own are used otherwise."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
    )


def sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded square root, elementwise, of ``x`` of any shape.

    Example:
        >>> sqrt(torch.tensor([0.0, 2.0, 9.0]))
        tensor([0.0000, 1.4142, 3.0000])
    """
    return _SquareRoot.apply(x) if _is_covered(x) else torch.sqrt(x)


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm, elementwise.

    Example:
        >>> log(torch.tensor([0.0, 1.0]))
        tensor([-inf, 0.])
    """
    return _Logarithm.apply(x) if _is_covered(x) else torch.log(x)


def log2(x: Tensor) -> Tensor:
    """Return the logarithm to base 2, elementwise."""
    return _Logarithm2.apply(x) if _is_covered(x) else torch.log2(x)


def log10(x: Tensor) -> Tensor:
    """Return the logarithm to base 10, elementwise."""
    return _Logarithm10.apply(x) if _is_covered(x) else torch.log10(x)


def power(x: Tensor, exponent: float) -> Tensor:
    """Return ``x**exponent``, by `sqrt` for 0.5, where alone torch uses its square root.

    Example:
        >>> power(torch.tensor([4.0, 9.0]), 0.5)
        tensor([2., 3.])
    """
    return sqrt(x) if exponent == 0.5 else x**exponent
