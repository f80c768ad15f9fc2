"""Every public name says what it takes, gives and raises, and where it comes from."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trainaug
from trainaug import checks
from trainaug.methods.autoassist import assistant

METHODS = (
    "attacks",
    "autoassist",
    "cascading_sum",
    "gradient_clustering",
    "hard_negatives",
    "linear_robustness",
    "ordering",
)
# Parts of a protocol of torch: the same arguments in every class, so a docstring is enough.
PROTOCOL = {
    "state_dict",
    "load_state_dict",
    "get_extra_state",
    "set_extra_state",
    "set_epoch",
    "extra_repr",
}
# These modules read, move and check; they follow no work, so there is no source to name.
PLUMBING = {
    "trainaug.structures",
    *(f"trainaug.training.{name}" for name in ("devices", "loop", "models", "randomness")),
    *(f"trainaug.data.{name}" for name in ("archives", "arrays", "fetch", "files", "indexed")),
    *(f"trainaug.data.{name}" for name in ("paths", "placeholders", "progress", "registry")),
}
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples|Notes?):$")
_ENTRY = re.compile(r"^\*{0,2}(\w+)(?:, \*{0,2}\w+)*(?: \([^)]*\))?:")
_SOURCE = re.compile(
    r"^References?:|\barXiv\b|https?://|\b(?:thesis|paper|authors|ours)\b|\bet al\."
    r"|\b(?:19|20)\d\d\b"
    r"|\b(?:Section|Algorithm|Theorem|Proposition|Lemma|eq|Table|Figure|Appendix)s?\.? \(?[\dA-Z]",
    re.IGNORECASE | re.MULTILINE,
)


def public_modules() -> Iterator[ModuleType]:
    """Yield the modules that users import from: the seven packages, and the others' modules."""
    for name in METHODS:
        yield importlib.import_module(f"trainaug.methods.{name}")
    for package in ("trainaug.training", "trainaug.data"):
        folder = importlib.import_module(package)
        for entry in pkgutil.iter_modules(folder.__path__, f"{package}."):
            module = importlib.import_module(entry.name)
            if hasattr(module, "__all__") and not entry.name.endswith("__main__"):
                yield module


def public_names() -> list[Any]:
    """List a module and a name for each public name."""
    return [
        pytest.param(module, name, id=f"{module.__name__.removeprefix('trainaug.')}.{name}")
        for module in public_modules()
        for name in module.__all__
    ]


def sections(docstring: str) -> dict[str, str]:
    """Split a docstring in Google's style; the text before the first section has the key ''."""
    parts: dict[str, list[str]] = {"": []}
    current = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if _SECTION.match(line):
            current = line.rstrip(":")
            parts[current] = []
        elif current and line and not line.startswith(" "):
            current = ""
            parts[""].append(line)
        else:
            parts[current].append(line)
    return {name: textwrap.dedent("\n".join(lines)).strip() for name, lines in parts.items()}


def entries(section: str) -> set[str]:
    """Names that a section explains; `a, b: ...` explains both."""
    names: set[str] = set()
    for line in section.splitlines():
        if match := _ENTRY.match(line):
            names.update(re.findall(r"\w+", re.sub(r"\([^)]*\)", "", match[0])))
    return names


def explained(docstring: str, module: ModuleType) -> set[str]:
    """Names that the docstring explains, itself or by "as in `other`"."""
    parts = sections(docstring)
    names = entries(parts.get("Args", "")) | entries(parts.get("Attributes", ""))
    for other in re.findall(r"\bas (?:in|of|for|to) `([\w.]+)`", docstring):
        target: Any = module
        for step in other.split("."):
            target = getattr(target, step, None)
        if target is not None and target.__doc__:
            names |= entries(sections(target.__doc__).get("Args", ""))
    return names


@cache
def _tree(module_name: str) -> ast.Module:
    source = inspect.getsource(importlib.import_module(module_name))
    return ast.parse(source)


#: Functions that check arguments: what they raise is what their callers raise.
CHECKS = {
    *(getattr(checks, name) for name in checks.__all__),
    assistant.check_losses,
    assistant.example_numbers,
}


def raised_names(function: Callable[..., Any]) -> set[str]:
    """Exceptions that the body of a function raises, itself or by one of `CHECKS`.

    Nested functions are left out.
    """
    wanted = inspect.unwrap(function)
    line = wanted.__code__.co_firstlineno
    nodes = [
        node
        for node in ast.walk(_tree(wanted.__module__))
        if isinstance(node, ast.FunctionDef)
        and node.name == wanted.__name__
        and line in (node.lineno, *(d.lineno for d in node.decorator_list))
    ]
    names: set[str] = set()
    waiting: list[ast.AST] = [child for node in nodes for child in node.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(error).rpartition(".")[2]
            if name[0].isupper() and name != "AssertionError":
                names.add(name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = wanted.__globals__.get(node.func.id)
            if inspect.isfunction(called) and called in CHECKS:
                names |= raised_names(called)
        waiting.extend(ast.iter_child_nodes(node))
    return names


def _parameters(function: Callable[..., Any]) -> list[str]:
    names = list(inspect.signature(function).parameters)
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def _gives_something(function: Callable[..., Any]) -> bool:
    given = inspect.signature(function).return_annotation
    return given not in (None, "None", "NoReturn", "Never", inspect.Signature.empty)


def gaps_of_function(
    function: Callable[..., Any], docstring: str | None, module: ModuleType, label: str
) -> list[str]:
    """Say what the docstring of a function or method lacks."""
    if not docstring:
        return [f"{label}: no docstring"]
    gaps = []
    missing = [name for name in _parameters(function) if name not in explained(docstring, module)]
    if missing:
        gaps.append(f"{label}: Args lacks {', '.join(missing)}")
    extra = entries(sections(docstring).get("Args", "")) - set(_parameters(function))
    if extra:
        gaps.append(f"{label}: Args explains {', '.join(sorted(extra))}, which it does not take")
    return (
        gaps
        + _gaps_of_result(function, docstring, label)
        + _gaps_of_raises(raised_names(function), docstring, label)
    )


def _gaps_of_result(function: Callable[..., Any], docstring: str, label: str) -> list[str]:
    parts = sections(docstring)
    said = "Returns" in parts or "Yields" in parts
    # Google's guide: a summary such as "Return the mixed batch." is the description
    said = said or re.match(r"(Return|Yield)\b", parts[""]) is not None
    return [] if said or not _gives_something(function) else [f"{label}: no Returns"]


def _gaps_of_raises(names: set[str], docstring: str, label: str) -> list[str]:
    section = sections(docstring).get("Raises", "")
    missing = sorted(name for name in names if not re.search(rf"\b{name}\b", section))
    return [f"{label}: Raises lacks {', '.join(missing)}"] if missing else []


def gaps_of_class(cls: type, module: ModuleType, label: str) -> list[str]:
    """Say what the docstrings of a class and of its own public methods lack."""
    if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):  # a dataclass makes its own
        return [f"{label}: no docstring"]
    init = cls.__dict__.get("__init__")
    taken: list[str] = []
    raised: set[str] = set()
    if dataclasses.is_dataclass(cls):
        taken = [field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")]
        init = cls.__dict__.get("__post_init__")
    elif issubclass(cls, tuple) and hasattr(cls, "_fields"):
        taken = list(cls._fields)
    elif getattr(cls, "_is_protocol", False):
        init = None  # a protocol makes its own, which only refuses
    elif init is not None:
        taken = _parameters(init)
    if init is not None:
        raised = raised_names(init)
    written = cls.__doc__ + ("\n" + inspect.cleandoc(init.__doc__) if init and init.__doc__ else "")
    missing = [name for name in taken if name not in explained(cls.__doc__, module)]
    gaps = [f"{label}: Args lacks {', '.join(missing)}"] if missing else []
    known = inspect.cleandoc(cls.__doc__) + "\n" + written
    gaps += _gaps_of_raises(raised, known if "Raises:" in cls.__doc__ else written, label)
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__call__":
            continue
        where = f"{label}.{name}"
        if isinstance(member, property):
            gaps += [] if member.__doc__ else [f"{where}: no docstring"]
            continue
        member = getattr(member, "__func__", member)
        if not inspect.isfunction(member):
            continue
        if name in PROTOCOL:
            gaps += [] if member.__doc__ else [f"{where}: no docstring"]
        else:
            gaps += gaps_of_function(member, member.__doc__, module, where)
    return gaps


def _home(value: Any, module: ModuleType) -> ModuleType:
    name = getattr(value, "__module__", None)
    known = isinstance(name, str) and name.startswith("trainaug")
    return importlib.import_module(name) if known else module


def _is_described_constant(module: ModuleType, name: str) -> bool:
    """Whether a constant or an alias has a `#:` comment, which the site shows, in its module."""
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    comment = re.compile(rf"^#: .*\n(?:#:.*\n)*{name}\b[^=\n]*=", re.MULTILINE)
    sources = [
        inspect.getsource(importlib.import_module(entry.name))
        for folder in (package, "trainaug")
        for entry in pkgutil.iter_modules(importlib.import_module(folder).__path__, f"{folder}.")
        if not entry.ispkg and not entry.name.endswith("__main__")
    ]
    return any(comment.search(source) for source in sources)


def gaps(module: ModuleType, name: str) -> list[str]:
    """Say what the documentation of a public name lacks."""
    value = getattr(module, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return [] if _is_described_constant(module, name) else [f"{name}: no `#:` comment"]
    home = _home(value, module)
    lacking = (
        gaps_of_class(value, home, name)
        if inspect.isclass(value)
        else gaps_of_function(value, value.__doc__, home, name)
    )
    named = _SOURCE.search((home.__doc__ or "") + "\n" + (value.__doc__ or ""))
    if not named and home.__name__ not in PLUMBING:
        lacking.append(f"{name}: neither its docstring nor that of {home.__name__} names a source")
    return lacking


@pytest.mark.parametrize(("module", "name"), public_names())
def test_public_name_is_documented(module: ModuleType, name: str) -> None:
    """The API reference of the site is these docstrings; what they lack nobody learns."""
    assert gaps(module, name) == []


def test_no_docstring_has_a_section_twice() -> None:
    """Sphinx would print it twice; a merge of two edits leaves such."""
    twice = []
    for file in sorted(Path(trainaug.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                heads = [line for line in text.splitlines() if _SECTION.match(line)]
                if len(heads) != len(set(heads)):
                    twice.append(f"{file.name}: {node.name}")
    assert twice == []
