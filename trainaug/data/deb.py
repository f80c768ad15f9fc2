"""The payload of a Debian package, without Debian's tools.

Reference: deb(5): an ``ar`` archive that holds ``data.tar``, compressed, among other members.
"""

from __future__ import annotations

from trainaug.data.arrays import CorruptDataError

__all__ = ["payload"]

_MAGIC = b"!<arch>\n"
_HEADER = 60
_SIZE = slice(48, 58)


def payload(package: bytes, name: str) -> bytes:
    """Return the member ``data.tar.*`` of a package.

    Args:
        package: Contents of the whole file.
        name: Name of the file, for messages.

    Raises:
        CorruptDataError: If it is not such a package, or damaged.
    """
    position = len(_MAGIC)
    if not package.startswith(_MAGIC):
        raise CorruptDataError(f"{name}: not a Debian package")
    while position + _HEADER <= len(package):
        header = package[position : position + _HEADER]
        size = header[_SIZE].strip()
        if not header.endswith(b"`\n") or not size.isdigit():
            break
        start = position + _HEADER
        end = start + int(size)
        if end > len(package):
            break
        if header.startswith(b"data.tar"):
            return package[start:end]
        position = end + end % 2  # members begin at even offsets
    raise CorruptDataError(f"{name}: not a whole Debian package")
