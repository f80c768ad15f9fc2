"""What the arms of chapter 1 are given: features, tokens and the parts of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainaug.data.bag_of_words import build_vocabulary, split_words, token_matrix
from trainaug.data.emoji_captions import EmojiCaptions, emoji_captions, family_split
from trainaug.data.picture_features import picture_features, random_crops
from trainaug.training.randomness import stream

__all__ = ["CROPS", "Gallery", "Pairs", "PairsDataset", "captions", "load_pairs"]

CROPS = 5  # random crops of each picture, made once, beside the whole picture
CNN_SIZE = 32
WORD_DROP, FEATURE_DROP = 0.1, 0.2


@dataclass(frozen=True)
class Gallery:
    """Concepts and the drawings of one vendor that are scored together."""

    concepts: Tensor  # int64 (N,)
    vendor: int


@dataclass(frozen=True)
class Pairs:
    """One split: what is trained on, validated on and tested on.

    Attributes:
        pictures: What the picture encoder takes, ``(N, V, 1 + CROPS, ...)``: standardised
            features, or 32x32 pictures in [-1, 1].
        tokens: int64 ``(N, T)``, name and keywords of each concept.
        in_name: bool ``(N, T)``, which tokens belong to the name.
        vocabulary: Words of the training captions.
        train: Concept and vendor of each training item, int64 ``(M, 2)``.
        val: Galleries of the validation part. Left out are drawings that repeat an earlier one of
            the vendor, and concepts none of whose words occurs in training.
        test: Galleries of the test part, likewise.
        tested: All concepts of the test part, int64.
    """

    pictures: Tensor
    tokens: Tensor
    in_name: Tensor
    vocabulary: int
    train: Tensor
    val: tuple[Gallery, ...]
    test: tuple[Gallery, ...]
    tested: Tensor


def captions(data: EmojiCaptions) -> list[str]:
    """Name and keywords of each concept as one text."""
    return [" ".join([n, *k]) for n, k in zip(data.names, data.keywords, strict=True)]


@lru_cache(maxsize=2)
def _views(encoder: str) -> Tensor:
    """Whole pictures and crops of all drawings, as features or small pictures; the same always."""
    data = torch.tensor(emoji_captions().pictures).permute(0, 1, 4, 2, 3)  # (N, V, 3, 64, 64)
    generator = stream(0, "crops")
    rows = []
    for part in torch.split(data.flatten(0, 1), 64):
        whole = part.float() / 255
        views = [whole, *(random_crops(whole, generator=generator) for _ in range(CROPS))]
        if encoder == "features":
            views = [picture_features(view) for view in views]
        else:
            views = [F.adaptive_avg_pool2d(view, CNN_SIZE) * 2 - 1 for view in views]
        rows.append(torch.stack(views, 1))
    return torch.cat(rows).view(*data.shape[:2], *rows[0].shape[1:])


def load_pairs(split: str, encoder: str, seed: int) -> Pairs:
    """Build a split.

    Args:
        split: ``family``: new concepts, drawings of all four vendors. ``vendor``: trained on noto
            and fluent-emoji-flat, validated on twemoji, tested on openmoji, all concepts.
        encoder: ``features`` or ``cnn``.
        seed: Seed of the family split.

    Raises:
        ValueError: If the split or the encoder is unknown.
    """
    if split not in ("family", "vendor") or encoder not in ("features", "cnn"):
        raise ValueError(f"unknown split {split!r} or encoder {encoder!r}")
    data = emoji_captions()
    if split == "family":
        parts = family_split(data.families, seed)
        train, val, test = map(torch.from_numpy, (parts.train, parts.val, parts.test))
        vendors = [range(4)] * 3
    else:
        train = val = test = torch.arange(len(data.names))
        vendors = [range(2), range(2, 3), range(3, 4)]
    pictures = _views(encoder)
    if encoder == "features":
        seen = pictures[train][:, list(vendors[0]), 0].flatten(0, 1)  # (M, F)
        pictures = (pictures - seen.mean(0)) / seen.std(0).clamp_min(0.02)
        pictures = pictures.clamp_(-6, 6)
    texts = captions(data)
    vocabulary = build_vocabulary(texts[i] for i in train.tolist())
    tokens = token_matrix(texts, vocabulary)
    names = [{vocabulary.get(w, 0) for w in split_words(name)} for name in data.names]
    in_name = torch.tensor(
        [
            [token in name and token > 0 for token in row]
            for row, name in zip(tokens.tolist(), names, strict=True)
        ]
    )
    scored = torch.tensor(data.distinct) & (tokens > 0).any(1, keepdim=True)
    items = torch.stack([c.flatten() for c in _grid(train, vendors[0])], 1)
    galleries = [
        tuple(Gallery(part[scored[part, v]], v) for v in own)
        for part, own in ((val, vendors[1]), (test, vendors[2]))
    ]
    return Pairs(
        pictures=pictures,
        tokens=tokens,
        in_name=in_name,
        vocabulary=len(vocabulary),
        train=items,
        val=galleries[0],
        test=galleries[1],
        tested=test,
    )


def _grid(concepts: Tensor, vendors: Sequence[int]) -> tuple[Tensor, ...]:
    return torch.meshgrid(concepts, torch.tensor(list(vendors)), indexing="ij")


class PairsDataset:
    """Training items: a drawing, in one of its views, and a caption with words left out.

    ``dataset[indices]`` is ``((picture, (tokens, weights)), concept, index)``. Each visit keeps
    the name and a random share of the keywords, drops a tenth of all words and, of features, a
    fifth of the entries. Draws come from ``generator`` in the order of the visits.
    """

    def __init__(self, pairs: Pairs, *, crops: bool, generator: torch.Generator) -> None:
        self.pairs, self.crops, self.generator = pairs, crops, generator

    def __len__(self) -> int:
        return len(self.pairs.train)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Any, Tensor, Tensor]:
        """Return a batch."""
        pairs, g = self.pairs, self.generator
        index = torch.tensor(list(indices))
        concept, vendor = pairs.train[index].unbind(1)
        size, count = len(index), pairs.tokens.shape[1]
        drawn = torch.randint(pairs.pictures.shape[2], (size,), generator=g)
        view = drawn if self.crops else torch.zeros_like(drawn)
        picture = pairs.pictures[concept, vendor, view]
        if picture.ndim == 2:
            kept = torch.rand(picture.shape, generator=g) >= FEATURE_DROP
            picture = picture * kept / (1 - FEATURE_DROP)
        share = torch.rand(size, 1, generator=g)
        kept = (torch.rand(size, count, generator=g) < share) | pairs.in_name[concept]
        kept &= torch.rand(size, count, generator=g) >= WORD_DROP
        tokens = pairs.tokens[concept]
        return (picture, (tokens, (kept & (tokens > 0)).float())), concept, index
