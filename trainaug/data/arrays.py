"""Named arrays of a data set, their content hash, and an atomic cache file.

Each route to a data set has its own checksum for what it downloads; all of them give the same
arrays, and so the same content hash.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainaug.data.files import FilePath, MissingFileError, as_path, open_file
from trainaug.data.placeholders import SHORT, what_it_is

__all__ = [
    "Arrays",
    "CorruptDataError",
    "DataUnavailableError",
    "hash_arrays",
    "read_arrays",
    "write_arrays",
]


class DataUnavailableError(RuntimeError):
    """A data set is unavailable; the message names what was tried and what to do."""


class CorruptDataError(RuntimeError):
    """Bytes or arrays are not those that the registry states."""


#: A data set as arrays by name, as the source stores them (no scaling, no shuffling). Sets with
#: classes have ``train_x`` of shape (N, ...), ``train_y`` with class numbers from 0 of shape (N,),
#: and the official test part as ``test_x`` and ``test_y``, of length 0 if there is none.
Arrays = dict[str, NDArray[Any]]
MAX_BYTES = 1 << 30  # of all arrays of a file


def hash_arrays(arrays: Arrays) -> str:
    """Hash names, types, shapes and values of arrays, independently of their file.

    Args:
        arrays: The arrays by name.

    Returns:
        sha256 in 64 hex digits of, for each array in the order of the names, its name,
        ``dtype.str``, shape and bytes in C order.

    Example:
        >>> x = np.zeros((2, 3))
        >>> hash_arrays({"x": x}) == hash_arrays({"x": x + 1})
        False
    """
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def write_arrays(path: FilePath, arrays: Arrays) -> None:
    """Write arrays so that readers and other writers see the old file or the whole new one.

    Args:
        path: An ``.npz`` file; its folder is created if it is missing.
        arrays: The arrays by name.
    """
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes it private; a cache may be shared
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_arrays(path: FilePath) -> Arrays:
    """Read what `write_arrays` wrote; nothing is unpickled.

    Args:
        path: An ``.npz`` file.

    Returns:
        The arrays by name, not yet checked against any hash.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptDataError: If it is not a complete ``.npz`` file, or holds more than 1 GB.
    """
    path = as_path(path)
    try:
        stream = open_file(path)
    except MissingFileError:
        raise
    except ValueError as error:
        raise CorruptDataError(str(error)) from error
    with stream:
        try:
            return _read_npz(stream)
        except Exception as error:  # a damaged zip fails in a dozen ways
            raise CorruptDataError(f"{path} is not readable as npz: {error!r}") from error


def _read_npz(stream: BinaryIO) -> Arrays:
    """Read the arrays of an ``.npz`` stream after checking its format and unpacked size."""
    known = what_it_is(stream.read(SHORT + 1))
    if known and "(or .npz)" not in known:
        raise zipfile.BadZipFile(f"it is {known}")
    stream.seek(0)
    with zipfile.ZipFile(stream) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise zipfile.BadZipFile(f"it unpacks to {size} bytes")
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as arrays:
        contents = {name: arrays[name] for name in arrays.files}
    if not all(isinstance(array, np.ndarray) for array in contents.values()):
        raise zipfile.BadZipFile("it holds other files than arrays")
    return contents
