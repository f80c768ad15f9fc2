r"""Maximum-margin solutions by convex programming, with dual certificates.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, lemma "maximally robust = minimum dual norm".

The solver is not trusted: its primal and dual points are rescaled until they are feasible, and the
gap between them is computed here. That no $w$ separates the data is reported only with a proof.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainaug.extras import extra
from trainaug.methods.linear_robustness.enclosure import exact_witness
from trainaug.methods.linear_robustness.robustness import full_precision, signed_rows
from trainaug.norms import (
    FourierNorm,
    Norm,
    PlainNorm,
    check_norm,
    dual,
    norm,
    project,
    shaped_norm,
)

__all__ = ["MaxMargin", "NotSeparableError", "SolverFailedError", "max_margin", "second_solver"]

_ORDER: dict[PlainNorm, int | str] = {"l1": 1, "l2": 2, "linf": "inf"}
_OPTIONS: dict[str, dict[str, float | str]] = {
    "CLARABEL": {"direct_solve_method": "qdldl"},  # one thread; by default there is one per core
    "HIGHS": {},
    "SCS": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 200_000},
}
_GAP = 1e-4  # with a larger relative gap the problem is solved again, or the pair refused
_RANGE = 1e150  # the squares of larger entries overflow


class NotSeparableError(ValueError):
    r"""No $w$ separates the data without bias, as proved in exact arithmetic.

    Attributes:
        q: Witness in the simplex, shape ``(N,)``, rounded to float64. The exact witness has
            $Z^\top q = 0$, which no separating $w$ allows.
        distance: $\|Z^\top q\|_\infty$ of the rounded witness.
    """

    def __init__(self, q: Tensor, distance: float) -> None:
        super().__init__(
            "the data are not linearly separable without bias: a convex combination of the rows "
            f"y_i x_i is zero (largest entry {distance:.1e} after rounding), so no w gives every "
            "row a positive margin"
        )
        self.q = q
        self.distance = distance

    def __reduce__(self) -> tuple[type[NotSeparableError], tuple[Tensor, float]]:
        # Pickle would otherwise call the constructor with the message alone.
        return type(self), (self.q, self.distance)


class SolverFailedError(RuntimeError):
    """The solver gave no pair of points with a small gap, and no proof that there is none."""


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
        solver: Name of the solver.
    """

    w: Tensor
    lam: Tensor
    eps_star: float
    upper: float
    gap: float
    kkt: dict[str, float]
    solver: str


def second_solver(attack: Norm) -> str:
    """Return the solver for an independent second solution: HiGHS for linear programs, else SCS.

    Args:
        attack: Norm of the perturbation, any.

    Returns:
        ``"HIGHS"`` for ``"l1"`` and ``"linf"``, ``"SCS"`` for the others.

    Raises:
        ValueError: If there is no such norm.
    """
    return "HIGHS" if check_norm(attack) in ("l1", "linf") else "SCS"


def max_margin(X: Tensor, y: Tensor, attack: Norm, *, solver: str = "CLARABEL") -> MaxMargin:
    r"""Find the maximally robust linear classifier, $\min\{\|w\|_* : y_i w^\top x_i \ge 1\}$.

    By Lemma 2 its solutions are the maximally robust separators (a lemma of Faghri et al. 2021).
    The problem is first given to the solver as it is. If the relative gap is then above 1e-4, it is
    solved again with all columns scaled to one size, and the dual point is corrected in the
    original units: with columns of very different size a solver may miss what separates the data.

    Args:
        X: Inputs, shape ``(N, D)``; solved in float64 on the CPU.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation, any; $\|\cdot\|_*$ is its dual.
        solver: ``"CLARABEL"``, ``"SCS"``, or, for linear programs, ``"HIGHS"``.

    Returns:
        Both feasible points in float64 on the device of ``X``, with the gap between them.

    Raises:
        ValueError: If the data are malformed, the largest entry is not between 1e-150 and 1e150,
            the norm or the solver is unknown, or the signals of the norm do not fit ``D``.
        NotSeparableError: If no $w$ separates the data without bias, which is proved.
        SolverFailedError: If there are neither points with a relative gap of at most 1e-4 nor a
            proof that the data are not separable; also if the solver does not accept the program,
            as HiGHS does not accept cones.
        ModuleNotFoundError: If cvxpy is missing, or python-flint where separability is in doubt.

    Example:
        >>> X, y = torch.tensor([[3.0, 4.0], [-3.0, -4.0]]).double(), torch.tensor([1, -1])
        >>> round(max_margin(X, y, attack="l2").eps_star, 6)
        5.0
    """
    if solver not in _OPTIONS:
        raise ValueError(f"unknown solver {solver!r}, expected one of {', '.join(_OPTIONS)}")
    check_norm(attack)
    Z = signed_rows(X, y).detach().to("cpu", torch.float64)
    zero_rows = (Z == 0).all(1)
    if bool(zero_rows.any()):  # a row of zeros has margin zero, whatever w is
        raise NotSeparableError(zero_rows.to(Z) / zero_rows.sum(), 0.0)
    largest = float(Z.abs().max())
    if not 1 / _RANGE <= largest <= _RANGE:
        raise ValueError(
            f"the largest entry of X must be between {1 / _RANGE} and {_RANGE}, got {largest}: "
            "change the unit"
        )
    attack = shaped_norm(attack, (Z.shape[1],))
    # The program of a Fourier norm is posed in real coordinates, of which `alone` have no pair.
    basis, alone = _real_basis(dual(attack)) if isinstance(attack, FourierNorm) else (None, 0)
    with full_precision(Z):
        try:
            return _solved(Z, attack, solver, basis, alone, X.device)
        except _UnsolvedError as error:
            failure = error
        witness = _witness(Z) if failure.infeasible else None
        if witness is None:
            solution = _solved_scaled(Z, attack, solver, basis, alone, X.device)
            if solution is not None:
                return solution
            witness = None if failure.infeasible else _witness(Z)
    if witness is not None:
        raise NotSeparableError(witness, float((witness @ Z).abs().max()))
    raise SolverFailedError(
        f"{failure} on {tuple(X.shape)} data, and neither separation nor its opposite is proved; "
        f"columns from {float(Z.abs().amax(0).min()):.1e} to {largest:.1e}"
    )


class _UnsolvedError(Exception):
    """One attempt to solve the program has failed."""

    infeasible = False  # whether the solver said that no w separates the data


def _solved(
    Z: Tensor,
    attack: PlainNorm | FourierNorm,
    solver: str,
    basis: Tensor | None,
    alone: int,
    device: torch.device,
    columns: Tensor | None = None,
    unit: float = 1.0,
) -> MaxMargin:
    """Solve once, with w as the variable or, if ``columns`` is given, with w times these.

    ``basis`` and ``alone`` are those of `_real_basis`, None and 0 for plain norms. ``unit`` is an
    estimate of the optimum, by which the scaled objective is divided.
    """
    with extra("proofs"):
        import cvxpy as cp

    kind = dual(attack)
    scale = float(norm(Z, attack).max()) if columns is None else 1.0
    variable = cp.Variable(Z.shape[1])
    weights: Any = variable
    if columns is None:
        rows = (Z / scale).numpy()
        rows = rows if basis is None else rows @ basis.numpy()
    else:
        rows = (Z / columns).numpy()
        weights = cp.multiply((1 / (columns * unit)).numpy(), variable)
        weights = weights if basis is None else basis.T.numpy() @ weights
    margin: Any = rows @ variable >= 1
    size: Any = (
        _half_spectrum_norm(weights, kind, alone)
        if isinstance(kind, FourierNorm)
        else cp.norm(weights, _ORDER[kind])
    )
    problem = cp.Problem(cp.Minimize(size), [margin])
    try:
        status = _solve(problem, solver)
    except SolverFailedError as error:
        raise _UnsolvedError(str(error)) from error
    if status != "optimal":
        failure = _UnsolvedError(f"{solver} ended with status {status!r}")
        failure.infeasible = status in ("infeasible", "infeasible_inaccurate")
        raise failure
    w = torch.as_tensor(variable.value, dtype=torch.float64, device="cpu") / scale
    lam = torch.as_tensor(margin.dual_value, dtype=torch.float64, device="cpu") / scale
    if columns is not None:
        w = w / columns
        lam = _corrected(Z, w, lam * unit, attack)
    elif basis is not None:
        w = basis @ w
    solution = _certify(Z, w, lam, attack, solver, device)
    if not abs(solution.gap) <= _GAP:
        raise _UnsolvedError(f"{solver} left a relative gap of {solution.gap:.1e}")
    return solution


def _solved_scaled(
    Z: Tensor,
    attack: PlainNorm | FourierNorm,
    solver: str,
    basis: Tensor | None,
    alone: int,
    device: torch.device,
) -> MaxMargin | None:
    """Solve with all columns scaled to one size, with several guesses of the optimum in turn."""
    columns = Z.abs().amax(0)  # (D,)
    columns = torch.where(columns > 0, columns, columns.max())
    for unit in sorted({1 / float(columns.min()), 1 / float(columns.max()), 1.0}):
        try:
            return _solved(Z, attack, solver, basis, alone, device, columns, unit)
        except _UnsolvedError:
            continue
    return None


def _corrected(Z: Tensor, w: Tensor, lam: Tensor, attack: PlainNorm | FourierNorm) -> Tensor:
    r"""Move a dual point so that $Z^\top\lambda$ is a subgradient of $\|w\|_*$ in all columns.

    This holds at the optimum. A solver meets it only to its tolerance in the scaled columns, which
    is far too coarse in a large column. Of five corrections the one with the least upper bound
    $\|Z^\top\lambda\|/\sum_i\lambda_i$ is returned.
    """
    lam = lam.clamp(min=0)
    if not bool(lam.any() & w.any()):
        return lam
    best, least = lam, math.inf
    for _ in range(5):
        size = norm(lam @ Z, attack)
        if float(size / lam.sum()) < least:
            best, least = lam, float(size / lam.sum())
        ray = w / torch.linalg.vector_norm(w)
        # A point far out along w projects to the subgradient of |w|_* nearest to lam Z.
        target = project(lam @ Z + 1e6 * (1 + size) * ray, attack, 1.0)
        active = lam > 1e-7 * lam.max()
        change = torch.linalg.lstsq(
            Z[active].T, (target - lam @ Z).unsqueeze(1), driver="gelsd"
        ).solution.squeeze(1)
        if not bool(change.isfinite().all()):
            break
        lam = lam.clone()
        lam[active] = (lam[active] + change).clamp(min=0)
        if not bool(lam.any()):
            break
    return best


@cache
def _real_basis(kind: FourierNorm) -> tuple[Tensor, int]:
    r"""Return the orthonormal real Fourier basis, ``(D, D)``, and how many frequencies are alone.

    A frequency is alone if it is its own mirror. The columns of these come first, then the cosines
    and then the sines of one frequency of each mirror pair. In the coordinates $u$ of this basis
    the modulus of a lone frequency is $|u_k|$, and that of a pair is
    $\sqrt{u_a^2 + u_b^2} / \sqrt 2$: one three-dimensional cone on two unknowns.
    """
    index = torch.arange(math.prod(kind.shape), device="cpu").reshape(kind.shape)
    axes = tuple(range(len(kind.shape)))
    mirror = index.flip(axes).roll([1] * len(axes), axes).flatten()  # the index of -k
    index = index.flatten()
    spectra = kind.transform(torch.eye(len(index), dtype=torch.float64, device="cpu"))  # (D, D)
    alone = index[index == mirror]
    pairs = index[index < mirror]
    cosines, sines = spectra.real[:, pairs], spectra.imag[:, pairs]
    parts = [spectra.real[:, alone], math.sqrt(2) * cosines, math.sqrt(2) * sines]
    return torch.cat(parts, 1), len(alone)


def _half_spectrum_norm(u: Any, kind: FourierNorm, alone: int) -> Any:
    """Return the Fourier norm of coordinates in `_real_basis`, as an expression of cvxpy."""
    with extra("proofs"):
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
    """Solve a problem of cvxpy in place and return the status."""
    with extra("proofs"):
        import cvxpy as cp
    import numpy as np

    try:
        # cvxpy multiplies infinite bounds by zero, and warns of what the status says
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=solver, **_OPTIONS[solver])
    except cp.SolverError as error:
        raise SolverFailedError(f"{solver} failed: {error}") from error
    return str(problem.status)


def _witness(Z: Tensor) -> Tensor | None:
    """Return a point of the simplex with Z^T q = 0, rounded from a proved exact one, or None.

    The program is solved with all columns scaled to one size. Whether its solution is a witness is
    then decided in exact arithmetic.
    """
    with extra("proofs"):
        import cvxpy as cp

    columns = Z.abs().amax(0)
    rows = (Z[:, columns > 0] / columns[columns > 0]).numpy()
    q = cp.Variable(len(rows), nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm(rows.T @ q, "inf")), [cp.sum(q) == 1])
    try:
        status = _solve(problem, "HIGHS")
    except SolverFailedError:
        return None
    if status != "optimal":
        return None
    point = torch.as_tensor(q.value, dtype=torch.float64, device="cpu").clamp(min=0)
    return exact_witness(Z, point / point.sum())


def _certify(
    Z: Tensor,
    w: Tensor,
    lam: Tensor,
    attack: PlainNorm | FourierNorm,
    solver: str,
    device: torch.device,
) -> MaxMargin:
    """Rescale a solver's points until they are feasible, and measure their gap and residuals."""
    margins = Z @ w  # (N,)
    size = norm(w, dual(attack))
    rounding = (Z.shape[1] + 2) * torch.finfo(torch.float64).eps * (Z.abs() @ w.abs())  # (N,)
    if not bool((margins > rounding).all()):
        raise _UnsolvedError(f"{solver} returned a w of smallest margin {margins.min():.1e}")
    kkt = {
        "primal": max(0.0, float(1 - margins.min())),
        "dual": max(0.0, float(norm(lam @ Z, attack) - 1), float(-lam.min() * size)),
        "complementarity": float((lam * (margins - 1)).abs().max() / size),
        "stationarity": abs(float(lam @ margins - size)) / float(size),
    }
    w = w / margins.min()
    lam = lam.clamp(min=0)
    lam = lam / norm(lam @ Z, attack).clamp(min=torch.finfo(torch.float64).tiny)
    primal = float(norm(w, dual(attack)))
    total = float(lam.sum())
    return MaxMargin(
        w=w.to(device),
        lam=lam.to(device),
        eps_star=1 / primal,
        upper=1 / total,
        gap=(primal - total) / primal,
        kkt=kkt,
        solver=solver,
    )
