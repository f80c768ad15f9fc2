"""JupyterLab shows every committed figure in a real browser, without a cell being run.

The notebooks are copies in a folder that no Jupyter has seen, so they are not trusted, as in a
fresh clone. Screenshots of all figures go to the folder ``TRAINAUG_SCREENSHOTS``, if it is set.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from chromium import Page, browser, find_chromium, wait_for

from companion.paths import NOTEBOOKS, RESULTS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no chromium on this machine"),
]
START_SECONDS = 120.0
SETTINGS = {
    # without this a cell is drawn only when it scrolls into view
    "notebook-extension/tracker": {"windowingMode": "none"},
    # asks for the network, and covers the page with a question
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
PICTURES = """
JSON.stringify(Array.from(document.querySelectorAll(".jp-Notebook img"), image => ({
  output: image.closest(".jp-OutputArea-output") !== null,
  loaded: image.complete && image.naturalWidth > 0,
  pixels: [image.naturalWidth, image.naturalHeight],
  shown: [image.clientWidth, image.clientHeight],
  alt: image.alt,
})))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start JupyterLab on copies of the notebooks and the key figures; its address."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder / "book" / "notebooks")
    shutil.copytree(RESULTS / "figures", folder / "book" / "results" / "figures")
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    settings = {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        settings[f"JUPYTER_{name}"] = str(folder / name.lower())
    settings["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
    ]
    command += [f"--ServerApp.root_dir={folder / 'book'}", "--IdentityProvider.token="]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for("JupyterLab", lambda: answers(f"{url}/api"), START_SECONDS)
            yield url
        finally:
            server.terminate()  # which ends its kernels too
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    assert program is not None
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
# `make soak` looks at the others as well
PICKED = [
    path if path.stem[:2] in ("00", "05") else pytest.param(path, marks=pytest.mark.soak)
    for path in PATHS
]


@pytest.mark.parametrize("path", PICKED, ids=[path.stem for path in PATHS])
def test_every_committed_figure_is_shown(path: Path, lab: str, page: Page) -> None:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    in_text = sum(c.source.count("](../results/figures/") for c in cells)

    def pictures() -> list[dict[str, object]]:
        actual: list[dict[str, object]] = json.loads(page.evaluate(PICTURES))
        return actual

    def complete() -> bool:
        drawn = page.evaluate('document.querySelectorAll(".jp-Notebook .jp-Cell").length')
        if drawn < len(cells):
            return False
        actual = pictures()
        return len(actual) >= len(figures) + in_text and all(one["loaded"] for one in actual)

    page.open(f"{lab}/doc/tree/notebooks/{path.name}?reset")
    wait_for(f"the figures of {path.name}", complete, START_SECONDS)
    shown = [one for one in pictures() if one["output"]]
    assert len(shown) == len(figures)
    for one, figure in zip(shown, figures, strict=True):
        size = figure.metadata["image/png"]
        assert one["pixels"] == [2 * size["width"], 2 * size["height"]]
        assert one["shown"] == [size["width"], size["height"]], "sharp: two pixels for one"
    beside = [one for one in pictures() if not one["output"]]
    assert len(beside) == in_text
    assert all(one["alt"] for one in beside)
    # what JupyterLab writes in the place of an output that it does not trust
    assert page.evaluate('document.body.innerText.includes("Cannot display")') is False
    if folder := os.environ.get("TRAINAUG_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for number in range(len(shown) + len(beside)):
            page.evaluate(
                f'document.querySelectorAll(".jp-Notebook img")[{number}]'
                '.scrollIntoView({block: "center"})'
            )
            page.screenshot(Path(folder) / f"{path.stem}_{number + 1}.png")
