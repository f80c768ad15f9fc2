"""Digests of code. They are keys of caches; whether results still hold is for canaries to say.

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

# Code that every run passes through besides the chapter's own.
_SHARED = (
    "companion/evidence/canonical.py",
    "companion/evidence/store.py",
    "companion/lab/*.py",
    "companion/lab/canary/*.py",
)
# Files of numbers that decide runs.
_SETTINGS = ("{folder}/tuned.toml",)

# Modules whose code can move a result; an import of any other is not followed.
_COUNTED = re.compile(r"(trainaug\.|companion\.(lab|chapters|evidence\.(store|canonical))(\.|$))")
_WORKER = "companion.lab.worker"


def _file(module: str, root: Path) -> Path | None:
    """Source file of a module or package below ``root``, if there is one."""
    stem = root.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the absolute names that a module imports; ``from a import b`` gives ``a``, ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            # one dot means the folder of the module; a package is itself that folder
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
    """Remove the docstrings from a tree, in place."""
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
    """Hash all that the canaries of a chapter depend on, so that unchanged chapters can be skipped.

    Beyond `code_digest` it covers the sweep, the recorder of canaries and the tuned settings.

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
