"""Hinge losses on scores or embeddings: the sum over all negatives, or the hardest one alone.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri et al., VSE++, BMVC 2018, the losses "sum of hinges" and "max of hinges".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from trainaug.checks import finite, widened
from trainaug.methods.hard_negatives.scores import cosine_scores, unit_embeddings, without_autocast
from trainaug.structures import StateDict

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
        ValueError: If ``groups`` is not one-dimensional, or complex, in half precision or not
            finite.
    """
    if groups.ndim != 1:
        raise ValueError(f"groups must have shape (B,), got {tuple(groups.shape)}")
    check_groups("groups", groups)
    return groups.unsqueeze(0) == groups.unsqueeze(1)


def subsample_negatives(
    positive_mask: Tensor, num_negatives: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Leave each query ``num_negatives`` of its negatives, drawn afresh for each query.

    Args:
        positive_mask: Boolean ``(B, B)``, true where a pair is not a negative.
        num_negatives: How many to keep, at least 1; a query with fewer keeps all.
        generator: Source of randomness.

    Returns:
        Two masks of pairs that are not negatives, ``(B, B)`` each: one for pictures as queries (by
        row) and one for captions (by column). The losses take the two in place of one mask.

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
        draws = draws.to(excluded.device).masked_fill(excluded, 2.0)  # sorted behind all negatives
        kept = draws.argsort(1)[:, :num_negatives]
        masks.append(torch.ones_like(excluded).scatter(1, kept, False) | excluded)
    return masks[0], masks[1].T


class _OnScores(nn.Module, ABC):
    """A loss of a matrix of scores, which takes embeddings as well."""

    def forward(self, scores: Tensor, captions: Mask = None, positive_mask: Mask = None) -> Tensor:
        """Return the loss, a scalar or ``(B,)``, of ``scores`` or of ``images, captions``.

        ``loss(images, captions)`` is ``loss(cosine_scores(images, captions))`` up to rounding, and
        ``loss(images, captions, positive_mask)`` the same with a mask. With a matrix of scores the
        mask comes second, ``loss(scores, positive_mask)``: a boolean tensor or a tuple is taken for
        the mask, a floating tensor for captions. ``positive_mask=`` works in either form.

        The loss of a pair whose own score is infinite or NaN is NaN, and so is its gradient. The
        same holds where a negative's score is NaN; at -inf a negative counts as masked.

        Args:
            scores: ``(B, B)``, floating, rows pictures, columns captions, true pairs on the
                diagonal; or, before ``captions``, embeddings of pictures, floating, ``(B, D)``.
            captions: Embeddings of the captions, floating, ``(B, D)``; row ``a`` belongs to
                picture ``a``.
            positive_mask: Pairs that are not negatives, boolean ``(B, B)`` with the diagonal; one
                mask, or a tuple of one for pictures and one for captions as queries. By default
                the diagonal alone.

        Raises:
            ValueError: If a shape, type or device is wrong or a mask lacks the diagonal. Where a
                mask has no values to check (``torch.compile``, ``torch.vmap``, the meta device),
                the diagonal counts as marked.
        """
        if captions is None:
            return self._loss(scores, positive_mask)
        if not (isinstance(captions, Tensor) and captions.is_floating_point()):
            if positive_mask is not None:
                raise ValueError("got two masks: give one, or one for each direction in a tuple")
            return self._loss(scores, captions)
        if scores.shape != captions.shape:
            raise ValueError(
                f"need embeddings (B, D) twice, got {tuple(scores.shape)} and "
                f"{tuple(captions.shape)}; a mask must be boolean"
            )
        if _is_a_mask_in_numbers(captions) and not _is_a_mask_in_numbers(scores):
            shape = tuple(captions.shape)
            raise ValueError(f"a mask must be boolean {shape}, got {captions.dtype} of 0 and 1")
        return self._loss_of_embeddings(scores, captions, positive_mask)

    @abstractmethod
    def _loss(self, scores: Tensor, positive_mask: Mask) -> Tensor:
        """Return the loss of a matrix of scores."""

    def _loss_of_embeddings(self, images: Tensor, captions: Tensor, positive_mask: Mask) -> Tensor:
        """Return the loss of embeddings, ``(B, D)`` twice."""
        return self._loss(cosine_scores(images, captions), positive_mask)


class _Hinges(_OnScores):
    """A loss of hinges with a margin, with a reduction over the pairs."""

    def __init__(self, margin: float = 0.2, reduction: Reduction = "sum") -> None:
        super().__init__()
        check_margin(margin)
        check_reduction(reduction)
        self.margin, self.reduction = margin, reduction

    def extra_repr(self) -> str:
        return f"margin={self.margin}, reduction={self.reduction!r}"

    def _reduce(self, losses: Tensor, positive: Tensor) -> Tensor:
        """Reduce the losses of pairs; NaN where the score of a true pair is not finite."""
        return reduced(visible(losses, positive), self.reduction)


class SumOfHinges(_Hinges):
    r"""Sum of hinges (VSE0): every negative inside the margin counts.

    $\ell=\sum_a\sum_{b\in N_a}[\alpha-S_{aa}+S_{ab}]_+
    +\sum_b\sum_{a\in N_b}[\alpha-S_{bb}+S_{ab}]_+$ with rows $a$ pictures, columns $b$ captions,
    $S_{aa}$ the scores of the true pairs.

    Args:
        margin: Margin $\alpha\ge0$; the paper uses 0.2.
        reduction: ``sum`` over the pairs as in the source, ``mean`` of them, or ``none`` for the
            loss of each pair, its row's plus its column's hinges, ``(B,)``.
        average_negatives: Divide each query's sum by the number of its negatives, which takes
            away the factor of about B by which this loss exceeds `MaxOfHinges`.

    Raises:
        ValueError: If the margin is negative or not finite, or the reduction unknown.

    Example:
        >>> S = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
        >>> round(SumOfHinges(margin=0.2)(S).item(), 6)
        0.6
        >>> images, captions = torch.eye(3), torch.eye(3)
        >>> SumOfHinges()(images, captions).item()
        0.0

    Notes:
        The loss of half-precision scores is a float32, where the sum of a large batch does not
        overflow; their gradient is in their own type.
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

    def _loss(self, scores: Tensor, positive_mask: Mask) -> Tensor:
        by_row, by_column = _masks(scores, positive_mask)
        scores = widened(scores)
        positive = scores.diagonal()  # (B,)
        rows = (scores - (positive - self.margin).unsqueeze(1)).relu()
        columns = (scores - (positive - self.margin)).relu()
        losses_rows = rows.masked_fill(by_row, 0.0).sum(1)
        losses_columns = columns.masked_fill(by_column, 0.0).sum(0)
        if self.average_negatives:
            losses_rows = losses_rows / (~by_row).sum(1).clamp_min(1)
            losses_columns = losses_columns / (~by_column).sum(0).clamp_min(1)
        return self._reduce(losses_rows + losses_columns, positive)


class MaxOfHinges(_Hinges):
    r"""Max of hinges (VSE++): of the negatives of a query, only the hardest counts.

    $\ell=\sum_a\max_{b\in N_a}[\alpha-S_{aa}+S_{ab}]_+
    +\sum_b\max_{a\in N_b}[\alpha-S_{bb}+S_{ab}]_+$.
    Of equally hard negatives one takes the whole gradient. A query without negatives adds 0.

    Args:
        margin: Margin $\alpha\ge0$; the paper uses 0.2.
        reduction: As in `SumOfHinges`.

    Raises:
        ValueError: If the margin is negative or not finite, or the reduction unknown.

    Example:
        >>> S = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
        >>> round(MaxOfHinges(margin=0.2)(S).item(), 6)
        0.6
    """

    def _loss(self, scores: Tensor, positive_mask: Mask) -> Tensor:
        masks = _masks(scores, positive_mask)
        scores = widened(scores)
        hardest = _Hardest(scores.detach(), *masks)
        size = len(scores)
        numbers = torch.arange(size, device=scores.device)
        # Flat positions of all scores that the loss needs: with one gather, the backward pass fills
        # one matrix instead of three.
        cells = torch.cat(
            [
                numbers * (size + 1),
                numbers * size + hardest.caption,
                hardest.image * size + numbers,
            ]
        )
        positive, row_max, column_max = scores.reshape(-1).gather(0, cells).chunk(3)
        return self._from_three_scores(positive, row_max, column_max, hardest)

    def _loss_of_embeddings(self, images: Tensor, captions: Tensor, positive_mask: Mask) -> Tensor:
        # Gradients pass through three scores per pair only, which saves two matrix products.
        images, captions = unit_embeddings(images, captions)
        with without_autocast(images.device):
            scores = images.detach() @ captions.detach().T
            hardest = _Hardest(scores, *_masks(scores, positive_mask))
            positive = (images * captions).sum(1)
            row_max = (images * captions[hardest.caption]).sum(1)
            column_max = (images[hardest.image] * captions).sum(1)
        return self._from_three_scores(positive, row_max, column_max, hardest)

    def _from_three_scores(
        self, positive: Tensor, row_max: Tensor, column_max: Tensor, hardest: _Hardest
    ) -> Tensor:
        """Return the loss from the scores of true pairs and of hardest negatives, each ``(B,)``."""
        limit = positive - self.margin  # negatives above it add a hinge
        rows = (row_max - limit).relu().masked_fill(hardest.row_is_alone, 0.0)
        columns = (column_max - limit).relu().masked_fill(hardest.column_is_alone, 0.0)
        return self._reduce(rows + columns, positive)


class _Hardest:
    """Positions of all queries' hardest negatives in a matrix of scores, which has no gradient.

    Attributes:
        caption: Column of each picture's hardest caption, ``(B,)``.
        image: Row of each caption's hardest picture, ``(B,)``.
        row_is_alone: Pictures without a negative, ``(B,)``.
        column_is_alone: Captions without a negative, ``(B,)``.
    """

    def __init__(self, scores: Tensor, by_row: Tensor, by_column: Tensor) -> None:
        negatives = scores.masked_fill(by_row, -torch.inf)
        value, self.caption = negatives.max(1)
        self.row_is_alone = value == -torch.inf
        if by_column is not by_row:
            negatives = scores.masked_fill(by_column, -torch.inf)
        value, self.image = negatives.T.contiguous().max(1)  # faster than along the columns
        self.column_is_alone = value == -torch.inf


class HingeCurriculum(_OnScores):
    """Sum of hinges for the first ``warmup_steps`` updates, then max of hinges.

    Call `step` after each update. An optimiser that adapts its steps to past gradients must forget
    the larger gradients of the sum at the switch. Otherwise its steps are too small for as long as
    its averages last. Reset its state when `step` returns true, or average the negatives.

    Args:
        warmup_steps: Number of updates with the sum, at least 0.
        margin: As in `SumOfHinges`.
        reduction: As in `SumOfHinges`.
        average_negatives: As in `SumOfHinges`.

    Raises:
        ValueError: If ``warmup_steps`` is not a whole number of at least 0, the margin is negative
            or not finite, or the reduction unknown.
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
        if not isinstance(warmup_steps, int) or warmup_steps < 0:
            raise ValueError(f"warmup_steps must be a whole number, at least 0, got {warmup_steps}")
        self.warmup_steps, self.steps = warmup_steps, 0
        # `forward` reads this flag instead of the count, on which torch.compile would specialise.
        self._has_switched = warmup_steps == 0
        self.sum = SumOfHinges(margin, reduction, average_negatives=average_negatives)
        self.max = MaxOfHinges(margin, reduction)

    def step(self) -> bool:
        """Count one update.

        Returns:
            True if it was the last one with the sum; never with ``warmup_steps`` 0.
        """
        self.steps += 1
        self._has_switched = self.steps >= self.warmup_steps
        return self.steps == self.warmup_steps

    def _loss(self, scores: Tensor, positive_mask: Mask) -> Tensor:
        return self._current()._loss(scores, positive_mask)

    def _loss_of_embeddings(self, images: Tensor, captions: Tensor, positive_mask: Mask) -> Tensor:
        return self._current()._loss_of_embeddings(images, captions, positive_mask)

    def _current(self) -> _Hinges:
        return self.max if self._has_switched else self.sum

    def get_extra_state(self) -> StateDict:
        """Return the number of updates made, for ``state_dict``."""
        return {"steps": self.steps}

    def set_extra_state(self, state: StateDict) -> None:
        """Continue from ``state``."""
        self.steps = int(state["steps"])
        self._has_switched = self.steps >= self.warmup_steps


def visible(losses: Tensor, positive: Tensor) -> Tensor:
    """Make losses NaN where the true pair's score is not finite, and let gradients show it too.

    The hinge of an infinite true score would be 0, and the slope of a hinge is finite even where
    its value is not. Other losses are multiplied by 1 and get 0 added, which changes no number.

    Args:
        losses: Losses of the pairs, ``(B,)``.
        positive: Scores of the true pairs, ``(B,)``.
    """
    value = losses.detach()
    factor = torch.where(value.isfinite(), 1.0, value)
    poison = torch.where(positive.detach().isfinite(), 0.0, torch.nan)
    return losses * factor + positive * poison


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Return the sum or the mean of losses ``(B,)``, or the losses themselves."""
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def check_margin(margin: float) -> None:
    """Raise a ValueError for a margin that is negative or not finite."""
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and at least 0, got {margin}")


def check_reduction(reduction: str) -> None:
    """Raise a ValueError for an unknown reduction."""
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction must be sum, mean or none, got {reduction!r}")


def check_groups(name: str, groups: Tensor) -> None:
    """Raise a ValueError for numbers whose type or values could merge groups or split one.

    Half precision rounds whole numbers above 2048 (``bfloat16``: 256), and NaN equals nothing.
    """
    if groups.is_complex() or groups.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"{name} must be whole numbers of an integer type, got {groups.dtype}")
    if groups.is_floating_point() and _answer(groups.isfinite().all()) is False:
        finite(name, groups)


def _answer(question: Tensor) -> bool | None:
    """Return a boolean scalar as a bool, or None where it has no value yet."""
    if torch.compiler.is_compiling() or question.is_meta:
        return None
    try:
        return bool(question)
    except RuntimeError:  # torch.vmap has one value per batch element, tracing has none
        return None


def _is_a_mask_in_numbers(values: Tensor) -> bool:
    """Whether a square matrix holds 0 and 1 alone, and 1 on its diagonal."""
    if values.shape != (len(values), len(values)):
        return False
    ones = values.detach() == 1
    return _answer(ones.diagonal().all() & (ones | (values.detach() == 0)).all()) is True


def _masks(scores: Tensor, positive_mask: Mask) -> tuple[Tensor, Tensor]:
    """Check scores and masks; return the masks for pictures and for captions as queries."""
    size = len(scores) if scores.ndim else 0
    if scores.shape != (size, size) or size == 0:
        raise ValueError(
            f"scores must have shape (B, B), B >= 1, got {tuple(scores.shape)}; "
            "of embeddings give two, loss(images, captions)"
        )
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating, got {scores.dtype}")
    if positive_mask is None:
        diagonal = torch.eye(size, dtype=torch.bool, device=scores.device)
        return diagonal, diagonal
    if not isinstance(positive_mask, tuple):
        positive_mask = _check_mask(positive_mask, size, scores.device)
        return positive_mask, positive_mask
    if len(positive_mask) != 2:
        raise ValueError(f"expected one mask or two, got {len(positive_mask)}")
    by_row, by_column = (_check_mask(mask, size, scores.device) for mask in positive_mask)
    return by_row, by_column


def _check_mask(mask: Tensor, size: int, device: torch.device) -> Tensor:
    """Return a boolean mask with the diagonal; mark it where no value can be read."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"a mask must be a boolean tensor, got {type(mask).__name__}")
    if mask.shape != (size, size) or mask.dtype != torch.bool or mask.device != device:
        raise ValueError(
            f"a mask must be boolean ({size}, {size}) on {device}, "
            f"got {mask.dtype} {tuple(mask.shape)} on {mask.device}"
        )
    has_diagonal = _answer(mask.diagonal().all())
    if has_diagonal is None:
        return mask | torch.eye(size, dtype=torch.bool, device=device)
    if not has_diagonal:
        raise ValueError("a mask must hold the diagonal: a true pair is no negative of its own")
    return mask
