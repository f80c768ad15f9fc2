r"""Exact robustness of a linear classifier $f_w(x) = w^\top x$ and its certificate.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, definition of the maximally robust classifier and its duality lemmas.

``attack`` always names the norm of the perturbation; weights are measured in its dual.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainaug.methods.linear_robustness.norms import Norm, dual, dual_vector, norm

__all__ = [
    "Certificate",
    "certificate",
    "robust_error",
    "robust_radius",
    "signed_rows",
    "worst_case_margin",
    "worst_case_perturbation",
]


class Certificate(NamedTuple):
    r"""A sandwich ``lower`` $\le \varepsilon^* \le$ ``upper``, both of shape ``(...)``."""

    lower: Tensor
    upper: Tensor


def signed_rows(X: Tensor, y: Tensor) -> Tensor:
    r"""Form the rows $z_i = y_i x_i$ after checking the data.

    Args:
        X: Inputs, floating point, shape ``(N, D)``, finite.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.

    Returns:
        $Z$, shape ``(N, D)``, dtype and device of ``X``.

    Raises:
        ValueError: If a shape is wrong, the set is empty, a label is not -1 or +1, or a value is
            NaN or infinite.
    """
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X must have shape (N, D) with N, D >= 1, got {tuple(X.shape)}")
    if y.shape != X.shape[:1]:
        raise ValueError(f"y must have shape ({X.shape[0]},), got {tuple(y.shape)}")
    if not X.is_floating_point():
        raise ValueError(f"X must be floating point, got {X.dtype}")
    _check_labels(y)
    if not bool(X.isfinite().all()):
        bad = int((~X.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"X must be finite, row {bad} is not")
    return X * y.to(X).unsqueeze(-1)


def _check_labels(y: Tensor) -> None:
    if not bool(((y == 1) | (y == -1)).all()):
        raise ValueError(f"labels must be -1 or +1, got {sorted(set(y.tolist()))[:5]}")


def _dual_size(w: Tensor, attack: Norm, features: int) -> Tensor:
    if w.ndim == 0 or w.shape[-1] != features:
        raise ValueError(f"w must have shape (..., {features}), got {tuple(w.shape)}")
    if not bool(w.isfinite().all()):
        raise ValueError("w must be finite")
    return norm(w, dual(attack))  # (...)


def worst_case_margin(w: Tensor, X: Tensor, y: Tensor, attack: Norm, eps: float) -> Tensor:
    r"""Compute $\min_{\|\delta\|\le\varepsilon} y\,w^\top(x+\delta) = y\,w^\top x -
    \varepsilon\|w\|_*$ (Lemma 1).

    Args:
        w: Weights, shape ``(..., D)``.
        X: Inputs, shape ``(N, D)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation.
        eps: Radius of the perturbation, at least 0.

    Returns:
        Worst-case margins, shape ``(..., N)``.

    Raises:
        ValueError: If the data are malformed or ``eps`` is negative.
    """
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    Z = signed_rows(X, y)
    size = _dual_size(w, attack, Z.shape[-1])
    return w @ Z.mT - eps * size.unsqueeze(-1)


def worst_case_perturbation(w: Tensor, y: Tensor, attack: Norm, eps: float) -> Tensor:
    r"""Return the minimiser $\delta^\star = -\varepsilon\,y\,v$, $v\in\partial\|w\|_*$ (Lemma 1).

    Args:
        w: Weights, shape ``(D,)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation.
        eps: Radius, at least 0.

    Returns:
        Perturbations, shape ``(N, D)``.

    Raises:
        ValueError: If ``eps`` is negative or infinite, a label is not -1 or +1, ``w`` is malformed
            or ``attack`` is unknown.
    """
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if w.ndim != 1 or y.ndim != 1 or not bool(w.isfinite().all()):
        raise ValueError(
            f"expected finite w of shape (D,) and y of shape (N,), got {tuple(w.shape)}, "
            f"{tuple(y.shape)}"
        )
    _check_labels(y)
    return -eps * y.to(w).unsqueeze(-1) * dual_vector(w, dual(attack))


def robust_error(w: Tensor, X: Tensor, y: Tensor, attack: Norm, eps: float) -> Tensor:
    """Compute the share of inputs that some perturbation of size ``eps`` brings to a margin <= 0.

    Arguments and errors as in `worst_case_margin`; ``eps=0`` gives the standard error.

    Returns:
        Error rates in ``[0, 1]``, shape ``(...)``.
    """
    return (worst_case_margin(w, X, y, attack, eps) <= 0).to(w.dtype).mean(-1)


def robust_radius(w: Tensor, X: Tensor, y: Tensor, attack: Norm) -> Tensor:
    r"""Compute $\rho(w) = \min_i z_i^\top w / \|w\|_*$, the radius at which the first input flips.

    Args:
        w: Weights, not zero, shape ``(..., D)``.
        X: Inputs, shape ``(N, D)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation.

    Returns:
        Radii, shape ``(...)``; negative where ``w`` misclassifies an input.

    Raises:
        ValueError: If the data are malformed or some ``w`` is zero.

    Example:
        >>> X, y = torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([1, -1])
        >>> robust_radius(torch.tensor([1.0, 1.0]), X, y, attack="linf")
        tensor(0.5000)
    """
    Z = signed_rows(X, y)
    size = _dual_size(w, attack, Z.shape[-1])
    if not bool((size > 0).all()):
        raise ValueError("the radius of w = 0 is undefined")
    return (w @ Z.mT).amin(-1) / size


def certificate(
    w: Tensor, X: Tensor, y: Tensor, attack: Norm, q: Tensor | None = None
) -> Certificate:
    r"""Enclose $\varepsilon^*$ between any weights and any point of the simplex (Lemma 3).

    $$\min_i z_i^\top w / \|w\|_* \le \varepsilon^* \le \|Z^\top q\|$$

    Args:
        w: Weights, not zero, shape ``(..., D)``.
        X: Inputs, shape ``(N, D)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation.
        q: Point of the simplex, shape ``(..., N)``. By default the softmax of $-Zw$: the weights
            that the exponential loss gives the examples, so that $\|Z^\top q\|$ is the norm of
            the gradient of its logarithm.

    Returns:
        The two bounds.

    Raises:
        ValueError: If the data are malformed, ``w`` is zero or ``q`` is not in the simplex.
    """
    Z = signed_rows(X, y)
    lower = robust_radius(w, X, y, attack)
    if q is None:
        q = torch.softmax(-(w @ Z.mT), dim=-1)  # (..., N)
    if q.ndim == 0 or q.shape[-1] != Z.shape[0]:
        raise ValueError(f"q must have shape (..., {Z.shape[0]}), got {tuple(q.shape)}")
    off, smallest = float((q.detach().sum(-1) - 1).abs().max()), float(q.detach().min())
    if smallest < 0 or not off <= 1e-6:
        raise ValueError(f"q must be in the simplex: smallest {smallest}, sum off by {off}")
    return Certificate(lower, norm(q @ Z, attack))
