r"""Linear support vector machines by Pegasos, shrunk or with importance sampling.

$F(w)=\frac\lambda2\|w\|^2+\frac1N\sum_i\max(0,1-y_i\langle w,x_i\rangle)$, labels -1 and 1.

Reference: Shalev-Shwartz, Singer, Srebro, "Pegasos", ICML 2007; Zhang, Yu, Dhillon, "AutoAssist",
NeurIPS 2019, arXiv 1905.03381, and its authors' code for the two-part rule and $t_0=100$.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from trainaug.checks import finite, indices, sign_labels
from trainaug.methods.autoassist.shrinking import check_base
from trainaug.roots import sqrt

__all__ = [
    "Keep",
    "Path",
    "Utility",
    "authors_rule",
    "gradient_threshold",
    "importance_pegasos",
    "pegasos",
    "svm_gradients",
    "svm_objective",
    "violators",
]

Project = Literal["ball", "sphere", "none"]
Utility = Literal["loss", "gradient"]
# keep(k, i, margin, norm): iteration k from 1, example i, its margin y_i <w, x_i>, norm of w
Keep = Callable[[int, int, float, float], bool]


@dataclass
class Path:
    """The recorded iterates of a run, and what each had cost.

    Attributes:
        weights: Recorded iterates, each ``(D,)``.
        updates: Number of examples kept until then, also of those whose gradient was 0.
        products: Number of inner products of D numbers until then, including those for scoring.
        steps: Number of iterations until then, including skipped ones.
        largest_gradient: Largest norm of a gradient that `pegasos` met.
    """

    weights: list[Tensor] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    largest_gradient: float = 0.0


def _check_problem(X: Tensor, y: Tensor, lam: float) -> Tensor:
    """Return the labels in a signed type; ValueError if the problem cannot be trained on."""
    if X.ndim != 2 or y.shape != X.shape[:1] or len(X) == 0:
        raise ValueError(f"need X (N, D) and y (N,), got {tuple(X.shape)}, {tuple(y.shape)}")
    if X.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"X must be float32 or float64, got {X.dtype}: convert with .float()")
    finite("X", X)
    labels = sign_labels(y)
    if not 0 < lam < math.inf:
        raise ValueError(f"lambda must be > 0, got {lam}")
    return labels


def _check_weights(w: Tensor, X: Tensor, dims: tuple[int, ...]) -> None:
    if w.ndim not in dims or w.shape[-1] != X.shape[1] or w.dtype != X.dtype:
        raise ValueError(
            f"weights must be {X.dtype} of {X.shape[1]} numbers, got {w.dtype} {tuple(w.shape)}"
        )


def svm_objective(w: Tensor, X: Tensor, y: Tensor, lam: float) -> Tensor:
    """Return F(w), a scalar, or ``(M,)`` for M weight vectors.

    Args:
        w: Weights ``(D,)`` or ``(M, D)``, of X's type.
        X: ``(N, D)``, N at least 1, finite, float32 or float64.
        y: Labels -1 or 1, ``(N,)``, floating point or integer.
        lam: $\\lambda>0$, finite.

    Raises:
        ValueError: If shapes, types, labels or $\\lambda$ are wrong, or X is not finite. Weights
            that are not finite give NaN or infinity.
    """
    y = _check_problem(X, y, lam)
    _check_weights(w, X, (1, 2))
    margins = y * (w @ X.T)  # (..., N)
    return lam / 2 * w.square().sum(-1) + (1 - margins).clamp(min=0).mean(-1)


def svm_gradients(w: Tensor, X: Tensor, y: Tensor, lam: float) -> Tensor:
    r"""Return $\lambda w-\mathbb 1[y_i\langle w,x_i\rangle<1]\,y_ix_i$ for all i, ``(N, D)``.

    Args:
        w: Weights ``(D,)``, of X's type.
        X, y, lam: As in `svm_objective`.

    Raises:
        ValueError: As `svm_objective`.
    """
    y = _check_problem(X, y, lam)
    _check_weights(w, X, (1,))
    violated = (y * (X @ w) < 1).to(X)
    return lam * w - (violated * y)[:, None] * X


def violators(base: float, generator: torch.Generator) -> Keep:
    r"""Keep the violators of the margin, and a share $\gamma_0$ of the others.

    With ``base=0`` and loss-only skipping (``decay_on_skip``) all iterates are those of SGD, since
    the skipped gradients of the hinge are 0.

    Args:
        base: Share $\gamma_0$, in ``[0, 1]``.
        generator: Source of the decisions about the others.

    Returns:
        The rule, for `pegasos`; it can be pickled where its generator can.

    Raises:
        ValueError: If $\gamma_0$ is outside ``[0, 1]``.
    """
    check_base(base)
    return partial(_is_violator, base, generator)


def authors_rule(x_norms: Tensor, base: float, eps: float, generator: torch.Generator) -> Keep:
    r"""Keep if $u_1<\gamma_0$, else if $u_2<\|x_i\|\,\mathbb 1[m<1]-\epsilon/(k+1)$ with margin m.

    This is the rule of the authors' code, with $\gamma_0=0.3$ and $\epsilon=1$.

    Args:
        x_norms: Norms $\|x_i\|$, ``(N,)``, finite; they act as probabilities only up to 1.
        base: Share $\gamma_0$, in ``[0, 1]``.
        eps: Constant $\epsilon$, finite.
        generator: Source of $u_1$ and $u_2$, uniform in ``[0, 1)``.

    Returns:
        The rule, for `pegasos`.

    Raises:
        ValueError: If $\gamma_0$ is outside ``[0, 1]``, or a norm or $\epsilon$ is not finite.
    """
    check_base(base)
    finite("x_norms", x_norms)
    if not math.isfinite(eps):
        raise ValueError(f"eps must be finite, got {eps}")
    return partial(_is_kept_by_authors, x_norms.tolist(), base, eps, generator)


def gradient_threshold(X: Tensor, y: Tensor, lam: float, threshold: Callable[[int], float]) -> Keep:
    r"""Keep if $\|\nabla f_i(w_k)\|\ge T_k$, the regulariser's part included.

    $\|\nabla f_i\|^2=\lambda^2\|w\|^2+[-2\lambda m+\|x_i\|^2]\,\mathbb 1[m<1]$ with margin m.

    Args:
        X, y, lam: As in `svm_objective`, the problem that `pegasos` gets.
        threshold: Gives $T_k$ of the iterate k, from 1, say `decaying_threshold`.

    Returns:
        The rule, for `pegasos`.

    Raises:
        ValueError: As `svm_objective`; by the rule itself, if a threshold is NaN.
    """
    _check_problem(X, y, lam)
    return partial(_is_above, X.square().sum(1).tolist(), lam, threshold)


# Rules are partial functions of these, so that they can be copied and pickled. The last four
# arguments are those of `Keep`.


def _is_violator(
    base: float, generator: torch.Generator, k: int, i: int, margin: float, norm: float
) -> bool:
    return margin < 1 or (base > 0 and _uniform(generator) < base)


def _is_kept_by_authors(
    norms: list[float],
    base: float,
    eps: float,
    generator: torch.Generator,
    k: int,
    i: int,
    margin: float,
    norm: float,
) -> bool:
    if _uniform(generator) < base:
        return True
    return bool(_uniform(generator) < norms[i] * (margin < 1) - eps / (k + 1))


def _is_above(
    squares: list[float],
    lam: float,
    threshold: Callable[[int], float],
    k: int,
    i: int,
    margin: float,
    norm: float,
) -> bool:
    square = lam**2 * norm**2 + (squares[i] - 2 * lam * margin if margin < 1 else 0.0)
    least = threshold(k)
    if least != least:  # NaN
        raise ValueError(f"the threshold of iterate {k} is NaN")
    return bool(max(square, 0.0) ** 0.5 >= least)  # rounding may have made the square negative


def pegasos(
    X: Tensor,
    y: Tensor,
    lam: float,
    order: Tensor,
    *,
    keep: Keep | None = None,
    decay_on_skip: bool = True,
    project: Project = "ball",
    step_offset: float = 100.0,
    step_scale: float = 1.0,
    record_every: int = 1,
) -> Path:
    r"""Run Pegasos, skipping the examples that a rule does not keep.

    Iteration k takes the step $\eta_k=s/(\lambda(k+t_0))$: the weights decay by $1-\eta_k\lambda$,
    and a kept violator is added as $\eta_ky_ix_i$. Skipped and kept iterations count alike in k.

    Args:
        X: ``(N, D)``, finite, float32 or float64, on the CPU (one example a step is no work for a
            GPU).
        y: Labels -1 or 1, ``(N,)``, floating point or integer.
        lam: $\lambda>0$.
        order: Examples of the iterations, integers ``(K,)``: equal orders make runs comparable.
        keep: The rule, say `violators`; without one all are kept.
        decay_on_skip: Whether a skipped iteration still decays the weights (loss-only skipping);
            the authors' code skips the decay, too, and so solves another problem: that with
            $\lambda$ times the share kept (chapter 3's Proposition C).
        project: Onto what the weights are projected after each iteration: the ``ball`` of radius
            $1/\sqrt\lambda$, which holds the optimum, its ``sphere`` as in the authors' code, or
            nothing (``none``).
        step_offset: Offset $t_0$ of the steps.
        step_scale: Scale s of the steps; with $t_0=1$, $s=2$ they are those of Theorem A.
        record_every: Iterations between two recorded iterates; the first and last are recorded.

    Returns:
        The path from $w_1=0$.

    Raises:
        TypeError: If ``order`` is not a tensor.
        ValueError: If shapes, types, labels or numbers are wrong, X is not finite, or an index is
            out of range.
    """
    y = _check_problem(X, y, lam)
    if project not in get_args(Project):
        raise ValueError(f"project must be one of {get_args(Project)}, got {project!r}")
    order = indices(order, len(X))
    if len(order) == 0:
        raise ValueError(f"order must be of indices below {len(X)}, got {order}")
    fits = 0 <= step_scale <= step_offset + 1 < math.inf  # else a weight would change its sign
    if record_every < 1 or not fits:
        raise ValueError(
            f"need record_every >= 1, t0 + 1 >= s >= 0, got {record_every=}, {step_offset=}, "
            f"{step_scale=}"
        )
    rows, labels = list(X), y.tolist()
    squares = X.square().sum(1).tolist()
    w = X.new_zeros(X.shape[1])
    square = 0.0  # squared norm of w
    path = Path()
    updates = 0
    radius = lam**-0.5
    _record(path, w, 0, 0, 0)
    for k, i in enumerate(order.tolist(), start=1):
        x, label = rows[i], labels[i]
        step = step_scale / (lam * (k + step_offset))
        margin = label * torch.dot(w, x).item()
        violated = margin < 1
        path.largest_gradient = max(  # squared until the end
            path.largest_gradient,
            (lam**2 * square + (squares[i] - 2 * lam * margin if violated else 0.0)),
        )
        kept = keep is None or keep(k, i, margin, square**0.5)
        updates += kept
        if kept or decay_on_skip:
            shrink = 1 - step * lam
            w.mul_(shrink)
            square *= shrink**2
            if kept and violated:
                w.add_(x, alpha=step * label)
                square = torch.dot(w, w).item()
            if project == "sphere" or (project == "ball" and square > radius**2):
                length = square**0.5
                if length > 0:
                    w.mul_(radius / length)
                    square = radius**2
        if k % record_every == 0 or k == len(order):
            _record(path, w, updates, k, k)
    path.largest_gradient **= 0.5
    return path


def importance_pegasos(
    X: Tensor,
    y: Tensor,
    lam: float,
    num_steps: int,
    generator: torch.Generator,
    *,
    utility: Utility = "gradient",
    refresh: int | None = None,
    floor: float = 1e-3,
    project: Project = "ball",
    step_offset: float = 100.0,
    record_every: int = 1,
) -> Path:
    r"""Run Pegasos with importance sampling: draw $i\sim p$, weigh its hinge by $1/(Np_i)$.

    Args:
        X: ``(N, D)``.
        y: Labels -1 or 1, ``(N,)``.
        lam: $\lambda>0$; the decay needs no draw and is exact.
        num_steps: Updates, at least 1.
        generator: Source of the draws.
        utility: What p is proportional to: the ``loss``, or the norm of the ``gradient``.
        refresh: Updates between two scorings of all N examples, which cost N inner products each.
            With N, the default, utilities are stale; with 1 they are exact.
        floor: Share of the mean utility that is added to each, so that every p is positive:
            without it, stale losses of 0 leave the estimate biased.
        project: As in `pegasos`.
        step_offset: Offset $t_0$ of the steps, as in `pegasos`.
        record_every: Updates between two recorded iterates; the first and last are recorded.

    Returns:
        The path from $w_1=0$; its ``largest_gradient`` stays 0.

    Raises:
        ValueError: If shapes, types, labels or numbers are wrong, X is not finite, or ``utility``
            or ``project`` is unknown.
    """
    y = _check_problem(X, y, lam)
    if utility not in get_args(Utility) or project not in get_args(Project):
        raise ValueError(f"unknown utility {utility!r} or projection {project!r}")
    refresh = len(X) if refresh is None else refresh
    if min(num_steps, refresh, record_every) < 1 or not 0 <= floor < math.inf:
        raise ValueError(f"need >= 1: {num_steps=}, {refresh=}, {record_every=}; {floor=} >= 0")
    if not 0 <= step_offset < math.inf:  # else a step is infinite, or a weight changes its sign
        raise ValueError(f"step_offset must be finite and at least 0, got {step_offset}")
    rows, labels, n = list(X), y.tolist(), len(X)
    squares = X.square().sum(1)
    signed_rows = y[:, None] * X
    w = X.new_zeros(X.shape[1])
    path = Path()
    products = 0
    radius = lam**-0.5
    _record(path, w, 0, 0, 0)
    draws: list[int] = []
    p: list[float] = []  # probabilities of the examples drawn
    for k in range(1, num_steps + 1):
        if (k - 1) % refresh == 0:
            margins = signed_rows @ w  # (N,)
            products += n
            scores = (1 - margins).clamp(min=0)
            if utility == "gradient":
                hinge_part = torch.where(
                    margins < 1, squares - 2 * lam * margins, torch.zeros_like(squares)
                )
                scores = sqrt((lam**2 * torch.dot(w, w) + hinge_part).clamp(min=0))
            # the smallest normal number, in case all scores are 0
            scores = scores + floor * scores.mean() + torch.finfo(X.dtype).tiny
            all_p = scores / scores.sum()
            count = min(refresh, num_steps - k + 1)
            draws = torch.multinomial(all_p, count, replacement=True, generator=generator).tolist()
            p = all_p[draws].tolist()
        position = (k - 1) % refresh
        i = draws[position]
        weight = 1 / (n * p[position])
        step = 1 / (lam * (k + step_offset))
        margin = labels[i] * torch.dot(w, rows[i]).item()
        products += refresh > 1  # with 1, the scoring has counted this product
        w.mul_(1 - step * lam)
        if margin < 1:
            w.add_(rows[i], alpha=step * labels[i] * weight)
        length = torch.dot(w, w).item() ** 0.5
        if (project == "sphere" and length > 0) or (project == "ball" and length > radius):
            w.mul_(radius / length)
        if k % record_every == 0 or k == num_steps:
            _record(path, w, k, products, k)
    return path


def _uniform(generator: torch.Generator) -> float:
    """Draw one number from ``[0, 1)``."""
    return float(torch.rand((), generator=generator, device=generator.device))


def _record(path: Path, w: Tensor, updates: int, products: int, steps: int) -> None:
    """Append a copy of the weights and the counts so far to a path."""
    path.weights.append(w.clone())
    path.updates.append(updates)
    path.products.append(products)
    path.steps.append(steps)
