r"""Machine-checked enclosures of the largest robust radius $\varepsilon^*$.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, duality lemma; Johansson, "Arb: Efficient Arbitrary-Precision
Midpoint-Radius Interval Arithmetic", IEEE Trans. Computers 2017.

A float is an integer over a power of two. So data, weights and dual point are exact numbers, and
the sandwich of Lemma 3 can be decided without any rounding error. Nothing here uses the
floating-point norms of this package: the computation is independent of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from operator import mul
from typing import Any

import torch
from torch import Tensor

from trainaug.checks import sign_labels
from trainaug.extras import extra
from trainaug.methods.linear_robustness.robustness import signed_rows
from trainaug.norms import FourierNorm, Norm, PlainNorm, check_norm, dual, shaped_norm

__all__ = ["Enclosure", "enclosure", "exact_witness"]

_LARGEST_SUPPORT = 1000  # rows of an exact linear system; larger ones take minutes


@dataclass(frozen=True)
class Enclosure:
    r"""Proved bounds ``lower`` $\le \varepsilon^* \le$ ``upper``, each rounded outward.

    Attributes:
        lower: At least 0; it is 0 only if the exact bound is below the smallest positive float.
        upper: Infinite only if the exact bound is above the largest float.
    """

    lower: float
    upper: float

    @property
    def width(self) -> float:
        """Relative width ``(upper - lower) / lower``, rounded up."""
        if self.lower == 0 or math.isinf(self.upper):
            return math.inf
        return _outward(Fraction(self.upper) / Fraction(self.lower) - 1, math.inf)


def enclosure(
    X: Tensor, y: Tensor, attack: Norm, w: Tensor, lam: Tensor, *, precision: int = 128
) -> Enclosure:
    r"""Prove $\min_i z_i^\top w/\|w\|_* \le \varepsilon^* \le \|Z^\top\lambda\|/\sum_i\lambda_i$.

    This holds for every separating $w$ and every $\lambda \ge 0$, $\lambda \ne 0$ (Lemma 3),
    whatever solver they come from; good points make it tight. $Zw$, $Z^\top\lambda$ and the
    $\ell_1$ and $\ell_\infty$ norms are exact. Square roots and Fourier transforms are enclosed in
    intervals (balls) of python-flint. Their upper ends are used, because a larger value of either
    norm widens the enclosure.

    Args:
        X: Inputs, shape ``(N, D)``, any floating type; taken exactly as they are.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation, any; $\|\cdot\|_*$ is its dual.
        w: Weights that separate the data, shape ``(D,)``; their scale does not matter.
        lam: Dual point, at least 0 and not 0, shape ``(N,)``; its scale does not matter.
        precision: Bits of the intervals, at least 2; the bounds hold with any.

    Returns:
        The two bounds in float64.

    Raises:
        ValueError: If the norm is unknown or its signals do not fit the columns, the data, ``w`` or
            ``lam`` are malformed, ``precision`` is below 2, or the exact margin of some row is not
            positive, so that ``w`` proves nothing.
        ModuleNotFoundError: If python-flint is missing and the attack is neither ``"linf"`` nor
            ``"l1"``.

    Example:
        >>> import torch
        >>> X, y = torch.tensor([[4.0, 1.0], [1.0, 2.0]]), torch.tensor([1, 1])
        >>> enclosure(X, y, "linf", w=torch.tensor([0.25, 0.75]), lam=torch.tensor([0.25, 0.75]))
        Enclosure(lower=1.75, upper=1.75)
    """
    check_norm(attack)
    signed_rows(X, y)  # refuses malformed data; its products are not used
    rows, columns = X.shape
    attack = shaped_norm(attack, (columns,))
    if isinstance(attack, FourierNorm) and math.prod(attack.shape) != columns:
        raise ValueError(f"a Fourier norm of signals {attack.shape} does not fit {columns} columns")
    if precision < 2:
        raise ValueError(f"precision must be at least 2 bits, got {precision}")
    weights = _direction(w, "w", columns)
    multipliers = _direction(lam, "lam", rows)
    if min(multipliers) < 0:
        worst = multipliers.index(min(multipliers))
        raise ValueError(f"lam must be at least 0, got {float(lam[worst])} at {worst}")
    entries, unit = _integers(X.flatten().tolist())  # X = entries / unit
    Z = [
        [int(label) * entry for entry in entries[i * columns : (i + 1) * columns]]
        for i, label in enumerate(sign_labels(y).tolist())
    ]
    margins = [sum(map(mul, row, weights)) for row in Z]
    if min(margins) <= 0:
        worst = margins.index(min(margins))
        sign = "exactly zero" if margins[worst] == 0 else "negative"
        raise ValueError(f"w does not separate the data: the margin of row {worst} is {sign}")
    gradient = [sum(map(mul, column, multipliers)) for column in zip(*Z, strict=True)]
    lower = Fraction(min(margins), unit) / _norm_above(weights, dual(attack), precision)
    upper = _norm_above(gradient, attack, precision) / (unit * sum(multipliers))
    assert lower <= upper, "weak duality"
    return Enclosure(_outward(lower, 0.0), _outward(upper, math.inf))


def exact_witness(Z: Tensor, q: Tensor) -> Tensor | None:
    r"""Return the exact point of the simplex with $Z^\top q = 0$ that ``q`` approximates.

    If such a point exists, no $w$ separates the rows (Gordan). The floats of $Z$ are taken exactly,
    and the linear system of the rows in the support of ``q`` is solved in exact arithmetic.

    Args:
        Z: Signed rows, shape ``(N, D)``, finite.
        q: Vertex of the simplex or of a program over it, shape ``(N,)``, float64.

    Returns:
        The exact point, rounded to float64, shape ``(N,)``; None if the support of ``q`` has more
        than 1000 rows, or there is no such point with this support.
    """
    with extra("proofs"):
        from flint import fmpz_mat

    support = (q > 1e-12).nonzero().squeeze(1)
    if not 0 < len(support) <= _LARGEST_SUPPORT:
        return None
    columns = Z[support].T
    equations = []
    for column in columns[(columns != 0).any(1)].tolist():
        equation, _ = _integers(column)  # the unit may be dropped: the right-hand side is zero
        factor = math.gcd(*equation)
        equations.append([value // factor for value in equation])
    if not equations:
        return q
    nullspace, nullity = fmpz_mat(equations).nullspace()
    if nullity != 1:  # a vertex leaves exactly one direction
        return None
    values = [int(nullspace[i, 0]) for i in range(len(support))]
    total = sum(values)
    if total == 0 or any(value * total < 0 for value in values):  # mixed signs: not in the simplex
        return None
    exact = [float(Fraction(value, total)) for value in values]
    return torch.zeros_like(q).index_put(
        (support,), torch.tensor(exact, dtype=q.dtype, device=q.device)
    )


def _integers(values: Sequence[float]) -> tuple[list[int], int]:
    """Write each float exactly as an integer over a common power of two; return both."""
    ratios = [value.as_integer_ratio() for value in values]
    unit = max(denominator for _, denominator in ratios)
    return [numerator * (unit // denominator) for numerator, denominator in ratios], unit


def _direction(point: Tensor, name: str, size: int) -> list[int]:
    """Return the positive multiple of a point that has integer entries without common factor."""
    if point.shape != (size,) or not point.is_floating_point():
        raise ValueError(
            f"{name} must be floating point of shape ({size},), got {point.dtype} of "
            f"{tuple(point.shape)}"
        )
    values: list[float] = point.tolist()
    for number, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value} at {number}")
    integers, _ = _integers(values)
    factor = math.gcd(*integers)
    if factor == 0:
        raise ValueError(f"{name} must not be all zero, got {size} zeros")
    return [integer // factor for integer in integers]


def _norm_above(values: list[int], norm: PlainNorm | FourierNorm, precision: int) -> Fraction:
    """Return a rational upper bound of the norm of an integer vector; exact for l1 and linf."""
    if norm == "l1":
        return Fraction(sum(map(abs, values)))
    if norm == "linf":
        return Fraction(max(map(abs, values)))
    with extra("proofs"):
        from flint import arb, ctx, fmpq

    with ctx.workprec(precision):
        if isinstance(norm, FourierNorm):
            moduli = [z.abs_upper().fmpq() for z in _spectrum(values, norm.shape, precision)]
            bound = max(moduli) if norm.order == "linf" else sum(moduli, fmpq(0))
        else:
            bound = arb(sum(value * value for value in values)).sqrt().upper().fmpq()
    return Fraction(int(bound.p), int(bound.q))


def _spectrum(values: list[int], shape: tuple[int, ...], precision: int) -> list[Any]:
    """Enclose the unitary Fourier transform of a signal, given and returned as a flat list.

    Each pass of the loop transforms the first axis and makes it the last.
    """
    with extra("proofs"):
        from flint import acb_mat

    spectrum: list[Any] = values
    for side in shape:
        signals = acb_mat(side, len(values) // side, spectrum).transpose()  # (D / side, side)
        spectrum = (signals * _transform(side, precision)).entries()
    return spectrum


@lru_cache(maxsize=8)
def _transform(side: int, precision: int) -> Any:
    r"""Enclose the symmetric matrix $e^{-2\pi i jk/n}/\sqrt n$, shape ``(n, n)``, n = ``side``."""
    with extra("proofs"):
        from flint import acb_mat, ctx

    with ctx.workprec(precision):
        return acb_mat.dft(side)


def _outward(value: Fraction, side: float) -> float:
    """Round a fraction, at least 0, to a float: down if ``side`` is 0.0, up if it is inf."""
    try:
        near = value.numerator / value.denominator
    except OverflowError:
        near = math.inf
    # Python compares floats with fractions exactly.
    while near < value if side > 0 else near > value:
        near = math.nextafter(near, side)
    return near
