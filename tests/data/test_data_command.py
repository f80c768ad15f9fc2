"""``python -m trainaug.data``, and where it keeps what it fetches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from companion import paths as places
from trainaug.data import paths
from trainaug.data.__main__ import main


def test_list_shows_state_and_licence(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ("fashion_mnist", "digits", "breast_cancer", "iris"):
        assert name in shown
    assert "bundled" in shown
    assert "MIT" in shown


def test_verify_and_fetch_say_what_they_did(capsys):
    assert main(["verify", "iris"]) == 0
    assert main(["fetch", "iris"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["iris: content hash agrees", "iris: fetching", "iris: ready"]


def test_an_unknown_set_ends_in_one_line_and_code_two(capsys):
    assert main(["fetch", "cifar"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "cifar" in said[0]


def test_missing_data_names_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paths, "DATA_CACHE", tmp_path)
    assert main(["verify", "fashion_mnist"]) == 2
    assert "python -m trainaug.data fetch fashion_mnist" in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    command = [sys.executable, "-m", "trainaug.data", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "fashion_mnist" in done.stdout


def test_the_variable_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINAUG_DATA", str(tmp_path / "elsewhere"))
    assert paths.cache_folder() == tmp_path / "elsewhere"


def test_a_checkout_keeps_its_data(monkeypatch):
    monkeypatch.delenv("TRAINAUG_DATA", raising=False)
    assert paths.cache_folder() == places.ROOT / "data" / "cache"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_an_installed_library_uses_the_caches_of_the_user(monkeypatch, tmp_path, platform):
    monkeypatch.delenv("TRAINAUG_DATA", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    folder = paths.cache_folder(tmp_path / "site-packages" / "trainaug")
    assert folder.name == "trainaug"
    assert folder.is_relative_to(tmp_path)
    assert not folder.is_relative_to(tmp_path / "site-packages")


def test_book_and_library_share_the_cache():
    assert places.DATA_CACHE == paths.DATA_CACHE
