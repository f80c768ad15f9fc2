"""Time what a newcomer does: clone into a new folder, then the two commands of the README.

Writes ``results/bench/fresh_clone.json``, from which the README takes its figures. Takes about
half an hour and some 10 GB of disk; run it on an idle machine with everything committed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from companion.evidence.store import write_atomic
from companion.paths import RESULTS, ROOT


def timed(*command: str, folder: Path) -> float:
    """Run a command, echo what it prints, return its wall seconds; stop if it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRAINAUG_")}
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return time.perf_counter() - started


def megabytes(folder: Path) -> float:
    """Size of the files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def download_size(clone: Path, folder: Path) -> float:
    """Megabytes of the packages that the lock brings."""
    pip = [str(clone / ".venv" / "bin" / "python"), "-m", "pip", "--quiet"]
    subprocess.run(
        [*pip, "download", "-r", "requirements.lock", "-d", str(folder)], cwd=clone, check=True
    )
    return megabytes(folder)


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def main() -> None:
    """Clone, run, measure, write."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "trainaug"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        setup = timed("make", "setup", folder=clone)
        data = timed("make", "data", folder=clone)
        reproduce = timed("make", "reproduce", folder=clone)
        test = timed("make", "test", folder=clone)
        again = timed("make", "reproduce", folder=clone)
        environment = megabytes(clone / ".venv") / 1000
        cache = megabytes(clone / "data" / "cache")
        packages = download_size(clone, Path(name) / "wheels") / 1000
    rows = [
        {"step": "set-up, once", "measured": minutes(setup)},
        {"step": "data, once (Fashion-MNIST)", "measured": f"{data:.0f} s"},
        {"step": "`make reproduce` after that", "measured": minutes(reproduce)},
        {"step": "`make reproduce` again, nothing missing", "measured": minutes(again)},
        {"step": "`make test` after that", "measured": minutes(test)},
        {"step": "packages downloaded", "measured": f"{packages:.1f} GB, CUDA libraries included"},
        {"step": "disk: environment and data", "measured": f"{environment + cache / 1000:.1f} GB"},
    ]
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, no GPU"
    text = json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
    write_atomic(RESULTS / "bench" / "fresh_clone.json", text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
