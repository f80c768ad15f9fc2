"""Record what a run computes, from outside: no code that a number depends on knows about it.

A *trace* is a hash over the raw numbers of a computation, before any rounding: indices of every
batch, per-example losses, weights after every update, results of the methods that chapters call,
adversarial inputs, and every number that the store rounds. The functions named below are replaced
in the modules of the chapters while a canary runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from companion.paths import COMPANION, LIBRARY, ROOT

__all__ = ["Operations", "Trace", "entered_functions", "recording"]

# Functions whose results (of `rounded`, whose arguments) are traced wherever a chapter calls them.
TRACED = (
    "companion.evidence.store:rounded",
    "trainaug.training.models:evaluate",
    "trainaug.training.models:predict",
    "trainaug.methods.attacks:fgsm",
    "trainaug.methods.attacks:pgd",
    "trainaug.methods.autoassist:importance_pegasos",
    "trainaug.methods.autoassist:pegasos",
    "trainaug.methods.cascading_sum:gradient_lipschitz",
    "trainaug.methods.cascading_sum:hessian_top_eigenvalue",
    "trainaug.methods.cascading_sum:sharpness",
    "trainaug.methods.gradient_clustering:gram_matrix",
    "trainaug.methods.gradient_clustering:layer_factors",
    "trainaug.methods.hard_negatives:retrieval_metrics",
    "trainaug.methods.hard_negatives:retrieval_ranks",
    "trainaug.methods.linear_robustness:adversarial_paths",
    "trainaug.methods.linear_robustness:convolutional_paths",
    "trainaug.methods.linear_robustness:dense_paths",
    "trainaug.methods.linear_robustness:enclosure",
    "trainaug.methods.linear_robustness:max_margin",
    "trainaug.methods.linear_robustness:regularisation_path",
    "trainaug.methods.linear_robustness:robust_radius",
    "trainaug.methods.linear_robustness:steepest_descent_paths",
    "trainaug.methods.ordering:example_losses",
    "trainaug.methods.ordering:exhaustive_orders",
    "trainaug.methods.ordering:position_shares",
)
# Methods of classes whose results are traced.
TRACED_METHODS = (
    ("trainaug.methods.gradient_clustering", "GradientClustering", "fit"),
    ("trainaug.methods.ordering", "BatchScorer", "__call__"),
)


class Trace:
    """Hash over values in the order in which they come."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._numbers: set[float] = set()
        self.updates = 0

    def note(self, number: float) -> None:
        """Note a number that the store rounds; rounding leaves a whole number as it is."""
        if not number.is_integer():
            self._numbers.add(number)

    def add(self, tag: str, value: Any) -> None:
        """Add a value: a tensor, an array, a number, text, or a nest of them."""
        self._hash.update(f"<{tag}>".encode())
        self._add(value)

    def hexdigest(self) -> str:
        """Return the hash so far, shortened to 16 digits.

        Rounded numbers count sorted and once each, because the order of a record's entries does not
        matter.
        """
        whole = self._hash.copy()
        whole.update(repr(sorted(self._numbers)).encode())
        return whole.hexdigest()[:16]

    def _add(self, value: Any) -> None:
        """Hash a value with its type and shape, so that different nests cannot look alike."""
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            if value.is_complex():
                value = torch.view_as_real(value.resolve_conj())
            value = value.contiguous().numpy()
        if isinstance(value, np.ndarray):
            self._hash.update(f"{value.dtype}{value.shape}".encode())
            self._hash.update(np.ascontiguousarray(value).tobytes())
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                self._hash.update(field.name.encode())
                self._add(getattr(value, field.name))
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                self._hash.update(f"{key}=".encode())
                self._add(value[key])
        elif isinstance(value, Sequence) and not isinstance(value, str):
            self._hash.update(f"[{len(value)}]".encode())
            for item in value:
                self._add(item)
        elif value is None or isinstance(value, bool | int | float | str | np.generic):
            self._hash.update(repr(value).encode())
        elif isinstance(value, torch.nn.Module):  # its weights are traced after each update
            self._hash.update(type(value).__name__.encode())
        else:
            raise TypeError(f"cannot trace a {type(value).__name__}")


class _TracedBatches:
    """A batch sampler whose batches are traced; all other attributes are the sampler's."""

    def __init__(self, sampler: Any, trace: Trace) -> None:
        self._sampler, self._trace = sampler, trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._sampler:
            self._trace.add("batch", [int(index) for index in batch])
            yield batch


def _traced_training(train: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    """Wrap `trainaug.training.loop.train`, so that its batches and their losses are traced."""

    @wraps(train)
    def wrapper(
        model: Any, dataset: Any, batch_sampler: Any, criterion: Any, optimizer: Any, **options: Any
    ) -> Any:
        def traced_criterion(outputs: Any, targets: Any) -> Tensor:
            losses: Tensor = criterion(outputs, targets)
            trace.add("losses", losses)
            return losses

        batches = _TracedBatches(batch_sampler, trace)
        return train(model, dataset, batches, traced_criterion, optimizer, **options)

    return wrapper


def _traced(function: Callable[..., Any], name: str, trace: Trace) -> Callable[..., Any]:
    """Wrap a function so that its results are traced, or of `rounded` its argument."""

    @wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        if name == "rounded":  # the argument still has all of its digits
            trace.note(float(args[0]))
            return function(*args, **options)
        result = function(*args, **options)
        trace.add(name, result)
        return result

    return wrapper


def _chapter_modules() -> list[Any]:
    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith(("companion.chapters.", "companion.lab.results"))
    ]
    return [module for module in modules if module is not None]


def _replace(stack: ExitStack, original: Any, replacement: Any) -> int:
    """Replace a function under every name that chapters' modules have for it, and count them.

    Modules import functions by name, so replacing one where it is defined would not reach them.
    """
    count = 0
    for module in _chapter_modules():
        for name, value in list(vars(module).items()):
            if value is original:
                stack.enter_context(mock.patch.object(module, name, replacement))
                count += 1
    return count


@contextmanager
def recording(trace: Trace) -> Iterator[None]:
    """Trace what the chapters' modules, which must be imported already, compute in the block."""
    with ExitStack() as stack:
        for target in TRACED:
            module, name = target.split(":")
            function = getattr(sys.modules[module], name, None) if module in sys.modules else None
            if function is not None:
                _replace(stack, function, _traced(function, name, trace))
        loop = sys.modules.get("trainaug.training.loop")
        if loop is not None:
            _replace(stack, loop.train, _traced_training(loop.train, trace))
        for module, owner, name in TRACED_METHODS:
            if module in sys.modules:
                cls = getattr(sys.modules[module], owner)
                method = _traced(getattr(cls, name), f"{owner}.{name}", trace)
                stack.enter_context(mock.patch.object(cls, name, method))

        def after_update(optimizer: Any, *_: Any) -> None:
            trace.updates += 1
            for group in optimizer.param_groups:
                trace.add("weights", list(group["params"]))

        handle = register_optimizer_step_post_hook(after_update)
        stack.callback(handle.remove)
        yield


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collect the names of the operations that are called, with the type of what they return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) and result else result
        if not isinstance(first, Tensor):  # an operation in place on a list, or a number
            first = next((a for a in args if isinstance(a, Tensor)), None)
        kind = "other"
        if isinstance(first, Tensor) and (first.is_floating_point() or first.is_complex()):
            kind = str(first.dtype).removeprefix("torch.")
        self.names.add(f"{func._schema.name.replace('::', '.')} {kind}")
        return result


class _TimeIsUpError(BaseException):
    """A run has taken as long as it may; no ``except Exception`` in the run can catch this."""


@contextmanager
def entered_functions(seconds: float = math.inf) -> Iterator[set[str]]:
    """Collect which functions of library and book are entered, as ``module:qualified name``.

    After so many core-seconds the block is broken off and the empty name is added to the others.
    """
    folders = (f"{LIBRARY}/", f"{COMPANION}/")
    entered: set[str] = set()
    seen: set[Any] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in seen:
            return
        seen.add(code)
        if code.co_filename.startswith(folders) and "/canary/" not in code.co_filename:
            file = code.co_filename.removeprefix(f"{ROOT}/")
            module = file.removesuffix(".py").replace("/", ".")
            # comprehensions and lambdas are left out, as they come and go with any refactoring
            if not code.co_name.startswith("<"):
                entered.add(f"{module}:{code.co_qualname}")

    def stop(*_: Any) -> None:
        raise _TimeIsUpError

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 0 if math.isinf(seconds) else seconds)
    sys.setprofile(profile)
    try:
        yield entered
    except _TimeIsUpError:
        entered.add("")
    finally:
        sys.setprofile(None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
