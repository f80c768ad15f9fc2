"""Where the registry and the cache of data sets lie.

The cache is the folder that ``TRAINAUG_DATA`` names; else ``data/cache`` of the checkout that this
package lies in; else a folder among the user's caches.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["DATA_CACHE", "REGISTRY", "cache_folder"]


_PACKAGE = Path(__file__).resolve().parents[1]


def _user_caches() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cache_folder(package: Path = _PACKAGE) -> Path:
    """Return the folder for data sets; it need not exist.

    Args:
        package: Folder of the package ``trainaug``.
    """
    if named := os.environ.get("TRAINAUG_DATA"):
        return Path(named).resolve()
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "claims").is_dir():
        return checkout / "data" / "cache"
    return _user_caches() / "trainaug"


REGISTRY = Path(__file__).with_name("registry.toml")
DATA_CACHE = cache_folder()
