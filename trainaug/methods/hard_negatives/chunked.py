"""The same losses from embeddings, for batches whose score matrix does not fit into memory.

Chapter: notebooks/01_vse_hard_negatives.ipynb
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["chunked_max_of_hinges", "chunked_sum_of_hinges"]


def chunked_max_of_hinges(
    images: Tensor,
    captions: Tensor,
    groups: Tensor | None = None,
    *,
    margin: float = 0.2,
    chunk_size: int = 1024,
) -> Tensor:
    """Max of hinges of the dot products of embeddings, without ever holding ``(B, B)`` scores.

    The hardest negatives are searched without gradients, chunk by chunk; the loss then needs
    three scores a pair. Memory grows with ``B * (D + chunk_size)``.

    Args:
        images: Embeddings, normalised for cosine scores, shape ``(B, D)``.
        captions: Embeddings, shape ``(B, D)``; row ``a`` belongs to picture ``a``.
        groups: Group of each pair, ``(B,)``; pairs of one group are no negatives. By default
            each pair is a group of its own.
        margin: At least 0.
        chunk_size: Pictures handled at once.

    Returns:
        Loss of each pair, ``(B,)``, as `MaxOfHinges` with ``reduction="none"``.

    Raises:
        ValueError: If a shape is wrong, ``margin`` negative or ``chunk_size`` below 1.
    """
    groups = _check(images, captions, groups, margin, chunk_size)
    size = len(images)
    caption = torch.empty(size, dtype=torch.long, device=images.device)
    image = torch.zeros_like(caption)
    alone_row = torch.empty(size, dtype=torch.bool, device=images.device)
    hardest = torch.full((size,), -torch.inf, dtype=images.dtype, device=images.device)
    with torch.no_grad():
        for start in range(0, size, chunk_size):
            here = slice(start, start + chunk_size)
            scores = images[here] @ captions.T  # (b, B)
            scores.masked_fill_(groups[here].unsqueeze(1) == groups, -torch.inf)
            best, caption[here] = scores.max(1)
            alone_row[here] = best == -torch.inf
            values, rows = scores.max(0)
            better = values > hardest
            hardest = torch.where(better, values, hardest)
            image = torch.where(better, rows + start, image)
    positive = (images * captions).sum(1) - margin
    rows = ((images * captions[caption]).sum(1) - positive).relu().masked_fill(alone_row, 0.0)
    columns = ((images[image] * captions).sum(1) - positive).relu()
    return rows + columns.masked_fill(hardest == -torch.inf, 0.0)


def chunked_sum_of_hinges(
    images: Tensor,
    captions: Tensor,
    groups: Tensor | None = None,
    *,
    margin: float = 0.2,
    chunk_size: int = 1024,
) -> Tensor:
    """Sum of hinges of the dot products of embeddings; each chunk is computed again backwards.

    Arguments, result and errors as in `chunked_max_of_hinges`; as `SumOfHinges`, ``"none"``.
    """
    groups = _check(images, captions, groups, margin, chunk_size)
    positive = (images * captions).sum(1) - margin  # (B,)

    def hinges(images: Tensor, captions: Tensor, positive: Tensor, start: int) -> Tensor:
        here = slice(start, start + chunk_size)
        scores = images[here] @ captions.T  # (b, B)
        same = groups[here].unsqueeze(1) == groups
        rows = (scores - positive[here].unsqueeze(1)).relu().masked_fill(same, 0.0).sum(1)
        columns = (scores - positive).relu().masked_fill(same, 0.0).sum(0)
        return columns.index_add(0, torch.arange(len(images), device=rows.device)[here], rows)

    losses = torch.zeros_like(positive)
    for start in range(0, len(images), chunk_size):
        part = checkpoint(hinges, images, captions, positive, start, use_reentrant=False)
        losses = losses + part
    return losses


def _check(
    images: Tensor, captions: Tensor, groups: Tensor | None, margin: float, chunk_size: int
) -> Tensor:
    if images.ndim != 2 or images.shape != captions.shape or len(images) == 0:
        raise ValueError(
            f"need embeddings (B, D) twice, got {tuple(images.shape)} and {tuple(captions.shape)}"
        )
    if not 0 <= margin < math.inf or chunk_size < 1:
        raise ValueError(f"need margin >= 0 and chunk_size >= 1, got {margin} and {chunk_size}")
    if groups is None:
        return torch.arange(len(images), device=images.device)
    if groups.shape != (len(images),):
        raise ValueError(f"groups must have shape ({len(images)},), got {tuple(groups.shape)}")
    return groups
