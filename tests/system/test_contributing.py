"""The steps of CONTRIBUTING.md, followed in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from companion.paths import DATA_CACHE, ROOT

pytestmark = pytest.mark.walk

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^(?P<indent> *)<!-- (?P<kind>file|step|claim): (?P<name>\S+) -->\n"
    r" *```\w+\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(kind: str) -> dict[str, str]:
    """Marked blocks of the page by name, without their indentation."""
    return {
        match["name"]: textwrap.dedent(match["text"])
        for match in BLOCK.finditer(TEXT)
        if match["kind"] == kind
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows of the working tree, with a repository and an environment."""
    folder = tmp_path_factory.mktemp("contributing")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.split("\0"):
        if (source := ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    run("git init -q && git add -A && git commit -qm start && git tag start", folder)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / ".git" / "info" / "exclude").write_text(".venv\nruns\n")
    return folder


def run(command: str, folder: Path) -> str:
    """Run shell commands, each of which must succeed, as a contributor would."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TRAINAUG_", "GIT_")) and name not in ("MAKEFLAGS", "MAKELEVEL")
    }
    environment = plain | {
        "PYTHONPATH": str(folder),
        "VENV": sys.prefix,
        "TRAINAUG_DATA": str(DATA_CACHE),
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_changing_an_experiment(checkout: Path) -> None:
    shown = run(blocks("step")["change"], checkout)
    assert "digits_random, momentum = 0.5" in shown
    assert re.search(r"^test/accuracy +0\.\d+ +0\.\d+ ", shown, re.MULTILINE)


def test_adding_a_chapter_and_its_claim(checkout: Path) -> None:
    before = run("git ls-files", checkout).split()
    for name, text in blocks("file").items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text, encoding="utf-8")
    run(blocks("step")["notebook"], checkout)
    shown = run(blocks("step")["evidence"], checkout)
    assert "chapter 09: published" in shown
    assert re.search(r"mom\.1 .*(holds|no gain|opposite|mixed|open)", shown)
    # nothing that was there had to change, but for what `judge` writes
    moved = run("git diff --name-only start", checkout).split()
    written = ("results/", "README.md", "notebooks/08_", "notebooks/00_")
    assert [name for name in moved if name in before and not name.startswith(written)] == []
    assert "mom.1" in (checkout / "notebooks/08_scoreboard.ipynb").read_text(encoding="utf-8")


def test_adding_a_claim_to_a_chapter_that_has_records(checkout: Path) -> None:
    ((number, entry),) = blocks("claim").items()
    with (checkout / "claims" / f"{number}.yaml").open("a", encoding="utf-8") as ledger:
        ledger.write(f"\n{entry}")
    run(f"make judge CHAPTERS={number}", checkout)
    run(f"git commit -qm 'A claim' claims/{number}.yaml", checkout)
    run(f"make pose CHAPTERS={number}", checkout)
    shown = run("make claims", checkout)
    assert re.search(r"ord\.13 +ours .*no gain of 0\.5 points", shown)
