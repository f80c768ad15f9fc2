"""Which oracles of the method notes have a test, and which have none yet and why."""

from __future__ import annotations

import re

from trainaug.paths import ROOT

# Chapter 6: the items of the note's section on oracles, its table, its rates and Theorem 7.
WANTED = {f"lin.6.{item}" for item in range(1, 16)} | {"lin.table", "lin.3", "lin.thm7"}
LATER = {
    "lin.6.10": "Fourier norms: chapter 6, part two",
    "lin.6.11": "half-spectrum weights: chapter 6, part two",
    "lin.6.12": "convolutional linear nets: chapter 6, part two",
    "lin.6.13": "depth three and more: chapter 6, part two",
    "lin.6.14": "explicit regularisers: chapter 6, part two",
    "lin.6.15": "attacks on deep models: chapter 6, part two",
}


def test_every_oracle_has_a_test_or_a_reason() -> None:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.name != "test_oracles.py":
            found |= set(re.findall(r"mark\.oracle\(\s*\"([^\"]+)\"", path.read_text("utf-8")))
    assert found <= WANTED, f"unknown ids {sorted(found - WANTED)}"
    assert WANTED - found == set(LATER), f"without a test: {sorted(WANTED - found - set(LATER))}"
