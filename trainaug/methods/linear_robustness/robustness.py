r"""Exact robustness of a linear classifier $f_w(x) = w^\top x$ and its certificate.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, definition of the maximally robust classifier and its duality lemmas.

``attack`` always names the norm of the perturbation; weights are measured in its dual.

Margins, radii and bounds have the wider of the types of ``w`` and ``X``, at least float32, also
inside ``torch.autocast``: a bound that half precision has rounded is no longer a bound.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from trainaug.checks import finite, sign_labels, widened
from trainaug.norms import Norm, dual, dual_vector, norm

__all__ = [
    "Certificate",
    "certificate",
    "check_rows",
    "full_precision",
    "robust_error",
    "robust_radius",
    "signed_rows",
    "worst_case_margin",
    "worst_case_perturbation",
]


class Certificate(NamedTuple):
    r"""A sandwich ``lower`` $\le \varepsilon^* \le$ ``upper`` (Lemma 3).

    Attributes:
        lower: Robust radii of the weights, shape ``(...)``.
        upper: Norms of points in the convex hull of the signed rows, shape ``(...)``.
    """

    lower: Tensor
    upper: Tensor


def signed_rows(X: Tensor, y: Tensor) -> Tensor:
    r"""Form the rows $z_i = y_i x_i$ after checking the data.

    Args:
        X: Inputs, floating point, shape ``(N, D)``, finite.
        y: Labels in ``{-1, +1}``, shape ``(N,)``, of a signed type.

    Returns:
        $Z$, shape ``(N, D)``, dtype and device of ``X``.

    Raises:
        ValueError: If a shape is wrong, the set is empty, a label is not -1 or +1 (unsigned bytes
            cannot hold -1), or a value is NaN or infinite.
    """
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X must have shape (N, D) with N, D >= 1, got {tuple(X.shape)}")
    if y.shape != X.shape[:1]:
        raise ValueError(f"y must have shape ({X.shape[0]},), got {tuple(y.shape)}")
    if not X.is_floating_point():
        raise ValueError(f"X must be floating point, got {X.dtype}")
    if X.is_meta or y.is_meta:
        raise ValueError("X and y must hold values, got tensors on the meta device")
    labels = sign_labels(y)
    finite("X", X)
    return X * labels.to(X).unsqueeze(-1)


def check_rows(Z: Tensor, shape: str, mask: Tensor | None = None) -> Tensor:
    """Check the signed rows of one problem, or of P stacked ones; return the mask of real rows.

    Args:
        Z: Signed rows.
        shape: The shape they must have, ``"(N, D)"`` or ``"(P, N, D)"``.
        mask: True at real rows, shape ``(N,)`` or ``(P, N)``; by default all are real. The others
            are padding and may hold anything.

    Raises:
        ValueError: If the shape is wrong or empty, the type is not float32 or float64, a problem
            has no real row, or a real row is not finite.
    """
    # The number of dimensions is that of the commas plus one.
    if Z.ndim != shape.count(",") + 1 or 0 in Z.shape:
        raise ValueError(f"Z must have shape {shape}, no side of it 0, got {tuple(Z.shape)}")
    if Z.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"Z must be float32 or float64, got {Z.dtype}: long runs need the digits, convert it"
        )
    if Z.is_meta:
        raise ValueError("Z must hold values, got a tensor on the meta device")
    if mask is None:
        mask = torch.ones(Z.shape[:-1], dtype=torch.bool, device=Z.device)
    if mask.dtype != torch.bool or mask.shape != Z.shape[:-1] or not bool(mask.any(-1).all()):
        raise ValueError(
            f"mask must be boolean of shape {tuple(Z.shape[:-1])} with a row in each problem, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    if not bool(Z[mask].isfinite().all()):
        raise ValueError(f"Z must be finite of shape {shape}, a real row is not")
    return mask


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Switch ``torch.autocast`` off for the device of ``x``, because it rounds products."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _common(w: Tensor, Z: Tensor, name: str = "w") -> tuple[Tensor, Tensor]:
    """Return both in one type, the wider of the two and at least float32."""
    if w.device != Z.device:
        raise ValueError(f"{name} must be on the device of X, {Z.device}, got {w.device}")
    if not w.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {w.dtype}")
    w, Z = widened(w), widened(Z)
    dtype = torch.promote_types(w.dtype, Z.dtype)
    return w.to(dtype), Z.to(dtype)


def _margins(w: Tensor, X: Tensor, y: Tensor, attack: Norm) -> tuple[Tensor, Tensor]:
    r"""Return the margins $z_i^\top w$, shape ``(..., N)``, and $\|w\|_*$, shape ``(...)``."""
    Z = signed_rows(X, y)
    if w.ndim == 0 or w.shape[-1] != Z.shape[-1]:
        raise ValueError(f"w must have shape (..., {Z.shape[-1]}), got {tuple(w.shape)}")
    w, Z = _common(w, Z)
    if not bool(w.isfinite().all()):
        raise ValueError("w must be finite")
    with full_precision(Z):
        margins, size = w @ Z.mT, norm(w, dual(attack))
    if not bool(margins.isfinite().all() & size.isfinite().all()):
        raise ValueError(f"the margins leave the range of {Z.dtype}: scale w or X")
    return margins, size


def worst_case_margin(w: Tensor, X: Tensor, y: Tensor, attack: Norm, eps: float) -> Tensor:
    r"""Compute $\min_{\|\delta\|\le\varepsilon} y\,w^\top(x+\delta) = y\,w^\top x -
    \varepsilon\|w\|_*$ (Lemma 1).

    Args:
        w: Weights, shape ``(..., D)``.
        X: Inputs, shape ``(N, D)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation, any.
        eps: Radius of the perturbation, finite and at least 0.

    Returns:
        Worst-case margins, shape ``(..., N)``.

    Raises:
        ValueError: If the norm is unknown or does not fit ``D``, the data are malformed, ``eps`` is
            negative or not finite, or a margin leaves the range of its type.
    """
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    margins, size = _margins(w, X, y, attack)
    return margins - eps * size.unsqueeze(-1)


def worst_case_perturbation(w: Tensor, y: Tensor, attack: Norm, eps: float) -> Tensor:
    r"""Return the minimiser $\delta^\star = -\varepsilon\,y\,v$, $v\in\partial\|w\|_*$ (Lemma 1).

    Args:
        w: Weights, shape ``(D,)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation, any.
        eps: Radius, finite and at least 0.

    Returns:
        Perturbations, shape ``(N, D)``, in the type of ``w``.

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
    wide = widened(w)
    return (-eps * sign_labels(y).to(wide).unsqueeze(-1) * dual_vector(wide, dual(attack))).to(w)


def robust_error(w: Tensor, X: Tensor, y: Tensor, attack: Norm, eps: float) -> Tensor:
    """Compute the share of inputs with a margin <= 0 under some perturbation of size ``eps``.

    Args:
        w: Weights, shape ``(..., D)``.
        X: Inputs, shape ``(N, D)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation, any.
        eps: Radius of the perturbation, finite and at least 0; 0 gives the standard error.

    Returns:
        Error rates in ``[0, 1]``, shape ``(...)``.

    Raises:
        ValueError: If the norm is unknown or does not fit ``D``, the data are malformed, ``eps`` is
            negative or not finite, or a margin leaves the range of its type.
    """
    margins = worst_case_margin(w, X, y, attack, eps)
    return (margins <= 0).to(margins.dtype).mean(-1)


def robust_radius(w: Tensor, X: Tensor, y: Tensor, attack: Norm) -> Tensor:
    r"""Compute $\rho(w) = \min_i z_i^\top w / \|w\|_*$, the least radius that flips a decision.

    Args:
        w: Weights, not zero, shape ``(..., D)``.
        X: Inputs, shape ``(N, D)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation, any.

    Returns:
        Radii, shape ``(...)``; negative where ``w`` misclassifies an input.

    Raises:
        ValueError: If the norm is unknown or does not fit ``D``, the data are malformed, or some
            ``w`` is zero, or so small or large that its margins are rounding errors or infinite.

    Example:
        >>> X, y = torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([1, -1])
        >>> robust_radius(torch.tensor([1.0, 1.0]), X, y, attack="linf")
        tensor(0.5000)
    """
    margins, size = _margins(w, X, y, attack)
    if not bool((size > 0).all()):
        raise ValueError("the radius of w = 0 is undefined")
    limits = torch.finfo(size.dtype)
    if not bool((size >= limits.tiny / limits.eps).all()):
        raise ValueError(f"w is too small for {size.dtype}, its margins are rounded: scale it")
    return margins.amin(-1) / size


def certificate(
    w: Tensor, X: Tensor, y: Tensor, attack: Norm, q: Tensor | None = None
) -> Certificate:
    r"""Bound $\varepsilon^*$ below by any weights and above by any point of the simplex (Lemma 3).

    $$\min_i z_i^\top w / \|w\|_* \le \varepsilon^* \le \|Z^\top q\|$$

    Args:
        w: Weights, not zero, shape ``(..., D)``.
        X: Inputs, shape ``(N, D)``.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation, any.
        q: Point of the simplex, shape ``(..., N)``. By default the softmax of $-Zw$: the weights
            that the exponential loss gives the examples, so that $\|Z^\top q\|$ is the norm of
            the gradient of its logarithm.

    Returns:
        The two bounds.

    Raises:
        ValueError: If the norm is unknown or does not fit ``D``, the data are malformed, ``w`` is
            zero or out of range, or ``q`` is not in the simplex.
    """
    lower = robust_radius(w, X, y, attack)
    w, Z = _common(w, signed_rows(X, y))
    with full_precision(Z):
        return Certificate(lower, _hull_distance(w, Z, attack, q))


def _hull_distance(w: Tensor, Z: Tensor, attack: Norm, q: Tensor | None) -> Tensor:
    r"""Return $\|Z^\top q\|$ after checking $q$."""
    if q is None:
        q = torch.softmax(-(w @ Z.mT), dim=-1)  # (..., N)
    if q.ndim == 0 or q.shape[-1] != Z.shape[0]:
        raise ValueError(f"q must have shape (..., {Z.shape[0]}), got {tuple(q.shape)}")
    q, Z = _common(q, Z, "q")
    off, smallest = float((q.detach().sum(-1) - 1).abs().max()), float(q.detach().min())
    if smallest < 0 or not off <= 1e-6:
        raise ValueError(f"q must be in the simplex: smallest {smallest}, sum off by {off}")
    return norm(q @ Z, attack)
