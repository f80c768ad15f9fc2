r"""Explicit regularisation by a norm: proximal gradient steps and the regularisation path.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al. 2021, arXiv 2102.08868, explicit regularisation; Rosset, Zhu, Hastie,
"Boosting as a regularized path to a maximum margin classifier", 2004; Beck and Teboulle, "A fast
iterative shrinkage-thresholding algorithm", 2009; O'Donoghue and Candès, "Adaptive restart for
accelerated gradient schemes", 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainaug.methods.linear_robustness.norms import Norm, check_norm, dual, norm, prox
from trainaug.roots import sqrt

__all__ = ["ProximalGradient", "RegularisationPath", "regularisation_path"]


def _all(value: float | Tensor, holds: Callable[[Any], Any]) -> bool:
    """Whether a number, or every entry of a tensor on whatever device, passes a test."""
    found = holds(value)
    return bool(found.all()) if isinstance(found, Tensor) else bool(found)


class ProximalGradient(Optimizer):
    r"""Minimise $L(w) + \lambda\|w\|$: gradient steps on $L$, proximal steps on the norm (FISTA).

    A parameter of shape ``(..., D)`` is a stack of separate problems, each with its own momentum.
    With ``accelerate`` the gradient is evaluated at the extrapolated point, so ``step`` needs a
    closure; afterwards the parameter holds the iterate itself. Momentum restarts in a problem
    whose last step went against its extrapolation.

    Args:
        params: Parameters or parameter groups.
        lr: Step size, positive; at most $1/\beta$ for a $\beta$-smooth $L$. A number, or a tensor
            of shape ``(...)`` with one for each problem.
        norm: The norm, any of this package.
        lam: $\lambda$, at least 0; a number or a tensor of shape ``(...)``.
        accelerate: FISTA; plain proximal gradient otherwise.

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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group after checking its options.

        Raises:
            ValueError: If an option is unknown or out of range.
        """
        options = {**self.defaults, **param_group}
        check_norm(options["norm"])
        if not _all(options["lr"], lambda lr: (lr > 0) & (lr < math.inf)):
            raise ValueError(f"lr must be positive and finite, got {options['lr']}")
        if not _all(options["lam"], lambda lam: (lam >= 0) & (lam < math.inf)):
            raise ValueError(f"lam must be finite and at least 0, got {options['lam']}")
        super().add_param_group(param_group)

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
            $L$ where the gradient was taken, if known.

        Raises:
            ValueError: If the closure is missing.
            FloatingPointError: If a gradient is not finite.
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
            if not all(bool(p.grad.isfinite().all()) for _, p in entries if p.grad is not None):
                raise FloatingPointError("the gradient has a NaN or infinite entry")
        except BaseException:
            for p, iterate in iterates.items():
                p.copy_(iterate)
            raise
        for group, p in entries:
            if p.grad is None:
                p.copy_(iterates[p])
                continue
            at, before = p.clone(), iterates[p]
            rate = torch.as_tensor(group["lr"], dtype=p.dtype, device=p.device)
            lam = torch.as_tensor(group["lam"], dtype=p.dtype, device=p.device)
            p.copy_(prox(at - rate.unsqueeze(-1) * p.grad, group["norm"], rate * lam))
            if group["accelerate"]:
                state = self.state[p]
                old = state.get("momentum", torch.ones_like(p[..., :1]))  # (..., 1)
                uphill = ((at - p) * (p - before)).sum(-1, keepdim=True) > 0  # (..., 1)
                old = torch.where(uphill, 1.0, old)
                new = (1 + sqrt(1 + 4 * old**2)) / 2
                state["momentum"] = new
                state["ahead"] = p + torch.where(uphill, 0.0, (old - 1) / new) * (p - before)
        return loss


@dataclass(frozen=True)
class RegularisationPath:
    r"""Solutions of $\min_w \tfrac1n\sum_i\log(1+e^{-z_i^\top w}) + \lambda\|w\|_*$.

    Attributes:
        strengths: $\lambda/\lambda_{\max}$, shape ``(S,)``.
        lambda_max: The least $\lambda$ whose solution is zero, shape ``(P,)``.
        weights: Solutions $w_\lambda$, shape ``(P, S, D)``.
        residual: Relative KKT residual, shape ``(P, S)``: the larger of
            $|\|\nabla L\|/\lambda - 1|$ and
            $|{-\nabla L^\top w}/(\lambda\|w\|_*) - 1|$; zero at a solution.
    """

    strengths: Tensor
    lambda_max: Tensor
    weights: Tensor
    residual: Tensor


def regularisation_path(
    Z: Tensor, weight_norm: Norm, strengths: Sequence[float], *, steps: int
) -> RegularisationPath:
    r"""Solve the norm-regularised logistic regression of stacked problems for several $\lambda$.

    All problems and all $\lambda$ run side by side from $w = 0$ with FISTA. The step is one over a
    bound of the curvature near the current point,
    $\max_i s_i(1-s_i)\,\sigma_{\max}(Z)^2/n$ with $s_i = \sigma(-z_i^\top w)$. The global bound,
    with $\tfrac14$ for the maximum, would make small $\lambda$ far slower; what the local one gives
    up, a proof that it converges, the residual makes good. At the solution
    $\|\nabla L\| = \lambda$ in the attack norm and $-\nabla L^\top w = \lambda\|w\|_*$
    (Theorem 8).

    Args:
        Z: Signed rows, shape ``(P, N, D)``.
        weight_norm: $\|\cdot\|_*$.
        strengths: Values of $\lambda/\lambda_{\max}$, each in ``(0, 1)``: from one on $w = 0$ and
            its radius is undefined.
        steps: Number of proximal steps, at least 1.

    Returns:
        The path.

    Raises:
        ValueError: If a shape or an option is out of range.

    Example:
        >>> Z = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).double()
        >>> path = regularisation_path(Z, "l1", [0.5], steps=300)
        >>> path.weights[0, 0] > 0
        tensor([False,  True])
    """
    if Z.ndim != 3 or 0 in Z.shape or not bool(Z.isfinite().all()):
        raise ValueError(f"Z must be finite of shape (P, N, D), got {tuple(Z.shape)}")
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
        bend = (wrong * (1 - wrong)).amax(-1)  # (P, S), at most 1/4
        optimizer.param_groups[0]["lr"] = 1 / (spread * bend)
        return W.new_zeros(())  # the optimiser hands the loss on and does not use it

    for _ in range(steps):
        optimizer.step(closure)
    closure()
    assert W.grad is not None
    size = norm(W, weight_norm)
    first = (norm(W.grad, attack) / lam - 1).abs()
    second = (-(W.grad * W).sum(-1) / (lam * size) - 1).abs()
    return RegularisationPath(share, lambda_max, W.detach(), torch.maximum(first, second))
