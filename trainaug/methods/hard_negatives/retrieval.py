"""Retrieval metrics from scores: any number of captions per picture, ties against the model.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri et al., VSE++, BMVC 2018, the evaluation protocol.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Literal

import torch
from torch import Tensor

from trainaug.checks import finite
from trainaug.methods.hard_negatives.losses import check_groups

__all__ = ["RetrievalMetrics", "folded_metrics", "retrieval_metrics", "retrieval_ranks", "rsum"]

Ties = Literal["pessimistic", "expected", "optimistic"]


@dataclass(frozen=True)
class RetrievalMetrics:
    """Metrics of one direction, pictures to captions or captions to pictures.

    Attributes:
        r1: Percentage of queries whose best positive is ranked first.
        r5: The same for the first five.
        r10: The same for the first ten.
        med_r: Median rank, counted from 1: floor of the median from 0, plus 1.
        mean_r: Mean rank, counted from 1.
    """

    r1: float
    r5: float
    r10: float
    med_r: float
    mean_r: float


def retrieval_ranks(
    scores: Tensor, query_ids: Tensor, gallery_ids: Tensor, ties: Ties = "pessimistic"
) -> Tensor:
    """Rank of each query's best positive, counted from 0.

    Args:
        scores: ``(Q, G)``, floating, higher is better. Rounding to half precision makes ties.
        query_ids: Id of what each query belongs to, ``(Q,)``, on the scores' device.
        gallery_ids: The same for each gallery item, ``(G,)``; items with a query's id are its
            positives.
        ties: ``pessimistic`` puts negatives of equal score first, ``expected`` half of them, and
            ``optimistic`` none, so that a constant score is always right.

    Returns:
        float64 ``(Q,)``.

    Raises:
        ValueError: If shapes, types or devices do not fit, there is no query, a score is not
            finite, they are on the meta device, or a query has no positive.
    """
    _check_scores_and_ids(scores, query_ids, gallery_ids)
    if ties not in ("pessimistic", "expected", "optimistic"):
        raise ValueError(f"ties must be pessimistic, expected or optimistic, got {ties!r}")
    positive = query_ids.unsqueeze(1) == gallery_ids  # (Q, G)
    if not bool(positive.any(1).all()):
        raise ValueError(f"query {int((~positive.any(1)).nonzero()[0])} has no positive")
    best = scores.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)  # (Q, 1)
    above = ((scores > best) & ~positive).sum(1).double()
    tied = ((scores == best) & ~positive).sum(1).double()
    return above + tied * {"pessimistic": 1.0, "expected": 0.5, "optimistic": 0.0}[ties]


def retrieval_metrics(
    scores: Tensor, query_ids: Tensor, gallery_ids: Tensor, ties: Ties = "pessimistic"
) -> RetrievalMetrics:
    """Recall at 1, 5 and 10, median and mean rank of one direction.

    Args:
        scores: Scores ``(Q, G)``; all arguments are as in `retrieval_ranks`.
        query_ids: Id of what each query belongs to, ``(Q,)``.
        gallery_ids: Id of what each gallery item belongs to, ``(G,)``.
        ties: ``pessimistic``, ``expected`` or ``optimistic``.

    Returns:
        Recalls in percent, ranks counted from 1.

    Raises:
        ValueError: As in `retrieval_ranks`.

    Example:
        >>> ids = torch.arange(4)
        >>> retrieval_metrics(torch.zeros(4, 4), ids, ids).r1
        0.0
    """
    ranks = retrieval_ranks(scores, query_ids, gallery_ids, ties)
    recalls = [100.0 * float((ranks < k).double().mean()) for k in (1, 5, 10)]
    ordered = ranks.sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    r1, r5, r10 = recalls
    return RetrievalMetrics(
        r1, r5, r10, med_r=math.floor(float(median)) + 1.0, mean_r=float(ranks.mean()) + 1.0
    )


def rsum(*directions: RetrievalMetrics) -> float:
    """Sum of the recalls of both directions, at most 600.

    Args:
        *directions: Metrics of each direction from `retrieval_metrics`; usually two.

    Returns:
        The sum of their recalls at 1, 5 and 10, in percent: from 0 to 300 per direction.
    """
    return sum(d.r1 + d.r5 + d.r10 for d in directions)


def folded_metrics(
    scores: Tensor, image_ids: Tensor, caption_ids: Tensor, num_folds: int
) -> tuple[RetrievalMetrics, RetrievalMetrics]:
    """Average both directions over disjoint folds of pictures, each with its own captions only.

    Args:
        scores: Scores ``(I, C)``; rows are pictures, columns captions.
        image_ids: Id of each picture, ``(I,)``, all different.
        caption_ids: Id of the picture that each caption belongs to, ``(C,)``.
        num_folds: Number of folds, cut in the order of the pictures; at least 1.

    Returns:
        The metrics of picture to caption and of caption to picture. With five folds of 5000
        pictures this is the protocol "1K" of the paper.

    Raises:
        ValueError: As in `retrieval_ranks`, and if ids repeat, a caption belongs to no picture,
            or there are fewer pictures than folds.
    """
    _check_scores_and_ids(scores, image_ids, caption_ids)
    if len(set(image_ids.tolist())) != len(image_ids):
        raise ValueError("image_ids repeat: leave duplicated picture rows out")
    known = torch.isin(caption_ids, image_ids)
    if not bool(known.all()):
        raise ValueError(f"caption {int((~known).nonzero()[0])} belongs to none of the pictures")
    if not 1 <= num_folds <= len(image_ids):
        raise ValueError(f"num_folds must be in [1, {len(image_ids)}], got {num_folds}")
    folds = []
    for rows in torch.arange(len(image_ids), device=image_ids.device).tensor_split(num_folds):
        columns = torch.isin(caption_ids, image_ids[rows]).nonzero().squeeze(1)
        part = scores[rows][:, columns]
        ids = image_ids[rows], caption_ids[columns]
        folds.append((retrieval_metrics(part, *ids), retrieval_metrics(part.T, *ids[::-1])))
    to_caption, to_image = zip(*folds, strict=True)
    return _mean(to_caption), _mean(to_image)


def _mean(metrics: tuple[RetrievalMetrics, ...]) -> RetrievalMetrics:
    columns = zip(*map(astuple, metrics), strict=True)
    return RetrievalMetrics(*(sum(column) / len(metrics) for column in columns))


def _check_scores_and_ids(scores: Tensor, row_ids: Tensor, column_ids: Tensor) -> None:
    """Raise a ValueError unless scores are finite, with an id for each row and each column."""
    if scores.ndim != 2 or len(scores) == 0:
        raise ValueError(f"scores must have shape (Q, G), Q >= 1, got {tuple(scores.shape)}")
    if row_ids.shape != scores.shape[:1] or column_ids.shape != scores.shape[1:]:
        raise ValueError(
            f"scores {tuple(scores.shape)} need that many ids, got {tuple(row_ids.shape)} for the "
            f"rows and {tuple(column_ids.shape)} for the columns"
        )
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating, got {scores.dtype}")
    for name, ids in (("ids of the rows", row_ids), ("ids of the columns", column_ids)):
        if ids.device != scores.device:
            raise ValueError(f"{name} are on {ids.device}, the scores on {scores.device}")
        check_groups(name, ids)  # ids must survive a comparison: no half precision, no NaN
    if scores.is_meta:  # `finite` reads the values
        raise ValueError("scores on the meta device have no values to look at")
    finite("scores", scores)
