r"""Names of norms, one vocabulary for attacks and for linear classifiers.

A norm is a string or a `FourierNorm`: ``"l1"``, ``"l2"`` and ``"linf"`` measure coordinates,
``"fourier_l1"`` and ``"fourier_linf"`` the moduli of a signal's unitary discrete Fourier transform.
A string does not say which shape the signal has, so each function that takes a norm documents it;
in linear robustness it is one signal that fills the vector, ``FourierNorm(..., (D,))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Literal, get_args

import torch
from torch import Tensor

from trainaug.checks import widened

__all__ = ["NORMS", "FourierName", "FourierNorm", "Norm", "PlainNorm", "check_norm", "shaped_norm"]

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
