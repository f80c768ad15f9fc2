"""The numbers that claims are about: arithmetic on arms, written in the ledger.

``log(digits_poa / digits_random)`` of ``steps_to_target`` is evaluated on the records of one seed.
An arm's name stands for the metric that ``of`` gives, ``arm["test/loss"]`` for another metric of
it, ``arm.curve["loss"]`` for a curve and ``arm.curve["loss"][-1]`` for one entry. A function of the
chapter takes arms whole: ``last_lead(orders_cnn_bn)``.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import math
import operator
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.evidence.names import did_you_mean

__all__ = ["Formula", "Function", "Items", "source_hash"]

Record = Mapping[str, Any]
Function = Callable[..., float]
Items = NDArray[np.float64]

# Logarithms go through `math`: NumPy's choose a kernel by the processor, with other last digits.
_BUILT_IN: dict[str, Callable[..., Any]] = {
    "log": math.log,
    "log2": math.log2,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "abs": abs,
    "mean": lambda *x: math.fsum(_flat(x)) / len(_flat(x)),
    "max": lambda *x: max(_flat(x)),
    "min": lambda *x: min(_flat(x)),
}
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _flat(values: Sequence[Any]) -> list[float]:
    """Numbers of a call's arguments, which are one sequence or single numbers."""
    if len(values) == 1 and isinstance(values[0], list | tuple | np.ndarray):
        return [float(v) for v in values[0]]
    return [float(v) for v in values]


class Formula:
    """One formula of the ledger.

    Args:
        text: Arithmetic on arms.
        metric: Metric that an arm's bare name stands for; may be empty if none stands alone.

    Raises:
        ValueError: If the text is anything but arithmetic on arms.

    Example:
        >>> runs = [{"arm": "a", "metrics": {"loss": 4.0}}, {"arm": "b", "metrics": {"loss": 2.0}}]
        >>> Formula("a / b - 1", "loss").evaluate(runs)
        1.0
    """

    def __init__(self, text: str, metric: str = "") -> None:
        self.text = " ".join(text.split())
        self.metric = metric
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"not a formula: {self.text!r}: {error.msg}") from error
        self._check(self._tree)

    def __repr__(self) -> str:
        return f"Formula({self.text!r}, {self.metric!r})"

    @cached_property
    def arms(self) -> list[str]:
        """Arms that the formula reads, each once, in the order of their first mention."""
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        names = (
            node.id
            for node in _in_order(self._tree)
            if isinstance(node, ast.Name) and id(node) not in called
        )
        return list(dict.fromkeys(names))

    @cached_property
    def functions(self) -> list[str]:
        """Functions of the chapter that the formula calls."""
        called = [node.func for node in ast.walk(self._tree) if isinstance(node, ast.Call)]
        names = {node.id for node in called if isinstance(node, ast.Name)}
        return sorted(names - _BUILT_IN.keys())

    def evaluate(
        self, records: Iterable[Record], functions: Mapping[str, Function] | None = None
    ) -> float:
        """Compute the number from the records of one seed.

        Args:
            records: Records with ``arm``, ``metrics`` and ``curves``.
            functions: The chapter's functions by name.

        Raises:
            KeyError: If an arm, a metric or a curve is absent.
            ValueError: If an arm has two records, or a function is unknown.
        """
        return float(self._value(records, functions or {}))

    def evaluate_items(
        self, records: Iterable[Record], items: Callable[[Record, str], Items | None]
    ) -> Items | None:
        """Evaluate the formula for each test item, as an array ``(N,)``.

        The result is ``None`` if an arm has no items, or the formula is more than arithmetic on one
        metric and so has no value for an item.

        Args:
            records: Records of one seed.
            items: Gives the values ``(N,)`` of a record's test items for a metric, if it has them.

        Raises:
            KeyError: If an arm is absent.
            ValueError: If an arm has two records.
        """
        if not self.metric or self.functions or self._reads_more_than_a_metric:
            return None
        rows = []
        for record in records:
            if record["arm"] in self.arms:
                if (values := items(record, self.metric)) is None:
                    return None
                rows.append({"arm": record["arm"], "metrics": {self.metric: values}})
        return np.asarray(self._value(rows, {}), np.float64)

    @cached_property
    def _reads_more_than_a_metric(self) -> bool:
        others = ast.Subscript | ast.Attribute | ast.Call | ast.Compare
        return any(isinstance(node, others) for node in ast.walk(self._tree))

    def _value(self, records: Iterable[Record], known: Mapping[str, Function]) -> Any:
        """Walk the checked tree; numbers come from the records, functions from ``known``."""
        by_arm: dict[str, Record] = {}
        wanted = set(self.arms)
        for record in records:
            arm = record["arm"]
            if arm in wanted and by_arm.setdefault(arm, record) is not record:
                raise ValueError(f"two records of {arm!r} for one seed: which does {self} mean?")
        if unknown := [name for name in self.functions if name not in known]:
            hint = did_you_mean(unknown[0], known)
            raise ValueError(f"unknown function {unknown[0]!r} in {self.text!r}{hint}")

        def record_of(arm: str) -> Record:
            if arm not in by_arm:
                raise KeyError(f"no record of {arm}")
            return by_arm[arm]

        def value(node: ast.expr) -> Any:
            match node:
                case ast.Constant(number):
                    return number
                case ast.Name(arm):
                    return record_of(arm)["metrics"][self.metric]
                case ast.Subscript(ast.Name(arm), ast.Constant(str() as name)):
                    return record_of(arm)["metrics"][name]
                case ast.Subscript(
                    ast.Attribute(ast.Name(arm), "curve"), ast.Constant(str() as name)
                ):
                    return record_of(arm)["curves"][name]
                case ast.Subscript(curve, index):
                    return value(curve)[value(index)]
                case ast.UnaryOp(ast.USub(), operand):
                    return -value(operand)
                case ast.BinOp(left, sign, right):
                    return _OPERATORS[type(sign)](value(left), value(right))
                case ast.Compare(left, [sign], [right]):
                    return _COMPARISONS[type(sign)](value(left), value(right))
                case ast.Call(ast.Name(name), arguments, []) if name in _BUILT_IN:
                    return _BUILT_IN[name](*map(value, arguments))
                case ast.Call(ast.Name(name), arguments, []):
                    return known[name](*map(argument, arguments))
            raise AssertionError(f"unchecked formula {self.text!r}")

        def argument(node: ast.expr) -> Any:
            return record_of(node.id) if isinstance(node, ast.Name) else value(node)

        return value(self._tree)

    def _check(self, node: ast.expr) -> None:
        """Refuse every node that `_value` does not evaluate."""
        match node:
            case ast.Constant(int() | float()) | ast.Name():
                if isinstance(node, ast.Name) and not self.metric:
                    raise ValueError(
                        f"{node.id!r} in {self.text!r} stands alone, but `of` is empty"
                    )
                return
            case ast.Subscript(ast.Name(), ast.Constant(str())):
                return
            case ast.Subscript(ast.Attribute(ast.Name(), "curve"), ast.Constant(str())):
                return
            case ast.Subscript(ast.Subscript() as curve, ast.Constant(int())):
                return self._check(curve)
            case ast.Subscript(
                ast.Subscript() as curve, ast.UnaryOp(ast.USub(), ast.Constant(int()))
            ):
                return self._check(curve)
            case ast.UnaryOp(ast.USub(), operand):
                return self._check(operand)
            case ast.BinOp(left, sign, right) if type(sign) in _OPERATORS:
                self._check(left)
                return self._check(right)
            case ast.Compare(left, [sign], [right]) if type(sign) in _COMPARISONS:
                self._check(left)
                return self._check(right)
            case ast.Call(ast.Name(name), arguments, []) if arguments:
                for each in arguments:
                    is_text = isinstance(each, ast.Constant) and isinstance(each.value, str)
                    whole = name not in _BUILT_IN and (isinstance(each, ast.Name) or is_text)
                    if not whole:
                        self._check(each)
                return None
        raise ValueError(f"not arithmetic on arms: {ast.unparse(node)!r} in {self.text!r}")


def _in_order(node: ast.AST) -> Iterable[ast.AST]:
    """Yield the nodes of a tree in the order of the text; `ast.walk` goes level by level."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def source_hash(function: Function) -> str:
    """Hash what a function computes: its code, and the code and constants that it names.

    Comments, layout and docstrings do not count. Of code from outside this project only the name
    counts.

    Args:
        function: A function at the top of a module of this project.

    Returns:
        Hexadecimal sha256.

    Raises:
        ValueError: If it reads an object whose text changes from process to process.
    """
    digest = hashlib.sha256()
    for name, text in sorted(_sources(function, {}).items()):
        digest.update(f"{name}\n{text}\n".encode())
    return digest.hexdigest()


@cache
def _code_and_names(value: Any) -> tuple[str, frozenset[str]]:
    """Code of a function or class, and all names in it; docstrings and names of locals removed."""
    # `cleandoc` takes the first line for less indented than the others, so it gets an empty one
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(value)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = frozenset(node.id for node in names)
    if inspect.isfunction(value):
        _number_locals(tree, names)
    return ast.unparse(tree), used


def _number_locals(tree: ast.AST, names: Sequence[ast.Name]) -> None:
    """Give the locals of a function numbers for names, in order, so that renaming changes no rule.

    Parameters keep their names: a caller may give arguments by them, so swapping two is a change.
    """
    parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assigned = [node.id for node in names if isinstance(node.ctx, ast.Store)]
    # no identifier contains a space: none can be mistaken for a number
    numbers = {name: f"local {k}" for k, name in enumerate(dict.fromkeys(assigned))}
    for node in names:
        if node.id not in parameters:
            node.id = numbers.get(node.id, node.id)


def _sources(value: Any, sources: dict[str, str]) -> dict[str, str]:
    """Add to ``sources``, by name, the code of a function or class and of all that it names."""
    # without the packages, so that moving a file changes no rule
    name = f"{value.__module__.rpartition('.')[2]}.{value.__qualname__}"
    if name in sources:
        return sources
    sources[name], used = _code_and_names(value)
    scope = vars(inspect.getmodule(value))
    for each in sorted(used & scope.keys() - vars(builtins).keys()):
        other = scope[each]
        module = getattr(other, "__module__", "") or ""
        if isinstance(other, types.FunctionType | type) and module.startswith(
            ("companion.", "trainaug.")
        ):
            _sources(other, sources)
        elif not isinstance(other, types.ModuleType | types.FunctionType | type):
            if " at 0x" in (shown := repr(other)):
                raise ValueError(f"{name} reads {each}, whose value has no stable text: {shown}")
            sources[f"{name}: {each}"] = shown
    return sources
