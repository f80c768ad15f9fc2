"""Every oracle that ``docs/oracles.md`` lists has a test, and no test names another."""

from __future__ import annotations

import re

from companion.paths import ROOT


def test_every_oracle_has_a_test() -> None:
    page = (ROOT / "docs" / "oracles.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))
    actual: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.name != "test_oracles.py":
            actual |= set(re.findall(r"mark\.oracle\(\s*\"([^\"]+)\"", path.read_text("utf-8")))
    assert actual <= listed, f"unknown ids {sorted(actual - listed)}"
    assert actual >= listed, f"without a test: {sorted(listed - actual)}"
