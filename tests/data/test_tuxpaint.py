"""Tux Paint's stamps: decoding in memory, all files below a folder, optional data sets."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainaug.data import fetch, paths, registry
from trainaug.data.__main__ import main
from trainaug.data.arrays import CorruptDataError, DataUnavailableError
from trainaug.data.fetch import Route, attempts, read_members
from trainaug.data.tuxpaint_decode import decode, read_picture

RED, WHITE = (255, 0, 0), (255, 255, 255)


def png(colour: tuple[int, ...], width: int, height: int, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height), colour).save(stream, "PNG")
    return stream.getvalue()


def svg(size: str, inside: str = '<rect width="999" height="999" fill="red"/>') -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{inside}</svg>'.encode()


STAMPS = {
    "stamps/animals/birds/owl.png": png(RED, 30, 30),
    "stamps/animals/birds/owl.txt": "An owl’s nest. \nde.utf8=Eule\nfr.utf8=Un hibou\n".encode(),
    "stamps/animals/birds/owl_desc_de.ogg": b"OggS",
    "stamps/animals/birds/owl_mirror.png": png(WHITE, 30, 30),
    "stamps/animals/bird.svg": svg('viewBox="0 0 20 10"'),
    "stamps/animals/bird.txt": b"A bird.",
    "stamps/town/both.svg": b"never read",
    "stamps/town/both.png": png((0, 0, 255), 8, 8),
    "stamps/town/both.txt": b"Both formats.\r\n",
    "stamps/town/both.dat": b"nomirror",
    "stamps/town/alone.txt": b"No picture.",
    "stamps/symbols/alphabets/a.png": b"never read",
    "stamps/symbols/alphabets/a.txt": b"\xff",
}


def box(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Red on white."""
    expected = np.full((64, 64, 3), 255, np.uint8)
    expected[slice(*rows), slice(*columns)] = RED
    return expected


def test_tiny_set_pairs_pictures_and_captions_sorted_by_path() -> None:
    actual = decode(STAMPS)
    assert set(actual) == {"pictures", "captions", "categories", "keys"}
    assert actual["keys"].tolist() == ["animals/bird", "animals/birds/owl", "town/both"]
    assert actual["captions"].tolist() == ["A bird.", "An owl’s nest.", "Both formats."]
    assert actual["categories"].tolist() == ["animals", "animals", "town"]
    assert {actual[name].dtype.kind for name in ("captions", "categories", "keys")} == {"U"}
    assert actual["pictures"].shape == (3, 64, 64, 3)
    assert actual["pictures"].dtype == np.uint8
    assert actual["pictures"][:, 32, 32].tolist() == [list(RED), list(RED), [0, 0, 255]]
    backwards = decode(dict(reversed(STAMPS.items())))
    for name, array in actual.items():
        np.testing.assert_array_equal(backwards[name], array)


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"),
    [(40, 20, (16, 48), (0, 64)), (8, 16, (0, 64), (16, 48)), (256, 64, (24, 40), (0, 64))],
)
def test_picture_keeps_its_shape_on_a_white_square(width, height, rows, columns) -> None:
    expected = box(rows, columns)
    np.testing.assert_array_equal(read_picture(png(RED, width, height), "a.png"), expected)
    drawn = svg(f'viewBox="0 0 {width} {height}"')
    np.testing.assert_array_equal(read_picture(drawn, "a.svg"), expected)


def test_svg_in_millimetres_has_a_size() -> None:
    drawn = svg('width="20mm" height="10mm"')
    np.testing.assert_array_equal(read_picture(drawn, "a.svg"), box((16, 48), (0, 64)))


@pytest.mark.parametrize(("mode", "clear"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))])
def test_transparent_is_white(mode, clear) -> None:
    expected = np.full((64, 64, 3), 255, np.uint8)
    np.testing.assert_array_equal(read_picture(png(clear, 9, 7, mode), "a.png"), expected)
    np.testing.assert_array_equal(read_picture(svg('viewBox="0 0 9 7"', ""), "a.svg"), expected)


def test_svg_text_is_not_drawn_whatever_fonts_there_are() -> None:
    drawn = svg('viewBox="0 0 20 20"', '<text y="15" font-size="15" font-family="Sans">W</text>')
    assert (read_picture(drawn, "a.svg") == 255).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stamps/town/both.png": b"\x89PNG rubbish"}, "town/both.png: not a picture"),
        ({"stamps/town/both.png": png(RED, 9, 9)[:-30]}, "town/both.png: not a picture"),
        ({"stamps/animals/bird.svg": b"<html>"}, "animals/bird.svg: not a picture"),
        ({"stamps/animals/bird.svg": b"\xff\xff"}, "animals/bird.svg: not a picture"),
        ({"stamps/animals/bird.txt": b"\nde.utf8=Vogel"}, "animals/bird.txt: no English caption"),
        ({"stamps/animals/bird.txt": b"\xff\xfe"}, "animals/bird.txt: not UTF-8"),
        ({"stamps/animals/bird.txt": b"\xef\xbb\xbf\r\n"}, "animals/bird.txt: no English caption"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_corrupt(change, message) -> None:
    with pytest.raises(CorruptDataError, match=message):
        decode(STAMPS | change)


def test_set_without_a_pair_is_corrupt() -> None:
    with pytest.raises(CorruptDataError, match="no picture with a text"):
        decode({name: data for name, data in STAMPS.items() if not name.endswith(".txt")})


# --- all files below a folder


def tar_of(*members: tarfile.TarInfo | str, root: str = "./usr/") -> bytes:
    """Pack the stamps, and more members, as a Debian package does."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        folder = tarfile.TarInfo(f"{root}stamps/animals")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in STAMPS.items():
            member = tarfile.TarInfo(f"{root}{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for extra in members:
            tar.addfile(extra if isinstance(extra, tarfile.TarInfo) else tarfile.TarInfo(extra))
    return stream.getvalue()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "data.tar"


@pytest.mark.parametrize("root", ["./usr/", "usr/"])
def test_folder_gives_all_files_below_and_no_others(root, archive) -> None:
    archive.write_bytes(tar_of(f"{root}stamps2/x.png", f"{root}other", root=root))
    assert read_members(archive, {"stamps": "usr/stamps/"}) == STAMPS
    town = read_members(archive, {"t": "usr/stamps/town/", "one": "usr/stamps/animals/bird.txt"})
    names = {name for name in STAMPS if "/town/" in name}
    assert set(town) == {"one", *(f"t/{name.rpartition('/')[2]}" for name in names)}
    assert town["t/alone.txt"] == b"No picture."


@pytest.mark.parametrize("evil", ["./usr/stamps/../../evil", "/usr/stamps/evil", "../evil"])
def test_unsafe_path_is_refused(evil, archive) -> None:
    archive.write_bytes(tar_of(evil))
    with pytest.raises(CorruptDataError, match="unsafe path"):
        read_members(archive, {"stamps": "usr/stamps/"})


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_link_below_the_folder_is_refused_and_elsewhere_left_alone(kind, archive) -> None:
    archive.write_bytes(tar_of(link("./usr/stamps/town/x.txt", kind)))
    with pytest.raises(CorruptDataError, match="no usable file 'usr/stamps/'"):
        read_members(archive, {"stamps": "usr/stamps/"})
    archive.write_bytes(tar_of(link("./usr/x.txt", kind)))
    assert read_members(archive, {"stamps": "usr/stamps/"}) == STAMPS


def test_missing_folder_and_too_many_bytes_are_refused(archive, monkeypatch) -> None:
    archive.write_bytes(tar_of())
    for name in ("usr/nowhere/", "usr/stamps/animals/birds", "usr/stamps"):  # a folder needs a /
        with pytest.raises(CorruptDataError, match=f"no usable file '{name}'"):
            read_members(archive, {"stamps": name})
    total = sum(map(len, STAMPS.values()))
    monkeypatch.setattr(fetch, "MAX_BYTES", total)
    assert read_members(archive, {"stamps": "usr/stamps/"}) == STAMPS
    monkeypatch.setattr(fetch, "MAX_BYTES", total - 1)  # each file alone is far smaller
    with pytest.raises(CorruptDataError, match="no usable file 'usr/stamps/'"):
        read_members(archive, {"stamps": "usr/stamps/"})


def test_debian_route_decodes_a_folder(monkeypatch, tmp_path) -> None:
    package = tar_of()
    (tmp_path / "package.deb").write_bytes(package)
    stubs = {"apt-get": f"/bin/cp {tmp_path}/package.deb t_1.deb", "dpkg-deb": '/bin/cat "$2"'}
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    checksum = hashlib.sha256(package).hexdigest()
    stated = Route(
        kind="debian",
        package="t",
        decoder="tuxpaint",
        files={"stamps": "usr/stamps/"},
        sha256={"archive": checksum},
    )
    [(_, get)] = attempts(stated)
    assert get()["captions"].tolist() == decode(STAMPS)["captions"].tolist()


# --- an optional set


def test_optional_set_is_fetched_only_by_name(monkeypatch) -> None:
    assert registry.info("tuxpaint").optional
    assert "tuxpaint" not in registry.names()
    assert set(registry.names(optional=True)) - set(registry.names()) == {
        "tuxpaint",
        "libreoffice_help",
    }
    for function in ("fetch", "verify"):
        asked: list[str] = []
        monkeypatch.setattr(registry, function, asked.append)
        assert main([function]) == 0
        assert asked == registry.names()
        assert main([function, "tuxpaint"]) == 0
        assert asked[-1] == "tuxpaint"


def test_missing_optional_set_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(paths, "DATA_CACHE", tmp_path)

    def states() -> dict[str, str]:
        return {row["name"]: row["state"] for row in registry.describe()}

    assert states()["tuxpaint"] == "optional"
    assert states()["emoji_captions"] == "missing"
    with pytest.raises(DataUnavailableError, match=r"trainaug\.data fetch tuxpaint"):
        registry.load("tuxpaint")
    Path(tmp_path / "tuxpaint.npz").touch()
    assert states()["tuxpaint"] == "cached"


def test_real_set_has_the_counts_of_its_description() -> None:
    if not registry.cache_path("tuxpaint").exists():
        pytest.skip("tuxpaint is optional and not in the cache")
    actual = registry.load("tuxpaint")
    assert actual["pictures"].shape == (701, 64, 64, 3)
    assert len(set(actual["captions"].tolist())) == 626
    assert len(set(actual["categories"].tolist())) == 15
    assert "symbols" not in actual["categories"]
    assert (actual["pictures"][:, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).mean() > 0.8
    captions = dict(zip(actual["keys"].tolist(), actual["captions"].tolist(), strict=True))
    assert captions["animals/birds/adelaide-rosella"] == "An Adelaide Rosella."
    assert captions["naturalforces/lightningbolt"] == "A lightning bolt."
