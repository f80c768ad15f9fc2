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

__all__ = ["decode", "parse_idx_gz"]

MAX_BYTES = 1 << 28  # 256 MB unpacked: five times Fashion-MNIST


def decode(files: Mapping[str, bytes]) -> Arrays:
    """Parse one gzipped IDX file an array; names stay. Errors as in `parse_idx_gz`."""
    return {name: parse_idx_gz(data, what=name) for name, data in files.items()}


def parse_idx_gz(data: bytes, *, what: str = "IDX file") -> NDArray[np.uint8]:
    """Unpack and parse a gzipped IDX file of unsigned bytes.

    Args:
        data: The whole file.
        what: Its name, for messages.

    Returns:
        The array with the header's shape, e.g. ``(60000, 28, 28)``, values in 0..255.

    Raises:
        CorruptDataError: If the gzip stream is damaged, truncated, followed by other bytes or
            larger than 256 MB, or if magic number or sizes do not fit the payload.

    Example:
        >>> import gzip
        >>> parse_idx_gz(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])))
        array([7, 9], dtype=uint8)
    """
    stream = zlib.decompressobj(wbits=31)  # 31: gzip, with its checksum
    try:
        raw = stream.decompress(data, MAX_BYTES + 1)
    except zlib.error as error:
        raise CorruptDataError(f"{what}: not a gzip stream: {error}") from error
    if len(raw) > MAX_BYTES:
        raise CorruptDataError(f"{what}: unpacks to more than {MAX_BYTES} bytes")
    if not stream.eof or stream.unused_data:
        raise CorruptDataError(f"{what}: gzip stream is truncated or followed by other bytes")
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 or not 1 <= raw[3] <= 4:
        raise CorruptDataError(f"{what}: IDX magic {raw[:4].hex()}, expected 00000801..00000804")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    if len(raw) < start or len(raw) - start != math.prod(shape):
        raise CorruptDataError(f"{what}: {len(raw) - start} values do not fill shape {shape}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)
