"""Tar archives, read from front to end in bounded memory, headers included; nothing is written.

``tarfile`` reads a whole extended header into memory, follows sizes that lead backwards, and builds
the map of a sparse file without a limit. So this module limits how much it may read.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO, cast

from trainaug.data.arrays import CorruptDataError
from trainaug.data.placeholders import SHORT, what_it_is

__all__ = ["Archive"]

HEADER_BYTES = 1 << 18  # at most, of one member, with its extended headers
MEMBERS = 50_000
_BLOCK = 1 << 16
_UNPACKERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZ": bz2.BZ2File,
    b"\xfd7": lzma.LZMAFile,
}


class Archive:
    """The members of a tar archive, one after the other.

    Args:
        stream: The archive, plain or compressed by gzip, bzip2 or xz, at its beginning.
        name: Name of the archive, for messages.
        budget: Largest number of bytes that are unpacked, of all members together.
    """

    def __init__(self, stream: BinaryIO, name: str, budget: int) -> None:
        head = stream.read(SHORT + 1)
        stream.seek(0)
        self._name = name
        self._head = head
        unpacker = _UNPACKERS.get(head[:2])
        unpacked = unpacker(stream) if unpacker else stream
        self._forward = _Forward(unpacked, budget)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Yield each member; until the next one, `read` returns the contents of a regular file.

        Raises:
            CorruptDataError: If the archive is damaged, unpacks to more than the budget, has a
                header of more than 256 kB, more than 50 000 members, a size below 0, or a path
                that is absolute or has ``..``.
        """
        try:
            self._forward.allow(HEADER_BYTES)
            with tarfile.open(fileobj=cast(IO[bytes], self._forward), mode="r:") as tar:
                count = 0
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]
                    path = PurePosixPath(member.name)
                    if path.is_absolute() or ".." in path.parts:
                        raise CorruptDataError(f"{self._name}: unsafe path {member.name!r}")
                    count += 1
                    if count > MEMBERS or member.size < 0:
                        reason = (
                            f"more than {MEMBERS} members" if count > MEMBERS else "size below 0"
                        )
                        raise CorruptDataError(f"{self._name}: {reason} at {member.name!r}")
                    yield member
                    self._forward.allow(HEADER_BYTES)
            if self._forward.header.strip(b"\0"):  # `tarfile` takes a damaged header for the end
                raise CorruptDataError(f"{self._name}: not a whole tar archive: damaged header")
            self._forward.skip()  # to the end, where a compressed stream has its checksum
        except CorruptDataError:
            raise
        except Exception as error:  # a damaged archive fails in a dozen ways
            raise self._damaged(error) from error

    def read(self, member: tarfile.TarInfo) -> bytes:
        """Return the contents of the member that was yielded last.

        Args:
            member: The member, as the iteration gave it.

        Raises:
            CorruptDataError: If it is not a regular file, is sparse, or ends too early.
        """
        if not member.isreg() or member.issparse() or member.size < 0:
            path = str(PurePosixPath(member.name))
            raise CorruptDataError(f"{self._name}: no usable file {path!r}")
        try:
            return self._forward.take(member.size)
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> CorruptDataError:
        """Return the error with a reason: another format if it is one, else the given error."""
        # For compressed data the error inside says more than the name of the compression.
        known = None if self._head[:2] in _UNPACKERS else what_it_is(self._head)
        is_other_format = known is not None and known != "a tar archive"
        reason = f"it is {known}" if is_other_format else error or repr(error)
        return CorruptDataError(f"{self._name}: not a whole tar archive: {reason}")


class _Forward:
    """A stream for `tarfile` that only goes forward and gives no more bytes than allowed."""

    def __init__(self, stream: IO[bytes], budget: int) -> None:
        self._stream = stream
        self._left = budget  # bytes that may still be unpacked
        self._position = 0
        self._allowed = 0  # bytes that `read` may still give
        self.header = b""  # what `read` returned last

    def allow(self, count: int) -> None:
        """Let `read` give ``count`` bytes from now on."""
        self._allowed = count

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """Read part of a header."""
        if not 0 <= size <= self._allowed:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        self._allowed -= size
        self.header = self._next(size)
        return self.header

    def seek(self, position: int) -> None:
        """Go forward; `tarfile` calls it to skip the contents of a member."""
        if position < self._position:
            raise tarfile.ReadError("a header leads backwards")
        while self._position < position:
            if not self._next(min(_BLOCK, position - self._position)):
                raise tarfile.ReadError("unexpected end of data")

    def take(self, size: int) -> bytes:
        """Read ``size`` bytes of a member; memory grows with what is there, not with ``size``."""
        data = bytearray()
        while len(data) < size:
            block = self._next(min(_BLOCK, size - len(data)))
            if not block:
                raise tarfile.ReadError("unexpected end of data")
            data += block
        return bytes(data)

    def skip(self) -> None:
        """Read to the end."""
        while self._next(_BLOCK):
            pass

    def _next(self, size: int) -> bytes:
        """Read up to ``size`` bytes within the budget; one more byte shows that it is exceeded."""
        block = self._stream.read(min(size, self._left + 1))
        if len(block) > self._left:
            raise tarfile.ReadError("it unpacks to more than is read")
        self._left -= len(block)
        self._position += len(block)
        return block
