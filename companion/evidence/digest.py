"""Digests of code: keys of caches, never a judgement of freshness.

The digest covers the modules that a chapter's runs import, directly or not, and those of the
process that computes them: its kernels and the rounding of the store. Comments, layout and
docstrings do not count; a constant does.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from companion.paths import ROOT

__all__ = ["behaviour_digest", "code_digest", "imported_modules"]

# What every run passes through besides the chapter's own code, and the numbers kept in files.
_SHARED = (
    "companion/evidence/canonical.py",
    "companion/evidence/store.py",
    "companion/lab/*.py",
    "companion/lab/canary/*.py",
)
_SETTINGS = ("{folder}/tuned.toml",)

_COUNTED = re.compile(r"(trainaug\.|companion\.(lab|chapters|evidence\.(store|canonical))(\.|$))")
_WORKER = "companion.lab.worker"


def _file(module: str, root: Path) -> Path | None:
    stem = root.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imported_modules(entry: str, root: Path = ROOT) -> dict[str, Path]:
    """Find the counted modules that ``entry`` imports, itself included, transitively.

    Args:
        entry: Dotted name such as ``companion.chapters.linear_robustness.runs``.
        root: Folder of the packages.

    Returns:
        Module names and their files, sorted by name.

    Raises:
        ModuleNotFoundError: If ``entry`` has no file.
    """
    if _file(entry, root) is None:
        raise ModuleNotFoundError(f"no module {entry} below {root}")
    modules: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        path = _file(module, root)
        if module in modules or path is None or not _COUNTED.match(module):
            continue
        modules[module] = path
        tree = ast.parse(path.read_bytes())
        waiting.extend(_imports(tree, module, is_package=path.name == "__init__.py"))
        parent = module.rpartition(".")[0]
        waiting.append(parent)
    return dict(sorted(modules.items()))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@cache
def code_digest(entry: str, root: Path = ROOT) -> str:
    """Hash the code that computes ``entry``; arguments and errors as in `imported_modules`.

    Returns:
        Hexadecimal sha256, the same for every layout of the same code.
    """
    modules = imported_modules(entry, root)
    modules |= imported_modules(_WORKER, root)
    digest = hashlib.sha256()
    for module, path in sorted(modules.items()):
        source = ast.unparse(_without_docstrings(ast.parse(path.read_bytes())))
        digest.update(f"{module}\n{source}\n".encode())
    return digest.hexdigest()


def behaviour_digest(package: str, root: Path = ROOT) -> str:
    """Hash all that the canaries of a chapter depend on, to skip them where nothing has changed.

    More than `code_digest`: sweep, recorder, versions and tuned settings count as well.

    Args:
        package: Dotted name of the chapter's folder.
        root: Folder of the packages.

    Returns:
        Hexadecimal sha256.
    """
    code = code_digest(f"{package}.arms", root)
    digest = hashlib.sha256(code.encode())
    for pattern in _SHARED:
        for path in sorted(root.glob(pattern)):
            source = ast.unparse(_without_docstrings(ast.parse(path.read_bytes())))
            digest.update(f"{path.relative_to(root)}\n{source}\n".encode())
    for pattern in _SETTINGS:
        for path in sorted(root.glob(pattern.format(folder=package.replace(".", "/")))):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
