"""Tar archives that claim more than they may, through both readers: bounded, and told by name."""

from __future__ import annotations

import gzip
import io
import resource
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainaug.data import archives, cifar
from trainaug.data.arrays import CorruptDataError
from trainaug.data.cifar import load_cifar
from trainaug.data.fetch import read_members

BINS = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
END = bytes(1024)
EXTENDED = {
    "pax": tarfile.XHDTYPE,
    "global pax": tarfile.XGLTYPE,
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
}


def member(name: str, data: bytes = b"", kind: bytes = b"0", size: int | None = None) -> bytes:
    """Return header and contents of a member, whose header may claim another size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if size is None else abs(size)
    header = bytearray(info.tobuf(format=tarfile.GNU_FORMAT))
    if size is not None and size < 0:  # base 256, the highest bit of two's complement set
        header[124:136] = (size & ((1 << 96) - 1)).to_bytes(12, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header) + data + bytes(-len(data) % 512)


def pax(**values: str) -> bytes:
    """Return an extended header with keywords, in which a dot is written as two underscores."""
    records = b""
    for key, value in values.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 1
        while length != len(str(length)) + len(body):
            length = len(str(length)) + len(body)
        records += str(length).encode() + body
    return member("pax", records, tarfile.XHDTYPE)


FILES = b"".join(member(f"cifar/{name}", bytes(3073)) for name in BINS)


def as_cifar(path: Path) -> Any:
    return load_cifar(path, 10, complete=False)


def as_members(path: Path) -> Any:
    return read_members(path, {name: f"cifar/{name}" for name in BINS})


READERS = pytest.mark.parametrize("read", [as_cifar, as_members])
Read = Callable[[Path], Any]


def refuse(read: Read, data: bytes, folder: Path, message: str) -> None:
    path = folder / "some.tar.gz"
    path.write_bytes(data)
    with pytest.raises(CorruptDataError, match=rf"some\.tar\.gz: .*{message}"):
        read(path)


@READERS
@pytest.mark.parametrize("end", [END, END + b"what follows the end is no matter", b""])
def test_small_archives_are_read(end, read, tmp_path) -> None:
    longest = member("././@LongLink", b"cifar/" + b"x" * 300 + b"\0", EXTENDED["long name"])
    extras = pax(comment="ü") + member("cifar/a") + longest + member("cifar/b", b"text")
    for data in (FILES, extras + FILES):
        (tmp_path / "a.tar").write_bytes(data + end)
        assert len(read(tmp_path / "a.tar")) in (4, 6)
        halves = gzip.compress(data[:5000]) + gzip.compress(data[5000:] + end)  # put end to end
        (tmp_path / "a.tar").write_bytes(halves)
        assert len(read(tmp_path / "a.tar")) in (4, 6)


@READERS
@pytest.mark.parametrize("kind", EXTENDED)
@pytest.mark.parametrize("before", [b"", FILES[:4096]], ids=["first", "later"])
def test_extended_header_is_not_read_without_bound(before, kind, read, tmp_path) -> None:
    size = 8 << 20
    data = gzip.compress(before + member("x", bytes(size), EXTENDED[kind]) + FILES + END, 1)
    tracemalloc.start()
    try:
        refuse(read, data, tmp_path, f"a header claims {size} bytes")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


CHAINS = {
    "pax": pax(comment="x") * 400,
    "long names": member("././@LongLink", b"x\0", EXTENDED["long name"]) * 400,
    "sparse map": pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="9")
    + member("x", b"99999999\n" + b"1\n" * 200_000),
}


@READERS
@pytest.mark.parametrize("chain", CHAINS)
def test_headers_of_one_member_are_bounded_together(chain, read, tmp_path) -> None:
    refuse(read, CHAINS[chain] + FILES + END, tmp_path, "a header claims 512 bytes")


@READERS
@pytest.mark.parametrize("size", [-1, -512, -1024, -(10**9)])
def test_size_below_zero_leads_nowhere(size, read, tmp_path) -> None:
    for data in (member("a") + member("b", size=size) + FILES, member("b", size=size) + FILES):
        refuse(read, data + END, tmp_path, "(size below 0|leads backwards)")
        refuse(read, gzip.compress(data + END), tmp_path, "(size below 0|leads backwards)")


@READERS
@pytest.mark.parametrize("size", [str(2**40), str(2**70), "-512"])
def test_size_in_an_extended_header_is_no_more_trusted(size, read, tmp_path) -> None:
    refuse(read, pax(size=size) + member("b") + FILES + END, tmp_path, "")
    refuse(read, pax(size=size) + FILES + END, tmp_path, "")


@READERS
@pytest.mark.parametrize("data", [b"a,b", b"1,2,3"])
def test_damaged_map_of_a_sparse_file_is_told(data, read, tmp_path) -> None:
    header = pax(GNU__sparse__map=data.decode(), GNU__sparse__size="9")
    refuse(read, header + FILES + END, tmp_path, "")


def test_sparse_file_is_not_taken(tmp_path) -> None:
    data = member("cifar/test_batch.bin", bytes(3073), tarfile.GNUTYPE_SPARSE) + FILES + END
    for read in (as_cifar, as_members):
        refuse(read, data, tmp_path, "no usable file 'cifar/test_batch.bin'")


@READERS
def test_file_that_occurs_twice_is_told(read, tmp_path) -> None:
    refuse(read, FILES + member("cifar/test_batch.bin", bytes(3073)) + END, tmp_path, "no usable")


@READERS
def test_whole_archive_has_a_budget(read, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cifar, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr("trainaug.data.fetch.MAX_UNPACKED", 1 << 20)
    monkeypatch.setattr(archives, "MEMBERS", 50)
    refuse(read, member("a") * 51 + FILES + END, tmp_path, "more than 50 members")
    bomb = gzip.compress(member("a", bytes(4 << 20)) + FILES + END)
    refuse(read, bomb, tmp_path, "unpacks to more than is read")
    after = gzip.compress(FILES + END + bytes(4 << 20))
    refuse(read, after, tmp_path, "unpacks to more than is read")


@READERS
def test_damage_in_the_middle_is_not_the_end(read, tmp_path) -> None:
    flipped = bytearray(FILES)
    flipped[4096] ^= 1  # the first byte of the second header
    refuse(read, bytes(flipped) + END, tmp_path, "damaged header|invalid")
    refuse(read, FILES[:9000], tmp_path, "unexpected end|damaged|truncated")
    whole = gzip.compress(FILES + END)
    for data in (whole[:-6], whole + b"junk", whole[:-6] + b"\xff" + whole[-5:]):
        refuse(read, data, tmp_path, "not a whole tar archive")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_nothing_is_allocated_for_a_claim(tmp_path) -> None:
    """One member that claims all that may be read, and is not there."""
    path = tmp_path / "some.tar"
    path.write_bytes(member("cifar/train.bin", size=100_000_000) + bytes(512))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptDataError, match="unexpected end of data"):
        load_cifar(path, 100)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_tarfile_agrees_on_a_plain_archive(tmp_path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a/ü" * 60, "b", "c" * 200):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()[: len(name)]))
    stream.seek(0)
    actual = archives.Archive(stream, "x", 1 << 20)
    got = {info.name: actual.read(info) for info in actual}
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        expected = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    assert got == expected
