"""Base of the optimisers of this package: a norm per group, plain checkpoints, checked gradients.

Chapter: notebooks/06_linear_robustness.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainaug.norms import FourierNorm, check_norm
from trainaug.structures import StateDict

__all__ = ["NormOptimizer", "check_gradients", "check_range", "holds"]

# Options of torch's optimisers that change a step; in a group they would be ignored here.
_UNKNOWN = ("maximize", "weight_decay", "momentum", "nesterov", "dampening", "betas")


def holds(value: Any, test: Callable[[Any], Any]) -> bool:
    """Tell whether a number, or every entry of a tensor on any device, passes a test."""
    passed = test(value)
    return bool(passed.all()) if isinstance(passed, Tensor) else bool(passed)


def check_gradients(params: Sequence[Tensor]) -> None:
    """Check that the gradients are dense, real and finite.

    Raises:
        ValueError: If a gradient is sparse, complex or on the meta device.
        FloatingPointError: If a gradient has a NaN or infinite entry.
    """
    for gradient in (p.grad for p in params if p.grad is not None):
        if gradient.layout != torch.strided:
            raise ValueError(f"sparse gradients are not supported, got {gradient.layout}")
        if not gradient.is_floating_point():
            raise ValueError(f"parameters must be real, got a gradient of {gradient.dtype}")
        if gradient.is_meta:
            raise ValueError("a gradient on the meta device has no values to step along")
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError("the gradient has a NaN or infinite entry")


def check_range(moved: Tensor) -> None:
    """Raise a FloatingPointError if moved parameters have left the range of their type."""
    if not bool(moved.isfinite().all()):
        raise FloatingPointError(
            f"the step leads to NaN or infinite parameters of {moved.dtype}: lower lr"
        )


class NormOptimizer(Optimizer):
    """An optimiser whose groups have the options ``lr`` and ``norm``.

    ``state_dict`` holds only numbers, strings, tuples and tensors, so that ``torch.load`` accepts
    it with its default ``weights_only=True``. It therefore writes a `FourierNorm` as a tuple; in
    the groups of the optimiser a norm is the norm itself.
    """

    def _check_options(self, options: Mapping[str, Any], *, positive: bool) -> None:
        """Raise a ValueError for a bad option; without ``positive``, ``lr`` may be 0."""
        check_norm(options["norm"])
        lr = options["lr"]
        if not holds(lr, lambda lr: ((lr > 0) if positive else (lr >= 0)) & (lr < math.inf)):
            needed = "positive and finite" if positive else "finite and at least 0"
            raise ValueError(f"lr must be {needed}, got {lr}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group after checking its options.

        Raises:
            ValueError: If an option is unknown or out of range.
        """
        for name in _UNKNOWN:
            if param_group.get(name):
                raise ValueError(
                    f"{type(self).__name__} has no option {name!r}, got {param_group[name]!r}"
                )
        self._check_options({**self.defaults, **param_group}, positive=True)
        super().add_param_group(param_group)

    def state_dict(self) -> StateDict:
        """Return the state; a `FourierNorm` is written as its name and shape."""
        state: StateDict = super().state_dict()
        for group in state["param_groups"]:
            if isinstance(group["norm"], FourierNorm):
                group["norm"] = (str(group["norm"]), group["norm"].shape)
        return state

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state after checking its options; each `FourierNorm` is built again.

        Raises:
            ValueError: If an option is missing or out of range, or the groups or the shapes of the
                state do not fit the parameters.
        """
        groups = [dict(group) for group in state_dict["param_groups"]]
        for group in groups:
            missing = sorted(self.defaults.keys() - group.keys())
            if missing:
                raise ValueError(
                    f"the state of a {type(self).__name__} has the options {list(self.defaults)}, "
                    f"this one lacks {missing}"
                )
            group["norm"] = _rebuilt(group["norm"])
            self._check_options(group, positive=False)
        for p, state in self._states(state_dict):
            for value in state.values():
                if isinstance(value, Tensor) and value.shape[:-1] != p.shape[:-1]:
                    raise ValueError(
                        f"the state of shape {tuple(value.shape)} does not fit the parameter of "
                        f"shape {tuple(p.shape)}"
                    )
        super().load_state_dict({**state_dict, "param_groups": groups})

    def _states(self, state_dict: StateDict) -> list[tuple[Tensor, StateDict]]:
        """Return pairs of a parameter and its entry in a state dictionary, where it has one."""
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        states = state_dict["state"]
        # Not strict: torch itself refuses a state of another number of parameters.
        return [(p, states[n]) for p, n in zip(params, numbers, strict=False) if n in states]


def _rebuilt(norm: Any) -> Any:
    """Return the `FourierNorm` that a name and a shape stand for; any other value as it is."""
    if isinstance(norm, (tuple, list)):
        for order in ("l1", "linf"):
            if len(norm) == 2 and norm[0] == f"fourier_{order}":
                return FourierNorm(order, tuple(norm[1]))
    return norm
