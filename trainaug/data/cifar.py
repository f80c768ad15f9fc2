"""CIFAR-10 and CIFAR-100 from their official binary version, which needs no unpickling.

This serves the ``paper`` profile: readers supply the files themselves, nothing is fetched.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the format is
that of https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainaug.data.archives import Archive
from trainaug.data.arrays import Arrays, CorruptDataError, DataUnavailableError
from trainaug.data.files import FilePath, as_path, open_file
from trainaug.data.placeholders import what_it_is

__all__ = ["load_cifar"]

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PIXELS = 3 * 32 * 32  # red, green, blue, each row by row
MAX_BYTES = 1 << 29  # unpacked; the official archives have 185 MB


class _Layout(NamedTuple):
    archive: str
    md5: str  # as the page states it
    pictures: dict[str, int]  # number in each file; the last file is the test part
    labels: tuple[int, ...]  # number of values of each label byte; the last byte is the class


LAYOUTS = {
    10: _Layout(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)} | {"test_batch.bin": 10_000},
        (10,),
    ),
    100: _Layout(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        {"train.bin": 50_000, "test.bin": 10_000},
        (20, 100),
    ),
}


def load_cifar(path: FilePath, num_classes: Literal[10, 100], *, complete: bool = True) -> Arrays:
    """Read the training and the test part of CIFAR-10 or CIFAR-100.

    Args:
        path: ``cifar-10-binary.tar.gz`` or ``cifar-100-binary.tar.gz``, or the folder that contains
            its ``.bin`` files. In an archive the files are recognised by their names alone,
            whatever folder they are in, and read in memory.
        num_classes: 10 or 100; for CIFAR-100 these are the 100 fine classes.
        complete: Whether to require the official 50 000 and 10 000 pictures; otherwise fewer are
            accepted.

    Returns:
        ``train_x``, ``test_x``, uint8 ``(N, 3, 32, 32)``, and their classes ``train_y``,
        ``test_y``, uint8 ``(N,)``, in the order of the files.

    Raises:
        ValueError: If ``num_classes`` is another number.
        DataUnavailableError: If a file is missing; the message says where to get it.
        CorruptDataError: If the archive is damaged, unpacks to more than 512 MB, has an unsafe
            path, contains a needed file twice or as a link, or if a file cannot be read, has a
            wrong length or a label out of range.
    """
    if num_classes not in LAYOUTS:
        raise ValueError(f"num_classes must be one of {tuple(LAYOUTS)}, got {num_classes!r}")
    layout = LAYOUTS[num_classes]
    names = list(layout.pictures)
    path = as_path(path)
    try:
        if path.is_dir():
            files = _read_folder(path, layout)
        else:
            files = _read_archive(path, layout) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CorruptDataError(str(error)) from error
    missing = [name for name in names if name not in files]
    if missing:
        raise DataUnavailableError(
            f"{path}: no {', '.join(missing)} there; get {layout.archive} (md5 {layout.md5})"
            f" from {PAGE} and give that file or the folder it unpacks to"
        )
    parts = [_decode(f"{path}: {name}", files[name], layout, name, complete) for name in names]
    x, y = (list(arrays) for arrays in zip(*parts, strict=True))
    train = {"train_x": np.concatenate(x[:-1]), "train_y": np.concatenate(y[:-1])}
    return train | {"test_x": x[-1], "test_y": y[-1]}


def _read_folder(folder: Path, layout: _Layout) -> dict[str, bytes]:
    """Return the contents of the files that exist, by name."""
    files = {}
    for name, pictures in layout.pictures.items():
        if (folder / name).exists():
            with open_file(folder / name) as stream:
                # One record more than official is enough to notice that a file is too long.
                files[name] = stream.read((pictures + 1) * (len(layout.labels) + PIXELS))
    return files


def _read_archive(archive: Path, layout: _Layout) -> dict[str, bytes]:
    """Return the contents of the layout's files that the archive contains, by name."""
    files: dict[str, bytes] = {}
    largest = max(layout.pictures.values()) * (len(layout.labels) + PIXELS)
    with open_file(archive) as stream:
        members = Archive(stream, str(archive), MAX_BYTES)
        for member in members:
            name = PurePosixPath(member.name).name
            if name not in layout.pictures or member.isdir():
                continue
            if member.size > largest or name in files:
                raise CorruptDataError(f"{archive}: no usable file {member.name!r}")
            files[name] = members.read(member)
    return files


def _decode(
    what: str, data: bytes, layout: _Layout, name: str, complete: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pictures ``(N, 3, 32, 32)`` and classes ``(N,)`` of one file's records."""
    head = len(layout.labels)
    count, rest = divmod(len(data), head + PIXELS)
    if rest or not count:
        reason = f": it is {known}" if (known := what_it_is(data)) else ""
        raise CorruptDataError(
            f"{what}: {len(data)} bytes are not records of {head} + {PIXELS}{reason}"
        )
    official = layout.pictures[name]
    if count > official or (complete and count < official):
        raise CorruptDataError(f"{what}: {count} pictures, expected {official}")
    records = np.frombuffer(data, dtype=np.uint8).reshape(count, -1)  # (N, labels + pixels)
    for labels, values in zip(records.T, layout.labels, strict=False):
        wrong = np.flatnonzero(labels >= values)
        if len(wrong):
            row, limit = wrong[0], values - 1
            raise CorruptDataError(
                f"{what}: label {labels[row]} of picture {row}, expected 0 to {limit}"
            )
    pixels = np.ascontiguousarray(records[:, head:]).reshape(count, 3, 32, 32)
    return pixels, records[:, head - 1].copy()
