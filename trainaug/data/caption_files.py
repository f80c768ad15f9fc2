"""Picture and caption files in the formats of the published sets: COCO, Flickr30K, VSE++.

These serve the ``paper`` profile: readers supply the files themselves, nothing is fetched.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Chen et al., "Microsoft COCO captions", arXiv 1504.00325; Karpathy, Fei-Fei, "Deep
visual-semantic alignments", CVPR 2015 (the splits); Faghri et al., "VSE++", BMVC 2018 (features).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainaug.data.files import (
    FilePath,
    as_path,
    has_words,
    read_json,
    read_lines,
    read_npy,
    stripped,
)

__all__ = ["CaptionSet", "coco_captions", "karpathy_captions", "precomputed_features"]

CAPTIONS_PER_PICTURE = 5  # in the VSE++ authors' files, which do not name a caption's picture
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # JSON can escape NUL and half a UTF-16 pair
T = TypeVar("T")


@dataclass(frozen=True)
class CaptionSet:
    """Pictures and their captions; each picture has one or more captions.

    Attributes:
        pictures: File names ``folder/name`` or ``name``, one per picture; or None.
        features: float32 or float64 ``(N, D)``, finite, one row per picture; or None.
        captions: The texts, in the file's order.
        image_ids: Row of the picture that each caption belongs to, in ``0 .. N - 1``.
    """

    pictures: tuple[str, ...] | None
    features: NDArray[np.floating[Any]] | None
    captions: tuple[str, ...]
    image_ids: NDArray[np.int64]


def coco_captions(annotation_file: FilePath) -> CaptionSet:
    """Read an official ``captions_*.json`` of COCO.

    Args:
        annotation_file: JSON with ``images[id, file_name]`` and
            ``annotations[image_id, caption]``.

    Returns:
        File names and captions, both in the file's order; no features. Captions without a letter,
        digit or symbol are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such JSON, a caption's picture is unknown, a picture
            occurs twice or has no caption left, or there are no captions.
    """
    annotation_file = as_path(annotation_file)
    content = read_json(annotation_file)
    rows: dict[int, int] = {}  # by the picture's id
    pictures: list[str] = []
    for image in _field(content, "images", list, annotation_file):
        number = _field(image, "id", int, annotation_file)
        if number in rows:
            raise ValueError(f"{annotation_file}: picture {number} occurs twice")
        rows[number] = len(pictures)
        pictures.append(_field(image, "file_name", str, annotation_file))
    captions: list[str] = []
    picture_rows: list[int] = []
    for annotation in _field(content, "annotations", list, annotation_file):
        number = _field(annotation, "image_id", int, annotation_file)
        if number not in rows:
            raise ValueError(f"{annotation_file}: caption of unknown picture {number}")
        captions.append(_field(annotation, "caption", str, annotation_file))
        picture_rows.append(rows[number])
    return _caption_set(annotation_file, pictures, captions, picture_rows)


def karpathy_captions(json_file: FilePath, split: str, *, restval: bool = False) -> CaptionSet:
    """Read one part of Karpathy's ``dataset_flickr30k.json`` or ``dataset_coco.json``.

    Args:
        json_file: JSON with ``images[filename, filepath, split, sentences[raw]]``; ``filepath``
            may be missing.
        split: ``train``, ``val``, ``test``.
        restval: Add the part ``restval`` to ``train``, as in the rows "+rV" of the VSE++ tables.

    Returns:
        File names and raw captions in the file's order; no features. Captions without a letter,
        digit or symbol are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such JSON or has no such split, a picture occurs twice or
            has no caption left, or ``restval`` is asked for another split than ``train``.
    """
    json_file = as_path(json_file)
    if restval and split != "train":
        raise ValueError(f"restval belongs to the split 'train', got {split!r}")
    wanted = [split, *(["restval"] if restval else [])]
    images = _field(read_json(json_file), "images", list, json_file)
    splits = [_field(image, "split", str, json_file) for image in images]
    for name in wanted:
        if name not in splits:
            raise ValueError(f"{json_file}: no split {name!r}; it has {sorted(set(splits))}")
    pictures: list[str] = []
    captions: list[str] = []
    picture_rows: list[int] = []
    for image, part in zip(images, splits, strict=True):
        if part in wanted:
            folder = _field(image, "filepath", str, json_file) if "filepath" in image else ""
            name = _field(image, "filename", str, json_file)
            for sentence in _field(image, "sentences", list, json_file):
                captions.append(_field(sentence, "raw", str, json_file))
                picture_rows.append(len(pictures))
            pictures.append(f"{folder}/{name}" if folder else name)
    return _caption_set(json_file, pictures, captions, picture_rows)


def precomputed_features(folder: FilePath, split: str) -> CaptionSet:
    """Read one part of the VSE++ authors' layout: picture features and captions in order.

    Args:
        folder: Contains ``<split>_ims.npy``, with one row or five equal rows per picture, and
            ``<split>_caps.txt``, with one caption per line, five per picture.
        split: ``train``, ``dev``, ``test`` or, for COCO, ``testall``.

    Returns:
        Features, one row per picture, in this machine's byte order, float16 as float32; captions
        in the file's order; no file names. Captions without a letter, digit or symbol are left out.

    Raises:
        ValueError: If there is no such split, the array is not a matrix of float16, float32 or
            float64, needs unpickling, holds NaN or infinity, has repeated rows that differ, or does
            not fit the number of captions, or a picture has no caption left.

    Notes:
        Departure from the authors' code: they read only the first 1000 pictures of COCO's ``dev``.
    """
    folder = as_path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder")
    known = sorted(path.name.removesuffix("_ims.npy") for path in folder.glob("*_ims.npy"))
    if split not in known:
        raise ValueError(f"{folder}: no split {split!r}; it has {known}")
    array_file, text_file = folder / f"{split}_ims.npy", folder / f"{split}_caps.txt"
    captions = read_lines(text_file)
    rows = read_npy(array_file)
    if rows.ndim != 2 or rows.dtype.kind != "f" or not rows.shape[1]:
        raise ValueError(f"{array_file}: not a floating point matrix (N, D)")
    if rows.dtype.itemsize > 8:
        raise ValueError(f"{array_file}: {rows.dtype}, which torch lacks; save it as float64")
    count, rest = divmod(len(captions), CAPTIONS_PER_PICTURE)
    if rest or len(rows) not in (count, len(captions)):
        raise ValueError(f"{array_file}: {len(rows)} rows do not fit {len(captions)} captions")
    _refuse_not_finite(rows, array_file)
    step = CAPTIONS_PER_PICTURE if count and len(rows) == len(captions) else 1
    kind = np.float64 if rows.dtype.itemsize == 8 else np.float32
    features: NDArray[np.floating[Any]] = np.array(rows[::step], kind, order="C")  # (N, D)
    for shift in range(1, step):
        if not np.array_equal(rows[shift::step], features):
            raise ValueError(f"{array_file}: rows are not repeated {step} times")
    picture_rows = np.repeat(np.arange(count), CAPTIONS_PER_PICTURE).tolist()
    return _caption_set(text_file, None, captions, picture_rows, features)


def _refuse_not_finite(rows: NDArray[np.floating[Any]], file: Path) -> None:
    """Raise a ValueError that names the first row with NaN or infinity."""
    for start in range(0, len(rows), 4096):  # in pieces: the file may be larger than memory
        bad = np.flatnonzero(~np.isfinite(rows[start : start + 4096]).all(axis=1))
        if len(bad):
            row = start + int(bad[0])
            value = rows[row][~np.isfinite(rows[row])][0]
            raise ValueError(f"{file}: row {row} holds {float(value)}, features must be finite")


def _caption_set(
    file: Path,
    pictures: Sequence[str] | None,
    captions: Sequence[str],
    picture_rows: Sequence[int],
    features: NDArray[np.floating[Any]] | None = None,
) -> CaptionSet:
    """Check the parts of a set, leave out captions without words, and put them together.

    ``picture_rows`` has the row of the picture that each caption belongs to.
    """
    if pictures is not None and len(set(pictures)) < len(pictures):
        [(twice, _)] = Counter(pictures).most_common(1)
        raise ValueError(f"{file}: picture {twice!r} occurs twice")
    if not captions:
        raise ValueError(f"{file}: no captions")
    kept = [
        (stripped(text), row)
        for text, row in zip(captions, picture_rows, strict=True)
        if has_words(text)
    ]
    image_ids = np.array([row for _, row in kept], dtype=np.int64)
    count = len(pictures) if pictures is not None else max(picture_rows) + 1
    without = np.flatnonzero(np.bincount(image_ids, minlength=count) == 0)
    if len(without):
        name = repr(pictures[without[0]]) if pictures is not None else f"in row {without[0]}"
        raise ValueError(f"{file}: picture {name} has no caption, or empty ones only")
    names = None if pictures is None else tuple(pictures)
    return CaptionSet(names, features, tuple(text for text, _ in kept), image_ids)


def _field(entry: object, key: str, kind: type[T], file: Path) -> T:
    """Return ``entry[key]`` after checking that it exists, has this type and is proper text."""
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{file}: no key {key!r} in {_shown(entry)}")
    value = entry[key]
    # A bool is an int for Python, but not for JSON.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{file}: {key!r} is {_shown(value)}, expected {kind.__name__}")
    if isinstance(value, str) and _NO_TEXT.search(value):
        raise ValueError(f"{file}: {key!r} is {_shown(value)!a}, which holds what is no character")
    return value


def _shown(value: object) -> str:
    """Return the beginning of a value as text, for messages."""
    try:
        return str(value)[:80]
    except RecursionError:
        return f"a {type(value).__name__}, nested deeply"
