"""Picture and caption files in the formats of the published sets: COCO, Flickr30K, VSE++.

For the ``paper`` profile: the files are the reader's own copies, nothing is fetched.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Chen et al., "Microsoft COCO captions", arXiv 1504.00325; Karpathy, Fei-Fei, "Deep
visual-semantic alignments", CVPR 2015 (the splits); Faghri et al., "VSE++", BMVC 2018 (features).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["CaptionSet", "coco_captions", "karpathy_captions", "precomputed_features"]

CAPTIONS_PER_PICTURE = 5  # of the VSE++ authors' files, which state no owners
T = TypeVar("T")


@dataclass(frozen=True)
class CaptionSet:
    """Pictures and their captions; any number of captions, at least one, belongs to a picture.

    Attributes:
        pictures: File names ``folder/name`` or ``name``, one a picture; or None.
        features: Floating point ``(N, D)``, one row a picture; or None.
        captions: The texts, in the file's order.
        image_ids: Row of the picture that each caption belongs to, in ``0 .. N - 1``.
    """

    pictures: tuple[str, ...] | None
    features: NDArray[np.floating[Any]] | None
    captions: tuple[str, ...]
    image_ids: NDArray[np.int64]


def coco_captions(annotation_file: Path) -> CaptionSet:
    """Read an official ``captions_*.json`` of COCO.

    Args:
        annotation_file: JSON with ``images[id, file_name]`` and
            ``annotations[image_id, caption]``.

    Returns:
        File names and captions, both in the file's order; no features.

    Raises:
        ValueError: If the file is not such JSON, a caption's picture is unknown, a picture
            occurs twice or has no caption, or there is none.
    """
    content = _read_json(annotation_file)
    rows: dict[int, int] = {}
    pictures: list[str] = []
    for image in _field(content, "images", list, annotation_file):
        number = _field(image, "id", int, annotation_file)
        if number in rows:
            raise ValueError(f"{annotation_file}: picture {number} occurs twice")
        rows[number] = len(pictures)
        pictures.append(_field(image, "file_name", str, annotation_file))
    captions: list[str] = []
    owners: list[int] = []
    for annotation in _field(content, "annotations", list, annotation_file):
        number = _field(annotation, "image_id", int, annotation_file)
        if number not in rows:
            raise ValueError(f"{annotation_file}: caption of unknown picture {number}")
        captions.append(_field(annotation, "caption", str, annotation_file).strip())
        owners.append(rows[number])
    return _caption_set(annotation_file, pictures, captions, owners)


def karpathy_captions(json_file: Path, split: str, *, restval: bool = False) -> CaptionSet:
    """Read one part of Karpathy's ``dataset_flickr30k.json`` or ``dataset_coco.json``.

    Args:
        json_file: JSON with ``images[filename, filepath, split, sentences[raw]]``; ``filepath``
            may be missing.
        split: ``train``, ``val``, ``test``.
        restval: Add the part ``restval`` to ``train``, as in the rows "+rV" of VSE++.

    Returns:
        File names and raw captions in the file's order; no features.

    Raises:
        ValueError: If the file is not such JSON or has no such split, a picture has no caption,
            or ``restval`` is asked for another split than ``train``.
    """
    if restval and split != "train":
        raise ValueError(f"restval belongs to the split 'train', got {split!r}")
    wanted = [split, *(["restval"] if restval else [])]
    images = _field(_read_json(json_file), "images", list, json_file)
    splits = [_field(image, "split", str, json_file) for image in images]
    for name in wanted:
        if name not in splits:
            raise ValueError(f"{json_file}: no split {name!r}; it has {sorted(set(splits))}")
    pictures: list[str] = []
    captions: list[str] = []
    owners: list[int] = []
    for image, part in zip(images, splits, strict=True):
        if part in wanted:
            folder = _field(image, "filepath", str, json_file) if "filepath" in image else ""
            name = _field(image, "filename", str, json_file)
            for sentence in _field(image, "sentences", list, json_file):
                captions.append(_field(sentence, "raw", str, json_file).strip())
                owners.append(len(pictures))
            pictures.append(f"{folder}/{name}" if folder else name)
    return _caption_set(json_file, pictures, captions, owners)


def precomputed_features(folder: Path, split: str) -> CaptionSet:
    """Read one part of the VSE++ authors' layout: picture features and captions in order.

    Args:
        folder: Has ``<split>_ims.npy``, one row or five equal rows a picture, and
            ``<split>_caps.txt``, one caption a line, five a picture.
        split: ``train``, ``dev``, ``test`` or, for COCO, ``testall``.

    Returns:
        Features, one row a picture, and captions in the file's order; no file names.

    Raises:
        ValueError: If there is no such split, the array is not a floating point matrix, needs
            unpickling, has repeated rows that differ, or does not fit the number of captions.

    Notes:
        Departure from the authors' code: of COCO's ``dev`` they read the first 1000 pictures.
    """
    known = sorted(path.name.removesuffix("_ims.npy") for path in folder.glob("*_ims.npy"))
    if split not in known:
        raise ValueError(f"{folder}: no split {split!r}; it has {known}")
    array_file, text_file = folder / f"{split}_ims.npy", folder / f"{split}_caps.txt"
    if not text_file.is_file():
        raise ValueError(f"{text_file}: no such file beside {array_file.name}")
    try:
        rows = np.load(array_file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{array_file}: not a plain array: {error}") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(f"{array_file}: not a floating point matrix (N, D)")
    try:
        text = text_file.read_bytes().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text_file}: not UTF-8: {error}") from error
    captions = [line.strip() for line in text.split("\n")] if text else []
    count, rest = divmod(len(captions), CAPTIONS_PER_PICTURE)
    if rest or len(rows) not in (count, len(captions)):
        raise ValueError(f"{array_file}: {len(rows)} rows do not fit {len(captions)} captions")
    step = CAPTIONS_PER_PICTURE if count and len(rows) == len(captions) else 1
    features = np.array(rows[::step])  # (N, D)
    for shift in range(1, step):
        if not np.array_equal(rows[shift::step], features):
            raise ValueError(f"{array_file}: rows are not repeated {step} times")
    owners = np.repeat(np.arange(count), CAPTIONS_PER_PICTURE).tolist()
    return _caption_set(text_file, None, captions, owners, features)


def _caption_set(
    file: Path,
    pictures: Sequence[str] | None,
    captions: Sequence[str],
    owners: Sequence[int],
    features: NDArray[np.floating[Any]] | None = None,
) -> CaptionSet:
    if not captions:
        raise ValueError(f"{file}: no captions")
    image_ids = np.array(owners, dtype=np.int64)
    if pictures is not None:
        alone = np.flatnonzero(np.bincount(image_ids, minlength=len(pictures)) == 0)
        if len(alone):
            raise ValueError(f"{file}: picture {pictures[alone[0]]!r} has no caption")
    names = None if pictures is None else tuple(pictures)
    return CaptionSet(names, features, tuple(captions), image_ids)


def _read_json(file: Path) -> object:
    try:
        with file.open("rb") as stream:
            content: object = json.load(stream)
    except ValueError as error:  # of syntax, and of encoding
        raise ValueError(f"{file}: not JSON: {error}") from error
    return content


def _field(entry: object, key: str, kind: type[T], file: Path) -> T:
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{file}: no key {key!r} in {str(entry)[:80]}")
    value = entry[key]
    if not isinstance(value, kind):
        raise ValueError(f"{file}: {key!r} is {str(value)[:80]}, expected {kind.__name__}")
    return value
