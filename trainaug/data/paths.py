"""Where the registry and the cache of data sets are.

The cache is the folder that ``TRAINAUG_DATA`` names; otherwise ``data/cache`` of the checkout that
contains this package; otherwise a folder among the user's caches.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["DATA_CACHE", "REGISTRY", "cache_folder", "expanded", "named_folder"]


_PACKAGE = Path(__file__).resolve().parents[1]


def expanded(path: str) -> Path:
    """Return a path with a leading ``~`` replaced by the home folder, if there is one.

    Args:
        path: The path as text.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, so `~` is part of a name, as in shells
        return Path(path)


def named_folder(variable: str) -> Path | None:
    """Return the absolute folder that an environment variable names; None if it is empty or unset.

    A leading ``~`` is the home folder: env files and container settings do not expand it.

    Args:
        variable: Name of the variable.
    """
    named = os.environ.get(variable, "").strip()
    return expanded(named).resolve() if named else None


def _user_caches() -> Path:
    """Return the operating system's folder for the user's caches."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return named_folder("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    return named_folder("XDG_CACHE_HOME") or Path.home() / ".cache"


def cache_folder(package: Path = _PACKAGE) -> Path:
    """Return the folder for data sets, which need not exist.

    Args:
        package: Folder of the package ``trainaug``.
    """
    if named := named_folder("TRAINAUG_DATA"):
        return named
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "claims").is_dir():
        return checkout / "data" / "cache"
    return _user_caches() / "trainaug"


#: The file that states every data set's routes and content hash.
#:
#: :meta hide-value:
REGISTRY = Path(__file__).with_name("registry.toml")
#: The folder for data sets, as it was when this module was imported.
#:
#: :meta hide-value:
DATA_CACHE = cache_folder()
