"""Time what a newcomer does: clone into a new folder, then the two commands of the README.

    python benchmarks/fresh_clone.py [--folder FOLDER] [STEP ...]

After each step it writes ``results/bench/fresh_clone.json``, from which the README takes its
figures; steps that are not run keep their earlier figures. Steps are ``setup data reproduce again
all test sizes``, all by default, in this order: about an hour and some 10 GB of disk, on an idle
machine with everything committed. With a folder the clone stays there, and later steps use it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from companion.evidence.store import write_atomic
from companion.paths import RESULTS, ROOT

STEPS = {  # name: (what the README says, command)
    "setup": ("set-up, once", ("make", "setup")),
    "data": ("data, once", ("make", "data")),
    "reproduce": ("`make reproduce`", ("make", "reproduce")),
    "again": ("`make reproduce` again, nothing missing", ("make", "reproduce")),
    "all": ("`make reproduce SEED=all`", ("make", "reproduce", "SEED=all")),
    "test": ("`make test`", ("make", "test")),
    "sizes": ("environment and data on disk", ()),
}
PART = re.compile(r"make (\S+): (\d+) s")
TARGET = RESULTS / "bench" / "fresh_clone.json"


def timed(command: tuple[str, ...], folder: Path) -> tuple[float, dict[str, float]]:
    """Run a command and echo what it prints; a CalledProcessError if it fails.

    Returns:
        Its wall seconds, and those of its parts where it prints "make PART: N s".
    """
    # without settings of this project, as a newcomer has none
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TRAINAUG_") and name != "PYTHONPATH"
    }
    parts = {}
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            if part := PART.fullmatch(line.strip()):
                parts[part[1]] = float(part[2])
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return time.perf_counter() - started, parts


def gigabytes(*folders: Path) -> float:
    """Size of all files below the folders, in 10^9 bytes."""
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(f.stat().st_size for f in files if f.is_file() and not f.is_symlink()) / 1e9


def shown(seconds: float) -> str:
    """Text of a time, in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def measure(name: str, clone: Path) -> str:
    """Do one step in the clone and return the text of its time or size."""
    _, command = STEPS[name]
    if command:
        seconds, parts = timed(command, clone)
        listed = ", ".join(f"{part} {shown(spent)}" for part, spent in parts.items())
        return shown(seconds) + (f" ({listed})" if parts else "")
    return f"{gigabytes(clone / '.venv', clone / 'data' / 'cache'):.1f} GB"


def write(measured: dict[str, str]) -> None:
    """Store what was measured, in the order of the steps."""
    rows = [
        {"name": name, "step": STEPS[name][0], "measured": measured[name]}
        for name in STEPS
        if name in measured
    ]
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, no GPU"
    write_atomic(TARGET, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def known() -> dict[str, str]:
    """Texts that were measured before, by step."""
    if not TARGET.is_file():
        return {}
    rows = json.loads(TARGET.read_text(encoding="utf-8"))["rows"]
    return {row["name"]: row["measured"] for row in rows}


def main() -> None:
    """Clone, then run, measure and store the steps that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    # argparse compares the default, an empty list, with the choices, too
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clone = (options.folder or Path(name)) / "trainaug"
        if not clone.is_dir():
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        measured = known()
        for step in options.steps or STEPS:
            measured[step] = measure(step, clone)
            write(measured)


if __name__ == "__main__":
    sys.exit(main())
