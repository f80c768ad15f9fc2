r"""Adversarial training of a linear classifier, with the inner maximum in closed form.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Li, Fang, Xu, Zhao, "Implicit Bias of Gradient Descent based Adversarial Training on
Separable Data", 2020; Faghri et al. 2021, arXiv 2102.08868, adversarial training baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainaug.methods.linear_robustness.robustness import check_rows, full_precision
from trainaug.norms import Norm, dual, measured, shaped_norm, subgradient

__all__ = ["adversarial_paths"]


@torch.no_grad()
def adversarial_paths(
    Z: Tensor,
    attack: Norm,
    eps: Tensor,
    *,
    lr: Sequence[float],
    record_at: Sequence[int],
) -> Tensor:
    r"""Train stacked linear classifiers against attacks of several radii.

    By Lemma 1 the worst margins within $\varepsilon$ are $z_i^\top w - \varepsilon\|w\|_*$, so
    adversarial training minimises $\log\sum_i e^{-(z_i^\top w - \varepsilon\|w\|_*)}$. Its
    subgradient is $-Z^\top q + \varepsilon v$ with $q = \mathrm{softmax}(-Zw)$ and
    $v \in \partial\|w\|_*$. We descend from $w = 0$ with steps of length $\text{lr}/\sqrt{t+1}$.
    For $\varepsilon \ge \varepsilon^*$, the largest robust radius, no $w$ makes every worst margin
    positive.

    Args:
        Z: Signed rows $y_i x_i$ of one problem, float32 or float64, shape ``(N, D)``.
        attack: Norm of the perturbation, any.
        eps: Radii, at least 0, shape ``(E,)``.
        lr: Length of the first step for each radius, positive, ``E`` of them.
        record_at: Increasing step numbers to record; the last one ends the run.

    Returns:
        Weights at the ``K`` recorded steps, shape ``(K, E, D)``.

    Raises:
        ValueError: If the norm is unknown, a shape is wrong, a radius negative or not finite, a
            step length not positive or a step number out of order.
        FloatingPointError: If the weights leave the range of their type.

    Example:
        >>> Z = torch.tensor([[4.0, 1.0], [1.0, 2.0]]).double()
        >>> w = adversarial_paths(Z, "linf", torch.tensor([1.7]), lr=[0.1], record_at=[3000])[-1, 0]
        >>> bool((Z @ w).min() > 1.7 * w.abs().sum())
        True
    """
    check_rows(Z, "(N, D)")
    if eps.ndim != 1 or not bool(((eps >= 0) & eps.isfinite()).all()):
        raise ValueError(f"eps must be finite, at least 0, of shape (E,), got {eps.tolist()}")
    if len(lr) != len(eps) or not all(0 < value < math.inf for value in lr):
        raise ValueError(f"need {len(eps)} positive step lengths, got {list(lr)}")
    if list(record_at) != sorted(set(record_at)) or not record_at or record_at[0] < 0:
        raise ValueError(f"record_at must increase from at least 0, got {list(record_at)}")
    weight_norm = shaped_norm(dual(attack), (Z.shape[1],))
    radii = eps.to(Z).unsqueeze(-1)  # (E, 1)
    rates = torch.tensor(list(lr), dtype=Z.dtype, device=Z.device).unsqueeze(-1)  # (E, 1)
    w = torch.zeros(len(eps), Z.shape[1], dtype=Z.dtype, device=Z.device)
    recorded = []
    # what is stacked below is no inference tensor any more, so that callers may differentiate it
    with full_precision(Z), torch.inference_mode():
        for t in range(record_at[-1] + 1):
            if t in record_at:
                recorded.append(w)
            q = torch.softmax(-(w @ Z.T), -1)  # (E, N); eps |w|_* is the same for every row
            g = radii * subgradient(w, weight_norm) - q @ Z  # (E, D)
            length = measured(g, "l2").unsqueeze(-1)
            w = w - rates / math.sqrt(t + 1) * torch.where(length > 0, g / length, 0.0)
    weights = torch.stack(recorded)
    if not bool(weights.isfinite().all()):
        raise FloatingPointError(f"the weights leave the range of {Z.dtype}: scale Z")
    return weights
