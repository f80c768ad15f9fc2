r"""Explicit regularisation by a norm: proximal gradient steps and the regularisation path.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al. 2021, arXiv 2102.08868, explicit regularisation; Rosset, Zhu, Hastie,
"Boosting as a regularized path to a maximum margin classifier", 2004; Beck and Teboulle, "A fast
iterative shrinkage-thresholding algorithm", 2009; O'Donoghue and Candès, "Adaptive restart for
accelerated gradient schemes", 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainaug.checks import widened
from trainaug.methods.linear_robustness.norm_optimizer import (
    NormOptimizer,
    check_gradients,
    check_range,
    holds,
)
from trainaug.methods.linear_robustness.robustness import check_rows, full_precision
from trainaug.norms import Norm, dual, norm, prox
from trainaug.roots import sqrt
from trainaug.structures import StateDict

__all__ = ["ProximalGradient", "RegularisationPath", "regularisation_path"]


class ProximalGradient(NormOptimizer):
    r"""Minimise $L(w) + \lambda\|w\|$: gradient steps on $L$, proximal steps on the norm (FISTA).

    A parameter of shape ``(..., D)`` is a stack of separate problems, each with its own momentum.
    With ``accelerate`` the gradient is evaluated at the extrapolated point, so ``step`` needs a
    closure; afterwards the parameter holds the iterate itself. Momentum restarts in each problem
    whose last step went against its extrapolation. Half precision is computed in float32. FISTA
    follows Beck and Teboulle 2009; the restart is the gradient scheme of O'Donoghue and Candès
    2015.

    Args:
        params: Parameters or parameter groups.
        lr: Step size, positive; at most $1/\beta$ for a $\beta$-smooth $L$. A number, or a tensor
            of shape ``(...)`` with one for each problem.
        norm: The norm, any.
        lam: $\lambda$, at least 0; a number or a tensor of shape ``(...)``.
        accelerate: Whether to use FISTA rather than plain proximal gradient steps.

    Raises:
        ValueError: If an option is unknown or out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 0.2]))
        >>> optimizer = ProximalGradient([w], lr=0.5, norm="l1", lam=1.0, accelerate=False)
        >>> w.grad = torch.tensor([2.0, 0.0])
        >>> optimizer.step()
        >>> w.data
        tensor([1.5000, 0.0000])
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        norm: Norm,
        lam: float | Tensor,
        *,
        accelerate: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "norm": norm, "lam": lam, "accelerate": accelerate})

    def _check_options(self, options: Mapping[str, Any], *, positive: bool) -> None:
        super()._check_options(options, positive=positive)
        if not holds(options["lam"], lambda lam: (lam >= 0) & (lam < math.inf)):
            raise ValueError(f"lam must be finite and at least 0, got {options['lam']}")

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state after checking its options; each `FourierNorm` is built again.

        Args:
            state_dict: A state that `state_dict` returned.

        Raises:
            ValueError: If an option is missing or out of range, or the groups or the shapes of the
                state do not fit the parameters.
        """
        super().load_state_dict(state_dict)
        for p, state in self._states(state_dict):
            if "momentum" in state:  # torch casts it to half precision, where its square overflows
                self.state[p]["momentum"] = state["momentum"].to(p.device, widened(p).dtype)

    @property
    def requires_closure(self) -> bool:
        """Whether a training loop must call ``step`` with a closure."""
        return any(group["accelerate"] for group in self.param_groups)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """Take one step.

        Args:
            closure: Clears the gradients, computes $L$ without the norm, calls ``backward`` and
                returns $L$; required with ``accelerate``.

        Returns:
            $L$ at the point where the gradient was evaluated, or None without a closure.

        Raises:
            ValueError: If the closure is missing, an option has become invalid, or a gradient is
                sparse, complex or on the meta device.
            FloatingPointError: If a gradient is not finite or the step leaves the range of the
                parameters. A step that raises leaves all parameters at their iterates.
        """
        if closure is None and self.requires_closure:
            raise ValueError("the accelerated step needs step(closure)")
        entries = [(group, p) for group in self.param_groups for p in group["params"]]
        iterates = {p: p.clone() for _, p in entries}
        for group, p in entries:
            if group["accelerate"] and "ahead" in self.state[p]:
                p.copy_(self.state[p]["ahead"])
        loss = None
        try:
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                self._check_options(group, positive=False)
            moving = [(group, p) for group, p in entries if p.grad is not None and p.numel()]
            check_gradients([p for _, p in moving])
            steps = [_proximal_step(p, group) for group, p in moving]
        except BaseException:
            for p, iterate in iterates.items():
                p.copy_(iterate)
            raise
        for (group, p), now in zip(moving, steps, strict=True):
            if group["accelerate"]:
                self._extrapolate(p, before=iterates[p], now=now)
            iterates[p] = now
        for p, iterate in iterates.items():
            p.copy_(iterate)
        return loss

    def _extrapolate(self, p: Tensor, *, before: Tensor, now: Tensor) -> None:
        """Set the next gradient's point from two iterates; ``p`` is still at the last one."""
        state = self.state[p]
        point, dtype = widened(p), p.dtype
        before, now = widened(before), widened(now)
        old = state.get("momentum", torch.ones_like(point[..., :1]))  # (..., 1)
        # The step went against the extrapolation: restart the momentum.
        uphill = ((point - now) * (now - before)).sum(-1, keepdim=True) > 0  # (..., 1)
        old = torch.where(uphill, 1.0, old)
        new = (1 + sqrt(1 + 4 * old**2)) / 2
        state["momentum"] = new
        ahead = now + torch.where(uphill, 0.0, (old - 1) / new) * (now - before)
        state["ahead"] = ahead.to(dtype)


def _proximal_step(p: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the parameter after a gradient step and the proximal step; it is not changed."""
    point, gradient = widened(p), p.grad
    assert gradient is not None
    rate = torch.as_tensor(group["lr"], dtype=point.dtype, device=p.device)
    lam = torch.as_tensor(group["lam"], dtype=point.dtype, device=p.device)
    descended = point - rate.unsqueeze(-1) * gradient
    check_range(descended)
    moved = prox(descended, group["norm"], rate * lam).to(p.dtype)
    check_range(moved)
    return moved


@dataclass(frozen=True)
class RegularisationPath:
    r"""Solutions of $\min_w \tfrac1n\sum_i\log(1+e^{-z_i^\top w}) + \lambda\|w\|_*$.

    There are $P$ problems, each with $S$ values of $\lambda$.

    Attributes:
        strengths: $\lambda/\lambda_{\max}$, shape ``(S,)``.
        lambda_max: The least $\lambda$ of each problem whose solution is zero, shape ``(P,)``.
        weights: Solutions $w_\lambda$, shape ``(P, S, D)``.
        residual: Relative KKT residual, shape ``(P, S)``: the larger of
            $|\|\nabla L\|/\lambda - 1|$ and
            $|{-\nabla L^\top w}/(\lambda\|w\|_*) - 1|$; zero at a solution.
    """

    strengths: Tensor
    lambda_max: Tensor
    weights: Tensor
    residual: Tensor


@torch.no_grad()
def regularisation_path(
    Z: Tensor, weight_norm: Norm, strengths: Sequence[float], *, steps: int
) -> RegularisationPath:
    r"""Solve the norm-regularised logistic regression of stacked problems for several $\lambda$.

    All problems and all $\lambda$ are solved at the same time, from $w = 0$ with FISTA. The step
    size is one over a bound of the curvature at the current point,
    $\max_i s_i(1-s_i)\,\sigma_{\max}(Z)^2/n$ with $s_i = \sigma(-z_i^\top w)$. The global bound,
    with $\tfrac14$ for the maximum, would make small $\lambda$ far slower. With the local bound
    there is no proof of convergence; the residual checks it instead. At the solution
    $\|\nabla L\| = \lambda$ in the attack norm and $-\nabla L^\top w = \lambda\|w\|_*$
    (Theorem 8).

    Args:
        Z: Signed rows $y_i x_i$, float32 or float64, shape ``(P, N, D)``.
        weight_norm: $\|\cdot\|_*$, any norm.
        strengths: Values of $\lambda/\lambda_{\max}$, each in ``(0, 1)``: from 1 on the solution
            is $w = 0$, whose radius is undefined.
        steps: Number of proximal steps, at least 1.

    Returns:
        The solutions with their residuals.

    Raises:
        ValueError: If a norm is unknown or does not fit ``D``, or a shape, a type or an option is
            out of range.
        FloatingPointError: If the loss becomes flat or the solutions leave the range of the type.

    Example:
        >>> Z = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).double()
        >>> path = regularisation_path(Z, "l1", [0.5], steps=300)
        >>> path.weights[0, 0] > 0
        tensor([False,  True])
    """
    check_rows(Z, "(P, N, D)")
    Z = Z.detach()
    if not strengths or not all(0 < s < 1 for s in strengths):
        raise ValueError(
            f"strengths must lie in (0, 1), in units of lambda_max, got {list(strengths)}"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    P, N, D = Z.shape
    attack = dual(weight_norm)
    share = torch.tensor(list(strengths), dtype=Z.dtype, device=Z.device)  # (S,)
    lambda_max = norm(Z.mean(1) / 2, attack)  # (P,)
    if not bool((lambda_max > 0).all()):
        raise ValueError("the signed rows of a problem sum to zero: w = 0 is the solution")
    lam = lambda_max.unsqueeze(-1) * share  # (P, S)
    spread = (torch.linalg.matrix_norm(Z, 2) ** 2 / N).unsqueeze(-1)  # (P, 1)
    W = torch.zeros(P, len(share), D, dtype=Z.dtype, device=Z.device)
    optimizer = ProximalGradient([W], lr=1.0, norm=weight_norm, lam=lam)
    Zt = Z.mT.contiguous()  # (P, D, N)

    def closure() -> Tensor:
        wrong = torch.sigmoid(-(W @ Zt))  # (P, S, N)
        W.grad = -wrong @ Z / N
        curvature = (wrong * (1 - wrong)).amax(-1)  # (P, S), at most 1/4
        rates = 1 / (spread * curvature)
        if not bool(rates.isfinite().all()):
            raise FloatingPointError(f"the loss is flat in {Z.dtype}: scale Z or use float64")
        optimizer.param_groups[0]["lr"] = rates
        return W.new_zeros(())  # the optimiser passes the loss on and does not use it

    with full_precision(Z):
        for _ in range(steps):
            optimizer.step(closure)
        closure()  # the gradient at the solution, for the residual
        assert W.grad is not None
        size = norm(W, weight_norm)
        first = (norm(W.grad, attack) / lam - 1).abs()
        second = (-(W.grad * W).sum(-1) / (lam * size) - 1).abs()
    return RegularisationPath(share, lambda_max, W.detach(), torch.maximum(first, second))
