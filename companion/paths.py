"""The one place that knows the directories of the book.

``TRAINAUG_RUNS`` and ``TRAINAUG_DATA`` move the raw runs and the data cache elsewhere, say to a
larger disk or to a folder of a test; a leading ``~`` is the home folder.
"""

from __future__ import annotations

from pathlib import Path

from trainaug.data.paths import DATA_CACHE, named_folder

__all__ = [
    "BENCHMARKS",
    "BIBLIOGRAPHY",
    "CHAPTERS",
    "CLAIMS",
    "COMPANION",
    "DATA_CACHE",
    "LIBRARY",
    "NOTEBOOKS",
    "PROFILES",
    "RESULTS",
    "ROOT",
    "RUNS",
    "check_checkout",
]

COMPANION = Path(__file__).resolve().parent
ROOT = COMPANION.parent
CHAPTERS = COMPANION / "chapters"
LIBRARY = ROOT / "trainaug"
NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
CLAIMS = ROOT / "claims"
BIBLIOGRAPHY = ROOT / "references.bib"
RESULTS = ROOT / "results"
BENCHMARKS = ROOT / "benchmarks"
RUNS = named_folder("TRAINAUG_RUNS") or (ROOT / "runs").resolve()


def check_checkout() -> None:
    """Refuse to work in one checkout with the `companion` that another checkout has installed.

    Raises:
        RuntimeError: If the working folder belongs to another checkout than this file.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "companion" / "paths.py").is_file() and folder.resolve() != ROOT:
            raise RuntimeError(
                f"you are in {folder}, but `companion` comes from {ROOT}: use that checkout's .venv"
            )
