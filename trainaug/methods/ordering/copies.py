"""Copies of a model and its optimiser that train side by side, as one tensor program.

Chapter: notebooks/04_curriculum.ipynb
Reference: the trial steps of Simionescu, "Deep Learning Training Procedure Augmentations",
arXiv 2211.14395, which the author's code makes one after another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.func import functional_call
from torch.optim import Optimizer

__all__ = ["ELEMENTWISE", "Copies", "Criterion", "is_elementwise", "masked_means"]

Criterion = Callable[[Any, Any], Tensor]
# Each entry of a parameter is updated from its own gradient and state alone, so one optimiser
# over stacked parameters makes exactly the steps of separate ones.
ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
)

_COUNTERS = ("step", "mu_product")


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether ``Copies`` can stack an optimiser."""
    return type(optimizer) in ELEMENTWISE


def masked_means(losses: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the last dimension of the losses where ``mask`` is true, ``(..., B) -> (...)``."""
    if mask is None:
        return losses.mean(-1)
    return (losses * mask).sum(-1) / mask.sum(-1)


class Copies:
    """``count`` copies of a model and its optimiser, in the state that they have now.

    The originals are never touched. Copy ``k`` has its own parameters, buffers and optimiser
    state, and sees its own batch. Dropout draws from the global generator, one draw for each copy.

    Args:
        model: Its modes decide whether batch normalisation updates the copies' statistics.
        optimizer: An optimiser of its parameters that ``is_elementwise``.
        criterion: Returns per-example losses ``(B,)``.
        count: Number of copies, at least 1.

    Raises:
        TypeError: If the optimiser is not elementwise.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, criterion: Criterion, count: int = 1
    ) -> None:
        if not is_elementwise(optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not elementwise: step one by one")
        self.model, self.criterion, self._original = model, criterion, optimizer
        named = dict(model.named_parameters())
        self.parameters = {name: _stack(p, count) for name, p in named.items()}
        self.buffers = {name: _stack(b, count) for name, b in model.named_buffers()}
        states = {
            name: {
                key: _stack(v, count) if _has_copies(key, v) else _copied(v)
                for key, v in optimizer.state[p].items()
            }
            for name, p in named.items()
            if p in optimizer.state
        }
        self._attach(states)

    def _attach(self, states: dict[str, dict[str, Any]]) -> None:
        """Make the optimiser of the current stacked parameters, with the given state."""
        for name, p in self.model.named_parameters():
            self.parameters[name].requires_grad_(p.requires_grad)
        of = {p: self.parameters[name] for name, p in self.model.named_parameters()}
        groups = [
            {**group, "params": [of[p] for p in group["params"] if p in of]}
            for group in self._original.param_groups
        ]
        make: Callable[[Any], Optimizer] = type(self._original)
        self.optimizer = make([group for group in groups if group["params"]])
        self.optimizer.state.clear()  # some fill it when they are made
        for name, state in states.items():
            self.optimizer.state[self.parameters[name]] = state

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def select(self, index: Tensor) -> Copies:
        """Return new copies: those at ``index``, in that order, repeated where it repeats."""
        chosen = copy.copy(self)
        chosen.parameters = {name: p.detach()[index] for name, p in self.parameters.items()}
        chosen.buffers = {name: b[index] for name, b in self.buffers.items()}
        states = {
            name: {
                key: v[index] if _has_copies(key, v) else _copied(v)
                for key, v in self.optimizer.state[p].items()
            }
            for name, p in self.parameters.items()
            if p in self.optimizer.state
        }
        chosen._attach(states)
        return chosen

    def outputs(self, x: Any, *, shared: bool = False, chunk_size: int | None = None) -> Any:
        """Outputs of every copy, ``(K, B, ...)``; ``shared``: all see the same ``x``.

        With ``chunk_size`` so many copies at a time, which is faster where memory is the limit.
        """

        def one(parameters: Any, buffers: Any, x: Any) -> Any:
            return functional_call(self.model, (parameters, buffers), (x,))

        dims = (0, 0, None if shared else 0)
        call = torch.vmap(one, dims, randomness="different", chunk_size=chunk_size)
        return call(self.parameters, self.buffers, x)

    def losses(self, x: Any, y: Any, *, shared: bool = False) -> Tensor:
        """Per-example losses of every copy on its batch, ``(K, B)``."""
        dims = (0, None if shared else 0)
        return torch.vmap(self.criterion, dims)(self.outputs(x, shared=shared), y)

    def step(self, x: Any, y: Any, mask: Tensor | None = None) -> Tensor:
        """Update every copy on its own batch.

        Args:
            x: Inputs, each tensor ``(K, B, ...)``.
            y: Targets, likewise.
            mask: Which examples count, bool ``(K, B)``; all without it.

        Returns:
            Mean losses before the update, ``(K,)``.
        """
        self.optimizer.zero_grad()
        with torch.enable_grad():
            means = masked_means(self.losses(x, y), mask)  # (K,)
            means.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return means.detach()


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _stack(t: Tensor, count: int) -> Tensor:
    if count < 1:
        raise ValueError(f"need at least one copy, got {count}")
    return t.detach().expand(count, *t.shape).clone()


def _has_copies(key: str, value: Any) -> bool:
    """Whether a state entry differs between copies; step counters do not."""
    return isinstance(value, Tensor) and key not in _COUNTERS
