"""Routes under attack: a tiny data set behind a local server and stub package clients."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from companion.paths import ROOT
from trainaug.data import fetch, paths, registry
from trainaug.data.arrays import Arrays, CorruptDataError, DataUnavailableError, hash_arrays
from trainaug.data.idx import parse_idx_gz

TINY = {
    "train_x": np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
    "train_y": np.array([0, 1, 0, 1], np.uint8),
    "test_x": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "test_y": np.array([1, 0], np.uint8),
}


def idx_gz(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), mtime=0)


FILES = {f"{key}.gz": idx_gz(array) for key, array in TINY.items()}


class Server:
    """Serves ``files`` on 127.0.0.1 and counts requests; tests change ``files`` to do harm."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.requests: Counter[str] = Counter()
        self.delay = 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                server.requests[name] += 1
                time.sleep(server.delay)
                data = server.files.get(name)
                self.send_response(404 if data is None else 200)
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def free_port_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def mirror_toml(*urls: str, train_x: str = "train_x") -> str:
    """State a mirror route; ``train_x`` names another file, with its right checksum."""
    sources = {key: key for key in TINY} | {"train_x": train_x}
    files = [f"{key} = '{source}.gz'" for key, source in sources.items()]
    sums = {k: hashlib.sha256(FILES[f"{source}.gz"]).hexdigest() for k, source in sources.items()}
    lines = ["[[tiny.routes]]", "kind = 'mirror'", f"urls = {list(urls)}"]
    lines += ["[tiny.routes.files]", *files]
    lines += ["[tiny.routes.sha256]", *(f"{key} = '{value}'" for key, value in sums.items())]
    return "\n".join(lines) + "\n"


def debian_toml(archive_sha256: str) -> str:
    lines = ["[[tiny.routes]]", "kind = 'debian'", "package = 'dataset-tiny'"]
    lines += ["[tiny.routes.files]"]
    lines += [f"{key} = 'usr/share/tiny/{key}.gz'" for key in TINY]
    lines += ["[tiny.routes.sha256]", f"archive = '{archive_sha256}'"]
    return "\n".join(lines)


@pytest.fixture
def use_registry(monkeypatch, tmp_path):
    def write(*routes: str) -> Path:
        registry_file = tmp_path / "registry.toml"
        head = "[tiny]\ntitle = 'Tiny'\nlicence = 'none'\nsource = 'here'\n"
        head += f"content_sha256 = '{hash_arrays(TINY)}'\n"
        registry_file.write_text(head + "\n".join(routes))
        monkeypatch.setattr(paths, "REGISTRY", registry_file)
        monkeypatch.setattr(paths, "DATA_CACHE", tmp_path / "cache")
        return tmp_path / "cache" / "tiny.npz"

    return write


def assert_tiny(arrays: Arrays) -> None:
    assert set(arrays) == set(TINY)
    for name, expected in TINY.items():
        np.testing.assert_array_equal(arrays[name], expected)
        assert arrays[name].dtype == expected.dtype


# --- the way that works


def test_fetch_writes_a_cache_that_loads(server, use_registry) -> None:
    cache = use_registry(mirror_toml(server.url + "/"))
    registry.fetch("tiny")
    assert_tiny(registry.load("tiny"))
    assert [path.name for path in cache.parent.iterdir()] == ["tiny.npz"]  # nothing left over
    assert cache.stat().st_mode & stat.S_IRGRP


def test_second_fetch_asks_for_nothing(server, use_registry) -> None:
    use_registry(mirror_toml(server.url))
    registry.fetch("tiny")
    registry.fetch("tiny")
    assert set(server.requests.values()) == {1}


def test_next_url_is_used_when_the_first_refuses(server, use_registry) -> None:
    use_registry(mirror_toml(free_port_url(), server.url))
    registry.fetch("tiny")
    assert_tiny(registry.load("tiny"))


def test_torchvision_mirrors_are_read_at_run_time(server, use_registry, monkeypatch) -> None:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [server.url])
    use_registry(mirror_toml().replace("urls = []", "torchvision = 'FashionMNIST'"))
    registry.fetch("tiny")
    assert_tiny(registry.load("tiny"))


def test_first_use_fetches_and_the_next_asks_for_nothing(server, use_registry) -> None:
    cache = use_registry(mirror_toml(server.url))
    assert_tiny(registry.load("tiny"))
    assert cache.is_file()
    registry.load("tiny")
    assert set(server.requests.values()) == {1}


def test_first_use_by_several_at_once_fetches_once(server, use_registry) -> None:
    use_registry(mirror_toml(server.url))
    server.delay = 0.1
    with ThreadPoolExecutor(4) as pool:
        for actual in pool.map(lambda _: registry.load("tiny"), range(4)):
            assert_tiny(actual)
    assert set(server.requests.values()) == {1}


def test_progress_is_shown_to_a_person_and_can_be_switched_off(
    server, use_registry, monkeypatch, capsys
) -> None:
    cache = use_registry(mirror_toml(server.url))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for switch in ("off", "on"):
        monkeypatch.setenv("TRAINAUG_PROGRESS", switch)
        registry.load("tiny")
        cache.unlink()
        assert ("train_x.gz" in capsys.readouterr().err) == (switch == "on")
    monkeypatch.setitem(sys.modules, "tqdm", None)  # not installed: the data come all the same
    assert_tiny(registry.load("tiny"))
    assert capsys.readouterr().err == ""


# --- a damaged cache


def test_every_flipped_byte_of_the_cache_is_seen_or_harmless(server, use_registry) -> None:
    cache = use_registry(mirror_toml(server.url))
    registry.fetch("tiny")
    good = cache.read_bytes()
    seen = 0
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 0x55
        cache.write_bytes(bad)
        try:
            registry.verify("tiny")
        except CorruptDataError:
            seen += 1
    assert seen > len(good) / 7 / 2  # the rest are time stamps and padding of the zip


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "text", "other array"])
def test_corrupt_cache_is_reported_then_removed_and_fetched_again(
    damage, server, use_registry
) -> None:
    cache = use_registry(mirror_toml(server.url))
    registry.fetch("tiny")
    assert_tiny(registry.load("tiny"))
    good = cache.read_bytes()
    position = good.index(TINY["train_x"].tobytes())
    if damage == "flip":
        cache.write_bytes(good[:position] + b"\xff" + good[position + 1 :])
    elif damage == "other array":
        np.savez(cache, **{**TINY, "train_y": TINY["train_y"] + 1})
    else:
        cut = {"truncate": good[: len(good) // 2], "empty": b"", "text": b"hello" * 9}
        cache.write_bytes(cut[damage])
    os.utime(cache, ns=(1, 1))
    with pytest.raises(
        CorruptDataError, match=r"is corrupt .* run `python -m trainaug.data fetch tiny`"
    ):
        registry.load("tiny")
    registry.fetch("tiny")
    assert set(server.requests.values()) == {2}
    assert_tiny(registry.load("tiny"))


def test_corrupt_cache_is_removed_even_when_no_route_works(server, use_registry) -> None:
    cache = use_registry(mirror_toml(server.url))
    registry.fetch("tiny")
    cache.write_bytes(b"rubbish")
    server.files.clear()
    with pytest.raises(DataUnavailableError, match=r"cache: removed, .* is corrupt"):
        registry.fetch("tiny")
    assert not cache.exists()


def test_pickled_arrays_are_refused(use_registry) -> None:
    cache = use_registry(mirror_toml())
    cache.parent.mkdir()
    np.savez(cache, **{**TINY, "train_x": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(CorruptDataError, match="allow_pickle"):
        registry.load("tiny")


def test_failed_write_leaves_no_file(server, use_registry, monkeypatch) -> None:
    cache = use_registry(mirror_toml(server.url))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        registry.fetch("tiny")
    assert list(cache.parent.iterdir()) == []


# --- a damaged or absent mirror


def test_wrong_checksum_is_tried_once_more_before_parsing(
    server, use_registry, monkeypatch
) -> None:
    use_registry(mirror_toml(server.url))
    server.files["train_x.gz"] = idx_gz(TINY["train_x"] + 1)
    monkeypatch.setattr(fetch, "_decode", lambda *a: pytest.fail("parsed unchecked"))
    with pytest.raises(DataUnavailableError) as caught:
        registry.fetch("tiny")
    assert server.requests["train_x.gz"] == 2
    message = str(caught.value)
    assert f"mirror {server.url}: train_x.gz: sha256 " in message
    assert "(second download)" in message


def test_download_that_is_corrupt_once_is_repaired(server, use_registry, monkeypatch) -> None:
    use_registry(mirror_toml(server.url))
    real, calls = fetch._download, []

    def download(url: str) -> bytes:
        calls.append(url)
        return real(url)[:-5] if len(calls) == 1 else real(url)

    monkeypatch.setattr(fetch, "_download", download)
    registry.fetch("tiny")
    assert_tiny(registry.load("tiny"))


def test_right_archives_of_other_content_are_refused(server, use_registry) -> None:
    cache = use_registry(mirror_toml(server.url, train_x="test_x"))
    with pytest.raises(DataUnavailableError, match=r"tiny: content hash .*, expected"):
        registry.fetch("tiny")
    assert not cache.exists()


def test_connection_refused_and_missing_file_name_the_route(server, use_registry) -> None:
    refused = free_port_url()
    server.files.pop("test_y.gz")
    use_registry(mirror_toml(refused, server.url))
    with pytest.raises(DataUnavailableError) as caught:
        registry.fetch("tiny")
    message = str(caught.value)
    assert f"mirror {refused}: " in message
    assert "refused" in message
    assert f"mirror {server.url}: HTTP Error 404" in message
    assert "cache " in message
    assert "python -m trainaug.data fetch tiny" in message
    assert "TRAINAUG_DATA" in message


def test_black_hole_is_left_after_the_time_out(use_registry, monkeypatch) -> None:
    assert fetch.CONNECT_SECONDS == 5
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.2)
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()  # accepts, then never says a word
        use_registry(mirror_toml(f"http://127.0.0.1:{hole.getsockname()[1]}"))
        start = time.perf_counter()
        with pytest.raises(DataUnavailableError, match=r"mirror http://127.*timed out"):
            registry.fetch("tiny")
        assert time.perf_counter() - start < 5  # one time-out of 0.2 s, not one a file


def test_time_out_reaches_the_connection(use_registry, monkeypatch) -> None:
    given: list[float] = []

    def urlopen(url: str, timeout: float) -> None:
        given.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    use_registry(mirror_toml("http://192.0.2.1"))
    with pytest.raises(DataUnavailableError, match=r"mirror http://192\.0\.2\.1: timed out"):
        registry.fetch("tiny")
    assert given == [5.0]


@pytest.mark.parametrize(("limit", "value"), [("MAX_BYTES", 10), ("DOWNLOAD_SECONDS", -1.0)])
def test_endless_download_is_stopped(limit, value, server, use_registry, monkeypatch) -> None:
    monkeypatch.setattr(fetch, limit, value)
    use_registry(mirror_toml(server.url))
    with pytest.raises(DataUnavailableError, match=r"more than 10 bytes|longer than"):
        registry.fetch("tiny")


def test_unknown_route_kind_raises(use_registry) -> None:
    use_registry("[[tiny.routes]]\nkind = 'ftp'\n")
    with pytest.raises(ValueError, match="unknown route kind 'ftp'"):
        registry.fetch("tiny")


def test_two_processes_at_once_end_with_a_whole_cache(server, use_registry) -> None:
    cache = use_registry(mirror_toml(server.url))
    cache.parent.mkdir()
    cache.write_bytes(b"left by a crash")
    server.delay = 0.1
    code = (
        "import pathlib, sys\n"
        "from trainaug.data import paths\n"
        "from trainaug.data import registry\n"
        "paths.REGISTRY = pathlib.Path(sys.argv[1])\n"
        "registry.fetch('tiny')\n"
    )
    environment = {**os.environ, "TRAINAUG_DATA": str(cache.parent)}
    command = [sys.executable, "-c", code, str(paths.REGISTRY)]
    running = [subprocess.Popen(command, env=environment, cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert_tiny(registry.load("tiny"))
    assert [path.name for path in cache.parent.iterdir()] == ["tiny.npz"]


# --- the package client, with stub clients on PATH


def tiny_tar(extra: str = "", *, link: bool = False) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"./usr/share/tiny/{name}")
            member.size = len(data)
            if link and name == "train_x.gz":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
                tar.addfile(member)
            else:
                tar.addfile(member, io.BytesIO(data))
        if extra:
            tar.addfile(tarfile.TarInfo(extra))
    return stream.getvalue()


@pytest.fixture
def clients(monkeypatch, tmp_path):
    """Put stubs on PATH: the "package" is a bare tar, and only private lists know it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "apt.log"

    def install(package: bytes, *, knows: str = "*Dir::State::lists*update*") -> Path:
        (tmp_path / "package.deb").write_bytes(package)
        scripts = {
            "apt-get": f'echo "$*" >> {log}\n'
            f'case "$(cat {log})" in {knows}) ;; *) echo "E: cannot locate" >&2; exit 100;; esac\n'
            'case "$*" in *download*)'
            f" /bin/cp {tmp_path}/package.deb dataset-tiny_1.deb;; esac\n",
            "dpkg-deb": 'test "$1" = --fsys-tarfile && /bin/cat "$2"\n',
        }
        for name, body in scripts.items():
            script = folder / name
            script.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{body}")
            script.chmod(0o755)
        return log

    monkeypatch.setenv("PATH", str(folder))
    return install


def test_package_route_falls_back_to_private_lists(clients, use_registry) -> None:
    package = tiny_tar()
    log = clients(package)
    use_registry(debian_toml(hashlib.sha256(package).hexdigest()))
    registry.fetch("tiny")
    assert_tiny(registry.load("tiny"))
    first, update, download = log.read_text().splitlines()
    assert first.endswith("download dataset-tiny")
    assert "Dir::State::lists" not in first
    assert "Dir::State::lists" in update
    assert update.endswith("update")
    assert "Dir::State::lists" in download


def test_package_route_uses_the_machines_lists_first(clients, use_registry) -> None:
    package = tiny_tar()
    log = clients(package, knows="*")
    use_registry(debian_toml(hashlib.sha256(package).hexdigest()))
    registry.fetch("tiny")
    assert len(log.read_text().splitlines()) == 1


def test_no_package_client_is_skipped_by_name(use_registry, monkeypatch, tmp_path) -> None:
    refused = free_port_url()
    monkeypatch.setenv("PATH", str(tmp_path))
    use_registry(mirror_toml(refused), debian_toml("0" * 64))
    with pytest.raises(DataUnavailableError) as caught:
        registry.fetch("tiny")
    message = str(caught.value)
    assert "apt-get download dataset-tiny: skipped: no apt-get on PATH" in message
    assert f"mirror {refused}" in message


# --- Debian packages without Debian's tools


def deb(payload: bytes, member: str = "data.tar.xz") -> bytes:
    """An ``ar`` archive as deb(5) has it; the first member has an odd size."""
    parts = [("debian-binary", b"2.0"), ("control.tar.xz", b"unread"), (member, payload)]
    lines = [b"!<arch>\n"]
    for name, data in parts:
        lines.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
        lines.append(data + b"\n" * (len(data) % 2))
    return b"".join(lines)


def pool_toml(package: bytes) -> str:
    entry = debian_toml(hashlib.sha256(package).hexdigest())
    return entry.replace("package =", "pool = ['pool/main/t/dataset-tiny_1~2.deb']\npackage =")


def test_packages_at_hand_need_no_client(use_registry, monkeypatch, tmp_path) -> None:
    package = deb(lzma.compress(tiny_tar()))
    use_registry(pool_toml(package))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cache" / "packages").mkdir(parents=True)
    (tmp_path / "cache" / "packages" / "dataset-tiny_1~2.deb").write_bytes(package)
    registry.fetch("tiny")
    assert_tiny(registry.load("tiny"))


def test_a_named_mirror_needs_no_client(use_registry, monkeypatch, tmp_path, server) -> None:
    package = deb(lzma.compress(tiny_tar()))
    use_registry(pool_toml(package))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRAINAUG_DEBIAN_MIRROR", f"{server.url}/debian/")
    server.files["debian/pool/main/t/dataset-tiny_1~2.deb"] = package
    registry.fetch("tiny")
    assert_tiny(registry.load("tiny"))


def test_without_client_the_files_to_fetch_are_named(use_registry, monkeypatch, tmp_path) -> None:
    use_registry(pool_toml(b""))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataUnavailableError, match=r"put dataset-tiny_1~2\.deb into .*packages"):
        registry.fetch("tiny")


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (b"", "not a Debian package"),
        (tiny_tar(), "not a Debian package"),
        (deb(b"x" * 9)[:-12], "not a whole Debian package"),
        (deb(b"x", member="other"), "not a whole Debian package"),
        (deb(b"x").replace(b"`\n", b"``"), "not a whole Debian package"),
        (deb(b"not a tar"), "not a whole tar archive"),
    ],
)
def test_damaged_packages_are_refused(
    package, reason, use_registry, monkeypatch, tmp_path, server
) -> None:
    use_registry(pool_toml(package))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRAINAUG_DEBIAN_MIRROR", server.url)
    server.files["pool/main/t/dataset-tiny_1~2.deb"] = package
    with pytest.raises(DataUnavailableError, match=reason):
        registry.fetch("tiny")


def test_failing_client_gives_its_last_line(clients, use_registry) -> None:
    clients(b"", knows="never")
    use_registry(debian_toml("0" * 64))
    with pytest.raises(DataUnavailableError, match=r"apt-get failed \(100\): E: cannot locate"):
        registry.fetch("tiny")


def test_wrong_package_checksum_stops_before_unpacking(clients, use_registry, monkeypatch) -> None:
    log = clients(tiny_tar(), knows="*")
    monkeypatch.setattr(fetch, "read_members", lambda *a: pytest.fail("unpacked unchecked"))
    use_registry(debian_toml("0" * 64))
    with pytest.raises(DataUnavailableError, match=r"dataset-tiny_1.deb: sha256 .* \(second"):
        registry.fetch("tiny")
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize("evil", ["../evil", "/evil", "usr/../../evil"])
def test_malicious_path_in_an_archive_is_refused(
    evil, clients, use_registry, tmp_path, monkeypatch
) -> None:
    package = tiny_tar(evil)
    clients(package, knows="*")
    use_registry(debian_toml(hashlib.sha256(package).hexdigest()))
    with pytest.raises(DataUnavailableError, match=f"unsafe path '{evil}'"):
        registry.fetch("tiny")
    assert not list(tmp_path.rglob("evil"))


def test_link_missing_member_and_broken_archive_are_refused(tmp_path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(tiny_tar(link=True))
    with pytest.raises(CorruptDataError, match=r"no usable file 'usr/share/tiny/train_x.gz'"):
        fetch.read_members(archive, {"x": "usr/share/tiny/train_x.gz"})
    with pytest.raises(CorruptDataError, match="no usable file 'nowhere'"):
        fetch.read_members(archive, {"x": "nowhere"})
    archive.write_bytes(b"not a tar")
    with pytest.raises(CorruptDataError, match="not a whole tar archive"):
        fetch.read_members(archive, {})


# --- the IDX format


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (1, 1, 1, 1), (0, 2)])
def test_idx_round_trip(shape) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(parse_idx_gz(idx_gz(array)), array)


GOOD = idx_gz(TINY["train_x"])
RAW = gzip.decompress(GOOD)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD[:-9], "truncated"),
        (GOOD[:-1], "truncated"),
        (b"", "truncated"),
        (GOOD + b"x", "followed by other bytes"),
        (GOOD[:-8] + bytes(4) + GOOD[-4:], "not a gzip stream"),
        (b"<html>", "not a gzip stream"),
        (gzip.compress(b"\0\0\x0d" + RAW[3:]), "magic 00000d03"),
        (gzip.compress(b"\0\0\x08\0"), "magic 00000800"),
        (gzip.compress(b"\0\0"), "magic 0000,"),
        (gzip.compress(RAW[:9]), "do not fill shape"),
        (gzip.compress(RAW[:-1]), "23 values do not fill shape"),
        (gzip.compress(RAW + b"\0"), "25 values do not fill shape"),
        (gzip.compress(RAW[:4] + b"\xff" * 12), "0 values do not fill shape"),
        (gzip.compress(RAW[:4] + bytes(4) + b"\xff" * 8), "shape .* is damaged"),
        (gzip.compress(RAW[:4] + b"\xff" * 8 + bytes(4)), "shape .* is damaged"),
        (gzip.compress(RAW[:12] + bytes(2)), "do not fill shape"),
        (gzip.compress(RAW) * 2, "followed by other bytes"),
        (RAW, "an IDX file that is not gzipped"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",
)
def test_bad_idx_raises(data, message) -> None:
    with pytest.raises(CorruptDataError, match=f"train_x: .*{message}"):
        parse_idx_gz(data, what="train_x")


def test_gzip_bomb_is_stopped(monkeypatch) -> None:
    monkeypatch.setattr("trainaug.data.idx.MAX_BYTES", 1000)
    header = bytes([0, 0, 8, 1]) + (10**6).to_bytes(4, "big")
    with pytest.raises(CorruptDataError, match="more than 1000 bytes"):
        parse_idx_gz(gzip.compress(header + bytes(10**6)))


def test_no_more_than_the_header_claims_is_unpacked() -> None:
    bomb = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2]) + bytes(32 << 20), 1)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError, match="at least 3 values do not fill"):
            parse_idx_gz(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
