r"""Maximum-margin solutions by convex programming, with dual certificates.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, lemma "maximally robust = minimum dual norm".

A solver's word is not taken: its two points are rescaled until they are feasible, and the gap
between them is computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainaug.methods.linear_robustness.norms import (
    FourierNorm,
    Norm,
    PlainNorm,
    check_norm,
    dual,
    norm,
)
from trainaug.methods.linear_robustness.robustness import signed_rows

__all__ = ["MaxMargin", "NotSeparableError", "SolverFailedError", "max_margin", "second_solver"]

_ORDER: dict[PlainNorm, int | str] = {"l1": 1, "l2": 2, "linf": "inf"}
_OPTIONS: dict[str, dict[str, float | str]] = {
    "CLARABEL": {"direct_solve_method": "qdldl"},  # one thread; the default starts one a core
    "HIGHS": {},
    "SCS": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 200_000},
}


class NotSeparableError(ValueError):
    r"""The data have no separating $w$ (without bias).

    Attributes:
        q: Witness in the simplex, shape ``(N,)``; $Z^\top q = 0$ rules every separator out.
        distance: $\|Z^\top q\|_\infty$, zero up to rounding.
    """

    def __init__(self, q: Tensor, distance: float) -> None:
        super().__init__(
            "the data are not linearly separable without bias: a convex combination of the rows "
            f"y_i x_i has largest entry {distance:.1e}, so no w gives every row a positive margin"
        )
        self.q = q
        self.distance = distance


class SolverFailedError(RuntimeError):
    """The solver stopped with a status other than *optimal*."""


@dataclass(frozen=True)
class MaxMargin:
    r"""A pair of feasible points of $\min\{\|w\|_* : Zw \ge 1\}$ and of its dual (Lemmas 2, 3).

    Attributes:
        w: Weights, smallest margin exactly one, shape ``(D,)``.
        lam: Dual point $\lambda \ge 0$ with $\|Z^\top\lambda\| \le 1$, shape ``(N,)``.
        eps_star: The radius $1/\|w\|_*$ that ``w`` attains, a lower bound of $\varepsilon^*$.
        upper: $1/\mathbf 1^\top\lambda$, an upper bound of $\varepsilon^*$.
        gap: Relative duality gap $(\|w\|_* - \mathbf 1^\top\lambda)/\|w\|_*$.
        kkt: Residuals of the solver's own points before rescaling: ``primal``, ``dual``,
            ``complementarity``, ``stationarity``, all relative.
        solver: Its name.
    """

    w: Tensor
    lam: Tensor
    eps_star: float
    upper: float
    gap: float
    kkt: dict[str, float]
    solver: str


def second_solver(attack: Norm) -> str:
    """Name the solver of second opinion: HiGHS for linear programs, SCS for cones."""
    return "HIGHS" if check_norm(attack) in ("l1", "linf") else "SCS"


def max_margin(X: Tensor, y: Tensor, attack: Norm, *, solver: str = "CLARABEL") -> MaxMargin:
    r"""Find the maximally robust linear classifier, $\min\{\|w\|_* : y_i w^\top x_i \ge 1\}$.

    Args:
        X: Inputs, shape ``(N, D)``; solved in float64 on the CPU.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation; $\|\cdot\|_*$ is its dual.
        solver: ``"CLARABEL"``, ``"SCS"``, or, for linear programs, ``"HIGHS"``.

    Returns:
        Both feasible points in float64 on the device of ``X``, with the gap between them.

    Raises:
        ValueError: If the data are malformed or an option is unknown.
        NotSeparableError: If no $w$ separates the data without bias.
        SolverFailedError: If the status is not *optimal*.

    Example:
        >>> X, y = torch.tensor([[3.0, 4.0], [-3.0, -4.0]]).double(), torch.tensor([1, -1])
        >>> round(max_margin(X, y, attack="l2").eps_star, 6)
        5.0
    """
    import cvxpy as cp

    if solver not in _OPTIONS:
        raise ValueError(f"unknown solver {solver!r}, expected one of {', '.join(_OPTIONS)}")
    kind = dual(attack)
    Z = signed_rows(X, y).detach().to("cpu", torch.float64)
    scale = float(norm(Z, attack).max())
    if scale == 0:
        raise NotSeparableError(Z.new_full((len(Z),), 1 / len(Z)), 0.0)
    rows = (Z / scale).numpy()
    variable = cp.Variable(Z.shape[1])
    size: Any
    if isinstance(kind, FourierNorm):
        basis, alone = _real_basis(kind)
        margin: Any = (rows @ basis.numpy()) @ variable >= 1
        size = _half_spectrum_norm(variable, kind, alone)
    else:
        basis = None
        margin = rows @ variable >= 1
        size = cp.norm(variable, _ORDER[kind])
    problem = cp.Problem(cp.Minimize(size), [margin])
    status = _solve(problem, solver)
    if status in ("infeasible", "infeasible_inaccurate"):
        q, distance = _nearest_hull_point(rows)
        if distance < 1e-7:
            raise NotSeparableError(q, distance * scale)
    if status != "optimal":
        raise SolverFailedError(f"{solver} ended with status {status!r} on {tuple(X.shape)} data")
    w = torch.as_tensor(variable.value, dtype=torch.float64, device="cpu") / scale
    return _certify(
        Z,
        w if basis is None else basis @ w,
        torch.as_tensor(margin.dual_value, dtype=torch.float64, device="cpu") / scale,
        attack,
        solver,
        X.device,
    )


@cache
def _real_basis(kind: FourierNorm) -> tuple[Tensor, int]:
    r"""Orthonormal real Fourier basis, shape ``(D, D)``: first the columns of the frequencies that
    are their own mirror, as many as the second result says, then the cosines and then the sines of
    one frequency of each mirror pair.

    In its coordinates $u$ the modulus of a lone frequency is $|u_k|$, that of a pair is
    $\sqrt{u_a^2 + u_b^2} / \sqrt 2$: one three-dimensional cone on two unknowns.
    """
    index = torch.arange(math.prod(kind.shape), device="cpu").reshape(kind.shape)
    axes = tuple(range(len(kind.shape)))
    mirror = index.flip(axes).roll([1] * len(axes), axes).flatten()  # the index of -k
    index = index.flatten()
    spectra = kind.transform(torch.eye(len(index), dtype=torch.float64, device="cpu"))  # (D, D)
    alone, pairs = index[index == mirror], index[index < mirror]
    cosines, sines = spectra.real[:, pairs], spectra.imag[:, pairs]
    parts = [spectra.real[:, alone], math.sqrt(2) * cosines, math.sqrt(2) * sines]
    return torch.cat(parts, 1), len(alone)


def _half_spectrum_norm(u: Any, kind: FourierNorm, alone: int) -> Any:
    import cvxpy as cp

    pairs = (u.size - alone) // 2
    lone = u[:alone]
    if pairs == 0:
        return cp.norm(lone, _ORDER[kind.order])
    lengths = cp.norm(cp.vstack([u[alone : alone + pairs], u[alone + pairs :]]), 2, axis=0)
    if kind.order == "l1":
        return cp.norm(lone, 1) + math.sqrt(2) * cp.sum(lengths)
    return cp.maximum(cp.norm(lone, "inf"), cp.max(lengths) / math.sqrt(2))


def _solve(problem: Any, solver: str) -> str:
    import cvxpy as cp
    import numpy as np

    try:
        with np.errstate(invalid="ignore"):  # cvxpy multiplies infinite bounds by zero
            problem.solve(solver=solver, **_OPTIONS[solver])
    except cp.SolverError as error:
        raise SolverFailedError(f"{solver} failed: {error}") from error
    return str(problem.status)


def _nearest_hull_point(rows: Any) -> tuple[Tensor, float]:
    """Minimise the largest entry of Z^T q over the simplex: zero proves non-separability."""
    import cvxpy as cp

    q = cp.Variable(len(rows), nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm(rows.T @ q, "inf")), [cp.sum(q) == 1])
    status = _solve(problem, "HIGHS")
    if status != "optimal":
        raise SolverFailedError(f"HIGHS ended with status {status!r} on the distance to the hull")
    point = torch.as_tensor(q.value, dtype=torch.float64, device="cpu").clamp(min=0)
    point = point / point.sum()
    return point, float((point @ torch.as_tensor(rows, device="cpu")).abs().max())


def _certify(
    Z: Tensor, w: Tensor, lam: Tensor, attack: Norm, solver: str, device: torch.device
) -> MaxMargin:
    margins = Z @ w  # (N,)
    size = norm(w, dual(attack))
    kkt = {
        "primal": max(0.0, float(1 - margins.min())),
        "dual": max(0.0, float(norm(lam @ Z, attack) - 1), float(-lam.min() * size)),
        "complementarity": float((lam * (margins - 1)).abs().max() / size),
        "stationarity": abs(float(lam @ margins - size)) / float(size),
    }
    if not float(margins.min()) > 0:
        raise SolverFailedError(f"{solver} returned a w of smallest margin {margins.min():.1e}")
    w = w / margins.min()
    lam = lam.clamp(min=0)
    lam = lam / norm(lam @ Z, attack).clamp(min=torch.finfo(torch.float64).tiny)
    primal, total = float(norm(w, dual(attack))), float(lam.sum())
    return MaxMargin(
        w=w.to(device),
        lam=lam.to(device),
        eps_star=1 / primal,
        upper=1 / total,
        gap=(primal - total) / primal,
        kkt=kkt,
        solver=solver,
    )
