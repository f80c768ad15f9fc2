"""Scores of all picture-caption pairs of a batch.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri et al., VSE++, 2018, section on the joint embedding; Vendrov, Kiros, Fidler,
Urtasun, "Order-embeddings of images and language", ICLR 2016, the order similarity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cosine_scores", "order_scores"]


def cosine_scores(images: Tensor, captions: Tensor) -> Tensor:
    r"""Score each picture with each caption, $s(i,c)=\langle f(i),g(c)\rangle/(\|f(i)\|\|g(c)\|)$.

    Args:
        images: Embeddings $f(i)$, shape ``(B, D)``.
        captions: Embeddings $g(c)$, shape ``(M, D)``.

    Returns:
        Scores in [-1, 1], shape ``(B, M)``, rows are pictures. A zero vector scores 0 with
        everything; NaN stays NaN.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check(images, captions)
    return F.normalize(images, dim=1) @ F.normalize(captions, dim=1).T


def order_scores(images: Tensor, captions: Tensor, *, chunk_size: int = 64) -> Tensor:
    r"""Score each picture with each caption, $s(i,c)=-\|\max(0,g(c)-f(i))\|_2$.

    Args:
        images: Embeddings $f(i)$, shape ``(B, D)``; non-negative in the source, see its ``abs``.
        captions: Embeddings $g(c)$, shape ``(M, D)``.
        chunk_size: Pictures handled at once; the intermediate is ``(chunk_size, M, D)``.

    Returns:
        Scores at most 0, shape ``(B, M)``; the gradient at 0 is 0.

    Raises:
        ValueError: If the shapes do not fit or ``chunk_size`` is below 1.
    """
    _check(images, captions)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    rows = [
        torch.linalg.vector_norm((captions - part.unsqueeze(1)).relu(), dim=2)  # (b, M)
        for part in torch.split(images, chunk_size)
    ]
    return -torch.cat(rows)


def _check(images: Tensor, captions: Tensor) -> None:
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
        raise ValueError(
            f"need (B, D) and (M, D), got {tuple(images.shape)} and {tuple(captions.shape)}"
        )
