"""A notebook that is opened first works: its data are fetched at first use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from companion.lab.chapters import notebook_path
from companion.paths import ROOT


@pytest.mark.soak
def test_strict_nbval_passes_with_an_empty_data_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-c", "tests/notebooks/nbval.ini"]
    command += ["--rootdir", ".", "--nbval", "--nbval-current-env", str(notebook_path("05"))]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TRAINAUG_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    if missing := re.search("DataUnavailableError: cannot get .*", done.stdout):
        pytest.skip(f"no route to the data from this machine: {missing[0]}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "fashion_mnist.npz").is_file()
