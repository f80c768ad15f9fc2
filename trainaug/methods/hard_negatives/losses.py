"""Hinge losses on a matrix of scores: the sum over all negatives, or the hardest one alone.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri et al., VSE++, BMVC 2018, the losses "sum of hinges" and "max of hinges".
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["HingeCurriculum", "MaxOfHinges", "SumOfHinges", "group_mask", "subsample_negatives"]

Reduction = Literal["sum", "mean", "none"]
Mask = Tensor | tuple[Tensor, Tensor] | None


def group_mask(groups: Tensor) -> Tensor:
    """Mark the pairs of a batch that belong together, which must not be negatives.

    Args:
        groups: Group of each pair of the batch, say the picture's number, shape ``(B,)``.

    Returns:
        Boolean ``(B, B)``, true where the groups are equal, the diagonal included.

    Raises:
        ValueError: If ``groups`` is not one-dimensional.
    """
    if groups.ndim != 1:
        raise ValueError(f"groups must have shape (B,), got {tuple(groups.shape)}")
    return groups.unsqueeze(0) == groups.unsqueeze(1)


def subsample_negatives(
    positive_mask: Tensor, num_negatives: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Leave each query ``num_negatives`` of its negatives, drawn afresh for each query.

    Args:
        positive_mask: Boolean ``(B, B)``, true where a pair is no negative.
        num_negatives: How many to keep, at least 1; a query with fewer keeps all.
        generator: Source of randomness.

    Returns:
        Two masks of pairs that are no negatives, ``(B, B)`` each: for pictures as queries (by
        row), for captions as queries (by column). The losses take them in place of one mask.

    Raises:
        ValueError: If ``num_negatives`` is below 1 or the mask is not square and boolean.
    """
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be at least 1, got {num_negatives}")
    size = len(positive_mask)
    _check_mask(positive_mask, size, positive_mask.device)
    masks = []
    for excluded in (positive_mask, positive_mask.T):
        draws = torch.rand(size, size, generator=generator, device=generator.device)
        draws = draws.to(excluded.device).masked_fill(excluded, 2.0)
        kept = draws.argsort(1)[:, :num_negatives]
        masks.append(torch.ones_like(excluded).scatter(1, kept, False) | excluded)
    return masks[0], masks[1].T


class _Hinges(nn.Module):
    def __init__(self, margin: float = 0.2, reduction: Reduction = "sum") -> None:
        super().__init__()
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin must be finite and at least 0, got {margin}")
        if reduction not in ("sum", "mean", "none"):
            raise ValueError(f"reduction must be sum, mean or none, got {reduction!r}")
        self.margin, self.reduction = margin, reduction

    def extra_repr(self) -> str:
        return f"margin={self.margin}, reduction={self.reduction!r}"

    def _reduce(self, losses: Tensor) -> Tensor:
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.mean()


class SumOfHinges(_Hinges):
    r"""Sum of hinges (VSE0): every negative inside the margin counts.

    $\ell=\sum_a\sum_{b\in N_a}[\alpha-S_{aa}+S_{ab}]_+
    +\sum_b\sum_{a\in N_b}[\alpha-S_{bb}+S_{ab}]_+$ with rows $a$ pictures, columns $b$ captions,
    $S_{aa}$ the scores of the true pairs.

    Args:
        margin: $\alpha\ge0$; the paper uses 0.2.
        reduction: ``sum`` over the pairs as in the source, ``mean`` of them, or ``none``: the loss
            of each pair, its row's plus its column's hinges, ``(B,)``.
        average_negatives: Divide each query's sum by the number of its negatives, which takes
            away the factor of about B by which this loss exceeds `MaxOfHinges`.

    Example:
        >>> S = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
        >>> round(SumOfHinges(margin=0.2)(S).item(), 6)
        0.6
    """

    def __init__(
        self,
        margin: float = 0.2,
        reduction: Reduction = "sum",
        *,
        average_negatives: bool = False,
    ) -> None:
        super().__init__(margin, reduction)
        self.average_negatives = average_negatives

    def forward(self, scores: Tensor, positive_mask: Mask = None) -> Tensor:
        """Return the loss, a scalar or ``(B,)``.

        Args:
            scores: ``(B, B)``, rows pictures, columns captions, true pairs on the diagonal.
            positive_mask: Pairs that are no negatives, boolean ``(B, B)`` with the diagonal; one
                for both directions, or one for pictures and one for captions as queries. By
                default the diagonal alone.

        Raises:
            ValueError: If a shape is wrong or a mask lacks the diagonal.
        """
        by_row, by_column = _masks(scores, positive_mask)
        positive = scores.diagonal()  # (B,)
        rows = (scores - (positive - self.margin).unsqueeze(1)).relu()
        columns = (scores - (positive - self.margin)).relu()
        losses_rows = rows.masked_fill(by_row, 0.0).sum(1)
        losses_columns = columns.masked_fill(by_column, 0.0).sum(0)
        if self.average_negatives:
            losses_rows = losses_rows / (~by_row).sum(1).clamp_min(1)
            losses_columns = losses_columns / (~by_column).sum(0).clamp_min(1)
        return self._reduce(losses_rows + losses_columns)


class _HardestHinges(torch.autograd.Function):
    """The two largest hinges of each pair, ``(B,)``; backward fills one matrix instead of three."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, by_row: Tensor, by_column: Tensor, margin: float
    ) -> Tensor:
        masked = scores.masked_fill(by_row, -torch.inf)
        row, caption = masked.max(1)  # (B,), -inf for a query without negatives
        if by_column is not by_row:
            masked = scores.masked_fill(by_column, -torch.inf)
        column, image = masked.T.contiguous().max(1)  # faster than along the columns
        positive = scores.diagonal() - margin
        row, column = (row - positive).relu_(), (column - positive).relu_()
        ctx.save_for_backward(caption, image, row > 0, column > 0)
        return row + column

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        caption, image, by_row, by_column = ctx.saved_tensors
        row, column = gradient * by_row, gradient * by_column
        found = gradient.new_zeros(len(gradient), len(gradient))
        found.scatter_(1, caption.unsqueeze(1), row.unsqueeze(1))
        found.scatter_add_(0, image.unsqueeze(0), column.unsqueeze(0))
        found.diagonal().sub_(row + column)
        return found, None, None, None


class MaxOfHinges(_Hinges):
    r"""Max of hinges (VSE++): of the negatives of a query, only the hardest counts.

    $\ell=\sum_a\max_{b\in N_a}[\alpha-S_{aa}+S_{ab}]_+
    +\sum_b\max_{a\in N_b}[\alpha-S_{bb}+S_{ab}]_+$.
    Of equally hard negatives one takes the whole gradient. A query without negatives adds 0.

    Args:
        margin: $\alpha\ge0$; the paper uses 0.2.
        reduction: As in `SumOfHinges`.

    Example:
        >>> S = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
        >>> round(MaxOfHinges(margin=0.2)(S).item(), 6)
        0.6
    """

    def forward(self, scores: Tensor, positive_mask: Mask = None) -> Tensor:
        """Return the loss, a scalar or ``(B,)``; arguments as in `SumOfHinges.forward`."""
        by_row, by_column = _masks(scores, positive_mask)
        return self._reduce(_HardestHinges.apply(scores, by_row, by_column, self.margin))


class HingeCurriculum(nn.Module):
    """Sum of hinges for the first ``warmup_steps`` updates, then max of hinges.

    Call `step` after each update. An optimiser with adaptive step lengths must forget the larger
    gradients of the sum at the switch, else the maximum moves at a fraction of its step for as
    long as the averages last: reset its state when `step` returns true, or average the negatives.

    Args:
        warmup_steps: Updates with the sum, at least 0.
        margin: As in `SumOfHinges`.
        reduction: As in `SumOfHinges`.
        average_negatives: As in `SumOfHinges`.
    """

    def __init__(
        self,
        warmup_steps: int,
        margin: float = 0.2,
        reduction: Reduction = "sum",
        *,
        average_negatives: bool = False,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
        self.warmup_steps, self.steps = warmup_steps, 0
        self.sum = SumOfHinges(margin, reduction, average_negatives=average_negatives)
        self.max = MaxOfHinges(margin, reduction)

    def step(self) -> bool:
        """Count one update; true if it was the last one with the sum."""
        self.steps += 1
        return self.steps == self.warmup_steps

    def forward(self, scores: Tensor, positive_mask: Mask = None) -> Tensor:
        """Return the loss of the current phase; arguments as in `SumOfHinges.forward`."""
        loss: Tensor = (self.sum if self.steps < self.warmup_steps else self.max)(
            scores, positive_mask
        )
        return loss

    def get_extra_state(self) -> dict[str, Any]:
        """Return the number of updates made, for ``state_dict``."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.steps = int(state["steps"])


def _masks(scores: Tensor, positive_mask: Mask) -> tuple[Tensor, Tensor]:
    size = len(scores) if scores.ndim else 0
    if scores.shape != (size, size) or size == 0:
        raise ValueError(f"scores must have shape (B, B), B >= 1, got {tuple(scores.shape)}")
    if positive_mask is None:
        diagonal = torch.eye(size, dtype=torch.bool, device=scores.device)
        return diagonal, diagonal
    masks = positive_mask if isinstance(positive_mask, tuple) else (positive_mask, positive_mask)
    for mask in masks:
        _check_mask(mask, size, scores.device)
    return masks


def _check_mask(mask: Tensor, size: int, device: torch.device) -> None:
    if mask.shape != (size, size) or mask.dtype != torch.bool or mask.device != device:
        raise ValueError(
            f"a mask must be boolean ({size}, {size}) on {device}, "
            f"got {mask.dtype} {tuple(mask.shape)} on {mask.device}"
        )
    if not bool(mask.diagonal().all()):
        raise ValueError("a mask must hold the diagonal: a true pair is no negative of its own")
