"""What the arms of chapter 1 are given: features, tokens and the parts of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.lab.arms import Settings
from trainaug.data.bag_of_words import build_vocabulary, split_words, token_matrix
from trainaug.data.emoji_captions import EmojiCaptions, emoji_captions, family_split
from trainaug.data.picture_features import picture_features, random_crops
from trainaug.data.registry import content_hash
from trainaug.training.randomness import stream

__all__ = ["Gallery", "Pairs", "PairsDataset", "Retrieval", "captions", "load_pairs"]

Split = Literal["family", "vendor"]
Encoder = Literal["features", "cnn"]


@dataclass(frozen=True, kw_only=True)
class Retrieval(Settings):
    """What is trained on, validated on and tested on, and how a test query is judged.

    Attributes:
        split: ``family``: new concepts, drawings of all four vendors (icon sets). ``vendor``:
            trained on noto and fluent-emoji-flat, validated on twemoji, tested on openmoji, all
            concepts.
        encoder: What pictures are given as: fixed ``features``, or the pictures for a ``cnn``.
        num_crops: Random crops of each picture, made once; the whole picture is kept as well.
        picture_size: Side of the pictures that a CNN is given.
        least_deviation: Features that vary less over training are divided by this.
        largest_feature: Standardised features are clamped to this size.
        num_train: Training items that are kept, or a few more, evenly spread; all by default.
        num_gallery: Number of concepts that are kept of each gallery, from the first; all by
            default.
        synonyms: Concepts that share this part of their words count as near-synonyms.
    """

    split: Split = "family"
    encoder: Encoder = "features"
    num_crops: int = 5
    picture_size: int = 32
    least_deviation: float = 0.02
    largest_feature: float = 6.0
    num_train: int | None = None
    num_gallery: int | None = None
    synonyms: float = 0.5

    def __post_init__(self) -> None:
        check_choice("split", self.split, get_args(Split))
        check_choice("encoder", self.encoder, get_args(Encoder))

    @property
    def data_hash(self) -> str:
        return content_hash("emoji_captions")

    def tiny(self) -> Self:
        return replace(self, num_train=160, num_gallery=48)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError if a setting is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class Gallery:
    """Concepts whose drawings by one vendor (icon set) and captions are scored together."""

    concepts: Tensor  # int64 (N,)
    vendor: int


@dataclass(frozen=True)
class Pairs:
    """One split: what is trained on, validated on and tested on.

    Attributes:
        pictures: What the picture encoder takes, ``(N, V, 1 + crops, ...)``: standardised
            features, or small pictures in [-1, 1].
        tokens: int64 ``(N, T)``, name and keywords of each concept.
        in_name: bool ``(N, T)``, which tokens belong to the name.
        vocabulary: Number of words of the training captions.
        train: Concept and vendor of each training item, int64 ``(M, 2)``.
        val: Galleries of the validation part. They leave out drawings that repeat an earlier one of
            the vendor, and concepts without a word that occurs in training.
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

    def to(self, device: torch.device) -> Pairs:
        """Return the same split with pictures and tokens on a device; index tensors stay."""
        return replace(
            self,
            pictures=self.pictures.to(device),
            tokens=self.tokens.to(device),
            in_name=self.in_name.to(device),
        )


def captions(data: EmojiCaptions) -> list[str]:
    """Name and keywords of each concept as one text."""
    return [" ".join([n, *k]) for n, k in zip(data.names, data.keywords, strict=True)]


@lru_cache(maxsize=2)
def _views(encoder: Encoder, num_crops: int, size: int) -> Tensor:
    """Whole pictures and crops of all drawings, as features or as pictures of side ``size``.

    The crops are the same in every run.

    Returns:
        Shape ``(N, V, 1 + num_crops, ...)``, concepts by vendors by views.
    """
    data = torch.tensor(emoji_captions().pictures).permute(0, 1, 4, 2, 3)  # (N, V, 3, 64, 64)
    generator = stream(0, "crops")
    chunks = []
    for part in torch.split(data.flatten(0, 1), 64):  # bounds the memory of the features
        whole = part.float() / 255
        views = [whole, *(random_crops(whole, generator=generator) for _ in range(num_crops))]
        if encoder == "features":
            views = [picture_features(view) for view in views]
        else:
            views = [F.adaptive_avg_pool2d(view, size) * 2 - 1 for view in views]
        chunks.append(torch.stack(views, 1))
    return torch.cat(chunks).view(*data.shape[:2], *chunks[0].shape[1:])


def load_pairs(settings: Retrieval, seed: int) -> Pairs:
    """Build a split; with ``split="family"`` the seed draws which concepts go to which part."""
    data = emoji_captions()
    if settings.split == "family":
        parts = family_split(data.families, seed)
        train, val, test = map(torch.from_numpy, (parts.train, parts.val, parts.test))
        vendors = [range(4)] * 3
    else:
        train = val = test = torch.arange(len(data.names))
        vendors = [range(2), range(2, 3), range(3, 4)]
    texts = captions(data)
    vocabulary = build_vocabulary(texts[i] for i in train.tolist())
    tokens = token_matrix(texts, vocabulary)
    scored = torch.tensor(data.distinct) & (tokens > 0).any(1, keepdim=True)  # (N, V)
    items = torch.cartesian_prod(train, torch.tensor(list(vendors[0])))  # (M, 2)
    if settings.num_train is not None:
        items = items[:: max(1, len(items) // settings.num_train)]
    return Pairs(
        pictures=_pictures(settings, train, vendors[0]),
        tokens=tokens,
        in_name=_in_name(data, tokens, vocabulary),
        vocabulary=len(vocabulary),
        train=items,
        val=_galleries(settings, val, vendors[1], scored),
        test=_galleries(settings, test, vendors[2], scored),
        tested=test,
    )


def _pictures(settings: Retrieval, train: Tensor, vendors: Sequence[int]) -> Tensor:
    """All views of all drawings; features are standardised.

    Mean and deviation are those of the training part's whole pictures.
    """
    pictures = _views(settings.encoder, settings.num_crops, settings.picture_size)
    if settings.encoder == "cnn":
        return pictures
    trained_on = pictures[train][:, list(vendors), 0].flatten(0, 1)  # (M, F)
    deviation = trained_on.std(0).clamp_min(settings.least_deviation)
    standardised = (pictures - trained_on.mean(0)) / deviation
    return standardised.clamp_(-settings.largest_feature, settings.largest_feature)


def _in_name(data: EmojiCaptions, tokens: Tensor, vocabulary: dict[str, int]) -> Tensor:
    """Which tokens belong to the name of their concept, bool ``(N, T)``."""
    names = [{vocabulary.get(word, 0) for word in split_words(name)} for name in data.names]
    rows = zip(tokens.tolist(), names, strict=True)
    return torch.tensor([[token in name and token > 0 for token in row] for row, name in rows])


def _galleries(
    settings: Retrieval, part: Tensor, vendors: Iterable[int], scored: Tensor
) -> tuple[Gallery, ...]:
    """Make a gallery for each vendor, of those concepts of a part whose drawing is scored."""
    return tuple(
        Gallery(part[scored[part, vendor]][: settings.num_gallery], vendor) for vendor in vendors
    )


class PairsDataset:
    """Training items: a drawing, in one of its views, and a caption with words left out.

    ``dataset[indices]`` is ``((picture, (tokens, weights)), concept, index)``. Each visit keeps
    the name and a random share of the keywords, and then drops some of all words and, where
    pictures are features, of their entries.

    Args:
        pairs: The split.
        crops: Whether the view is drawn at random; otherwise it is the whole picture.
        word_drop: Share of the words that are dropped.
        feature_drop: Share of the features that are dropped.
        generator: Draws everything, in the order of the visits.
    """

    def __init__(
        self,
        pairs: Pairs,
        *,
        crops: bool,
        word_drop: float,
        feature_drop: float,
        generator: torch.Generator,
    ) -> None:
        self.pairs = pairs
        self.crops = crops
        self.word_drop = word_drop
        self.feature_drop = feature_drop
        self.generator = generator

    def __len__(self) -> int:
        return len(self.pairs.train)

    def __getitem__(
        self, indices: Sequence[int]
    ) -> tuple[tuple[Tensor, tuple[Tensor, Tensor]], Tensor, Tensor]:
        """Return a batch."""
        pairs, g = self.pairs, self.generator
        device = pairs.pictures.device  # everything is drawn on the CPU
        index = torch.tensor(list(indices))
        concept, vendor = pairs.train[index].unbind(1)
        size, count = len(index), pairs.tokens.shape[1]
        # drawn without crops as well, so that all other draws stay the same
        drawn = torch.randint(pairs.pictures.shape[2], (size,), generator=g)
        view = drawn if self.crops else torch.zeros_like(drawn)
        picture = pairs.pictures[concept, vendor, view]
        if picture.ndim == 2:
            kept = torch.rand(picture.shape, generator=g) >= self.feature_drop
            picture = picture * kept.to(device) / (1 - self.feature_drop)
        share = torch.rand(size, 1, generator=g)
        kept = (torch.rand(size, count, generator=g) < share).to(device) | pairs.in_name[concept]
        kept &= (torch.rand(size, count, generator=g) >= self.word_drop).to(device)
        tokens = pairs.tokens[concept]
        return (picture, (tokens, (kept & (tokens > 0)).float())), concept, index
