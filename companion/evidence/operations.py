"""Which operations of torch a computation calls, and which of them are shown to be portable.

*Portable* means: in canonical mode every x86-64 processor with AVX2 computes the same bytes.
`portable_operations.toml` holds the list; `docs/portability.md` says how it was made.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["OperationRecorder", "not_shown_portable", "operation_name", "portable_operations"]

_TABLE = "portable_operations.toml"


def operation_name(function: Any, results: Any, arguments: Any = ()) -> str:
    """Name of an operation, without its overload, and the type of its result.

    Args:
        function: The overload that a `TorchDispatchMode` sees, as ``aten.exp.default``.
        results: What it returned; the first tensor in it decides the type.
        arguments: What it was given; they decide the type if the results hold no tensor, as with
            the in-place operations on lists.

    Returns:
        ``"aten.exp float32"``, or ``"aten.argmax other"`` for types that are neither floating nor
        complex, and for operations without tensors. In-place operations share the kernel, and so
        the name, of the others. A power of 0.5 has the name of the square root, which is what torch
        computes for it.
    """
    leaves = [*tree_leaves(results), *tree_leaves(arguments)]
    dtype = next((leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)), None)
    kind = "other"
    if dtype is not None and (dtype.is_floating_point or dtype.is_complex):
        kind = str(dtype).removeprefix("torch.")
    packet = _without_underscore(str(function.overloadpacket))
    if packet.endswith("pow") and any(isinstance(a, float) and a == 0.5 for a in arguments[1:2]):
        packet = packet.removesuffix("pow") + "sqrt"
    return f"{packet} {kind}"


def _without_underscore(packet: str) -> str:
    if packet.endswith("_") and not packet.endswith("__"):  # `__and__` keeps its underscores
        return packet[:-1]
    return packet


class OperationRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collect the names of all operations called inside the ``with`` block, backward included.

    Example:
        >>> import torch
        >>> with OperationRecorder() as recorder:
        ...     _ = torch.ones(2).exp()
        >>> sorted(recorder.operations)
        ['aten.exp float32', 'aten.ones float32']
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the operation and note its name."""
        results = func(*args, **(kwargs or {}))
        self.operations.add(operation_name(func, results, args))
        return results


@cache
def portable_operations() -> Mapping[str, Any]:
    """The table of `portable_operations.toml`, whose comments explain its sections."""
    return tomllib.loads(files("companion.evidence").joinpath(_TABLE).read_text("utf-8"))


def _is_allowed(packet: str, kind: str) -> bool:
    """Whether an arm may call the operation with a result of this type (see `operation_name`)."""
    table = portable_operations()
    packet = _without_underscore(packet)
    shown = table["portable"].get(packet, {})
    if (
        packet in table["exact"]["operations"]
        or kind in shown
        or kind in table["not_shown"].get(packet, ())
    ):
        return True
    if kind != "other" or packet in table["exact"]["draws"]:
        return False
    # Integers and truth values are exact. In-place operations on lists return no tensor, so "other"
    # may mean any type there, and both float types must have been shown to be portable.
    if packet.removeprefix("aten.").startswith(("_foreach", "_fused")):
        return {"float32", "float64"} <= set(shown)
    return True


def not_shown_portable(operations: Iterable[str]) -> list[str]:
    """Return, sorted, the names that are on no list of the table.

    Operations that the emulator of other processors cannot run are on the list ``not_shown``, so
    they are not returned.

    Example:
        >>> not_shown_portable(["aten.exp float32", "aten.sqrt float32", "aten.view float64"])
        ['aten.sqrt float32']
    """
    return sorted({name for name in operations if not _is_allowed(*name.rsplit(" ", 1))})
