"""Give a model, its optimiser and all random states back exactly as they were.

Chapter: notebooks/04_curriculum.ipynb
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["preserve_state"]


@contextmanager
def preserve_state(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Undo, bit for bit, whatever the block does to a model, its optimiser and random states.

    Restored are parameters, gradients, ``requires_grad``, buffers (non-persistent ones too), the
    train or eval mode of every submodule, the optimiser's state and settings (a state that was
    empty is empty again, not zero), and the global random states of PyTorch, Python and NumPy.
    Tensors keep their memory, so that references to them stay valid.

    Args:
        model: Any module.
        optimizer: Any optimiser of its parameters.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> before = model.weight.item()
        >>> with preserve_state(model):
        ...     _ = nn.init.zeros_(model.weight)
        >>> model.weight.item() == before
        True
    """
    modules = [
        (module, module.training, dict(module._parameters), dict(module._buffers))
        for module in model.modules()
    ]
    tensors = [*model.parameters(), *model.buffers()]
    values = [(t, t.detach().clone(), t.requires_grad, t.grad) for t in tensors]
    grads = [(t.grad, t.grad.detach().clone()) for t in tensors if t.grad is not None]
    kept = None if optimizer is None else _optimizer_state(optimizer)
    cuda = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    numpy = sys.modules.get("numpy")  # where nobody imported it there is no state to keep
    numpy_state = None if numpy is None else numpy.random.get_state()
    python_state = random.getstate()
    with torch.random.fork_rng(cuda):
        try:
            yield
        finally:
            for module, mode, parameters, buffers in modules:
                module.training = mode
                module._parameters.clear()
                module._parameters.update(parameters)
                module._buffers.clear()
                module._buffers.update(buffers)
            with torch.no_grad():
                for t, value, requires_grad, grad in values:
                    t.requires_grad_(requires_grad).copy_(value)
                    t.grad = grad
                for grad, value in grads:
                    grad.copy_(value)
            if optimizer is not None and kept is not None:
                _restore(optimizer, *kept)
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _optimizer_state(optimizer: Optimizer) -> tuple[dict[Tensor, Any], list[dict[str, Any]]]:
    state = {
        p: {name: (v, _copied(v)) for name, v in own.items()} for p, own in optimizer.state.items()
    }
    groups = [
        {name: _copied(v) for name, v in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return state, groups


@torch.no_grad()
def _restore(optimizer: Optimizer, state: dict[Tensor, Any], groups: list[dict[str, Any]]) -> None:
    optimizer.state.clear()
    for p, own in state.items():
        for name, (original, value) in own.items():
            if isinstance(original, Tensor):
                original.copy_(value)
                value = original
            optimizer.state[p][name] = value
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        for name in [name for name in group if name != "params" and name not in settings]:
            del group[name]
        group.update(settings)
