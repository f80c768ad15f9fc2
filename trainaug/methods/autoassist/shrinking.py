"""Shrinking: examples of small utility are skipped, and no others are weighted up for them.

Reference: Zhang, Yu, Dhillon, "AutoAssist: A Framework to Accelerate Training of Deep Neural
Networks", NeurIPS 2019, arXiv 1905.03381; thresholds, bias and theorem in chapter 3's notebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trainaug.checks import widened

__all__ = [
    "constant_threshold",
    "decaying_threshold",
    "distance_bound",
    "keep",
    "keep_probability",
    "shrinking_bias",
    "threshold_floor",
]

Threshold = Callable[[int], float]


def check_base(base: float) -> None:
    """Raise a ValueError unless a base pass rate is in ``[0, 1]``."""
    if not 0 <= base <= 1:
        raise ValueError(f"the base pass rate must be in [0, 1], got {base}")


def _check_utility(r: Tensor) -> None:
    if not bool(((r >= 0) & (r <= 1)).all()):  # NaN is refused, too
        raise ValueError(f"r must be in [0, 1], got {r}")


def keep_probability(r: Tensor, base: float) -> Tensor:
    r"""Return the probabilities $p=\gamma_0+(1-\gamma_0)\,r$ of keeping examples, in r's precision.

    Args:
        r: Predicted probabilities of being useful, or indicators, ``(B,)``, in ``[0, 1]``.
        base: Base pass rate $\gamma_0$, in ``[0, 1]``; the authors use 0.3, in translation 0.5.

    Returns:
        Shape ``(B,)``, in ``[0, 1]``.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> keep_probability(torch.tensor([0.0, 0.5, 1.0]), 0.3)
        tensor([0.3000, 0.6500, 1.0000])
    """
    check_base(base)
    _check_utility(r)
    p = base + (1 - base) * widened(r)
    return p.to(r.dtype) if r.is_floating_point() else p


def keep(r: Tensor, base: float, u: Tensor) -> Tensor:
    r"""Decide which examples are kept, with one uniform number for each.

    An example is kept if $u<\gamma_0$ or $(u-\gamma_0)/(1-\gamma_0)<r$; the probability of this is
    `keep_probability`. With ``base=1`` all are kept, with ``base=0`` and ``r=0`` none is.

    Args:
        r: As in `keep_probability`, ``(B,)``.
        base: Base pass rate $\gamma_0$, in ``[0, 1]``.
        u: Uniform numbers in ``[0, 1)``, ``(B,)``.

    Returns:
        Booleans ``(B,)``, true for those that are kept.

    Raises:
        ValueError: If a number is out of range, or the shapes differ.

    Example:
        >>> keep(torch.tensor([0.0, 0.5, 0.5]), 0.3, torch.tensor([0.29, 0.64, 0.66]))
        tensor([ True,  True, False])
    """
    check_base(base)
    _check_utility(r)
    if u.shape != r.shape or not bool(((u >= 0) & (u < 1)).all()):
        raise ValueError(f"u must be in [0, 1) with shape {tuple(r.shape)}, got {u}")
    if base == 1:
        return torch.ones_like(r, dtype=torch.bool)
    r, u = widened(r), widened(u)
    # r == 1 apart, since the quotient may round to 1
    return (u < base) | ((u - base) / (1 - base) < r) | (r == 1)


def constant_threshold(value: float) -> Threshold:
    """Return $T_k=T$, under which the distance to the optimum has a floor (`threshold_floor`).

    Args:
        value: $T\\ge0$, in the unit of the utility that is compared with it, say a norm of
            gradients.

    Returns:
        A function of the iterate k that gives T; it can be pickled.

    Raises:
        ValueError: If T is negative or NaN.
    """
    if not value >= 0:
        raise ValueError(f"a threshold must be >= 0, got {value}")
    return partial(_constant, value)


def decaying_threshold(c: float) -> Threshold:
    """Return $T_k=c/k$ for $k=1,2,\\ldots$, under which SGD keeps its rate (`distance_bound`).

    Args:
        c: $c\\ge0$, the threshold of the first iterate.

    Returns:
        A function of the iterate k that gives $c/k$; it can be pickled.

    Raises:
        ValueError: If c is negative or NaN; by the function itself, if k is below 1.
    """
    if not c >= 0:
        raise ValueError(f"c must be >= 0, got {c}")
    return partial(_decaying, c)


def _constant(value: float, k: int) -> float:
    return value


def _decaying(c: float, k: int) -> float:
    if k < 1:
        raise ValueError(f"k counts from 1, got {k}")
    return c / k


def shrinking_bias(gradients: Tensor, p: Tensor) -> Tensor:
    r"""Return the bias $b=-\frac1N\sum_i(1-p_i)\nabla f_i$ of the shrunk gradient.

    Over a uniformly drawn example and the decision to keep it, the mean of the shrunk gradient is
    $\nabla F+b$.

    Args:
        gradients: Gradients $\nabla f_i$, ``(N, P)``.
        p: Probabilities that the examples are kept, ``(N,)``, in ``[0, 1]``.

    Returns:
        Shape ``(P,)``.

    Raises:
        ValueError: If a p is outside ``[0, 1]``, the shapes do not fit, or N is 0.
    """
    _check_utility(p)
    if gradients.ndim != 2 or p.shape != gradients.shape[:1] or len(p) == 0:
        raise ValueError(
            f"need (N, P) and (N,) with N >= 1, got {tuple(gradients.shape)}, {tuple(p.shape)}"
        )
    skipped = 1 - (p.to(gradients) if p.dtype == torch.bool else p)  # torch subtracts no booleans
    return -(skipped[:, None] * gradients).mean(0)


def distance_bound(k: int, gradient: float, c: float, sigma: float, base: float = 0.0) -> float:
    r"""Return the bound $4(G^2+((1-\gamma_0)c)^2)/(\sigma^2(k+1))$ on the mean of
    $\|w_k-w^\star\|^2$.

    It is that of chapter 3's Theorem A, and holds for steps $2/(\sigma(k+1))$ and thresholds $c/k$
    on the norm of the gradient.

    Args:
        k: Number of the iterate, from 2.
        gradient: G, the largest norm of an example's gradient along the iterates.
        c: The c of the threshold $c/k$, at least 0.
        sigma: Strong convexity $\sigma>0$.
        base: Base pass rate $\gamma_0$, in ``[0, 1]``.

    Returns:
        The bound, a squared distance of weights.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> distance_bound(3, 1.0, 0.0, 1.0)
        1.0
    """
    check_base(base)
    good = gradient >= 0 and c >= 0 and sigma > 0  # false for NaN
    if k < 2 or not good or not all(math.isfinite(v) for v in (gradient, c, sigma)):
        raise ValueError(f"need k >= 2, G, c >= 0, sigma > 0, got {k}, {gradient}, {c}, {sigma}")
    return 4 * (gradient**2 + ((1 - base) * c) ** 2) / (sigma**2 * (k + 1))


def threshold_floor(value: float, sigma: float) -> float:
    r"""Return $T/\sigma$, a distance below which a constant threshold need not bring the weights.

    This is chapter 3's Proposition B. The recursion of Theorem A allows this distance to the
    optimum in the limit, and the two functions $\frac12(w-1)^2$ and $sw$ with $s<T$,
    $\sigma=\frac12$, come as near to it as $s$ is to $T$.

    Args:
        value: The threshold $T\ge0$ on the norm of an example's gradient.
        sigma: Strong convexity $\sigma>0$ of the mean of the functions.

    Raises:
        ValueError: If T is negative or not finite, or $\sigma$ not positive.
    """
    if not (value >= 0 and sigma > 0 and math.isfinite(value)):
        raise ValueError(f"need T >= 0 and sigma > 0, got {value}, {sigma}")
    return value / sigma
