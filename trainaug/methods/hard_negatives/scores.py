"""Scores of all picture-caption pairs of a batch.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri et al., VSE++, 2018, section on the joint embedding; Vendrov, Kiros, Fidler,
Urtasun, "Order-embeddings of images and language", ICLR 2016, the order similarity.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from trainaug.checks import widened

__all__ = ["cosine_scores", "order_scores"]


def cosine_scores(images: Tensor, captions: Tensor) -> Tensor:
    r"""Score each picture with each caption, $s(i,c)=\langle f(i),g(c)\rangle/(\|f(i)\|\|g(c)\|)$.

    Args:
        images: Embeddings $f(i)$, floating, shape ``(B, D)``.
        captions: Embeddings $g(c)$, floating, shape ``(M, D)``, on the same device.

    Returns:
        Scores in [-1, 1], shape ``(B, M)``, rows are pictures. A zero vector scores 0 with
        everything, and its gradient is 0; NaN stays NaN.

    Raises:
        ValueError: If the shapes or the devices do not fit, or an embedding is not floating.

    Notes:
        The type of the result is the wider one of the two, inside ``torch.autocast`` as well.
        Half precision is computed in float32 and rounded once.
    """
    dtype = check_embeddings(images, captions)
    images, captions = unit_embeddings(images, captions)
    with without_autocast(images.device):
        return (images @ captions.T).to(dtype)


def unit_embeddings(images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the rows of both to length 1, in float32 or wider; a zero row stays zero."""
    dtype = check_embeddings(images, captions)
    with without_autocast(images.device):
        return _unit(images, dtype), _unit(captions, dtype)


def order_scores(images: Tensor, captions: Tensor, *, chunk_size: int = 64) -> Tensor:
    r"""Score each picture with each caption, $s(i,c)=-\|\max(0,g(c)-f(i))\|_2$.

    Args:
        images: Embeddings $f(i)$, shape ``(B, D)``; the source first takes their moduli (``abs``).
        captions: Embeddings $g(c)$, shape ``(M, D)``, on the same device.
        chunk_size: Pictures handled at once; the intermediate is ``(chunk_size, M, D)``.

    Returns:
        Scores at most 0, shape ``(B, M)``; the gradient at 0 is 0. NaN stays NaN. Their type is
        that of `cosine_scores`.

    Raises:
        ValueError: If the shapes or the devices do not fit, an embedding is not floating, or
            ``chunk_size`` is below 1.
    """
    dtype = check_embeddings(images, captions)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    images, captions = widened(images), widened(captions)
    with without_autocast(images.device):
        rows = [
            torch.linalg.vector_norm((captions - part.unsqueeze(1)).relu(), dim=2)  # (b, M)
            for part in torch.split(images, chunk_size)
        ]
    return -torch.cat(rows).to(dtype)


def check_embeddings(images: Tensor, captions: Tensor) -> torch.dtype:
    """Check embeddings ``(B, D)`` and ``(M, D)``; return the wider type, which scores will have."""
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
        raise ValueError(
            f"need (B, D) and (M, D), got {tuple(images.shape)} and {tuple(captions.shape)}"
        )
    if not (images.is_floating_point() and captions.is_floating_point()):
        raise ValueError(f"embeddings must be floating, got {images.dtype} and {captions.dtype}")
    if images.device != captions.device:
        raise ValueError(
            f"need embeddings on one device, got {images.device} and {captions.device}"
        )
    return torch.promote_types(images.dtype, captions.dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Switch off autocast, which would round products to half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale rows to length 1, in float32 or wider; a zero row stays zero."""
    x = widened(x.to(dtype))
    largest = x.detach().abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    # Squares of very large entries overflow, those of very small ones vanish. The factor is a
    # constant for the gradient, since a direction has no length; at a zero row, which has no
    # direction, it is 0 and so is the gradient. Ordinary rows are multiplied by 1: no bit changes.
    inverse = largest.clamp_min(torch.finfo(x.dtype).tiny).reciprocal()
    factor = torch.where(largest < 2.0**-40, inverse, 1.0)
    factor = torch.where(largest > 2.0**60, 2.0**-80, factor)
    factor = torch.where(largest == 0, 0.0, factor)
    return F.normalize(x * factor, dim=1)
