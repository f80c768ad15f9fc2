"""Data sets by name: list, fetch, verify, load.

``registry.toml`` states each data set's routes and the hash of its decoded arrays. What comes over
the network is stored as one ``.npz`` file in the cache; what scikit-learn bundles or a generator
draws is rebuilt at every load. In both cases the content hash decides whether the data are
accepted.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from trainaug.data import paths
from trainaug.data.arrays import (
    Arrays,
    CorruptDataError,
    DataUnavailableError,
    hash_arrays,
    read_arrays,
    write_arrays,
)
from trainaug.data.fetch import LOCAL_KINDS, Route, RouteError, attempts

__all__ = [
    "DataSet",
    "cache_path",
    "content_hash",
    "describe",
    "fetch",
    "info",
    "load",
    "names",
    "verify",
]


@dataclass(frozen=True)
class DataSet:
    """One entry of the registry.

    Args:
        name: Short name, as on the command line.
        title: What it is, and how many examples it has.
        licence: Licence of the data.
        source: Who made it.
        content_sha256: Hash of the decoded arrays (`hash_arrays`), 64 hex digits.
        routes: Ways to obtain it, in the order in which they are tried.
        optional: Whether it is fetched only when requested by name.
    """

    name: str
    title: str
    licence: str
    source: str
    content_sha256: str
    routes: tuple[Route, ...]
    optional: bool = False

    @property
    def is_local(self) -> bool:
        """Whether it needs neither network nor cache."""
        return all(route.kind in LOCAL_KINDS for route in self.routes)


def names(*, optional: bool = False) -> list[str]:
    """List the data sets.

    Args:
        optional: Whether to include those that are fetched only when requested by name.

    Returns:
        Their names, in the registry's order.
    """
    return [name for name, entry in _entries().items() if optional or not entry.optional]


def info(name: str) -> DataSet:
    """Return the entry of a data set.

    Args:
        name: One of `names`.

    Returns:
        The entry of the registry.

    Raises:
        ValueError: If there is no such data set.
    """
    entries = _entries()
    if name not in entries:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(entries)}")
    return entries[name]


def content_hash(name: str) -> str:
    """Return the hash of a data set's arrays that the registry states; the data are not read.

    Args:
        name: One of `names`.

    Returns:
        64 hex digits.
    """
    return info(name).content_sha256


def cache_path(name: str) -> Path:
    """Return the path of a fetched data set in the cache.

    Args:
        name: One of `names`.

    Returns:
        The ``.npz`` file, which need not exist; bundled and generated sets never have one.
    """
    return paths.DATA_CACHE / f"{name}.npz"


def describe() -> list[dict[str, str]]:
    """Describe every data set for a table.

    Returns:
        Rows with ``name, title, licence, state``; state is ``bundled`` (no fetch needed),
        ``cached`` (not verified here), ``optional`` (not fetched, and nothing needs it) or
        ``missing`` (also if the cache path is a folder, not a file).
    """
    rows = []
    for name, entry in _entries().items():
        state_if_absent = "optional" if entry.optional else "missing"
        state_if_remote = "cached" if cache_path(name).is_file() else state_if_absent
        state = "bundled" if entry.is_local else state_if_remote
        rows.append({"name": name, "title": entry.title, "licence": entry.licence, "state": state})
    return rows


def fetch(name: str) -> None:
    """Bring a data set into the cache, unless it is already there and intact.

    A corrupt cache file is removed first. Routes are tried in order; a download with a wrong
    checksum or content is repeated once.

    Args:
        name: One of `names`.

    Raises:
        ValueError: If there is no such data set.
        DataUnavailableError: If every route failed, where the message names each with its reason;
            or if the folder of the cache cannot be created.
        CorruptDataError: If a bundled or generated set has another content hash, or a corrupt cache
            file cannot be removed, for example because it is a folder, as containers create for a
            mount.
        OSError: If the cache cannot be written.
    """
    entry = info(name)
    try:
        verify(name)
        return
    except DataUnavailableError:
        tried = [f"cache {cache_path(name)}: no such file"]
    except CorruptDataError as error:
        if entry.is_local:
            raise
        try:
            cache_path(name).unlink(missing_ok=True)
        except OSError as refusal:
            raise CorruptDataError(f"{refusal}: remove it by hand") from error
        tried = [f"cache: removed, {error}"]
    _make_cache(name)
    for route in entry.routes:
        for label, get in attempts(route):
            for attempt in ("", " (second download)"):
                try:
                    arrays = _check(entry, get())
                except (RouteError, CorruptDataError) as error:
                    reason = f"{label}: {error}{attempt}"
                    if isinstance(error, RouteError):  # would fail again in the same way
                        break
                else:
                    write_arrays(cache_path(name), arrays)
                    return
            tried.append(reason)
    raise DataUnavailableError(
        f"cannot get {name} ({entry.title}). Tried:\n  - "
        + "\n  - ".join(tried)
        + f"\nWhat to do: run `python -m trainaug.data fetch {name}` with a working connection, or"
        f" copy {cache_path(name).name} from another machine to {paths.DATA_CACHE}"
        " (or set TRAINAUG_DATA to a folder that has it)."
    )


def _make_cache(name: str) -> None:
    try:
        cache_path(name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataUnavailableError(f"{name}: no folder for the cache: {error}") from error


def verify(name: str) -> None:
    """Re-hash a data set against the registry.

    Args:
        name: One of `names`.

    Raises:
        ValueError: If there is no such data set.
        DataUnavailableError: If it is not in the cache.
        CorruptDataError: If its file is damaged or its content hash differs.
    """
    _read(info(name))


def load(name: str) -> Arrays:
    """Load a data set from the cache or from the library that bundles it.

    At first use it is fetched into the cache, unless it is optional. The content hash is checked
    when this process first reads the file, or the file has changed; other calls return the same
    read-only arrays.

    Args:
        name: One of `names`.

    Returns:
        The arrays by name. Sets with classes have ``train_x, train_y, test_x, test_y``: uint8
        ``(60000, 28, 28)`` and ``(10000, 28, 28)`` for ``fashion_mnist``, float64 ``(N, D)`` with
        an empty test part for the sets of scikit-learn and for ``gaussian``, the reference draw.
        The other sets have the arrays that ``decode`` of their module returns.

    Raises:
        ValueError: If there is no such data set.
        DataUnavailableError: If it is not in the cache and cannot be fetched, or is optional; the
            message gives the command to run.
        CorruptDataError: If its file is damaged or its content hash differs.
    """
    entry = info(name)
    path = cache_path(name)
    if not (entry.is_local or entry.optional or path.exists()):
        _fetch_once(name)
    stamp = ""
    if not entry.is_local and path.exists():
        stat = path.stat()
        stamp = f"{path} {stat.st_ino} {stat.st_mtime_ns} {stat.st_size}"
    return _load(name, entry.content_sha256, stamp)


def _fetch_once(name: str) -> None:
    """Fetch a data set; if several processes need it, one fetches it and the others wait."""
    path = cache_path(name)
    _make_cache(name)
    try:
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                fetch(name)
    except OSError as error:
        raise DataUnavailableError(f"{name}: the cache cannot be written: {error}") from error


@lru_cache(maxsize=8)
def _load(name: str, content: str, stamp: str) -> Arrays:
    """Read a data set; the hash and the file's stamp are keys, so that a change is noticed."""
    return _read(info(name))


def _entries() -> dict[str, DataSet]:
    stat = paths.REGISTRY.stat()
    return _read_entries(paths.REGISTRY, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _read_entries(registry: Path, modified: int, size: int) -> dict[str, DataSet]:
    """Return the entries of a registry file; its time and size are keys, so that edits count."""
    tables = tomllib.loads(registry.read_text(encoding="utf-8"))
    entries = {}
    for name, table in tables.items():
        routes = tuple(
            Route(**{name: _frozen(value) for name, value in route.items()})
            for route in table["routes"]
        )
        entries[name] = DataSet(**{**table, "name": name, "routes": routes})
    return entries


def _frozen(value: Any) -> Any:
    """Return a list as a tuple, as `Route` declares it."""
    return tuple(value) if isinstance(value, list) else value


def _read(entry: DataSet) -> Arrays:
    """Return a data set from its library or the cache, after checking the content hash."""
    path = cache_path(entry.name)
    if entry.is_local:
        [(_, get)] = attempts(entry.routes[0])
        return _check(entry, get())
    advice = f"run `python -m trainaug.data fetch {entry.name}`"
    try:
        return _check(entry, read_arrays(path))
    except FileNotFoundError as error:
        raise DataUnavailableError(
            f"{entry.name} is not in the cache ({path}); {advice}"
        ) from error
    except CorruptDataError as error:
        raise CorruptDataError(f"cache {path} is corrupt ({error}); {advice}") from error


def _check(entry: DataSet, arrays: Arrays) -> Arrays:
    """Check the content hash and make the arrays read-only."""
    digest = hash_arrays(arrays)
    if digest != entry.content_sha256:
        raise CorruptDataError(
            f"{entry.name}: content hash {digest}, expected {entry.content_sha256}"
        )
    for array in arrays.values():
        array.setflags(write=False)  # load() hands the same arrays to every caller
    return arrays
