"""The table of what to import: everything in it can be imported, and is public."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "choose.md"
ROW = re.compile(r"^\| .+ \| `from ([\w.]+) import ([\w, ]+)` \| \[.+\]\((\S+)\) \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def test_every_import_of_the_page_is_read() -> None:
    """A row that the expression does not read would go untested."""
    assert len(ROWS) == PAGE.read_text(encoding="utf-8").count("`from ")
    assert ROWS


@pytest.mark.parametrize(("module", "names", "card"), ROWS)
def test_import_of_the_table_is_public(module: str, names: str, card: str) -> None:
    """The name is in `__all__` and there, and the card exists."""
    package = importlib.import_module(module)
    for name in names.split(", "):
        assert name in package.__all__
        assert hasattr(package, name)
    assert (PAGE.parent / card).is_file()
