"""A machine with a GPU has torch and little else: an arm runs there, or is refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from companion.lab.run import main
from companion.paths import ROOT

ABSENT = ("papermill", "cvxpy", "pydantic")
# Python imports this module by itself, in the workers as well.
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k != "DEVICE"}
    return subprocess.run(
        [sys.executable, "-m", "companion.lab.run", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=kept | environment,
        check=False,
    )


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Variables of a machine that lacks the packages of notebooks, proofs and ledgers."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK, encoding="utf-8")
    path = [str(tmp_path / "blocked"), str(ROOT)]
    return {"PYTHONPATH": os.pathsep.join(path), "TRAINAUG_RUNS": str(tmp_path / "runs")}


@pytest.mark.system
def test_an_arm_runs_without_notebooks_proofs_and_ledgers(bare, tmp_path):
    command = [sys.executable, "-c", "import cvxpy"]
    blocked = subprocess.run(command, env=os.environ | bare, capture_output=True, check=False)
    assert b"No module named 'cvxpy'" in blocked.stderr
    done = run("digits_random", "-p", "steps=4", "--seeds", "1", TRAINAUG_WORKERS="1", **bare)
    assert done.returncode == 0, done.stderr
    assert "val/accuracy" in done.stdout
    (path,) = (tmp_path / "runs").rglob("provenance.json")
    provenance = json.loads(path.read_text(encoding="utf-8"))
    assert (provenance["device"], provenance["canonical"]) == ("cpu", True)


@pytest.mark.parametrize(
    ("arm", "device", "named"),
    [
        ("gaussian_max_margin", "cuda", "gaussian_max_margin runs on cpu, not on cuda"),
        ("gaussian_gradient", "mps", "gaussian_gradient runs on cpu and cuda, not on mps"),
        ("digits_random", "tpu", "'tpu'"),
        pytest.param(
            "digits_random",
            "cuda",
            "'cuda'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
)
def test_a_device_that_cannot_be_had_ends_in_one_line_and_code_two(
    arm, device, named, monkeypatch, capsys
):
    monkeypatch.setenv("DEVICE", device)
    assert main([arm, "--seeds", "1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line
