r"""Maximum-margin solutions by convex programming, with dual certificates.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, lemma "maximally robust = minimum dual norm".

A solver's word is not taken: its two points are rescaled until they are feasible, and the gap
between them is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainaug.methods.linear_robustness.norms import Norm, dual, norm
from trainaug.methods.linear_robustness.robustness import signed_rows

__all__ = ["MaxMargin", "NotSeparableError", "SolverFailedError", "max_margin", "second_solver"]

_ORDER: dict[Norm, int | str] = {"l1": 1, "l2": 2, "linf": "inf"}
_OPTIONS: dict[str, dict[str, float]] = {
    "CLARABEL": {},
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
    return "SCS" if dual(attack) == "l2" else "HIGHS"


def max_margin(X: Tensor, y: Tensor, attack: Norm, *, solver: str = "CLARABEL") -> MaxMargin:
    r"""Find the maximally robust linear classifier, $\min\{\|w\|_* : y_i w^\top x_i \ge 1\}$.

    Args:
        X: Inputs, shape ``(N, D)``; solved in float64 on the CPU.
        y: Labels in ``{-1, +1}``, shape ``(N,)``.
        attack: Norm of the perturbation; $\|\cdot\|_*$ is its dual.
        solver: ``"CLARABEL"``, ``"HIGHS"`` (not for ``"l2"``) or ``"SCS"``.

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
    margin: Any = rows @ variable >= 1
    problem = cp.Problem(cp.Minimize(cp.norm(variable, _ORDER[kind])), [margin])
    status = _solve(problem, solver)
    if status in ("infeasible", "infeasible_inaccurate"):
        q, distance = _nearest_hull_point(rows)
        if distance < 1e-7:
            raise NotSeparableError(q, distance * scale)
    if status != "optimal":
        raise SolverFailedError(f"{solver} ended with status {status!r} on {tuple(X.shape)} data")
    return _certify(
        Z,
        torch.as_tensor(variable.value, dtype=torch.float64, device="cpu") / scale,
        torch.as_tensor(margin.dual_value, dtype=torch.float64, device="cpu") / scale,
        attack,
        solver,
        X.device,
    )


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
