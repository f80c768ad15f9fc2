"""The pages of `docs/stacks`: their Python blocks, and running them as a reader would."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "stacks"
SECONDS = 100  # two processes that wait for each other longer than this fail


def _examples() -> ModuleType:
    """The module that reads pages; the folder of other Python versions is no package."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("examples", ROOT / "tests" / "versions" / "examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass asks for the module it is in
    spec.loader.exec_module(module)
    return module


@cache
def sources(name: str) -> list[str]:
    """Python blocks of a page, each as far down as it stands there."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return [block.source for block in _examples().blocks(text)]


@cache
def packages(name: str) -> tuple[str, ...]:
    """What the blocks of a page import, without this library and what comes with Python."""
    imported = set()
    for source in sources(name):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module)
    tops = {module.partition(".")[0] for module in imported}
    return tuple(sorted(tops - {"trainaug"} - sys.stdlib_module_names))


@cache
def namespaces(name: str) -> list[dict[str, Any]]:
    """Run the blocks of a page one after the other; return the names after each."""
    names: dict[str, Any] = {"__name__": "__main__"}
    after = []
    with torch.random.fork_rng([]):
        for source in sources(name):
            exec(compile(source, str(FOLDER / name), "exec"), names)
            after.append(dict(names))
    return after


def run_on_two_ranks(script: Path, *arguments: str) -> str:
    """Run a script in two processes, as `torchrun` does; return what they print."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, str(script), *arguments],
        cwd=script.parent if os.access(script.parent, os.W_OK) else None,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
