"""The IDX format of the MNIST family: gzip around a big-endian header and raw bytes.

Reference: LeCun, Cortes, Burges, "The MNIST database", file formats section.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainaug.data.arrays import Arrays, CorruptDataError
from trainaug.data.placeholders import what_it_is

__all__ = ["decode", "parse_idx_gz"]

MAX_BYTES = 1 << 28  # 256 MB unpacked: five times Fashion-MNIST


def decode(files: Mapping[str, bytes]) -> Arrays:
    """Parse gzipped IDX files, one per array.

    Args:
        files: Contents of the files, by the names of the arrays.

    Returns:
        The arrays, by the same names.

    Raises:
        CorruptDataError: As in `parse_idx_gz`.
    """
    return {name: parse_idx_gz(data, what=name) for name, data in files.items()}


def parse_idx_gz(data: bytes, *, what: str = "IDX file") -> NDArray[np.uint8]:
    """Unpack and parse a gzipped IDX file of unsigned bytes.

    Args:
        data: The whole file.
        what: Name of the file, for messages.

    Returns:
        The array with the header's shape, such as ``(60000, 28, 28)``, values in 0..255.

    Raises:
        CorruptDataError: If the gzip stream is damaged, truncated, followed by other bytes or
            larger than 256 MB, or if the magic number or the sizes do not fit the contents. No more
            than the header claims is unpacked.

    Example:
        >>> import gzip
        >>> parse_idx_gz(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])))
        array([7, 9], dtype=uint8)
    """
    unpacked = _Unpacked(data, what)
    magic = unpacked.take(4)
    if magic[:3] != b"\0\0\x08" or len(magic) < 4 or not 1 <= magic[3] <= 4:
        raise CorruptDataError(f"{what}: IDX magic {magic.hex()}, expected 00000801..00000804")
    sizes = unpacked.take(4 * magic[3])
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    count = math.prod(shape)
    values = unpacked.take(min(count, MAX_BYTES) + 1)  # one more shows that there is too much
    if len(values) > MAX_BYTES:
        raise CorruptDataError(f"{what}: unpacks to more than {MAX_BYTES} bytes")
    if len(sizes) < 4 * magic[3] or len(values) != count:
        more = "at least " if len(values) > count else ""
        raise CorruptDataError(f"{what}: {more}{len(values)} values do not fill shape {shape}")
    # A side of 0 makes the count 0 whatever the others are, and NumPy refuses a huge shape.
    if math.prod(size or 1 for size in shape) > MAX_BYTES:
        raise CorruptDataError(f"{what}: shape {shape} is damaged")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


class _Unpacked:
    """Reads a gzip stream in pieces of bounded length."""

    def __init__(self, data: bytes, what: str) -> None:
        self._stream = zlib.decompressobj(wbits=31)  # 31: gzip, with its checksum
        self._rest, self._what = data, what

    def take(self, count: int) -> bytes:
        """Unpack ``count`` bytes, or fewer at the end of a complete stream."""
        try:
            data = self._stream.decompress(self._rest, count)
        except zlib.error as error:
            known = what_it_is(self._rest)
            reason = f"it is {known}" if known and not known.startswith("gzip") else error
            raise CorruptDataError(f"{self._what}: not a gzip stream: {reason}") from error
        self._rest = self._stream.unconsumed_tail
        if len(data) < count and (not self._stream.eof or self._stream.unused_data):
            raise CorruptDataError(
                f"{self._what}: gzip stream is truncated or followed by other bytes"
            )
        return data
