"""No number is made by a function of torch whose bytes depend on the processor."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from companion.paths import ROOT

FOLDERS = ("trainaug/methods", "trainaug/training", "trainaug/data", "companion/lab")
FUNCTIONS = {
    *("sqrt", "sqrt_", "log2", "log2_", "log10", "log10_", "atan", "arctan", "tan", "acos", "asin"),
    *("arccos", "arcsin", "cholesky", "cholesky_ex"),
}
OPTIMISERS = {"Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta"}
# Whose functions of these names are fine: the C library's, NumPy's, ours, cvxpy's, and the interval
# arithmetic of python-flint.
OTHERS = {"math", "np", "numpy", "roots", "cp", "arb"}


def owner(node: ast.expr) -> str:
    """Name that an expression begins with: ``arb`` of ``arb(2).sqrt``."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def complaints(source: str) -> Iterator[str]:
    """Describe every call in a module that is not portable."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = FUNCTIONS & {alias.name for alias in node.names}
            yield from (f"line {node.lineno}: {name} of torch" for name in sorted(names))
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else owner(function)
        if (
            isinstance(function, ast.Attribute)
            and name in FUNCTIONS
            and owner(function.value) not in OTHERS
        ):
            yield f"line {node.lineno}: {name} of torch; see trainaug.roots, docs/portability.md"
        if name in OPTIMISERS:
            fused = {k.arg: k.value for k in node.keywords}.get("fused")
            if not (isinstance(fused, ast.Constant) and fused.value is True):
                yield f"line {node.lineno}: {name} without fused=True"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_call_depends_on_the_processor(folder: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): lines
        for path in sorted(Path(ROOT, folder).rglob("*.py"))
        if (lines := list(complaints(path.read_text("utf-8"))))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "line",
    [
        "y = x.sqrt()",
        "y = torch.sqrt(x)",
        "y = torch.linalg.cholesky(x)",
        "y = (a + b).square().sum().sqrt()",
        "y = torch.log10(x)",
        "from torch import sqrt",
        "o = torch.optim.AdamW(p, lr=1)",
        "o = Adam(p, fused=False)",
        "o = RMSprop(p)",
    ],
)
def test_each_kind_of_call_is_seen(line: str) -> None:
    assert list(complaints(line))


@pytest.mark.parametrize(
    "line",
    ["math.sqrt(2)", "np.log10(x)", "roots.sqrt(x)", "sqrt(x)", "Adam(p, fused=True)", "x.log()"],
)
def test_portable_calls_are_left_alone(line: str) -> None:
    assert not list(complaints(line))
