"""Names say what a thing is: words that could stand for anything are no names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from companion.paths import COMPANION, LIBRARY, ROOT

VAGUE = {"found", "of", "look", "place", "own"}
FILES = sorted([*LIBRARY.rglob("*.py"), *COMPANION.rglob("*.py")])


def names_of(function: ast.FunctionDef) -> set[str]:
    """The name of a function, of its parameters and of its locals."""
    nodes = list(ast.walk(function))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    parameters = {n.arg for n in nodes if isinstance(n, ast.arg)}
    return {function.name} | stored | parameters


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_and_no_local_has_a_vague_name(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert {f.name for f in functions if names_of(f) & VAGUE} == set()
