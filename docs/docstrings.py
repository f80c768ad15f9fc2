"""How docstrings become pages: formulas, tables of names, constants, and links to the chapters.

Docstrings hold formulas as `$...$` and names in single backticks, which read well in a terminal.
The hooks below turn them into what Sphinx knows before its extension for Google's style sees them.
"""

import importlib
import pkgutil
import re
from functools import cache
from types import ModuleType
from typing import Any

from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer

_DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_MATH = re.compile(r"(``.*?``)|(\w?)\$([^$]+)\$(\w?)", re.DOTALL)
_SHORT = {
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.nn.modules.container.Sequential": "torch.nn.Sequential",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "torch.utils.data.sampler.Sampler": "torch.utils.data.Sampler",
    "torch.utils.data.dataset.Dataset": "torch.utils.data.Dataset",
    "tuple": "NamedTuple",
}
_CHAPTER = re.compile(r"^Chapter: notebooks/(\w+)\.ipynb$")


def _inline(match: re.Match[str]) -> str:
    """Write a formula as a role, which must not touch a letter."""
    code, before, formula, after = match.groups()
    if code:
        return code
    joined = " ".join(formula.split())
    start = f"{before}\\ " if before else ""
    return f"{start}:math:`{joined}`" + (f"\\ {after}" if after else "")


def with_formulas(text: str) -> str:
    """Turn `$...$` and `$$...$$` of a paragraph into what reStructuredText has for them."""
    text = _DISPLAY.sub(lambda match: f":math:`{' '.join(match[1].split())}`", text)
    return _MATH.sub(_inline, text)


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Split at empty lines; a formula may go over a line's end but not over a paragraph's."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        else:
            blocks.append([])
    return blocks


def _joined_formulas(lines: list[str]) -> list[str]:
    """Join the lines over which a formula runs."""
    joined: list[str] = []
    for line in lines:
        is_open = bool(joined) and re.sub(r"``.*?``", "", joined[-1]).count("$") % 2 == 1
        if is_open:
            joined[-1] += " " + line.strip()
        else:
            joined.append(line)
    return joined


def convert(lines: list[str]) -> list[str]:
    """Convert a docstring's lines; sessions of the interpreter stay as they are."""
    converted: list[str] = []
    for block in _paragraphs(lines):
        if any("$" in line for line in block) and not any(">>>" in line for line in block):
            block = [with_formulas(line) for line in _joined_formulas(block)]
        converted += [*block, ""]
    return converted[:-1]


@cache
def _written_here(module: str) -> dict[str, list[str]]:
    """Collect the `#:` comments of a module by name."""
    comments = ModuleAnalyzer.for_module(module).find_attr_docs()
    return {name: list(lines) for (scope, name), lines in comments.items() if not scope}


@cache
def _comments(module: str) -> dict[str, list[str]]:
    """Collect the `#:` comments that a module's names may have, its own first.

    A name may be defined in a module of the same package, or on the ground floor of `trainaug`.
    """
    is_package = hasattr(importlib.import_module(module), "__path__")
    comments = dict(_written_here(module))
    for package in (module if is_package else module.rpartition(".")[0], "trainaug"):
        folder = importlib.import_module(package).__path__
        for entry in pkgutil.iter_modules(folder, f"{package}."):
            if not entry.ispkg:
                comments = _written_here(entry.name) | comments
    return comments


def _table_of_names(module: ModuleType) -> list[str]:
    """Give the directive that lists a module's public names with their first sentences."""
    public = [f"   {name}" for name in module.__all__]
    return ["", ".. autosummary::", "   :nosignatures:", "", *public, ""]


def _constants(module: ModuleType) -> list[str]:
    """Give directives for the constants whose comments stand in another module."""
    described = _comments(module.__name__).keys() - _written_here(module.__name__).keys()
    names = [f"{module.__name__}.{name}" for name in module.__all__ if name in described]
    return [line for name in names for line in ("", f".. autodata:: {name}", "")]


def _kind(cls: type) -> list[str]:
    """Say what a class is to the rest of the world, whatever it shares with its neighbours."""
    for base in cls.__mro__[1:]:
        name = f"{base.__module__}.{base.__qualname__}".removeprefix("builtins.")
        if not name.startswith(("trainaug.", "abc.", "typing.")) and base is not object:
            return ["", f"Bases: ``{_SHORT.get(name, name)}``", ""]
    return []


def process(_app: Any, what: str, name: str, value: Any, _options: Any, lines: list[str]) -> None:
    """Convert one docstring in place."""
    if what == "data":
        module, _, attribute = name.rpartition(".")
        lines[:] = _comments(module).get(attribute, [])  # never what `dict` or `tuple` say
    lines[:] = convert(lines)
    if what in ("class", "exception") and isinstance(value, type):
        first = lines.index("") if "" in lines else len(lines)
        lines[first:first] = _kind(value)
    if what == "module":
        for i, line in enumerate(lines):
            if match := _CHAPTER.match(line):
                lines[i] = f"Chapter: :doc:`/chapters/{match[1]}`."
                lines.insert(i + 1, "")
                break
        if hasattr(value, "__all__"):
            lines.extend(_table_of_names(value) + _constants(value))


def skip_member(
    _app: Any, what: str, _name: str, value: Any, _skip: bool, _options: Any
) -> bool | None:
    """Leave out the fields of named tuples, whose meaning the class explains."""
    doc = getattr(value, "__doc__", None) or ""
    is_field = what == "class" and doc.startswith("Alias for field number")
    return True if is_field else None


def setup(app: Any) -> dict[str, bool]:
    """Register the hooks, the first of them ahead of the extension for Google's style."""
    if "sphinx.ext.napoleon" not in app.extensions:
        raise ExtensionError("docstrings must be loaded after sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True}
