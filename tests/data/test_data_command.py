"""``python -m trainaug.data``, and where it keeps what it fetches."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from companion import paths as places
from trainaug.data import arrays, paths, registry
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


@pytest.fixture
def cut_off(monkeypatch, tmp_path):
    """A cache in a folder of the test, and no way to fetch."""
    monkeypatch.setattr(paths, "DATA_CACHE", tmp_path)
    monkeypatch.setattr(registry, "attempts", lambda route: [])
    return tmp_path


@pytest.mark.parametrize("command", ["verify", "fetch"])
def test_a_folder_in_place_of_a_file_is_named(command, cut_off, capsys):
    (cut_off / "fashion_mnist.npz").mkdir()
    assert main([command, "fashion_mnist"]) == 2
    assert "fashion_mnist.npz" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert "fashion_mnist     missing" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "fetch"])
@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_place_of_the_cache_is_named(below, command, cut_off, monkeypatch, capsys):
    path = cut_off / "sets"
    path.write_text("not a folder")
    monkeypatch.setattr(paths, "DATA_CACHE", path / "deeper" if below else path)
    assert main([command, "fashion_mnist"]) == 2
    assert "sets" in capsys.readouterr().err
    assert main(["list"]) == 0


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<html>Sign in</html>", "an HTML page"),
        (b"PK\x03\x04", "BadZipFile"),
    ],
)
def test_what_stands_in_the_cache_is_told(content, what, cut_off, capsys):
    (cut_off / "fashion_mnist.npz").write_bytes(content)
    assert main(["verify", "fashion_mnist"]) == 2
    said = capsys.readouterr().err
    assert "fashion_mnist.npz" in said
    assert what in said


def test_arrays_beyond_the_budget_are_not_unpacked(monkeypatch, tmp_path):
    arrays.write_arrays(tmp_path / "set.npz", {"x": np.zeros(1000)})
    monkeypatch.setattr(arrays, "MAX_BYTES", 1000)
    with pytest.raises(arrays.CorruptDataError, match=r"set\.npz .*unpacks to"):
        arrays.read_arrays(tmp_path / "set.npz")


def test_other_files_than_arrays_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x.txt", "text")
    with pytest.raises(arrays.CorruptDataError, match=r"set\.npz .*other files than arrays"):
        arrays.read_arrays(tmp_path / "set.npz")


def test_a_lock_that_cannot_be_had_is_named(cut_off):
    (cut_off / "fashion_mnist.lock").mkdir()
    with pytest.raises(arrays.DataUnavailableError, match=r"fashion_mnist\.lock"):
        registry.load("fashion_mnist")


def test_the_command_runs_as_a_module():
    command = [sys.executable, "-m", "trainaug.data", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "fashion_mnist" in done.stdout


def test_the_variable_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINAUG_DATA", str(tmp_path / "elsewhere"))
    assert paths.cache_folder() == tmp_path / "elsewhere"


@pytest.mark.parametrize(("given", "folder"), [("~/sets", "sets"), ("~", ""), (" ~/a b ", "a b")])
def test_tilde_is_the_home_folder(given, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("TRAINAUG_DATA", given)
    assert paths.cache_folder() == (tmp_path / folder).resolve()


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_variable_names_nothing(given, monkeypatch):
    monkeypatch.setenv("TRAINAUG_DATA", given)
    monkeypatch.setenv("TRAINAUG_RUNS", given)
    assert paths.named_folder("TRAINAUG_RUNS") is None
    assert paths.cache_folder() == places.ROOT / "data" / "cache"


def test_a_relative_folder_becomes_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINAUG_RUNS", "~nobody-of-this-name/runs")
    assert paths.named_folder("TRAINAUG_RUNS") == tmp_path / "~nobody-of-this-name" / "runs"


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
