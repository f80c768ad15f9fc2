"""Decoder of the emoji set: npm packages of icons and texts are matched, rendered and sorted.

The icon sets are packaged by Iconify, the texts are those of the Unicode Common Locale Data
Repository (CLDR). `trainaug.data.emoji_captions` gives the result to experiments.

Reference: Iconify, "IconifyJSON", the format of the icon sets; Unicode Technical Standard 35, part
2, annotations.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainaug.data.arrays import Arrays, CorruptDataError
from trainaug.extras import extra

__all__ = ["LANGUAGES", "VENDORS", "decode", "render"]

#: Names of the icon sets, one for each vendor, in the order of the pictures.
VENDORS = ("noto", "fluent-emoji-flat", "twemoji", "openmoji")
#: Codes of the languages besides English.
LANGUAGES = ("de", "fr", "es")
#: Side of a picture in pixels.
_SIZE = 64
SKIN_TONES = {f"{code:04x}" for code in range(0x1F3FB, 0x1F400)}


def decode(files: Mapping[str, bytes]) -> Arrays:
    """Match, render and sort the contents of the npm packages.

    Args:
        files: Contents by ``"<vendor>/icons"``, ``"<vendor>/chars"``, ``"<vendor>/categories"``
            (of the first vendor only), ``"annotations/<language>"``, ``"derived/<language>"``.

    Returns:
        Arrays ``pictures, keys, categories, names, keywords`` (joined by ``|``) and
        ``names_de, names_fr, names_es``; text as fixed-width Unicode.

    Raises:
        CorruptDataError: If a file is not the JSON expected, an icon does not render, or no emoji
            is in all icon sets and languages.
    """
    try:
        parsed = {name: _parsed(name, data) for name, data in files.items()}
        icons = {vendor: _by_key(parsed[f"{vendor}/chars"]) for vendor in VENDORS}
        captions = {code: _captions(parsed, code) for code in ("en", *LANGUAGES)}
        groups = parsed[f"{VENDORS[0]}/categories"]["categories"]
        category = {icon: group for group, members in groups.items() for icon in members}
        common = set.intersection(*map(set, icons.values()), *map(set, captions.values()))
        keys = sorted(key for key in common if not SKIN_TONES.intersection(key.split("-")))
        categories = [category[icons[VENDORS[0]][key]] for key in keys]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"not the expected JSON: {error!r}") from error
    if not keys:
        raise CorruptDataError("no emoji is in all icon sets and all languages")
    pictures = np.stack(
        [
            np.stack([render(parsed[f"{vendor}/icons"], icons[vendor][key]) for vendor in VENDORS])
            for key in keys
        ]
    )
    text = {
        "keys": keys,
        "categories": categories,
        "names": [captions["en"][key][0] for key in keys],
        "keywords": ["|".join(captions["en"][key][1]) for key in keys],
    } | {f"names_{code}": [captions[code][key][0] for key in keys] for code in LANGUAGES}
    return {"pictures": pictures} | {name: np.array(values) for name, values in text.items()}


def _parsed(name: str, data: bytes) -> Any:
    """Parse JSON; a CorruptDataError names the file."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{name}: not the expected JSON: {error!r}") from error


def _by_key(chars: Mapping[str, str]) -> dict[str, str]:
    """Return icon names by code points without the variation selector U+FE0F."""
    return {"-".join(p for p in k.lower().split("-") if p != "fe0f"): n for k, n in chars.items()}


def _captions(parsed: Mapping[str, Any], language: str) -> dict[str, tuple[str, list[str]]]:
    """Return the name and the keywords of each emoji in a language, by its code points."""
    captions = {}
    for part, outer in (("annotations", "annotations"), ("derived", "annotationsDerived")):
        for emoji, entry in parsed[f"{part}/{language}"][outer]["annotations"].items():
            key = "-".join(f"{ord(c):04x}" for c in emoji if c != "\ufe0f")
            captions[key] = (entry["tts"][0], entry.get("default", []))
    return captions


def render(icons: Mapping[str, Any], name: str) -> NDArray[np.uint8]:
    """Render an icon of an Iconify set on a white square.

    Args:
        icons: The icon set, as read from its JSON.
        name: Name of an icon in it.

    Returns:
        uint8 ``(64, 64, 3)``.

    Raises:
        CorruptDataError: If the set has no such icon or it does not render.
    """
    with extra("data"):  # imported here because only a fetch needs these packages
        import resvg_py
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
        png = resvg_py.svg_to_bytes(svg_string=svg, width=_SIZE, height=_SIZE, background="white")
        picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    except Exception as error:  # the renderer's errors have no common base
        raise CorruptDataError(f"icon {name!r} does not render: {error!r}") from error
    square = Image.new("RGB", (_SIZE, _SIZE), "white")
    square.paste(picture, ((_SIZE - picture.width) // 2, (_SIZE - picture.height) // 2))
    return np.asarray(square)
