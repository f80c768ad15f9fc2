"""The examples of `docs/stacks/`, taken out of the pages and run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "stacks"
EXTRA = ("accelerate", "lightning", "timm", "torchdata", "torchvision", "transformers")

_PART = re.compile(r"^## ([^\n]+)$|^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def need(*packages: str) -> None:
    """Skip a test whose packages are missing; fail it where the extra is said to be installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        return
    reason = f"needs the extra stacks ({', '.join(missing)})"
    if os.environ.get("TRAINAUG_REQUIRE_STACKS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def examples(page: str) -> dict[str, str]:
    """Return the code of each section of a page that has some."""
    title, codes = "", {}
    for part in _PART.finditer((PAGES / f"{page}.md").read_text(encoding="utf-8")):
        if part[1]:
            title = part[1]
        else:
            assert title not in codes, f"two examples in the section {title} of {page}"
            codes[title] = part[2]
    return codes


def packages_of(code: str) -> list[str]:
    """Return which packages of the extra an example imports."""
    return [name for name in EXTRA if re.search(rf"^(import|from) {name}\b", code, re.MULTILINE)]


def run(page: str, title: str) -> dict[str, Any]:
    """Run an example and return its names."""
    code = examples(page)[title]
    need(*packages_of(code))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, f"{page}.md: {title}", "exec"), names)  # noqa: S102
    return names


def launch(script: Path, folder: Path, *names: str) -> list[dict[str, Any]]:
    """Run a script by torchrun in two processes; return the values of these names on each rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(Path(__file__).with_name("two_processes.py"))]
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [*command, str(script), str(folder), *names],
        cwd=folder,
        env=os.environ | settings | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, output[-4000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def launch_example(title: str, folder: Path, *names: str) -> list[dict[str, Any]]:
    """Run an example of the page on several processes."""
    code = examples("ddp")[title]
    need(*packages_of(code))
    script = folder / "train.py"
    script.write_text(code, encoding="utf-8")
    return launch(script, folder, *names)
