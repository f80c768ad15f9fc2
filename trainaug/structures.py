"""Access to what comes wrapped: batches in tuples, lists and mappings, models inside wrappers."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

__all__ = ["StateDict", "eagerly", "full_precision", "logits_of", "losses_of_output", "map_tensors"]
__all__ += ["model_losses", "num_rows", "run_on", "take_rows", "unwrapped"]

# A state to save and load, like that of torch's own `state_dict`: numbers, text, lists and mappings
# of them, and tensors. Each class defines its keys, and it alone reads them again.
StateDict = dict[str, Any]

_PLAIN = (str, bytes, bool, int, float, type(None))


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``function`` to each tensor in nested tuples, lists and mappings; leave the rest.

    Args:
        function: Maps a tensor to its replacement.
        value: A tensor, or nested tuples, lists and mappings that hold tensors.

    Returns:
        The same nesting, with new tensors.
    """
    return _rebuilt(value, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)


def num_rows(value: Any) -> int:
    """Return how many examples a nested batch has, the first size of all its tensors.

    A list of plain values, one for each example, say of captions, must have the same length.

    Raises:
        TypeError: If there is neither, or something that is neither a tensor nor a plain value.
        ValueError: If a tensor is a scalar, or the sizes differ.
    """
    sizes = []
    for column in _columns(value):
        if isinstance(column, Tensor) and column.ndim == 0:
            raise ValueError("a batch needs tensors of shape (B, ...), got a scalar")
        sizes.append(len(column))
    if not sizes:
        raise TypeError(f"a batch needs tensors of shape (B, ...), got {type(value).__name__}")
    if len(set(sizes)) > 1:
        raise ValueError(f"the tensors of a batch must have equally many rows, got {sizes}")
    return sizes[0]


def take_rows(value: Any, rows: Tensor) -> Any:
    """Return some examples of a nested batch, in its structure.

    Args:
        value: A nested batch as for `num_rows`, whose errors are raised here, too.
        rows: Numbers of the examples, ``(M,)`` int64, on any device.
    """

    def taken(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[rows.to(leaf.device)]
        if _is_column(leaf):
            return type(leaf)(leaf[i] for i in rows.tolist())
        return leaf

    for _ in _columns(value):  # raises on what is not a batch
        pass
    return _rebuilt(value, taken)


def _is_column(value: Any) -> bool:
    """Whether a list holds plain values, one for each example, rather than tensors."""
    is_list = type(value) in (list, tuple) and len(value) > 0
    return is_list and all(isinstance(item, _PLAIN) for item in value)


def _rebuilt(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to the leaves and columns, and keep the structure."""
    if type(value) is dict:
        return {key: _rebuilt(item, function) for key, item in value.items()}
    if isinstance(value, MutableMapping):  # as Hugging Face's, whose items are attributes, too
        result = copy.copy(value)
        for key, item in value.items():
            result[key] = _rebuilt(item, function)
        return result
    if isinstance(value, Mapping):
        return {key: _rebuilt(item, function) for key, item in value.items()}
    if isinstance(value, tuple | list) and not _is_column(value):
        items = [_rebuilt(item, function) for item in value]
        # a named tuple takes its fields one by one
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return function(value)


def _columns(value: Any) -> Iterator[Any]:
    """Yield the tensors of a nested batch and its lists of plain values; refuse anything else."""
    if isinstance(value, Tensor) or _is_column(value):
        yield value
    elif isinstance(value, PackedSequence):
        raise TypeError("rows of a PackedSequence are no examples: give padded ones and lengths")
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _columns(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _columns(item)
    elif not isinstance(value, _PLAIN):
        raise TypeError(f"a batch must be of tensors, got {type(value).__name__}")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside ``DataParallel``, ``DistributedDataParallel``, ``torch.compile``."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def logits_of(output: Any) -> Any:
    """Return the ``logits`` of a model's output, as Hugging Face's have them, or else the output.

    Args:
        output: What a model gave: a tensor, an object with ``.logits``, a mapping with
            ``"logits"``, or whatever else the criterion reads.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)


def losses_of_output(criterion: Callable[[Any, Any], Any], output: Any, y: Any) -> Any:
    """Return what a criterion gives for the logits of a model's output, or for all of the output.

    A criterion that reads the whole output, say ``output["logits"]``, fails on the logits alone: it
    is then called with the whole. If that fails too, the first error is raised.
    """
    logits = logits_of(output)
    if logits is output:
        return criterion(output, y)
    try:
        with _Unnamed():
            return criterion(logits, y)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        try:
            return criterion(output, y)
        except Exception:
            raise error from None


class _Unnamed(TorchFunctionMode):
    """Raise a KeyError for a tensor indexed by a string; PyTorch would warn and fail obscurely."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], str):
            raise KeyError(args[1])
        return func(*args, **(kwargs or {}))


def run_on(model: nn.Module, x: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Run a model on a batch of inputs: ``model(x)``, or ``model(**x)`` if it takes keywords.

    Args:
        model: The model, wrapped or not.
        x: Inputs. A mapping is passed as keywords if ``forward`` names one of its keys and accepts
            all, as Hugging Face's models do with ``input_ids`` and ``attention_mask``.
        tensors: Parameters and buffers to run with, by name; the model's own by default.
    """
    arguments: tuple[Any, ...] = (x,)
    keywords: dict[str, object] = {}
    if isinstance(x, Mapping) and _takes_keywords(unwrapped(model), x):
        arguments, keywords = (), dict(x)
    if tensors is None:
        return model(*arguments, **keywords)
    return functional_call(model, dict(tensors), arguments, keywords)


def _takes_keywords(model: nn.Module, x: Mapping[Any, Any]) -> bool:
    """Whether ``model.forward`` names one of the keys of ``x`` and accepts all as keywords."""
    if not all(isinstance(key, str) for key in x):
        return False
    signature = inspect.signature(model.forward)
    if signature.parameters.keys().isdisjoint(x):
        return False
    try:
        signature.bind(**x)
    except TypeError:
        return False
    return True


def model_losses(
    model: nn.Module,
    criterion: Callable[[Any, Any], Any],
    x: Any,
    y: Any,
    tensors: Mapping[str, Tensor] | None = None,
) -> Any:
    """Return the criterion's value for a batch, by `run_on` and then `losses_of_output`."""
    return losses_of_output(criterion, run_on(model, x, tensors), y)


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled models as written: compiled code skips hooks and allows one backward pass."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and the import is slow
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switch off autocast, which would round the products in a method's sums."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
