"""Leave a model as it was: all of it with its optimiser and all random states, or its modes alone.

Chapter: notebooks/04_curriculum.ipynb
Reference: the trial steps of Simionescu, "Deep Learning Training Procedure Augmentations",
arXiv 2211.14395, after each of which the state is restored; what is restored, and how, is ours.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["in_eval_mode", "undisturbed"]

_PLAIN = int | float | str | None  # attributes of an optimiser that are restored, with tensors


@contextmanager
def undisturbed(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Undo, bit for bit, whatever the block does to a model, its optimiser and random states.

    These are restored, also after an exception: the submodules; parameters, with dtype and device;
    gradients; ``requires_grad``; buffers, persistent or not; tensors that are attributes of a
    module, as pruning and weight normalisation store them; the train or eval mode of every
    submodule; the optimiser's parameters that are not the model's, its state and settings (a state
    that was empty becomes empty again, not zero); the same for optimisers that it wraps; and the
    global random states of PyTorch, Python and NumPy. Tensors keep their memory, so that references
    to them stay valid. Other attributes of modules are not touched.

    Args:
        model: Any module.
        optimizer: Any optimiser of its parameters; by default no optimiser is restored.

    Yields:
        Nothing; the block may change model and optimiser freely.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> before = model.weight.item()
        >>> with undisturbed(model):
        ...     _ = nn.init.zeros_(model.weight)
        >>> model.weight.item() == before
        True
    """
    modules = [_Module(module) for module in model.modules()]
    optimizers = [_OptimizerState(each) for each in _with_wrapped(optimizer)]
    tensors = dict.fromkeys([*model.parameters(), *model.buffers()])  # each once
    for state in optimizers:
        tensors |= dict.fromkeys(p for _, params, _ in state.groups for p in params)
    for module in modules:
        tensors |= dict.fromkeys(t for t in module.attributes.values() if not t.requires_grad)
    values = [_Tensor(t) for t in tensors]
    cuda = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    numpy = sys.modules.get("numpy")  # if it was never imported, there is no state to restore
    numpy_state = None if numpy is None else numpy.random.get_state()
    python_state = random.getstate()
    with torch.random.fork_rng(cuda):
        try:
            yield
        finally:
            with torch.no_grad():
                for module in modules:
                    module.restore()
                for value in values:
                    value.restore()
                for state in optimizers:
                    state.restore()
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode for a block, and then each submodule in the mode that it had.

    Args:
        model: Any module; nothing but modes is restored.

    Yields:
        Nothing.

    Example:
        >>> model = nn.Dropout()
        >>> with in_eval_mode(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Tensor:
    """The saved state of a parameter or buffer: its memory, its values, and its gradient."""

    def __init__(self, t: Tensor) -> None:
        self.tensor, self.requires_grad = t, t.requires_grad
        self.memory, self.value = t.detach(), t.detach().clone()
        grad = t.grad if t.is_leaf else None
        self.grad = None if grad is None else _Tensor(grad)

    def restore(self) -> None:
        """Give the tensor its memory, values, ``requires_grad`` and gradient again."""
        t = self.tensor
        if not _is_at(t, self.memory):
            t.grad = None  # a gradient must always have the dtype of its tensor
            t.data = self.memory
        if t.requires_grad != self.requires_grad:
            t.requires_grad_(self.requires_grad)
        t.copy_(self.value)
        if self.grad is not None:
            self.grad.restore()
        if t.is_leaf:
            t.grad = None if self.grad is None else self.grad.tensor


class _Module:
    """The saved parts of one module, without those of its submodules."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        tables: tuple[Any, ...] = (module._parameters, module._buffers, module._modules)
        self.tables = [(table, dict(table)) for table in tables]
        self.attributes = _tensors_of(module)

    def restore(self) -> None:
        """Give the module its mode, parts and tensor attributes again, and remove later ones."""
        self.module.training = self.training
        for table, entries in self.tables:
            table.clear()
            table.update(entries)
        for name in _tensors_of(self.module).keys() - self.attributes.keys():
            del vars(self.module)[name]
        vars(self.module).update(self.attributes)


class _OptimizerState:
    """The saved state, groups and plain attributes of one optimiser.

    Values are stored in pairs, the original object and a copy of it, as `_returned` takes them.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.state = {
            p: {name: (v, _copied(v)) for name, v in entries.items()}
            for p, entries in optimizer.state.items()
        }
        self.groups = [
            (group, list(group["params"]), {k: (v, _copied(v)) for k, v in _settings(group)})
            for group in optimizer.param_groups
        ]
        self.attributes = {
            name: (value, _copied(value))
            for name, value in vars(optimizer).items()
            if isinstance(value, _PLAIN | Tensor)
        }

    def restore(self) -> None:
        """Give the optimiser its state, groups and attributes again, and remove later ones."""
        state = self.optimizer.state
        state.clear()
        for p, entries in self.state.items():
            state[p] = {name: _returned(*pair) for name, pair in entries.items()}
        for group, params, settings in self.groups:
            for name, _ in _settings(group):
                if name not in settings:
                    del group[name]
            group["params"][:] = params
            group.update({name: _returned(*pair) for name, pair in settings.items()})
        self.optimizer.param_groups[:] = [group for group, _, _ in self.groups]
        attributes = vars(self.optimizer)
        for name in [name for name, v in attributes.items() if isinstance(v, _PLAIN | Tensor)]:
            if name not in self.attributes:
                del attributes[name]
        attributes.update({name: _returned(*pair) for name, pair in self.attributes.items()})


def _with_wrapped(optimizer: Optimizer | None) -> list[Optimizer]:
    """Return the optimiser and those it contains, as sharpness-aware and look-ahead ones do."""
    optimizers: list[Optimizer] = []
    waiting = [] if optimizer is None else [optimizer]
    while waiting:
        each = waiting.pop()
        if not any(each is other for other in optimizers):
            optimizers.append(each)
            waiting += [value for value in vars(each).values() if isinstance(value, Optimizer)]
    return optimizers


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}


def _settings(group: Mapping[str, object]) -> list[tuple[str, object]]:
    return [(name, value) for name, value in group.items() if name != "params"]


def _is_at(t: Tensor, memory: Tensor) -> bool:
    """Tell whether a tensor still has its former memory, type and shape."""
    if t.dtype != memory.dtype or t.device != memory.device or t.shape != memory.shape:
        return False
    if t.is_meta or t.layout != torch.strided:
        return True
    return t.data_ptr() == memory.data_ptr() and t.stride() == memory.stride()


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _returned(original: Any, value: Any) -> Any:
    """Return the original tensor with its saved values, or the copy if it is not a tensor."""
    if not isinstance(original, Tensor):
        return value
    original.copy_(value)
    return original
