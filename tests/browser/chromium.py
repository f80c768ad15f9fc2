"""A headless Chromium, driven over its debugging port; nothing beyond what Jupyter brings."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # root, as in containers, has none
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1400,1000",
    "--remote-debugging-port=0",
)
START_SECONDS = 60.0


def find_chromium() -> str | None:
    """Path of the browser, or none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def wait_for(what: str, ready: Callable[[], Any], seconds: float) -> Any:
    """Ask again until the answer is true; return it.

    Raises:
        TimeoutError: If it never was.
    """
    end = time.monotonic() + seconds
    while not (answer := ready()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
    return answer


class Page:
    """One page of the browser.

    Args:
        url: Address of its debugging socket.
    """

    def __init__(self, url: str) -> None:
        # with an Origin header the browser refuses the connection
        self._socket = websocket.create_connection(url, timeout=60, suppress_origin=True)
        self._numbers = itertools.count(1)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; events in between are dropped."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while (answer := json.loads(self._socket.recv())).get("id") != number:
            pass
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression in the page."""
        actual = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in actual, actual["exceptionDetails"]
        return actual["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Page]:
    """Start the browser with a new, empty profile and give its page.

    Args:
        program: Path of the browser.
        profile: Folder for what it writes.
    """
    command = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # the browser chooses a free port and writes it there
        told = profile / "DevToolsActivePort"
        wait_for("the browser's port", lambda: told.is_file() and told.read_text(), START_SECONDS)
        port = told.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            targets = json.load(answer)
        yield Page(next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page"))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
