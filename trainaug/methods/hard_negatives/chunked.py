"""The same losses from embeddings, for batches whose score matrix does not fit into memory.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri et al., VSE++, BMVC 2018, the losses "sum of hinges" and "max of hinges"; to
compute them in chunks is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainaug.checks import widened
from trainaug.methods.hard_negatives.losses import (
    Reduction,
    check_groups,
    check_margin,
    check_reduction,
    reduced,
    visible,
)
from trainaug.methods.hard_negatives.scores import check_embeddings, without_autocast

__all__ = ["chunked_max_of_hinges", "chunked_sum_of_hinges"]


def chunked_max_of_hinges(
    images: Tensor,
    captions: Tensor,
    groups: Tensor | None = None,
    *,
    margin: float = 0.2,
    chunk_size: int = 1024,
    reduction: Reduction = "none",
) -> Tensor:
    """Max of hinges of the dot products of embeddings, without ever holding ``(B, B)`` scores.

    The hardest negatives are searched without gradients, chunk by chunk; the loss then needs
    three scores a pair. Memory grows with ``B * (D + chunk_size)``.

    Args:
        images: Embeddings, floating, normalised for cosine scores, shape ``(B, D)``.
        captions: Embeddings, shape ``(B, D)``; row ``a`` belongs to picture ``a``.
        groups: Group of each pair, ``(B,)``; pairs of one group are no negatives. By default
            each pair is a group of its own.
        margin: At least 0.
        chunk_size: Pictures handled at once, at least 1.
        reduction: ``none``, the loss of each pair, ``(B,)``; or their ``sum`` or ``mean``.

    Returns:
        The loss as of `MaxOfHinges`, ``(B,)`` or a scalar; half-precision embeddings are computed
        with in float32, inside ``torch.autocast`` as well.

    Raises:
        ValueError: If a shape, type or device is wrong, ``margin`` negative, ``chunk_size`` below
            1 or the reduction unknown.
    """
    images, captions, groups = _checked(images, captions, groups, margin, chunk_size, reduction)
    with without_autocast(images.device):
        caption, image, alone_row, alone_column = _hardest(
            images.detach(), captions.detach(), groups, chunk_size
        )
        positive = (images * captions).sum(1) - margin
        rows = ((images * captions[caption]).sum(1) - positive).relu().masked_fill(alone_row, 0.0)
        columns = ((images[image] * captions).sum(1) - positive).relu()
        losses = rows + columns.masked_fill(alone_column, 0.0)
    return reduced(visible(losses, positive), reduction)


def _hardest(
    images: Tensor, captions: Tensor, groups: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index of each picture's hardest caption and the reverse, and which have no negative."""
    hardest_of_rows, caption = [], []
    hardest = images.new_full((len(images),), -torch.inf)
    image = torch.zeros(len(images), dtype=torch.long, device=images.device)
    for start in range(0, len(images), chunk_size):
        here = slice(start, start + chunk_size)
        scores = images[here] @ captions.T  # (b, B)
        scores = scores.masked_fill(groups[here].unsqueeze(1) == groups, -torch.inf)
        values, columns = scores.max(1)
        hardest_of_rows.append(values)
        caption.append(columns)
        values, rows = scores.max(0)
        better = (values > hardest) | values.isnan()  # no comparison with NaN is true
        hardest = torch.where(better, values, hardest)
        image = torch.where(better, rows + start, image)
    return (
        torch.cat(caption),
        image,
        torch.cat(hardest_of_rows) == -torch.inf,
        hardest == -torch.inf,
    )


def chunked_sum_of_hinges(
    images: Tensor,
    captions: Tensor,
    groups: Tensor | None = None,
    *,
    margin: float = 0.2,
    chunk_size: int = 1024,
    reduction: Reduction = "none",
) -> Tensor:
    """Sum of hinges of the dot products of embeddings; each chunk is computed again backwards.

    Args:
        images: As in `chunked_max_of_hinges`, and so are the others.
        captions: Embeddings, ``(B, D)``.
        groups: Group of each pair, ``(B,)``.
        margin: At least 0.
        chunk_size: Pictures handled at once, at least 1.
        reduction: ``none``, ``sum`` or ``mean``.

    Returns:
        The loss as of `SumOfHinges`, ``(B,)`` or a scalar.

    Raises:
        ValueError: As in `chunked_max_of_hinges`.

    Notes:
        Inside ``torch.func.grad`` and its kin, where torch can compute nothing again, the hinges
        of all chunks are kept.
    """
    images, captions, groups = _checked(images, captions, groups, margin, chunk_size, reduction)
    recomputes = _can_recompute()

    def hinges(images: Tensor, captions: Tensor, positive: Tensor, start: int) -> Tensor:
        here = slice(start, start + chunk_size)
        scores = images[here] @ captions.T  # (b, B)
        same = groups[here].unsqueeze(1) == groups
        rows = (scores - positive[here].unsqueeze(1)).relu().masked_fill(same, 0.0).sum(1)
        columns = (scores - positive).relu().masked_fill(same, 0.0).sum(0)
        return columns.index_add(0, torch.arange(len(images), device=rows.device)[here], rows)

    with without_autocast(images.device):
        positive = (images * captions).sum(1) - margin  # (B,)
        losses = torch.zeros_like(positive)
        for start in range(0, len(images), chunk_size):
            if recomputes:
                part = checkpoint(hinges, images, captions, positive, start, use_reentrant=False)
            else:
                part = hinges(images, captions, positive, start)
            losses = losses + part
    return reduced(visible(losses, positive), reduction)


def _can_recompute() -> bool:
    if torch.compiler.is_compiling():
        return True
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return True
    except RuntimeError:
        return False


def _checked(
    images: Tensor,
    captions: Tensor,
    groups: Tensor | None,
    margin: float,
    chunk_size: int,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor]:
    if images.ndim != 2 or images.shape != captions.shape or len(images) == 0:
        raise ValueError(
            f"need embeddings (B, D) twice, got {tuple(images.shape)} and {tuple(captions.shape)}"
        )
    dtype = check_embeddings(images, captions)
    check_margin(margin)
    check_reduction(reduction)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if groups is None:
        groups = torch.arange(len(images), device=images.device)
    if groups.shape != (len(images),):
        raise ValueError(f"groups must have shape ({len(images)},), got {tuple(groups.shape)}")
    if groups.device != images.device:
        raise ValueError(f"groups are on {groups.device}, embeddings on {images.device}")
    check_groups("groups", groups)
    return widened(images.to(dtype)), widened(captions.to(dtype)), groups
