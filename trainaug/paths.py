"""The one place that knows directories.

``TRAINAUG_RUNS`` and ``TRAINAUG_DATA`` move the raw runs and the data cache elsewhere, say to a
larger disk or to a folder of a test.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = [
    "BENCHMARKS",
    "CLAIMS",
    "DATA_CACHE",
    "NOTEBOOKS",
    "PACKAGE",
    "PROFILES",
    "REGISTRY",
    "RESULTS",
    "ROOT",
    "RUNS",
]

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
CLAIMS = ROOT / "claims"
RESULTS = ROOT / "results"
BENCHMARKS = ROOT / "benchmarks"
REGISTRY = ROOT / "data" / "registry.toml"
DATA_CACHE = Path(os.environ.get("TRAINAUG_DATA", ROOT / "data" / "cache")).resolve()
RUNS = Path(os.environ.get("TRAINAUG_RUNS", ROOT / "runs")).resolve()
