"""Run a model in eval mode and leave it as it was, whatever function it is wrapped in.

Chapter: notebooks/06_linear_robustness.ipynb
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

__all__ = ["eval_mode"]

_MOST_OBJECTS = 10_000  # searched for modules; those further away are noticed when called
_SYNC = ("require_backward_grad_sync", "require_forward_param_sync")


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in code, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function inside
            yield from _names(constant)


def _function_contents(function: FunctionType) -> Iterator[Any]:
    """Yield what a function holds: its closure, defaults, attributes and the globals it names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _contents(item: Any) -> Iterator[Any]:
    """Yield what an object holds, any of which may be a module or hold one."""
    if isinstance(item, nn.Module):  # modules that are not submodules, as in a list
        for part in item.modules():
            values = (value for name, value in vars(part).items() if name[0] != "_")
            yield from (value for value in values if not isinstance(value, torch.ScriptMethod))
    elif isinstance(item, functools.partial):
        yield from (item.func, *item.args, *item.keywords.values())
    elif isinstance(item, MethodType):
        yield from (item.__self__, item.__func__)
    elif isinstance(item, FunctionType):
        yield from _function_contents(item)
    elif isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, (list, tuple, set, frozenset)):
        yield from item
    elif hasattr(item, "__dict__") and not isinstance(item, (type, ModuleType, Tensor)):
        yield from vars(item).values()


def _reached(model: Callable[..., Any]) -> list[Any]:
    """Return a callable and all that it holds, directly or through others, the nearest first."""
    waiting: deque[Any] = deque([model])
    known: dict[int, Any] = {}  # it holds the objects, so that no id is used twice
    while waiting and len(known) < _MOST_OBJECTS:
        item = waiting.popleft()
        if id(item) in known:
            continue
        if isinstance(item, torch.ScriptMethod):
            raise TypeError("pass a scripted module itself, or a function of it: not its method")
        known[id(item)] = item
        waiting.extend(_contents(item))
    return list(known.values())


def _is_compiled(item: Any) -> bool:
    """Whether an object is, or has a part that is, compiled by ``torch.compile``."""
    if isinstance(item, nn.Module):
        return any("_orig_mod" in m._modules or m._compiled_call_impl for m in item.modules())
    return isinstance(item, FunctionType) and hasattr(item, "_torchdynamo_orig_callable")


class _Modules:
    """Modules that were put into eval mode, with the modes, flags and buffers that they had."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.modes: list[tuple[nn.Module, bool]] = []
        self.syncs: list[tuple[nn.Module, tuple[bool, ...]]] = []
        self.buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def add(self, module: nn.Module) -> None:
        """Put a module and its parts into eval mode, unless they are already known."""
        if id(module) in self.known:
            return
        parts = [part for part in module.modules() if id(part) not in self.known]
        self.known |= {id(part) for part in parts}
        # All modes are read before one is set: a compiled module shares that of the one inside.
        self.modes += [(part, part.training) for part in parts]
        for part in parts:
            part.training = False
            for name, buffer in part.named_buffers(recurse=False):
                if not is_lazy(buffer) and not buffer.is_meta and buffer.layout == torch.strided:
                    self.buffers.append((part, name, buffer, buffer.detach().clone()))
            if isinstance(part, nn.parallel.DistributedDataParallel):
                # It would wait for gradients of the weights, which an attack does not compute.
                self.syncs.append((part, tuple(getattr(part, name) for name in _SYNC)))
                part.require_backward_grad_sync = False

    def restore(self) -> None:
        # backwards: a module added later may share a mode that was switched off already
        for part, mode in reversed(self.modes):
            part.training = mode
        for part, values in self.syncs:
            for name, value in zip(_SYNC, values, strict=True):
                setattr(part, name, value)
        with torch.no_grad():
            for part, name, buffer, before in self.buffers:
                if getattr(part, name, None) is not buffer:
                    setattr(part, name, buffer)
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


_attacked = threading.local()  # the modules of the attacks that a thread is in, the innermost last


def _before_forward(module: nn.Module, _: Any) -> None:
    """Add a module that is about to run to the innermost attack of this thread, if there is one."""
    for modules in getattr(_attacked, "stack", [])[-1:]:  # other threads may train meanwhile
        modules.add(module)


@contextmanager
def eval_mode(model: Callable[..., Any]) -> Iterator[None]:
    """Keep every module that a callable runs in eval mode; restore modes and buffers at the end.

    Modules are searched for in what the callable holds: bound objects, arguments of partials,
    closures, attributes, globals that it names. Any other module is noticed when it is called,
    before its forward pass, unless something in the callable is compiled: the hook that notices it
    would make that compile anew for each attack. Buffers that change in eval mode are restored.

    Args:
        model: A module, or any callable that runs modules.

    Raises:
        TypeError: If the callable is a method of a scripted module, which hides its module.
    """
    modules = _Modules()
    items = _reached(model)
    stack = _attacked.__dict__.setdefault("stack", [])
    is_watched = not any(map(_is_compiled, items))
    handle = register_module_forward_pre_hook(_before_forward) if is_watched else None
    stack.append(modules)
    try:
        for item in items:
            if isinstance(item, nn.Module):
                modules.add(item)
        yield
    finally:
        if handle is not None:
            handle.remove()
        stack.remove(modules)
        modules.restore()
