r"""Norms on $\mathbb R^D$, their duals, dual vectors and ball projections, batch first.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, section on norms and duals.

The optimiser's norm lives on the *weights*; robustness is against its dual on the *inputs*.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["NORMS", "Norm", "check_norm", "dual", "dual_vector", "norm", "project"]

Norm = Literal["l1", "l2", "linf"]
NORMS: tuple[Norm, ...] = get_args(Norm)
_DUAL: dict[Norm, Norm] = {"l1": "linf", "l2": "l2", "linf": "l1"}


def check_norm(kind: str) -> Norm:
    """Return ``kind`` if it names a norm of this module.

    Raises:
        ValueError: If it does not.
    """
    for known in NORMS:
        if kind == known:
            return known
    raise ValueError(f"unknown norm {kind!r}, expected one of {', '.join(NORMS)}")


def dual(kind: Norm) -> Norm:
    r"""Name the dual norm $\|w\|_* = \max_{\|\delta\|\le 1} w^\top\delta$.

    Example:
        >>> dual("linf")
        'l1'
    """
    return _DUAL[check_norm(kind)]


def norm(x: Tensor, kind: Norm) -> Tensor:
    """Compute the norm over the last dimension.

    Args:
        x: Vectors, shape ``(..., D)``.
        kind: ``"l1"``, ``"l2"`` or ``"linf"``.

    Returns:
        Norms, shape ``(...,)``, same dtype and device as ``x``.

    Raises:
        ValueError: If ``kind`` is unknown or ``D`` is zero.

    Example:
        >>> norm(torch.tensor([3.0, -4.0]), "l1")
        tensor(7.)
    """
    check_norm(kind)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"expected vectors of shape (..., D) with D >= 1, got {tuple(x.shape)}")
    if kind == "l1":
        return x.abs().sum(-1)
    if kind == "l2":
        length: Tensor = torch.linalg.vector_norm(x, dim=-1)
        return length
    return x.abs().amax(-1)


def dual_vector(x: Tensor, kind: Norm) -> Tensor:
    r"""Return one subgradient $v \in \partial\|x\|$ of the norm ``kind``.

    $v$ satisfies $v^\top x = \|x\|$ and has dual norm one, so it is the perturbation that attains
    Hölder's inequality (Lemma 1). At $x = 0$ it is the subgradient zero. For ``"linf"`` all mass
    sits on the *first* coordinate of largest modulus, for ``"l1"`` zero coordinates stay zero.

    Args:
        x: Vectors, shape ``(..., D)``.
        kind: The norm that is differentiated.

    Returns:
        Dual vectors, shape ``(..., D)``, same dtype and device as ``x``.

    Raises:
        ValueError: If ``kind`` is unknown.

    Example:
        >>> dual_vector(torch.tensor([3.0, -4.0]), "linf")
        tensor([ 0., -1.])
    """
    check_norm(kind)
    if kind == "l1":
        return x.sign()
    if kind == "l2":
        length = norm(x, "l2").unsqueeze(-1)  # (..., 1)
        return torch.where(length > 0, x / length, 0.0)
    largest = x.abs().argmax(-1, keepdim=True)  # (..., 1)
    return torch.zeros_like(x).scatter(-1, largest, x.gather(-1, largest).sign())


def project(x: Tensor, kind: Norm, radius: float) -> Tensor:
    r"""Project onto the ball $\{u : \|u\| \le \text{radius}\}$ in Euclidean distance.

    The projection on the $\ell_1$ ball is the soft threshold at the level that brings the norm
    to ``radius``, found by sorting (Duchi et al. 2008).

    Args:
        x: Vectors, shape ``(..., D)``.
        kind: Norm of the ball.
        radius: Radius of the ball, at least 0.

    Returns:
        Projected vectors, shape ``(..., D)``; vectors inside the ball are returned unchanged.

    Raises:
        ValueError: If ``kind`` is unknown or ``radius`` is negative or not finite.

    Example:
        >>> project(torch.tensor([3.0, 1.0]), "l1", 2.0)
        tensor([2., 0.])
    """
    check_norm(kind)
    if not 0 <= radius < float("inf"):
        raise ValueError(f"radius must be finite and at least 0, got {radius}")
    if kind == "linf":
        return x.clamp(-radius, radius)
    length = norm(x, kind).unsqueeze(-1)  # (..., 1)
    if kind == "l2":
        return torch.where(length > radius, x / length * radius, x)
    sizes = x.abs().sort(-1, descending=True).values  # (..., D)
    rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    levels = (sizes.cumsum(-1) - radius) / rank  # (..., D)
    active = (sizes > levels).sum(-1, keepdim=True).clamp(min=1)  # (..., 1)
    level = levels.gather(-1, active - 1).clamp(min=0)  # (..., 1)
    return torch.where(length > radius, x.sign() * (x.abs() - level).clamp(min=0), x)
