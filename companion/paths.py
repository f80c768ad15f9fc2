"""The one place that knows the directories of the book.

``TRAINAUG_RUNS`` and ``TRAINAUG_DATA`` move the raw runs and the data cache elsewhere, say to a
larger disk or to a folder of a test; a leading ``~`` is the home folder.
"""

from __future__ import annotations

from pathlib import Path

from trainaug.data.paths import DATA_CACHE, named_folder

__all__ = [
    "BENCHMARKS",
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
]

COMPANION = Path(__file__).resolve().parent
ROOT = COMPANION.parent
CHAPTERS = COMPANION / "chapters"
LIBRARY = ROOT / "trainaug"
NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
CLAIMS = ROOT / "claims"
RESULTS = ROOT / "results"
BENCHMARKS = ROOT / "benchmarks"
RUNS = named_folder("TRAINAUG_RUNS") or (ROOT / "runs").resolve()
