r"""Norms on $\mathbb R^D$: their names, duals, dual vectors, projections and proximal operators.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, section on norms and duals.

A norm is a string or a `FourierNorm`, one vocabulary for attacks and for linear classifiers:
``"l1"``, ``"l2"`` and ``"linf"`` measure coordinates, ``"fourier_l1"`` and ``"fourier_linf"`` the
moduli of a signal's unitary discrete Fourier transform. A string does not say which shape the
signal has, so each function that takes a norm documents it; here and in linear robustness it is
one signal that fills the vector, ``FourierNorm(..., (D,))``, and pictures need a `FourierNorm` with
their shape. Both orders of Fourier norms work in the same way: the plain operation is applied to
the moduli, and the phases are kept.

Half-precision vectors are computed in float32 and rounded once, at the end. Norms and dual vectors
let NaN through to their result; projections and proximal steps refuse it. In linear robustness the
optimiser's norm measures the *weights*; the classifier is robust to perturbations of the *inputs*
in the dual norm.
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
    "FourierName",
    "FourierNorm",
    "Norm",
    "PlainNorm",
    "check_norm",
    "dual",
    "dual_vector",
    "measured",
    "norm",
    "project",
    "prox",
    "shaped_norm",
    "subgradient",
]

#: Norms of coordinates, by name.
PlainNorm = Literal["l1", "l2", "linf"]
#: Norms of the moduli of a spectrum, by name.
FourierName = Literal["fourier_l1", "fourier_linf"]
#: The names of the norms of coordinates.
NORMS: tuple[PlainNorm, ...] = get_args(PlainNorm)
_NAMES: tuple[PlainNorm | FourierName, ...] = (*NORMS, *get_args(FourierName))


@dataclass(frozen=True)
class FourierNorm:
    r"""$\|\mathcal Fx\|_1$ or $\|\mathcal Fx\|_\infty$ of a real signal, $\mathcal F$ unitary.

    Over real signals the two are dual to each other (Lemma 4 of chapter 6; the norms are those of
    Faghri et al. 2021, arXiv 2102.08868). A modulus is
    $|\hat x_k| = \sqrt{\mathrm{Re}^2 + \mathrm{Im}^2}$.

    Args:
        order: ``"l1"`` or ``"linf"``, of the moduli.
        shape: How the last dimension ``D`` unfolds, ``(D,)`` for a signal, ``(H, W)`` for a
            picture. The transform runs over all of it; a product other than ``D`` is refused
            where the norm is used.

    Raises:
        ValueError: If the order is unknown, or a side is not a whole number of at least 1.

    Example:
        >>> picture = FourierNorm("linf", (1, 2))
        >>> round(float(picture.transform(torch.tensor([3.0, -4.0])).abs().max()), 3)
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

        Args:
            x: Signals, flattened, floating point, shape ``(..., D)``.

        Returns:
            The full spectrum, flattened, in the layout of ``torch.fft.fftn``.

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
        r"""Return the real part of the inverse transform: $z$ with each pair $\pm k$ averaged.

        Args:
            z: Spectra, flattened, complex, shape ``(..., D)``.

        Returns:
            Signals, flattened, real, shape ``(..., D)``.
        """
        if z.numel() == 0:
            return z.real
        axes = tuple(range(-len(self.shape), 0))
        spectrum = z.reshape(*z.shape[:-1], *self.shape)
        signal: Tensor = torch.fft.ifftn(spectrum, dim=axes, norm="ortho").real
        return signal.flatten(-len(self.shape))

    def on_moduli(self, x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Apply an operation to the moduli $|\hat x|$ and keep the phases; a modulus of 0 stays 0.

        Args:
            x: Signals, flattened, shape ``(..., D)``.
            operation: Maps moduli ``(..., D)`` to moduli of the same shape.

        Returns:
            Signals, flattened, shape ``(..., D)``, in the type of ``x``.

        Raises:
            ValueError: As in `transform`.
        """
        z = self.transform(x)
        moduli = z.abs()
        # the smallest normal number: dividing by a smaller one overflows
        safe = moduli >= torch.finfo(moduli.dtype).tiny
        phases = torch.where(safe, z / torch.where(safe, moduli, 1.0), 0.0)
        return self.invert(operation(moduli) * phases).to(x.dtype)


#: Any norm: one of the five names, or a `FourierNorm`.
Norm = PlainNorm | FourierName | FourierNorm


def check_norm(norm: str | FourierNorm) -> Norm:
    """Return ``norm`` unchanged if it is a known norm.

    Args:
        norm: One of the five names, or a `FourierNorm`.

    Returns:
        ``norm`` itself.

    Raises:
        ValueError: If it is unknown; the message lists the names.

    Example:
        >>> check_norm("fourier_linf")
        'fourier_linf'
    """
    if isinstance(norm, FourierNorm):
        return norm
    for name in _NAMES:
        if norm == name:
            return name
    raise ValueError(f"unknown norm {norm!r}, expected one of {', '.join(_NAMES)} or a FourierNorm")


def shaped_norm(norm: str | FourierNorm, shape: tuple[int, ...]) -> PlainNorm | FourierNorm:
    """Return the norm that a name stands for, given the shape of the signals.

    Args:
        norm: Any norm; a `FourierNorm` has a shape already and is returned as it is.
        shape: Sides of a signal.

    Returns:
        A `FourierNorm` for a Fourier name, any other norm as it is.

    Raises:
        ValueError: If the norm is unknown.

    Example:
        >>> shaped_norm("fourier_l1", (8, 8))
        FourierNorm(order='l1', shape=(8, 8))
    """
    known = check_norm(norm)
    if known == "fourier_l1":
        return FourierNorm("l1", shape)
    if known == "fourier_linf":
        return FourierNorm("linf", shape)
    return known


_DUAL: dict[PlainNorm | FourierName, PlainNorm | FourierName] = {
    "l1": "linf",
    "l2": "l2",
    "linf": "l1",
    "fourier_l1": "fourier_linf",
    "fourier_linf": "fourier_l1",
}


@overload
def dual(norm: PlainNorm) -> PlainNorm: ...


@overload
def dual(norm: FourierName) -> FourierName: ...


@overload
def dual(norm: FourierNorm) -> FourierNorm: ...


def dual(norm: Norm) -> Norm:
    r"""Return the dual norm $\|w\|_* = \max_{\|\delta\|\le 1} w^\top\delta$.

    The two Fourier norms are each other's duals over real signals (Lemma 4).

    Args:
        norm: Any norm.

    Returns:
        The dual: a string for a string, a `FourierNorm` of the same shape for a `FourierNorm`.

    Raises:
        ValueError: If there is no such norm.

    Example:
        >>> dual("linf")
        'l1'
        >>> dual(FourierNorm("linf", (8, 8)))
        FourierNorm(order='l1', shape=(8, 8))
    """
    known = check_norm(norm)
    if isinstance(known, FourierNorm):
        return FourierNorm("l1" if known.order == "linf" else "linf", known.shape)
    return _DUAL[known]


def _check_vectors(x: Tensor) -> None:
    """Raise a ValueError unless ``x`` holds floating-point vectors ``(..., D)``, D at least 1."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"expected vectors of shape (..., D) with D >= 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected floating-point vectors, got {x.dtype}: convert them first")


def _shaped(norm: Norm, x: Tensor) -> PlainNorm | FourierNorm:
    """Check a norm and vectors ``(..., D)``; return the norm, a Fourier name as a `FourierNorm`."""
    check_norm(norm)
    _check_vectors(x)
    return shaped_norm(norm, (x.shape[-1],))


def _is_unsafe(length: Tensor) -> Tensor:
    """Tell which lengths may have lost digits, because squares left the range of the type."""
    # The square of ``least`` is far enough above the subnormal numbers to keep all its bits.
    least = 2.0 ** (math.frexp(torch.finfo(length.dtype).tiny)[1] // 2 + 12)
    return (length < least) | length.isinf()


def _length(x: Tensor) -> Tensor:
    """Return Euclidean lengths; a vector whose squares leave the type's range is scaled first."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1)
    unsafe = _is_unsafe(length)
    largest = x.detach().abs().amax(-1)
    unit = torch.where(unsafe & (largest > 0) & largest.isfinite(), largest, 1.0)
    scaled = torch.where(unsafe.unsqueeze(-1), x / unit.unsqueeze(-1), 0.0)
    return torch.where(unsafe, unit * torch.linalg.vector_norm(scaled, dim=-1), length)


def norm(x: Tensor, norm: Norm) -> Tensor:
    """Compute the norm over the last dimension.

    Args:
        x: Vectors, shape ``(..., D)``.
        norm: Any norm.

    Returns:
        Norms, shape ``(...,)``, same dtype and device as ``x``; infinite where the norm itself is
        above the largest number of the type, NaN where an entry is.

    Raises:
        ValueError: If the norm is unknown, ``x`` is not floating point, or ``D`` is zero or not the
            size of a Fourier norm.

    Example:
        >>> norm(torch.tensor([3.0, -4.0]), "l1")
        tensor(7.)
    """
    return _measured(x, _shaped(norm, x))


def measured(x: Tensor, norm: PlainNorm | FourierNorm) -> Tensor:
    """Do what `norm` does in a loop over plain values, whose vectors are already checked.

    On the CPU vectors are scaled only if one needs it, so `torch.func` cannot transform this.
    """
    if norm == "l2" and x.is_cpu:
        length: Tensor = torch.linalg.vector_norm(widened(x), dim=-1)
        if not bool(_is_unsafe(length).any()):
            return length.to(x.dtype)
    return _measured(x, norm)


def _measured(x: Tensor, norm: PlainNorm | FourierNorm) -> Tensor:
    """Return the norms ``(...,)`` of vectors that are already checked."""
    if isinstance(norm, FourierNorm):
        return _measured(norm.transform(x).abs(), norm.order).to(x.dtype)
    wide = widened(x)
    if norm == "l1":
        return wide.abs().sum(-1).to(x.dtype)
    if norm == "l2":
        return _length(wide).to(x.dtype)
    return x.abs().amax(-1)


def dual_vector(x: Tensor, norm: Norm) -> Tensor:
    r"""Return one subgradient $v \in \partial\|x\|$ of a norm.

    $v$ satisfies $v^\top x = \|x\|$ and has dual norm one, so it is the perturbation that attains
    equality in Hölder's inequality (Lemma 1). At $x = 0$ it is the subgradient zero. With
    ``"linf"`` only the *first* coordinate of largest modulus is non-zero; with ``"l1"`` zero
    coordinates stay zero. For the Fourier ``l1`` norm it is $\mathcal F^{-1}(\hat x/|\hat x|)$; for
    ``linf`` its transform is non-zero only at the first frequency $k$ of largest modulus and at its
    mirror $-k$, with conjugate phases (Lemma 4).

    Args:
        x: Vectors, shape ``(..., D)``.
        norm: The norm that is differentiated, any.

    Returns:
        Dual vectors, shape ``(..., D)``, same dtype and device as ``x``. If a vector contains NaN,
        so does its dual vector, though not always at the same coordinates.

    Raises:
        ValueError: If the norm is unknown, ``x`` is not floating point, or ``D`` is zero or not the
            size of a Fourier norm.

    Example:
        >>> dual_vector(torch.tensor([3.0, -4.0]), "linf")
        tensor([ 0., -1.])
    """
    return subgradient(x, _shaped(norm, x))


def subgradient(x: Tensor, norm: PlainNorm | FourierNorm) -> Tensor:
    """Do what `dual_vector` does for vectors that are already checked."""
    if isinstance(norm, FourierNorm):
        order = norm.order
        return norm.on_moduli(x, lambda moduli: subgradient(moduli, order))
    if norm == "l1":
        return _sign(x)
    if norm == "l2":
        wide = widened(x)
        length = _length(wide).unsqueeze(-1)  # (..., 1)
        return torch.where(length == 0, 0.0, wide / length).to(x.dtype)
    largest = x.abs().argmax(-1, keepdim=True)  # (..., 1)
    return torch.zeros_like(x).scatter(-1, largest, _sign(x.gather(-1, largest)))


def _sign(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), x, x.sign())  # torch's own sign of NaN is 0


def project(x: Tensor, norm: Norm, radius: float | Tensor) -> Tensor:
    r"""Project onto the ball $\{u : \|u\| \le \text{radius}\}$ in Euclidean distance.

    The projection onto the $\ell_1$ ball is the soft threshold at the level that brings the norm
    to ``radius``; sorting finds that level (Duchi et al. 2008). Since $\mathcal F$ is unitary, the
    projection onto a Fourier ball projects the moduli.

    Args:
        x: Vectors, shape ``(..., D)``.
        norm: Norm of the ball, any.
        radius: Radius of the ball, at least 0: a number, or one per vector, shape ``(...)``.

    Returns:
        Projected vectors, shape ``(..., D)``, same dtype as ``x``; vectors inside the ball are
        returned unchanged. In half precision the last rounding may leave the ball by one unit in
        the last place of each entry.

    Raises:
        ValueError: If the norm is unknown, ``x`` is not floating point, ``x`` or its norm is not
            finite, or a radius is negative or not finite.

    Example:
        >>> project(torch.tensor([3.0, 1.0]), "l1", 2.0)
        tensor([2., 0.])
    """
    known = _shaped(norm, x)
    if x.is_meta:
        raise ValueError("vectors on the meta device have no values to project")
    narrow, x = x, widened(x)
    limit = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    if not bool(((limit >= 0) & limit.isfinite()).all()):
        raise ValueError(f"radius must be finite and at least 0, got {radius}")
    length = _measured(x, known).unsqueeze(-1)  # (..., 1)
    if not bool(length.isfinite().all()):
        finite("x", x)
        raise ValueError(f"the norm of x leaves the range of {x.dtype}: scale x and the radius")
    limit = limit.unsqueeze(-1)  # (..., 1)
    if isinstance(known, FourierNorm):
        order = known.order
        inside = known.on_moduli(x, lambda moduli: project(moduli, order, limit.squeeze(-1)))
    elif known == "linf":
        inside = torch.minimum(torch.maximum(x, -limit), limit)
    elif known == "l2":
        inside = x / length * limit
    else:
        sizes = x.abs().sort(-1, descending=True).values  # (..., D)
        rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        levels = (sizes.cumsum(-1) - limit) / rank  # (..., D)
        active = (sizes > levels).sum(-1, keepdim=True).clamp(min=1)  # (..., 1)
        level = levels.gather(-1, active - 1).clamp(min=0)  # (..., 1)
        inside = x.sign() * (x.abs() - level).clamp(min=0)
    return torch.where(length > limit, inside, x).to(narrow.dtype)


def prox(x: Tensor, norm: Norm, tau: float | Tensor) -> Tensor:
    r"""Compute $\mathrm{prox}_{\tau\|\cdot\|}(x) = \arg\min_u \tfrac12\|u-x\|_2^2 + \tau\|u\|$.

    By Moreau's identity this is $x$ minus its projection onto the dual ball of radius $\tau$: the
    soft threshold for ``"l1"``, the block soft threshold for ``"l2"``, the complex soft threshold
    of the spectrum for the Fourier ``l1`` norm.

    Args:
        x: Vectors, shape ``(..., D)``.
        norm: The norm $\|\cdot\|$, any.
        tau: Weight of the norm, at least 0: a number, or one per vector, shape ``(...)``.

    Returns:
        Shape ``(..., D)``, same dtype as ``x``; exactly zero where the dual norm of ``x`` is at
        most ``tau``.

    Raises:
        ValueError: If the norm is unknown, ``x`` is not floating point, ``x`` or its dual norm is
            not finite, or ``tau`` is negative or not finite.

    Example:
        >>> prox(torch.tensor([3.0, -0.5]), "l1", 1.0)
        tensor([2., 0.])
    """
    wide = widened(x)
    return (wide - project(wide, dual(norm), tau)).to(x.dtype)
