"""Every page is in the list, says what its examples need, and has each of them run by a test."""

from __future__ import annotations

import re

import pytest
from stack_pages import PAGES, examples, packages_of

NAMES = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index")


def test_the_list_names_every_page():
    text = (PAGES / "index.md").read_text(encoding="utf-8")
    listed = re.search(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    assert listed is not None
    assert sorted(re.findall(r"^(\w+)$", listed[1], re.MULTILINE)) == NAMES


@pytest.mark.parametrize("page", NAMES)
def test_the_line_above_an_example_says_what_it_needs(page):
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(Needs `pip install .*)\n\n```python\n", text, re.MULTILINE)
    codes = list(examples(page).values())
    assert len(lines) == len(codes) > 0
    for line, code in zip(lines, codes, strict=True):
        assert ("trainaug[stacks]" in line) == bool(packages_of(code))


@pytest.mark.parametrize("page", NAMES)
def test_a_test_runs_every_example(page):
    text = (PAGES.parents[1] / "tests" / "stacks" / f"test_{page}.py").read_text(encoding="utf-8")
    assert [title for title in examples(page) if f'"{title}"' not in text] == []


@pytest.mark.parametrize("page", NAMES)
def test_examples_are_short_and_within_the_width_of_the_page(page):
    for code in examples(page).values():
        lines = code.splitlines()
        assert len(lines) <= 45
        assert max(map(len, lines)) <= 100
