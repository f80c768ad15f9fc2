"""Emoji: four drawings of each of 1594 concepts, with names and keywords.

Pictures are rendered from the icon sets that Iconify packages; captions are those of the Unicode
Common Locale Data Repository (CLDR). The texts are names and word lists, not sentences.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Unicode Consortium, "Unicode Common Locale Data Repository", annotations; the families
and the split are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainaug.data import registry
from trainaug.data.emoji_decode import LANGUAGES, VENDORS

__all__ = [
    "VENDORS",
    "EmojiCaptions",
    "Split",
    "emoji_captions",
    "family",
    "family_split",
]

SHARES = (0.75, 0.125)  # shares of the families: training, validation; the rest is test


@dataclass(frozen=True)
class EmojiCaptions:
    """The whole set of N concepts; entry ``i`` of each attribute belongs to concept ``i``.

    Attributes:
        pictures: uint8 ``(N, V, 64, 64, 3)`` on white, one drawing by each of the V `VENDORS`.
        keys: Code points in hexadecimal, joined by hyphens.
        categories: Unicode's group, for example ``"Food & Drink"``.
        names: English name, about two words.
        keywords: English keywords, a tuple for each concept.
        translations: Names in German, French and Spanish by language code.
        families: Number of each concept's family, from 0, int64 ``(N,)``; see `family`.
        distinct: bool ``(N, V)``, false if a drawing equals an earlier one of the same vendor pixel
            for pixel; such drawings are left out of scoring.
    """

    pictures: NDArray[np.uint8]
    keys: tuple[str, ...]
    categories: tuple[str, ...]
    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    translations: Mapping[str, tuple[str, ...]]
    families: NDArray[np.int64]
    distinct: NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Row numbers of the concepts in each part, sorted, int64.

    Attributes:
        train: Rows of the training concepts, ``(N1,)``.
        val: Rows of the validation concepts, ``(N2,)``.
        test: Rows of the test concepts, ``(N3,)``.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def emoji_captions() -> EmojiCaptions:
    """Load the set from the cache.

    Returns:
        The 1594 concepts that all four vendors draw and CLDR names, without skin tones.

    Raises:
        DataUnavailableError: If the set is not in the cache; the message gives the command to run.
    """
    data = registry.load("emoji_captions")
    names = tuple(data["names"].tolist())
    pictures = data["pictures"]
    _, families = np.unique([family(name) for name in names], return_inverse=True)
    return EmojiCaptions(
        pictures=pictures,
        keys=tuple(data["keys"].tolist()),
        categories=tuple(data["categories"].tolist()),
        names=names,
        keywords=tuple(tuple(line.split("|")) for line in data["keywords"].tolist()),
        translations={code: tuple(data[f"names_{code}"].tolist()) for code in LANGUAGES},
        families=families.astype(np.int64),
        distinct=np.stack([_first_of_its_kind(pictures[:, v]) for v in range(len(VENDORS))], 1),
    )


def _first_of_its_kind(pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell for each picture whether no earlier one equals it."""
    first: dict[bytes, int] = {}
    for i, picture in enumerate(pictures):
        first.setdefault(picture.tobytes(), i)
    return np.isin(np.arange(len(pictures)), list(first.values()))


_PEOPLE = re.compile(
    r"\b(wo)?m[ae]n('s)?\b|\b(person|people|child|children|boys?|girls?|adult|baby)\b|^older\b"
    r"|\bfacing right\b"
)
_WHOLES = (
    (re.compile(r"^family\b"), "family"),
    (re.compile(r"^kiss(:|$)"), "kiss"),
    (re.compile(r"^couple with heart\b|holding hands"), "couple"),
    (re.compile(r"\bo’clock$|-thirty$"), "clock face"),
)


def family(name: str) -> str:
    """Reduce an English name to that of its family; a split keeps families, so near-copies, whole.

    Words for people and "facing right" are dropped, so that "man cook" and "woman cook" are one
    family. All emoji of kisses form one family, and so do those of couples, of clock faces, and of
    parents with children.

    Args:
        name: English name of a concept in CLDR.

    Returns:
        Name of the family; ``"person"`` if nothing else is left.

    Example:
        >>> family("woman cook"), family("man cook"), family("two-thirty")
        ('cook', 'cook', 'clock face')
    """
    for pattern, whole in _WHOLES:
        if pattern.search(name):
            return whole
    rest = " ".join(_PEOPLE.sub(" ", name).replace(":", " ").split())
    return rest or "person"


def family_split(families: NDArray[np.int64], seed: int) -> Split:
    """Split concepts 75 / 12.5 / 12.5 % by family, so that test concepts are not near-copies.

    Args:
        families: Family of each concept, shape ``(N,)``.
        seed: Seed of the draw, non-negative.

    Returns:
        The three parts; no family is in two of them.
    """
    kinds = np.unique(families)
    order = np.random.default_rng(seed).permutation(kinds)
    ends = np.cumsum([round(share * len(kinds)) for share in SHARES])
    parts = [np.flatnonzero(np.isin(families, kind)) for kind in np.split(order, ends)]
    return Split(*parts)
