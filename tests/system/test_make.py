"""Which environment the targets use: an activated one that has everything, else `.venv`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from companion.paths import ROOT


@pytest.fixture
def environment(tmp_path):
    """Make an environment whose Python has, or lacks, everything that is asked for."""

    def make(*, complete: bool) -> Path:
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f"#!/bin/sh\nexit {0 if complete else 1}\n")
        python.chmod(0o755)
        return tmp_path

    return make


def planned(target: str, **variables: str) -> str:
    """What a target would do."""
    clean = {
        k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "VENV")
    }
    command = ["make", "-n", "--no-print-directory", target]
    done = subprocess.run(
        command, cwd=ROOT, env=clean | variables, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_a_complete_activated_environment_is_used_as_it_is(variable, environment) -> None:
    folder = environment(complete=True)
    said = planned("setup", **{variable: str(folder)})
    assert f'echo "environment: {folder}"' in said
    assert "-m pip" not in said


def test_an_incomplete_one_is_left_alone_and_named(environment) -> None:
    folder = environment(complete=False)
    said = planned("setup", VIRTUAL_ENV=str(folder))
    assert f"environment: .venv ({folder} lacks packages" in said
    assert f"{folder}/bin/python -m pip" not in said


def test_without_one_it_is_the_checkouts_own() -> None:
    own_environment = str(ROOT / ".venv")
    assert 'echo "environment: .venv"' in planned("setup")
    assert 'echo "environment: .venv"' in planned("setup", VIRTUAL_ENV=own_environment)


def test_a_named_one_without_the_packages_stops_with_advice(environment) -> None:
    folder = environment(complete=False)
    done = subprocess.run(
        ["make", "setup", f"VENV={folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "lacks packages of requirements.lock" in done.stdout
