"""Where the registry and the cache of data sets lie.

The cache is the folder that ``TRAINAUG_DATA`` names; else ``data/cache`` of the checkout that this
package lies in; else a folder among the user's caches.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["DATA_CACHE", "REGISTRY", "cache_folder", "expanded", "named_folder"]


_PACKAGE = Path(__file__).resolve().parents[1]


def expanded(path: str) -> Path:
    """Return a path whose leading ``~`` is the home folder, as it stands where there is none.

    Args:
        path: The path as text.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, so `~` is part of a name, as shells have it
        return Path(path)


def named_folder(variable: str) -> Path | None:
    """Return the absolute folder that an environment variable names; None where it is empty.

    A leading ``~`` is the home folder: env files and container settings leave it to the program.

    Args:
        variable: Name of the variable.
    """
    named = os.environ.get(variable, "").strip()
    return expanded(named).resolve() if named else None


def _user_caches() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return named_folder("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    return named_folder("XDG_CACHE_HOME") or Path.home() / ".cache"


def cache_folder(package: Path = _PACKAGE) -> Path:
    """Return the folder for data sets; it need not exist.

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
