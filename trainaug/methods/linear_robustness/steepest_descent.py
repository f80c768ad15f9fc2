r"""Steepest descent with respect to a norm: gradient, coordinate and sign descent in one rule.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Gunasekar, Lee, Soudry, Srebro, "Characterizing Implicit Bias in Terms of Optimization
Geometry", 2018, theorem 5; used by Faghri et al. 2021, arXiv 2102.08868.

The direction in the weight norm $\|\cdot\|_*$ solves $\min_v g^\top v + \tfrac12\|v\|_*^2$, so it
has $\|v\|_* = \|g\|$ and $-g^\top v = \|g\|^2$ with $\|\cdot\|$ the dual norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trainaug.checks import widened
from trainaug.methods.linear_robustness.norm_optimizer import (
    NormOptimizer,
    check_gradients,
    check_range,
)
from trainaug.methods.linear_robustness.robustness import check_rows, full_precision
from trainaug.norms import (
    Norm,
    check_norm,
    dual,
    dual_vector,
    measured,
    norm,
    shaped_norm,
    subgradient,
)
from trainaug.roots import log

__all__ = [
    "Path",
    "SteepestDescent",
    "StepRule",
    "steepest_descent_paths",
    "steepest_direction",
]

#: How long a step of `SteepestDescent` is.
StepRule = Literal["constant", "normalized", "log_loss"]


def _check_step(step: str) -> None:
    if step not in get_args(StepRule):
        raise ValueError(f"unknown step {step!r}, expected one of {', '.join(get_args(StepRule))}")


def steepest_direction(g: Tensor, weight_norm: Norm) -> Tensor:
    r"""Return $\arg\min_v g^\top v + \tfrac12\|v\|_*^2$ for the norm of the weights.

    ``"l2"``: $-g$. ``"l1"``: $-g_j e_j$ at the first $j$ of largest $|g_j|$ (greedy coordinate
    descent). ``"linf"``: $-\|g\|_1\operatorname{sign}(g)$ (sign descent). For any norm the
    direction is $-\|g\|$ times a subgradient of $\|\cdot\|$ at $g$ (Gunasekar et al. 2018).

    Args:
        g: Gradients, shape ``(..., D)``.
        weight_norm: Norm of the weights, any.

    Returns:
        Directions, shape ``(..., D)``, same dtype as ``g``; zero where the gradient is zero, NaN
        where it is NaN.

    Raises:
        ValueError: If the norm is unknown, ``g`` is not floating point or ``D`` is zero.

    Example:
        >>> steepest_direction(torch.tensor([3.0, -4.0]), "linf")
        tensor([-7.,  7.])
    """
    attack = dual(weight_norm)
    if not g.is_floating_point():  # the negative of an unsigned number wraps round
        raise ValueError(f"expected floating-point gradients, got {g.dtype}")
    if weight_norm == "l2":
        return -g  # exact, where the product below rounds
    wide = widened(g)
    return (-norm(wide, attack).unsqueeze(-1) * dual_vector(wide, attack)).to(g.dtype)


class SteepestDescent(NormOptimizer):
    r"""Steepest descent in a norm as a PyTorch optimiser.

    All tensors of a parameter group that have a gradient form *one* vector, on one device, so that
    coordinate descent moves the largest coordinate of the whole group. Half precision is computed
    in float32. A step moves all groups or, if it raises, none. Theorem 5 of Gunasekar et al. 2018
    gives the limit of the iterates on separable data. With $v$ the steepest direction, a step is

    - ``"constant"``: $w \mathrel{+}= \text{lr}\,v$;
    - ``"normalized"``: $w \mathrel{+}= \text{lr}\,v/\|v\|_*$;
    - ``"log_loss"``: $w \mathrel{+}= \text{lr}\,v/L(w)$. On the exponential loss this is the
      constant step on $\log L$, the step of Theorem 7. If $L$ may underflow, minimise
      ``torch.logsumexp(-margins, 0)`` with ``"constant"`` instead.

    Args:
        params: Parameters or parameter groups.
        lr: Step size, positive: a number, or a tensor with one entry; a schedule may bring it to 0.
        norm: Norm of the weights: ``"l1"`` (coordinate), ``"l2"`` (gradient), ``"linf"`` (sign) or
            any other. With ``"fourier_l1"`` and ``"fourier_linf"`` the whole group is one signal.
        step: Step rule; ``"log_loss"`` needs ``step(closure)`` or ``step(loss=...)``.

    Raises:
        ValueError: If an option is unknown or out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> (w @ torch.tensor([3.0, -4.0])).backward()
        >>> SteepestDescent([w], lr=0.5, norm="l1").step()
        >>> w.data
        tensor([0., 2.])
    """

    def __init__(
        self, params: Any, lr: float, norm: Norm = "l2", step: StepRule = "constant"
    ) -> None:
        super().__init__(params, {"lr": lr, "norm": norm, "step": step})

    def _check_options(self, options: Mapping[str, Any], *, positive: bool) -> None:
        _check_step(options["step"])
        if isinstance(options["lr"], Tensor) and options["lr"].numel() != 1:
            raise ValueError(f"lr must be one number, got shape {tuple(options['lr'].shape)}")
        super()._check_options(options, positive=positive)

    @property
    def requires_closure(self) -> bool:
        """Whether a training loop must call ``step`` with a closure."""
        return any(group["step"] == "log_loss" for group in self.param_groups)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None, *, loss: Tensor | None = None
    ) -> Tensor | None:
        """Take one step.

        Args:
            closure: Clears the gradients, computes the loss, calls ``backward``, returns the loss.
            loss: The loss whose gradients the parameters already hold; only without a closure.

        Returns:
            The loss, if known.

        Raises:
            ValueError: If ``"log_loss"`` is not given the loss, an option has become invalid, or a
                gradient is sparse, complex, on the meta device or not on its group's device.
            FloatingPointError: If a gradient is not finite, the loss is not positive, or the step
                leaves the range of the parameters. `torch.amp.GradScaler` itself skips steps with
                gradients that are not finite.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moves: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel()]
            if not params:
                continue
            self._check_options(group, positive=False)
            check_gradients(params)
            if len({p.device for p in params}) > 1:
                raise ValueError(
                    "the parameters of a group form one vector and must be on one device, got "
                    f"{', '.join(sorted({str(p.device) for p in params}))}"
                )
            g = widened(torch.cat([p.grad.reshape(-1) for p in params]))  # (D,)
            update = steepest_direction(g, group["norm"])
            lr = float(group["lr"])
            if group["step"] == "normalized":
                length = norm(g, dual(group["norm"]))
                update = torch.where(length > 0, update / length, 0.0)
            elif group["step"] == "log_loss":
                lr = lr / _positive(loss)
            parts = torch.split(update, [p.numel() for p in params])
            for p, part in zip(params, parts, strict=True):
                moved = torch.add(p, part.view_as(p), alpha=lr).to(p.dtype)
                check_range(moved)
                moves.append((p, moved))
        for p, moved in moves:
            p.copy_(moved)
        return loss


def _positive(loss: Tensor | None) -> float:
    """Return the loss as a number; raise if it is missing or not positive and finite."""
    if loss is None:
        raise ValueError("step='log_loss' needs the loss: call step(closure) or step(loss=loss)")
    value = float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
    if not 0 < value < float("inf"):
        raise FloatingPointError(
            f"step='log_loss' needs a positive loss, got {value}; minimise "
            "torch.logsumexp(-margins, 0) with step='constant' instead"
        )
    return value


@dataclass(frozen=True)
class Path:
    r"""Iterates of $M$ optimisers on $P$ stacked problems at $K$ recorded steps.

    Attributes:
        steps: The step numbers, shape ``(K,)``.
        weights: Iterates, shape ``(K, P, M, D)``.
        log_loss: $\log L$ of these iterates, shape ``(K, P, M)``.
        upper: Least $\|Z^\top q\|$ over all steps so far, a certified upper bound of
            $\varepsilon^*$ (Lemma 3), shape ``(K, P, M)``.
    """

    steps: Tensor
    weights: Tensor
    log_loss: Tensor
    upper: Tensor


@torch.no_grad()
def steepest_descent_paths(
    Z: Tensor,
    weight_norms: Sequence[Norm],
    *,
    record_at: Sequence[int],
    lr: float = 1.0,
    step: StepRule = "log_loss",
    mask: Tensor | None = None,
) -> Path:
    r"""Minimise the exponential loss $L(w) = \sum_i e^{-z_i^\top w}$ of many problems at once.

    The runs start at $w = 0$ and descend on the logarithm of the loss, whose gradient is
    $-Z^\top q$ with $q = \mathrm{softmax}(-Zw)$, so that nothing underflows. The step sizes on
    $\log L$ are

    - ``"log_loss"``: $\alpha = \text{lr}/B^2$ (the constant step of Theorem 7);
    - ``"constant"``: $\alpha = \min(\text{lr}\,L/n,\ 1/B^2)$ (constant step on the mean loss);
    - ``"normalized"``: $\alpha = \text{lr}/(\|g\|\sqrt{t+1})$ (steps of length
      $\text{lr}/\sqrt{t+1}$);

    with $B = \max_i\|z_i\|$ in the dual of the weight norm. If the gradient is zero, $w$ stays.

    Args:
        Z: Signed rows $y_i x_i$, float32 or float64, shape ``(P, N, D)``; problems with fewer rows
            are padded.
        weight_norms: The norms of the $M$ optimisers, any.
        record_at: Increasing step numbers to record; the last one ends the run.
        lr: Step size in the units above, positive.
        step: Step rule.
        mask: True at real rows, shape ``(P, N)``; all rows by default.

    Returns:
        The recorded iterates.

    Raises:
        ValueError: If a shape, norm, type, step number or option is invalid, a row is not finite,
            or $B^2$ leaves the range of the type.
        FloatingPointError: If the iterates leave the range of the type.
    """
    _check_step(step)
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be positive and finite, got {lr}")
    norms = [check_norm(weight_norm) for weight_norm in weight_norms]
    if not norms:
        raise ValueError(f"expected at least one weight norm, got norms {norms}")
    mask = check_rows(Z, "(P, N, D)", mask)
    # in the attack norms, the duals of those of the weights, gradients are measured
    attacks = [shaped_norm(dual(weight_norm), (Z.shape[-1],)) for weight_norm in norms]
    if list(record_at) != sorted(set(record_at)) or not record_at or record_at[0] < 0:
        raise ValueError(f"record_at must increase from at least 0, got {list(record_at)}")

    Z = torch.where(mask.unsqueeze(-1), Z, 0.0)
    padding = torch.zeros_like(Z[..., 0]).masked_fill(~mask, -torch.inf).unsqueeze(1)  # (P, 1, N)
    Zt = Z.mT.contiguous()  # (P, D, N); contiguous, the products below are three times faster
    log_count = log(mask.sum(-1, keepdim=True).to(Z))  # (P, 1)
    squares = torch.stack([norm(Z, attack).amax(-1) ** 2 for attack in attacks], -1)  # (P, M)
    limits = torch.finfo(Z.dtype)
    usual = (squares >= limits.tiny) & (squares <= 1 / limits.tiny)
    if not bool((usual | ~Z.any(-1).any(-1, keepdim=True)).all()):
        raise ValueError(f"the squared norms of the rows leave the range of {Z.dtype}: scale Z")
    alpha = torch.where(squares > 0, lr / squares, 0.0)  # (P, M); a problem of zeros stays at 0
    W = torch.zeros(Z.shape[0], len(norms), Z.shape[2], dtype=Z.dtype, device=Z.device)
    upper = torch.full_like(squares, torch.inf)  # (P, M)
    weights, losses, uppers = [], [], []
    recorded = set(record_at)
    # what is stacked below is no inference tensor any more, so that callers may differentiate it
    with full_precision(Z), torch.inference_mode():
        for t in range(record_at[-1] + 1):
            scores = padding - W @ Zt  # (P, M, N)
            log_loss = torch.logsumexp(scores, dim=-1)  # (P, M)
            G = (scores - log_loss.unsqueeze(-1)).exp_() @ Z  # (P, M, D): minus the gradient
            lengths = torch.stack(
                [measured(G[:, m], attack) for m, attack in enumerate(attacks)], -1
            )  # (P, M)
            upper = torch.minimum(upper, lengths)
            if t in recorded:
                weights.append(W.clone())
                losses.append(log_loss)
                uppers.append(upper)
            if step == "constant":
                alpha = torch.minimum(lr * (log_loss - log_count).exp(), 1 / squares)
            elif step == "normalized":
                alpha = torch.where(lengths > 0, lr / (t + 1) ** 0.5 / lengths, 0.0)
            for m, attack in enumerate(attacks):
                # `steepest_direction` of the gradient -G, with the length that is known already
                move = G[:, m]
                if attack != "l2":
                    move = lengths[:, m, None] * subgradient(move, attack)  # (P, D)
                W[:, m].addcmul_(move, alpha[:, m, None])
    steps = torch.tensor(list(record_at), device=Z.device)
    path = Path(steps, torch.stack(weights), torch.stack(losses), torch.stack(uppers))
    if not bool(path.weights.isfinite().all()):
        raise FloatingPointError(f"the iterates leave the range of {Z.dtype}: lower lr or scale Z")
    return path
