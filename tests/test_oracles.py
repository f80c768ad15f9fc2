"""Every oracle of the method notes has a test."""

from __future__ import annotations

import re

from companion.paths import ROOT

# Chapter 6: the items of the note's section on oracles, its table, its rates and Theorem 7.
WANTED = {f"lin.6.{item}" for item in range(1, 16)} | {"lin.table", "lin.3", "lin.thm7"}
# Chapter 1: the items of the note's section on oracles.
WANTED |= {f"vse.{item}" for item in range(1, 16)}
# Chapter 2: the items of the note's sections 6 and 8 on oracles.
WANTED |= {f"gc.{item}" for item in range(1, 20)}
# Chapter 3: the items of the note's section 6.
WANTED |= {f"aa.{item}" for item in range(1, 12)}
# Chapter 4: the table of pitfalls, edge cases and oracles in the note.
WANTED |= {f"ord.P{item}" for item in range(1, 21)}
# Chapter 5: the same.
WANTED |= {f"csa.Q{item}" for item in range(1, 22)}


def test_every_oracle_has_a_test() -> None:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.name != "test_oracles.py":
            found |= set(re.findall(r"mark\.oracle\(\s*\"([^\"]+)\"", path.read_text("utf-8")))
    assert found <= WANTED, f"unknown ids {sorted(found - WANTED)}"
    assert found >= WANTED, f"without a test: {sorted(WANTED - found)}"
