"""Decoder of the stamps of Tux Paint: pictures, each with a sentence, become arrays.

Drawings and photos are PNG or SVG files. Letters, money and signs (``symbols/``) are left out, and
so are pictures without a text, which are mirror images of others.

Reference: Tux Paint developers, "Tux Paint stamps" 2022-06-04, in the layout of their archive.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainaug.data.arrays import Arrays, CorruptDataError
from trainaug.data.files import has_text, stripped
from trainaug.extras import extra

__all__ = ["decode", "read_picture"]

#: Side of a picture in pixels.
_SIZE = 64
LEFT_OUT = "symbols/"


def decode(files: Mapping[str, bytes]) -> Arrays:
    """Pair pictures with the English line of their texts.

    Args:
        files: Contents by ``"stamps/<path>"``. The first line of ``<path>.txt`` is the English
            caption. If there are both ``<path>.png`` and ``<path>.svg``, the PNG is used.

    Returns:
        Arrays ``pictures``, uint8 ``(N, 64, 64, 3)`` on white, ``captions``, ``categories``
        (first folder) and ``keys`` (path without ending), sorted by key; text as fixed-width
        Unicode.

    Raises:
        CorruptDataError: If a picture or text is not readable, or there are no such pairs.
    """
    stamps = {name.removeprefix("stamps/"): data for name, data in files.items()}
    pictures = {
        name[:-4]: name  # the PNG comes after the SVG and so replaces it
        for ending in (".svg", ".png")
        for name in stamps
        if name.endswith(ending) and not name.startswith(LEFT_OUT)
    }
    keys = sorted(key for key in pictures if f"{key}.txt" in stamps)
    if not keys:
        raise CorruptDataError("no picture with a text beside it")
    return {
        "pictures": np.stack([read_picture(stamps[pictures[key]], pictures[key]) for key in keys]),
        "captions": np.array([_caption(stamps[f"{key}.txt"], f"{key}.txt") for key in keys]),
        "categories": np.array([key.partition("/")[0] for key in keys]),
        "keys": np.array(keys),
    }


def _caption(data: bytes, name: str) -> str:
    """Return the first line of a text; a CorruptDataError names the file."""
    try:
        caption = stripped(data.partition(b"\n")[0].decode())
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{name}: not UTF-8: {error}") from error
    if not has_text(caption):
        raise CorruptDataError(f"{name}: no English caption")
    return caption


def read_picture(data: bytes, name: str) -> NDArray[np.uint8]:
    """Read a PNG or SVG file, and fit it into a white square, keeping its proportions.

    Args:
        data: Contents of the file.
        name: Name of the file; the ending ``.svg`` means SVG, any other a PNG.

    Returns:
        uint8 ``(64, 64, 3)``; the longer side fills the square.

    Raises:
        CorruptDataError: If it is not such a picture.

    Notes:
        Text in SVG files is not drawn, because it would depend on the fonts of the machine.
    """
    with extra("data"):  # imported here because only a fetch needs these packages
        import resvg_py
        from PIL import Image, ImageOps

    try:
        if name.endswith(".svg"):
            data = resvg_py.svg_to_bytes(
                svg_string=data.decode(),
                width=_SIZE,
                height=_SIZE,
                dpi=96.0,  # without it, sizes in mm or cm are zero
                skip_system_fonts=True,
            )
        drawn = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
        square = ImageOps.pad(opaque.convert("RGB"), (_SIZE, _SIZE), color="white")
    except Exception as error:  # the renderer's errors have no common base
        raise CorruptDataError(f"{name}: not a picture: {error!r}") from error
    return np.asarray(square)
