"""Sum and max of hinges from embeddings, for batches whose scores do not fit into memory.

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

    The hardest negatives are searched for without gradients, chunk by chunk; the loss then needs
    three scores per pair. Memory grows with ``B * (D + chunk_size)``.

    Args:
        images: Embeddings, floating, normalised for cosine scores, shape ``(B, D)``.
        captions: Embeddings, shape ``(B, D)``; row ``a`` belongs to picture ``a``.
        groups: Group of each pair, ``(B,)``; pairs of one group are not negatives of each other.
            By default each pair forms a group.
        margin: At least 0.
        chunk_size: Pictures handled at once, at least 1.
        reduction: ``none``, the loss of each pair, ``(B,)``; or their ``sum`` or ``mean``.

    Returns:
        The loss of `MaxOfHinges`, ``(B,)`` or a scalar. Half precision is computed in float32,
        inside ``torch.autocast`` as well.

    Raises:
        ValueError: If a shape, type or device is wrong, ``margin`` negative, ``chunk_size`` below
            1 or the reduction unknown.
    """
    images, captions, groups = _checked(images, captions, groups, margin, chunk_size, reduction)
    with without_autocast(images.device):
        caption, image, row_is_alone, column_is_alone = _hardest(
            images.detach(), captions.detach(), groups, chunk_size
        )
        positive = (images * captions).sum(1) - margin
        rows = ((images * captions[caption]).sum(1) - positive).relu()
        rows = rows.masked_fill(row_is_alone, 0.0)
        columns = ((images[image] * captions).sum(1) - positive).relu()
        losses = rows + columns.masked_fill(column_is_alone, 0.0)
    return reduced(visible(losses, positive), reduction)


def _hardest(
    images: Tensor, captions: Tensor, groups: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where the hardest negatives lie, and who has none, ``(B,)`` each.

    These are the number of each picture's hardest caption, that of each caption's hardest picture,
    the pictures without a negative and the captions without one.
    """
    row_maxima, caption = [], []
    column_maxima = images.new_full((len(images),), -torch.inf)  # over the chunks so far
    image = torch.zeros(len(images), dtype=torch.long, device=images.device)
    for start in range(0, len(images), chunk_size):
        chunk = slice(start, start + chunk_size)
        scores = images[chunk] @ captions.T  # (b, B)
        scores = scores.masked_fill(groups[chunk].unsqueeze(1) == groups, -torch.inf)
        values, columns = scores.max(1)
        row_maxima.append(values)
        caption.append(columns)
        values, rows = scores.max(0)
        is_harder = (values > column_maxima) | values.isnan()  # no comparison with NaN is true
        column_maxima = torch.where(is_harder, values, column_maxima)
        image = torch.where(is_harder, rows + start, image)
    return (
        torch.cat(caption),
        image,
        torch.cat(row_maxima) == -torch.inf,
        column_maxima == -torch.inf,
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
    """Sum of hinges of the dot products of embeddings; the backward pass recomputes each chunk.

    Args:
        images: Embeddings, ``(B, D)``; all arguments are as in `chunked_max_of_hinges`.
        captions: Embeddings, ``(B, D)``.
        groups: Group of each pair, ``(B,)``, or None.
        margin: At least 0.
        chunk_size: Pictures handled at once, at least 1.
        reduction: ``none``, ``sum`` or ``mean``.

    Returns:
        The loss of `SumOfHinges`, ``(B,)`` or a scalar.

    Raises:
        ValueError: As in `chunked_max_of_hinges`.

    Notes:
        Inside ``torch.func.grad`` and its kin, where torch can recompute nothing, the hinges of all
        chunks are kept.
    """
    images, captions, groups = _checked(images, captions, groups, margin, chunk_size, reduction)
    recomputes = _can_recompute()

    def hinges(images: Tensor, captions: Tensor, positive: Tensor, start: int) -> Tensor:
        """Return what a chunk of pictures adds to the loss of each pair, ``(B,)``."""
        chunk = slice(start, start + chunk_size)
        scores = images[chunk] @ captions.T  # (b, B)
        same = groups[chunk].unsqueeze(1) == groups
        rows = (scores - positive[chunk].unsqueeze(1)).relu().masked_fill(same, 0.0).sum(1)
        columns = (scores - positive).relu().masked_fill(same, 0.0).sum(0)
        return columns.index_add(0, torch.arange(len(images), device=rows.device)[chunk], rows)

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
    """Whether torch can recompute here in the backward pass: `checkpoint` needs its hooks."""
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
    """Check all arguments; return embeddings in one type, float32 or wider, and the groups."""
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
