"""Install the wheel with the oldest and the newest torch, and try the library there.

    python tests/versions/try_versions.py [oldest] [newest] [--folder FOLDER] [--store]

Each gets an environment of its own with the wheel, torch and NumPy alone, on the newest Python at
hand up to 3.13: there the first example of every card must run. Then the extras come, all examples
must run, and the tests that call every public name must pass. What an index does not have is
skipped with the reason; ``TRAINAUG_REQUIRE_VERSIONS=1`` makes that a failure. ``--store`` writes
the size of what was installed to ``results/bench/installed.json``, which ``docs/install.md`` shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = {"oldest": "torch==2.6.0", "newest": "torch>=2.6"}
PYTHONS = ("python3.13", "python3.12", "python3.11")
TESTS = ("tests/methods/test_every_name.py", "tests/test_checks.py")


class Unavailable(RuntimeError):
    """An index or the machine lacks what is needed."""


def interpreter() -> str:
    """Return the newest supported Python on the path or beside this one's installation."""
    beside = Path(sys.base_prefix).parent
    for name in PYTHONS:
        places = [*beside.glob(f"*/bin/{name}"), Path(shutil.which(name) or "/nowhere")]
        for path in places:
            if (
                subprocess.run([path, "--version"], capture_output=True, check=False).returncode
                == 0
            ):
                return str(path)
    return sys.executable


def pip(python: Path, *arguments: str) -> None:
    """Install into an environment; the last line of what pip says is the reason if it fails."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Unavailable(lines[-1] if lines else f"pip ended with {done.returncode}")


def inside(python: Path, folder: Path, *arguments: str) -> None:
    """Run Python in a folder from which the checkout's packages cannot be imported."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([str(python), *arguments], cwd=folder, env=environment, check=True)


def size_of(python: Path) -> dict[str, float]:
    """Number of packages of an environment, and its gigabytes."""
    command = [str(python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    count = len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    files = (path for path in python.parents[1].rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files if not path.is_symlink()) / 1e9
    return {"packages": count, "gigabytes": round(size, 1)}


def try_with(which: str, wheel: Path, folder: Path) -> dict[str, float]:
    """Make the environment and run everything in it.

    Returns:
        The size of the environment with the wheel, torch and NumPy alone.

    Raises:
        Unavailable: If torch cannot be installed.
        CalledProcessError: If a test or an example fails.
    """
    started = time.monotonic()
    base = interpreter()
    environment = folder / which
    subprocess.run([base, "-m", "venv", "--clear", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip(python, TORCH[which], "numpy")
    pip(python, "--no-deps", str(wheel))
    size = size_of(python)
    print(f"{which}: {size['packages']} packages, {size['gigabytes']} GB", flush=True)
    inside(
        python, folder, "-c", "import sys, torch; print(sys.version.split()[0], torch.__version__)"
    )
    cards = str(ROOT / "docs" / "cards")
    examples = str(ROOT / "tests" / "versions" / "examples.py")
    inside(python, folder, examples, cards, "--first")
    pip(python, TORCH[which], f"{wheel}[proofs,data]", "pytest", "pytest-xdist", "hypothesis")
    inside(python, folder, examples, cards, "--extras", "proofs,data")
    options = ("-q", "-p", "no:cacheprovider", "-c", "tests/versions/pytest.ini")
    inside(python, folder, "-m", "pytest", *options, "--confcutdir", ".", *TESTS)
    print(f"{which}: {time.monotonic() - started:.0f} s", flush=True)
    return size


def main() -> None:
    """Build the wheel and try it with each version asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", choices=[*TORCH, []], default=[])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        [wheel] = folder.glob("*.whl")
        # away from the checkout, whose packages would be found first
        copied = folder / "tests"
        if not copied.exists():
            shutil.copytree(ROOT / "tests", copied, ignore=shutil.ignore_patterns("__pycache__"))
        sizes = {}
        with ThreadPoolExecutor() as pool:  # threads wait; each environment works by itself
            tries = {w: pool.submit(try_with, w, wheel, folder) for w in options.which or TORCH}
            for which, trial in tries.items():
                try:
                    sizes[which] = trial.result()
                except Unavailable as reason:
                    if os.environ.get("TRAINAUG_REQUIRE_VERSIONS"):
                        raise
                    print(f"{which} torch is skipped: {reason}", flush=True)
    if options.store:
        target = ROOT / "results" / "bench" / "installed.json"
        target.write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
