"""What is installed and what it needs: the wheel's files, its metadata, imports without extras."""

from __future__ import annotations

import email
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from companion.paths import RESULTS, ROOT
from trainaug.extras import extra

# Runs in a fresh process where nothing but torch, NumPy and what torch brings can be imported.
IMPORT_ALL = """
import importlib, pkgutil, sys

ALLOWED = {"torch", "numpy", "trainaug", "filelock", "typing_extensions", "sympy", "mpmath",
           "networkx", "jinja2", "markupsafe", "fsspec", "setuptools", "_distutils_hack", "triton",
           "functorch", "torchgen", "pkg_resources", "nvidia", "cuda"}

class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

sys.meta_path.insert(0, Block())
import trainaug

for module in pkgutil.walk_packages(trainaug.__path__, "trainaug."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(f"{module.name}: {error}")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_library_and_nothing_else(wheel) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "trainaug"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    names = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    assert names == {name for name in listed if (ROOT / name).is_file()}
    assert {Path(name).suffix for name in names} == {".py", ".typed", ".toml"}
    info = {Path(n).name for n in zipfile.ZipFile(wheel).namelist() if "dist-info" in n}
    assert info == {"METADATA", "WHEEL", "RECORD", "LICENSE"}  # no entry point


def test_the_metadata_asks_for_torch_and_numpy_alone(wheel) -> None:
    package = zipfile.ZipFile(wheel)
    [name] = [each for each in package.namelist() if each.endswith("METADATA")]
    metadata = email.message_from_bytes(package.read(name))
    required = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert sorted(required) == ["numpy", "torch>=2.6"]
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"proofs", "data", "book", "test", "site", "ray", "stacks"} == extras
    for field in ("Author", "Classifier", "Keywords", "License-Expression", "Project-URL"):
        assert metadata[field]


def test_every_module_imports_without_extras_or_names_the_one_it_lacks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lacking = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(lacking) == {"trainaug.data.subwords"}
    for said in lacking.values():
        assert said.endswith("pip install 'trainaug[data]'")


def test_a_missing_package_is_named_with_its_extra() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match=r"no_such_package.*'trainaug\[proofs\]'"),
        extra("proofs"),
    ):
        import no_such_package  # noqa: F401


@pytest.mark.system
def test_the_examples_of_all_cards_run() -> None:
    command = [sys.executable, "tests/versions/examples.py", "docs/cards"]
    done = subprocess.run(
        [*command, "--extras", "proofs,data"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list((ROOT / "docs" / "cards").glob("*.md")))


def test_the_page_on_installing_shows_what_was_measured() -> None:
    stored = json.loads((RESULTS / "bench" / "installed.json").read_text(encoding="utf-8"))
    newest = stored["newest"]
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    # the package itself has a row of its own
    assert f"| {newest['packages'] - 1} | {newest['gigabytes']} GB" in page
