r"""Norms on $\mathbb R^D$, their duals, dual vectors, projections and proximal operators.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, section on norms and duals.

The optimiser's norm lives on the *weights*; robustness is against its dual on the *inputs*.

A norm is named by a string, ``"l1"``, ``"l2"`` or ``"linf"``, or by a `FourierNorm`, the
$\ell_1$ or $\ell_\infty$ norm of the moduli of a signal's unitary discrete Fourier transform. The
latter are handled by one rule: apply the plain operation to the moduli, keep the phases.

Half-precision vectors are computed in float32 and rounded once, at the end. Norms and dual vectors
let NaN through to their result; projections and proximal steps refuse it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from trainaug.checks import finite, widened

__all__ = [
    "NORMS",
    "FourierNorm",
    "Norm",
    "PlainNorm",
    "check_norm",
    "dual",
    "dual_vector",
    "norm",
    "project",
    "prox",
]

PlainNorm = Literal["l1", "l2", "linf"]
NORMS: tuple[PlainNorm, ...] = get_args(PlainNorm)
_DUAL: dict[PlainNorm, PlainNorm] = {"l1": "linf", "l2": "l2", "linf": "l1"}


@dataclass(frozen=True)
class FourierNorm:
    r"""$\|\mathcal Fx\|_1$ or $\|\mathcal Fx\|_\infty$ of a real signal, $\mathcal F$ unitary.

    Over real signals the two are dual to each other (Lemma 4). A modulus is
    $|\hat x_k| = \sqrt{\mathrm{Re}^2 + \mathrm{Im}^2}$.

    Args:
        order: ``"l1"`` or ``"linf"``, of the moduli.
        shape: How the last dimension ``D`` unfolds, ``(D,)`` for a signal, ``(H, W)`` for a
            picture. The transform runs over all of it; a product other than ``D`` is refused
            where the norm is used.

    Raises:
        ValueError: If the order is unknown or a side is no whole number or below 1.

    Example:
        >>> round(float(norm(torch.tensor([3.0, -4.0]), FourierNorm("linf", (2,)))), 3)
        4.95
    """

    order: Literal["l1", "linf"]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.order not in ("l1", "linf"):
            raise ValueError(f"the order of a Fourier norm is l1 or linf, got {self.order!r}")
        try:  # plain numbers, which a checkpoint may hold
            sides = tuple(index(side) for side in self.shape)
        except TypeError as error:
            raise ValueError(
                f"the shape of a signal is a tuple of whole numbers, got {self.shape!r}"
            ) from error
        if not sides or min(sides) < 1:
            raise ValueError(f"the shape of a signal needs sides of at least 1, got {self.shape}")
        object.__setattr__(self, "shape", sides)

    def __str__(self) -> str:
        return f"fourier_{self.order}"

    def transform(self, x: Tensor) -> Tensor:
        """Return the unitary transform of ``(..., D)``, complex, of the same shape.

        Half precision is transformed in float32.

        Raises:
            ValueError: If ``D`` is not the size of the signal or ``x`` is not floating point.
        """
        if x.ndim == 0 or x.shape[-1] != math.prod(self.shape):
            raise ValueError(
                f"a Fourier norm of signals {self.shape} needs vectors (..., "
                f"{math.prod(self.shape)}), got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"a Fourier norm needs real floating-point signals, got {x.dtype}")
        x = widened(x)
        axes = tuple(range(-len(self.shape), 0))
        if x.numel() == 0:  # no rows: some FFT libraries refuse an empty batch
            return x.to(x.dtype.to_complex())
        signal = x.reshape(*x.shape[:-1], *self.shape)
        spectrum: Tensor = torch.fft.fftn(signal, dim=axes, norm="ortho")
        return spectrum.flatten(-len(self.shape))

    def invert(self, z: Tensor) -> Tensor:
        r"""Return the real part of the inverse transform: $z$ with each pair $\pm k$ averaged."""
        if z.numel() == 0:
            return z.real
        axes = tuple(range(-len(self.shape), 0))
        spectrum = z.reshape(*z.shape[:-1], *self.shape)
        signal: Tensor = torch.fft.ifftn(spectrum, dim=axes, norm="ortho").real
        return signal.flatten(-len(self.shape))

    def on_moduli(self, x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Apply an operation to the moduli $|\hat x|$ and keep the phases; $0$ has none."""
        z = self.transform(x)
        moduli = z.abs()
        # the smallest normal number: dividing by a smaller one overflows
        safe = moduli >= torch.finfo(moduli.dtype).tiny
        phases = torch.where(safe, z / torch.where(safe, moduli, 1.0), 0.0)
        return self.invert(operation(moduli) * phases).to(x.dtype)


Norm = PlainNorm | FourierNorm


def check_norm(kind: str | FourierNorm) -> Norm:
    """Return ``kind`` if it is a norm of this module.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(kind, FourierNorm):
        return kind
    for known in NORMS:
        if kind == known:
            return known
    raise ValueError(f"unknown norm {kind!r}, expected one of {', '.join(NORMS)} or a FourierNorm")


@overload
def dual(kind: PlainNorm) -> PlainNorm: ...


@overload
def dual(kind: FourierNorm) -> FourierNorm: ...


def dual(kind: Norm) -> Norm:
    r"""Name the dual norm $\|w\|_* = \max_{\|\delta\|\le 1} w^\top\delta$.

    Example:
        >>> dual("linf")
        'l1'
        >>> dual(FourierNorm("linf", (8, 8)))
        FourierNorm(order='l1', shape=(8, 8))
    """
    kind = check_norm(kind)
    if isinstance(kind, FourierNorm):
        return FourierNorm("l1" if kind.order == "linf" else "linf", kind.shape)
    return _DUAL[kind]


def _check_vectors(x: Tensor) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"expected vectors of shape (..., D) with D >= 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected floating-point vectors, got {x.dtype}: convert them first")


def _length(x: Tensor) -> Tensor:
    """Euclidean length; where the squares leave the range of the type, of the scaled vector."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1)
    least = 2.0 ** (math.frexp(torch.finfo(x.dtype).tiny)[1] // 2 + 12)  # its square has all bits
    unsafe = (length < least) | length.isinf()
    largest = x.detach().abs().amax(-1)
    unit = torch.where(unsafe & (largest > 0) & largest.isfinite(), largest, 1.0)
    scaled = torch.where(unsafe.unsqueeze(-1), x / unit.unsqueeze(-1), 0.0)
    return torch.where(unsafe, unit * torch.linalg.vector_norm(scaled, dim=-1), length)


def norm(x: Tensor, kind: Norm) -> Tensor:
    """Compute the norm over the last dimension.

    Args:
        x: Vectors, shape ``(..., D)``.
        kind: The norm.

    Returns:
        Norms, shape ``(...,)``, same dtype and device as ``x``; infinite where the norm itself is
        above the largest number of the type, NaN where an entry is.

    Raises:
        ValueError: If ``kind`` is unknown, ``x`` is not floating point, or ``D`` is zero or not the
            size of a Fourier norm.

    Example:
        >>> norm(torch.tensor([3.0, -4.0]), "l1")
        tensor(7.)
    """
    kind = check_norm(kind)
    _check_vectors(x)
    if isinstance(kind, FourierNorm):
        return norm(kind.transform(x).abs(), kind.order).to(x.dtype)
    wide = widened(x)
    if kind == "l1":
        return wide.abs().sum(-1).to(x.dtype)
    if kind == "l2":
        return _length(wide).to(x.dtype)
    return x.abs().amax(-1)


def dual_vector(x: Tensor, kind: Norm) -> Tensor:
    r"""Return one subgradient $v \in \partial\|x\|$ of the norm ``kind``.

    $v$ satisfies $v^\top x = \|x\|$ and has dual norm one, so it is the perturbation that attains
    Hölder's inequality (Lemma 1). At $x = 0$ it is the subgradient zero. For ``"linf"`` all mass
    sits on the *first* coordinate of largest modulus, for ``"l1"`` zero coordinates stay zero.
    Fourier: $\mathcal F^{-1}(\hat x/|\hat x|)$ for ``l1``; for ``linf`` the mass is split between
    the first frequency $k$ of largest modulus and its mirror $-k$ with conjugate phases (Lemma 4).

    Args:
        x: Vectors, shape ``(..., D)``.
        kind: The norm that is differentiated.

    Returns:
        Dual vectors, shape ``(..., D)``, same dtype and device as ``x``; NaN where ``x`` is, and
        somewhere in each vector that holds NaN.

    Raises:
        ValueError: If ``kind`` is unknown, ``x`` is not floating point, or ``D`` is zero or not the
            size of a Fourier norm.

    Example:
        >>> dual_vector(torch.tensor([3.0, -4.0]), "linf")
        tensor([ 0., -1.])
    """
    kind = check_norm(kind)
    _check_vectors(x)
    if isinstance(kind, FourierNorm):
        order = kind.order
        return kind.on_moduli(x, lambda moduli: dual_vector(moduli, order))
    if kind == "l1":
        return _sign(x)
    if kind == "l2":
        wide = widened(x)
        length = _length(wide).unsqueeze(-1)  # (..., 1)
        return torch.where(length == 0, 0.0, wide / length).to(x.dtype)
    largest = x.abs().argmax(-1, keepdim=True)  # (..., 1)
    return torch.zeros_like(x).scatter(-1, largest, _sign(x.gather(-1, largest)))


def _sign(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), x, x.sign())  # torch's own sign of NaN is 0


def project(x: Tensor, kind: Norm, radius: float | Tensor) -> Tensor:
    r"""Project onto the ball $\{u : \|u\| \le \text{radius}\}$ in Euclidean distance.

    The projection on the $\ell_1$ ball is the soft threshold at the level that brings the norm
    to ``radius``, found by sorting (Duchi et al. 2008). Since $\mathcal F$ is unitary, the Fourier
    balls are projected in the moduli.

    Args:
        x: Vectors, shape ``(..., D)``.
        kind: Norm of the ball.
        radius: Radius of the ball, at least 0; a number, or one a vector, shape ``(...)``.

    Returns:
        Projected vectors, shape ``(..., D)``, same dtype as ``x``; vectors inside the ball are
        returned unchanged. In half precision the last rounding may leave the ball by one unit in
        the last place of each entry.

    Raises:
        ValueError: If ``kind`` is unknown, ``x`` is not floating point, ``x`` or its norm is not
            finite, or a radius is negative or not finite.

    Example:
        >>> project(torch.tensor([3.0, 1.0]), "l1", 2.0)
        tensor([2., 0.])
    """
    kind = check_norm(kind)
    _check_vectors(x)
    if x.is_meta:
        raise ValueError("vectors on the meta device have no values to project")
    narrow, x = x, widened(x)
    limit = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    if not bool(((limit >= 0) & limit.isfinite()).all()):
        raise ValueError(f"radius must be finite and at least 0, got {radius}")
    length = norm(x, kind).unsqueeze(-1)  # (..., 1)
    if not bool(length.isfinite().all()):
        finite("x", x)
        raise ValueError(f"the norm of x leaves the range of {x.dtype}: scale x and the radius")
    limit = limit.unsqueeze(-1)  # (..., 1)
    if isinstance(kind, FourierNorm):
        order = kind.order
        inside = kind.on_moduli(x, lambda moduli: project(moduli, order, limit.squeeze(-1)))
    elif kind == "linf":
        inside = torch.minimum(torch.maximum(x, -limit), limit)
    elif kind == "l2":
        inside = x / length * limit
    else:
        sizes = x.abs().sort(-1, descending=True).values  # (..., D)
        rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        levels = (sizes.cumsum(-1) - limit) / rank  # (..., D)
        active = (sizes > levels).sum(-1, keepdim=True).clamp(min=1)  # (..., 1)
        level = levels.gather(-1, active - 1).clamp(min=0)  # (..., 1)
        inside = x.sign() * (x.abs() - level).clamp(min=0)
    return torch.where(length > limit, inside, x).to(narrow.dtype)


def prox(x: Tensor, kind: Norm, tau: float | Tensor) -> Tensor:
    r"""Compute $\mathrm{prox}_{\tau\|\cdot\|}(x) = \arg\min_u \tfrac12\|u-x\|_2^2 + \tau\|u\|$.

    By Moreau's identity this is $x$ less its projection on the dual ball of radius $\tau$: the soft
    threshold for ``"l1"``, the block soft threshold for ``"l2"``, the complex soft threshold of
    the spectrum for the Fourier ``l1`` norm.

    Args:
        x: Vectors, shape ``(..., D)``.
        kind: The norm $\|\cdot\|$.
        tau: Weight of the norm, at least 0; a number, or one a vector, shape ``(...)``.

    Returns:
        Shape ``(..., D)``, same dtype as ``x``; exactly zero where the dual norm of ``x`` is at
        most ``tau``.

    Raises:
        ValueError: If ``kind`` is unknown, ``x`` is not floating point, ``x`` or its dual norm is
            not finite, or ``tau`` is negative or not finite.

    Example:
        >>> prox(torch.tensor([3.0, -0.5]), "l1", 1.0)
        tensor([2., 0.])
    """
    wide = widened(x)
    return (wide - project(wide, dual(kind), tau)).to(x.dtype)
