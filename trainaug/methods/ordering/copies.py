"""Copies of a model and its optimiser that train at the same time, as one tensor program.

Chapter: notebooks/04_curriculum.ipynb
Reference: the trial steps of Simionescu, "Deep Learning Training Procedure Augmentations",
arXiv 2211.14395, which the author's code takes one after another.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from trainaug.checks import widened
from trainaug.methods.ordering.nested import eager, leaves, per_example
from trainaug.structures import StateDict, logits_of, model_losses, run_on, unwrapped

__all__ = ["ELEMENTWISE", "Copies", "Criterion", "GradientCount", "masked_means"]

Criterion = Callable[[Any, Any], Tensor]
# These update each entry of a parameter from its own gradient and state alone, so that one
# optimiser over stacked parameters takes exactly the steps of separate ones.
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

_COUNTERS = ("step", "mu_product")  # optimiser state that is the same for all copies


class GradientCount:
    """A hook on parameters that counts the gradients they receive and leaves them unchanged."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, gradient: Tensor) -> None:
        self.count += 1


def is_elementwise(optimizer: Optimizer) -> bool:
    """Tell whether ``Copies`` can stack an optimiser.

    It can if the type is exactly one of ``ELEMENTWISE``, not a subclass, and no step hooks are
    registered.

    Args:
        optimizer: Any optimiser; it is not changed.
    """
    return type(optimizer) in ELEMENTWISE and not _has_step_hooks(optimizer)


def masked_means(losses: Tensor, mask: Tensor | None) -> Tensor:
    """Average the losses where ``mask`` is true over the last dimension, ``(..., B) -> (...)``.

    Without a mask all count. Half-precision losses are averaged, and returned, in float32.
    """
    losses = widened(losses)
    if mask is None:
        return losses.mean(-1)
    return torch.where(mask, losses, 0).sum(-1) / mask.sum(-1)


class Copies:
    """``count`` copies of a model and its optimiser, in their present state.

    The originals are never touched. Copy ``k`` has its own parameters, buffers and optimiser
    state, and sees its own batch. Dropout draws from the global generator, separately for each
    copy. Inputs and targets may be tensors, or tuples, lists and dicts of them.

    Args:
        model: Its modes decide whether batch normalisation updates the copies' statistics. If the
            model is compiled or data-parallel, the module inside is run, uncompiled.
        optimizer: An optimiser of its parameters whose type is SGD, Adam, AdamW, NAdam, RAdam,
            Adamax, RMSprop, Adagrad or Adadelta of `torch.optim`, not a subclass, without step
            hooks.
        criterion: Returns per-example losses ``(B,)``.
        count: Number of copies K, at least 1.

    Raises:
        TypeError: If the optimiser has another type or step hooks, a parameter has gradient hooks,
            or the optimiser trains parameters outside the model, which copies would leave out.
        ValueError: If the model has no parameters that require gradients, or ``count`` is below 1;
            while stepping, if the criterion does not give one loss for each example.
        RuntimeError: While stepping, if model or criterion cannot run under ``torch.vmap``.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, criterion: Criterion, count: int = 1
    ) -> None:
        model = unwrapped(model)
        named = dict(model.named_parameters())
        _check_stackable(named, optimizer)
        self.model, self.criterion, self._original = model, criterion, optimizer
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

    def _attach(self, states: dict[str, StateDict]) -> None:
        """Create an optimiser of the stacked parameters, with the given state by name."""
        for name, p in self.model.named_parameters():
            self.parameters[name].requires_grad_(p.requires_grad)
        stacked_of = {p: self.parameters[name] for name, p in self.model.named_parameters()}
        groups = [
            {**group, "params": [stacked_of[p] for p in group["params"] if p in stacked_of]}
            for group in self._original.param_groups
        ]
        make: Callable[[Any], Optimizer] = type(self._original)
        self.optimizer = make([group for group in groups if group["params"]])
        self.optimizer.state.clear()  # some optimisers fill it when they are created
        for name, state in states.items():
            self.optimizer.state[self.parameters[name]] = state

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def select(self, index: Tensor) -> Copies:
        """Return new copies: those at ``index``, in that order and as often as it names them.

        Args:
            index: Numbers of the copies, int64 ``(J,)``, from 0 to K - 1.

        Raises:
            IndexError: If there is no such copy.
        """
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
        """Return the outputs of all K copies, or the logits where an output names them.

        Args:
            x: Inputs of every copy, each tensor ``(K, B, ...)``.
            shared: All copies see the same ``x``, each tensor ``(B, ...)``.
            chunk_size: Number of copies to run at a time, which is faster if memory is the limit;
                all by default.

        Returns:
            Outputs, each tensor ``(K, B, ...)``.

        Raises:
            RuntimeError: If the model cannot run under ``torch.vmap``.
        """

        def outputs_of_copy(parameters: Any, buffers: Any, x: Any) -> Any:
            return logits_of(run_on(self.model, x, parameters | buffers))

        dims = (0, 0, None if shared else 0)
        call = torch.vmap(outputs_of_copy, dims, randomness="different", chunk_size=chunk_size)
        with _explained():
            return call(self.parameters, self.buffers, x)

    def losses(self, x: Any, y: Any, *, shared: bool = False) -> Tensor:
        """Return the per-example losses of every copy on its batch.

        Args:
            x: Inputs of every copy, each tensor ``(K, B, ...)``.
            y: Targets of every copy, each tensor ``(K, B, ...)``.
            shared: All copies see the same ``x`` and ``y``, each tensor ``(B, ...)``.

        Returns:
            Losses ``(K, B)``, as the criterion gives them.

        Raises:
            RuntimeError: If model or criterion cannot run under ``torch.vmap``.
            ValueError: If the criterion does not give one loss for each example.
        """

        def losses_of_copy(parameters: Any, buffers: Any, x: Any, y: Any) -> Any:
            return model_losses(self.model, self.criterion, x, y, parameters | buffers)

        data_dim = None if shared else 0
        dims = (0, 0, data_dim, data_dim)
        with _explained():
            call = torch.vmap(losses_of_copy, dims, randomness="different")
            losses = call(self.parameters, self.buffers, x, y)
        return per_example(losses, len(self), leaves(x)[0].shape[0 if shared else 1])

    def step(self, x: Any, y: Any, mask: Tensor | None = None) -> Tensor:
        """Update every copy on its own batch.

        Args:
            x: Inputs, each tensor ``(K, B, ...)``.
            y: Targets, each tensor ``(K, B, ...)``.
            mask: Which examples count, bool ``(K, B)``; by default all. The others still influence
                a model or criterion that uses the batch as a whole.

        Returns:
            Mean losses before the update, ``(K,)``; for half-precision losses in float32.

        Raises:
            RuntimeError: If model or criterion cannot run under ``torch.vmap``.
            ValueError: If the criterion does not give one loss for each example.
        """
        self.optimizer.zero_grad()
        with torch.enable_grad():
            means = masked_means(self.losses(x, y), mask)  # (K,)
            trained = [p for p in self.parameters.values() if p.requires_grad]
            # Nothing else, such as a parameter of the criterion, may collect gradients.
            means.sum().backward(inputs=trained)  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return means.detach()


def _has_step_hooks(optimizer: Optimizer) -> bool:
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return any(getattr(optimizer, name, None) for name in names)


def _check_stackable(named: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    """Raise unless an optimiser over stacked parameters would take the same steps for each copy."""
    name = type(optimizer).__name__
    advice = "step one by one (together=False)"
    if not is_elementwise(optimizer):
        why = "has step hooks" if _has_step_hooks(optimizer) else "is not elementwise"
        raise TypeError(f"{name} {why}: {advice}")
    if not any(p.requires_grad for p in named.values()):
        raise ValueError("the model has no parameter that requires gradients")
    hooked = [
        key
        for key, p in named.items()
        for hook in (
            *(p._backward_hooks or {}).values(),
            *(getattr(p, "_post_accumulate_grad_hooks", None) or {}).values(),
        )
        if not isinstance(hook, GradientCount)
    ]
    if hooked:
        raise TypeError(f"the parameter {hooked[0]} has gradient hooks: {advice}")
    named_tensors = set(named.values())
    others = [
        p
        for group in optimizer.param_groups
        for p in group["params"]
        if p not in named_tensors and p.requires_grad
    ]
    if others:
        raise TypeError(
            f"{name} trains {len(others)} parameters that are not the model's, which copies would "
            f"leave as they are: {advice}"
        )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Run uncompiled; add to errors of torch.vmap how to do without it."""
    try:
        with eager():
            yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        raise RuntimeError(
            "the model or the criterion failed under torch.vmap, which runs copies side by side; "
            f"together=False steps them one after another: {error}"
        ) from error


def _copied(value: Any) -> Any:
    """Return a copy of an entry of the optimiser's state, tensor or not."""
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _stack(t: Tensor, count: int) -> Tensor:
    if count < 1:
        raise ValueError(f"need at least one copy, got {count}")
    return t.detach().expand(count, *t.shape).clone()


def _has_copies(key: str, value: Any) -> bool:
    """Tell whether an entry of the optimiser's state differs between copies; counters do not."""
    return isinstance(value, Tensor) and key not in _COUNTERS
