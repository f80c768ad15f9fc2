"""Emoji: four drawings of each of 1594 concepts, with names and keywords.

Pictures are rendered from the icon sets that Iconify packages; captions are those of the Unicode
Common Locale Data Repository (CLDR). The texts are names and word lists, not sentences.

Chapter: notebooks/01_vse_hard_negatives.ipynb
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainaug.data import registry
from trainaug.data.arrays import CorruptDataError

__all__ = [
    "SIZE",
    "VENDORS",
    "EmojiCaptions",
    "Split",
    "decode_emoji",
    "emoji_captions",
    "family",
    "family_split",
]

VENDORS = ("noto", "fluent-emoji-flat", "twemoji", "openmoji")
LANGUAGES = ("de", "fr", "es")
SIZE = 64
SKIN_TONES = {f"{code:04x}" for code in range(0x1F3FB, 0x1F400)}
SHARES = (0.75, 0.125)  # of the families: training, validation; the rest is test


@dataclass(frozen=True)
class EmojiCaptions:
    """The whole set; concept ``i`` is row ``i`` everywhere.

    Attributes:
        pictures: uint8 ``(N, V, 64, 64, 3)`` on white, one drawing by each of `VENDORS`.
        keys: Code points in hexadecimal, joined by hyphens.
        categories: Unicode's group, say ``"Food & Drink"``.
        names: English name, about two words.
        keywords: English keywords, a tuple for each concept.
        translations: Names in German, French and Spanish by language code.
        families: Family of each concept, from 0; see `family`.
        distinct: bool ``(N, V)``, false where a drawing is pixel for pixel an earlier one of the
            same vendor; such drawings are left out of scoring.
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
    """Concepts of each part, sorted, int64."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def emoji_captions() -> EmojiCaptions:
    """Load the set from the cache.

    Returns:
        The 1594 concepts that all four vendors draw and CLDR names, without skin tones.

    Raises:
        DataUnavailableError: If the set is not in the cache; the message has the command to run.
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
    flat = pictures.reshape(len(pictures), -1)
    _, first = np.unique(flat, axis=0, return_index=True)
    return np.isin(np.arange(len(flat)), first)


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
    """Reduce an English name to that of its family, so that near-copies share a part of a split.

    Words for people and "facing right" are dropped ("man cook" and "woman cook" are one family);
    families, kisses, couples and clock faces are one family each.

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
    """Split concepts 75 / 12.5 / 12.5 % by family: test concepts are new in kind, not in detail.

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


def decode_emoji(files: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """Match, render and order the contents of the npm packages.

    Args:
        files: Contents by ``"<vendor>/icons"``, ``"<vendor>/chars"``, ``"<vendor>/categories"``
            (of the first vendor only), ``"annotations/<language>"``, ``"derived/<language>"``.

    Returns:
        Arrays ``pictures, keys, categories, names, keywords`` (joined by ``|``) and
        ``names_de, names_fr, names_es``; text as fixed-width Unicode.

    Raises:
        CorruptDataError: If a file is not the JSON expected or an icon does not render.
    """
    try:
        parsed = {name: json.loads(data) for name, data in files.items()}
        icons = {vendor: _by_key(parsed[f"{vendor}/chars"]) for vendor in VENDORS}
        captions = {code: _captions(parsed, code) for code in ("en", *LANGUAGES)}
        groups = parsed[f"{VENDORS[0]}/categories"]["categories"]
        category = {icon: group for group, members in groups.items() for icon in members}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"not the expected JSON: {error!r}") from error
    sets = [set(found) for found in (*icons.values(), *captions.values())]
    keys = sorted(
        key for key in set.intersection(*sets) if not SKIN_TONES.intersection(key.split("-"))
    )
    pictures = np.stack(
        [
            np.stack([render(parsed[f"{vendor}/icons"], icons[vendor][key]) for vendor in VENDORS])
            for key in keys
        ]
    )
    text = {
        "keys": keys,
        "categories": [category[icons[VENDORS[0]][key]] for key in keys],
        "names": [captions["en"][key][0] for key in keys],
        "keywords": ["|".join(captions["en"][key][1]) for key in keys],
    } | {f"names_{code}": [captions[code][key][0] for key in keys] for code in LANGUAGES}
    return {"pictures": pictures} | {name: np.array(values) for name, values in text.items()}


def _by_key(chars: Mapping[str, str]) -> dict[str, str]:
    """Icon names by code points without the variation selector U+FE0F."""
    return {"-".join(p for p in k.lower().split("-") if p != "fe0f"): n for k, n in chars.items()}


def _captions(parsed: Mapping[str, Any], language: str) -> dict[str, tuple[str, list[str]]]:
    found = {}
    for part, outer in (("annotations", "annotations"), ("derived", "annotationsDerived")):
        for emoji, entry in parsed[f"{part}/{language}"][outer]["annotations"].items():
            key = "-".join(f"{ord(c):04x}" for c in emoji if c != "\ufe0f")
            found[key] = (entry["tts"][0], entry.get("default", []))
    return found


def render(icons: Mapping[str, Any], name: str) -> NDArray[np.uint8]:
    """Render an icon of an Iconify set on a white square, uint8 ``(64, 64, 3)``.

    Raises:
        CorruptDataError: If the set has no such icon or it does not render.
    """
    import resvg_py  # only a fetch needs it, and Pillow
    from PIL import Image

    try:
        icon = icons["icons"][name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="white")
        picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    except Exception as error:  # the renderer's errors have no common base
        raise CorruptDataError(f"icon {name!r} does not render: {error!r}") from error
    square = Image.new("RGB", (SIZE, SIZE), "white")
    square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return np.asarray(square)
