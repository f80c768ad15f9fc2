"""A device that is pretended: tensors of the CPU that say they are on a GPU, and refuse to mix.

There need not be a GPU. A tensor that was moved to the device is of another class; an operation
whose arguments are some of the one and some of the other kind raises, as it would on a GPU, and so
does what a GPU's tensor cannot do, such as ``numpy()``. What is computed is what the CPU computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from trainaug.methods.gradient_clustering import estimators, factors

__all__ = ["MixedDevicesError", "pretended"]

#: Of functions that may take tensors of both kinds.
_CROSSING = {
    "copy_",
    "set_",
    "__set__",
    "set_data",
    "__repr__",
    "to",
    "_pack_padded_sequence",
    "gru",
}
_INDEXING = {"__getitem__", "index"}


class MixedDevicesError(RuntimeError):
    """Tensors of two devices met."""


class _There(Tensor):
    """A tensor on the pretended device."""

    kind = "cuda"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        # inside of a function of torch's that was checked and is computed, it is what it is
        enabled = torch._C._is_torch_function_enabled()
        return torch.device(_There.kind, 0) if enabled else torch.device("cpu")

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return _There.kind == "cuda"

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert a {_There.kind} tensor to numpy")

    def __array__(self, *_: Any) -> Any:
        raise TypeError(f"can't convert a {_There.kind} tensor to numpy")

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})


def _here(value: Any) -> Any:
    with torch._C.DisableTorchFunction():
        return tree_map_only(_There, lambda t: t.as_subclass(Tensor), value)


def _there(value: Any) -> Any:
    def moved(t: Tensor) -> Tensor:
        if _There.kind == "mps" and t.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        if type(t) is torch.nn.Parameter:
            return t
        return t if isinstance(t, _There) else t.as_subclass(_There)

    with torch._C.DisableTorchFunction():
        return tree_map_only(Tensor, moved, value)


def _is_there(t: Any) -> bool:
    return isinstance(t, _There)


def _asked(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Kind of the device that a call names."""
    for value in (kwargs.get("device"), *args[1:2]):
        if isinstance(value, torch.device):
            return value.type
        if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda", "mps"):
            return value.split(":")[0]
    return None


def _check(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if _is_there(t)]
    if not there or name in _CROSSING:
        return
    with torch._C.DisableTorchFunction():
        here = [t for t in tensors if not _is_there(t) and t.ndim > 0]
    if not here:
        return
    # a GPU's tensor may be indexed with numbers of the CPU
    if name in _INDEXING and _is_there(args[0]):
        return
    if (
        name == "__setitem__"
        and _is_there(args[0])
        and (not isinstance(args[2], Tensor) or _is_there(args[2]))
    ):
        return
    raise MixedDevicesError(f"{name} of tensors on {_There.kind} and on the CPU")


#: Functions in which a network's work is.
_WORK = {"linear", "conv2d", "matmul", "mm", "__matmul__", "embedding_bag", "gru"}
#: How often such work was done on the device and on the CPU.
_work = {"there": 0, "here": 0}


def _call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = getattr(func, "__name__", "")
    asked = _asked(args, kwargs)
    inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if torch._C._functorch.maybe_current_level() is not None:
        # the tensors inside of a transform have no class of their own; what goes in was checked
        if "device" in kwargs and asked not in (None, "cpu", "meta"):
            kwargs = {**kwargs, "device": "cpu"}
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    _check(name, args, kwargs)
    if name in ("cpu", "to") and (name == "cpu" or asked is not None):
        with torch._C.DisableTorchFunction():
            plain, others = _here(args[0]), tuple(args[1:])
            if asked is not None and args[1:2] and not isinstance(args[1], torch.dtype):
                others = ("cpu", *args[2:])
            options = {k: v for k, v in kwargs.items() if k != "device"}
            result = plain.to(*others, **options) if name == "to" else plain
        return _there(result) if asked not in (None, "cpu") else result
    if name == "__deepcopy__" and _is_there(args[0]):
        original, memo = args
        if id(original) not in memo:
            with torch._C.DisableTorchFunction():
                copied = original.detach().clone().as_subclass(_There)
                copied.requires_grad_(original.requires_grad)
                copied._is_param = getattr(original, "_is_param", False)
            memo[id(original)] = copied
        return memo[id(original)]
    if "device" in kwargs and asked not in (None, "cpu", "meta"):
        kwargs = {**kwargs, "device": "cpu"}
    if name in _WORK:
        _work["there" if any(map(_is_there, inputs)) else "here"] += 1
    with torch._C.DisableTorchFunction():
        result = func(*args, **kwargs)
    if name == "_pack_padded_sequence":  # the sizes of the batches are always on the CPU
        return (_there(result[0]) if _is_there(args[0]) else result[0]), result[1]
    if name == "__get__" and not isinstance(result, Tensor):
        return result
    is_there = any(map(_is_there, inputs)) if asked is None else asked not in ("cpu", "meta")
    if name in ("__getitem__", "index_select") and inputs:
        is_there = _is_there(args[0])
    return _there(result) if is_there else result


class _Mode(TorchFunctionMode):
    """Sees the functions that make tensors, and moves."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})


def _staying(transform: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    """A transform such as `torch.vmap`, with results that are where the arguments are."""

    def make(*options: Any, **more: Any) -> Callable[..., Any]:
        transformed = transform(*options, **more)

        def call(*args: Any, **kwargs: Any) -> Any:
            _check(transform.__name__, args, kwargs)
            result = transformed(*args, **kwargs)
            return _there(result) if any(map(_is_there, tree_leaves((args, kwargs)))) else result

        return call

    return make


_jvp = torch.func.jvp


def _jvp_staying(func: Callable[..., Any], primals: Any, tangents: Any, **more: Any) -> Any:
    """`torch.func.jvp`, likewise."""
    _check("jvp", (primals, tangents), {})
    result = _jvp(func, primals, tangents, **more)
    return _there(result) if any(map(_is_there, tree_leaves(primals))) else result


def _parameter(value: Tensor, requires_grad: bool) -> Any:
    with torch._C.DisableTorchFunction():
        if not _is_there(value):
            return torch.nn.Parameter(value, requires_grad)
        leaf: Any = value.detach().as_subclass(_There).requires_grad_(requires_grad)
        leaf._is_param = True  # what makes a tensor of another class a parameter
        return leaf


def _type_of(value: Any) -> type:
    return torch.nn.Parameter if _is_there(value) else type(value)


def _applied(
    module: torch.nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True
) -> torch.nn.Module:
    """`nn.Module._apply`, which makes new parameters where a tensor's class changes."""
    for child in module.children() if recurse else ():
        _applied(child, fn)
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            value = fn(parameter.data)
            module._parameters[name] = _parameter(value, parameter.requires_grad)
    for name, buffer in list(module._buffers.items()):
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


def _nothing(*_: Any) -> None:
    """Stands for what a real GPU does."""


def _random_state(*_: Any) -> Tensor:
    return torch.get_rng_state()


_real_fork = torch.random.fork_rng


def _fork(*_: Any, **__: Any) -> Any:
    return _real_fork([])


@contextmanager
def pretended(kind: str = "cuda") -> Iterator[Mapping[str, int]]:
    """Let ``run_device()`` be a pretended device inside of the block.

    Yields:
        How many products of matrices, convolutions and the like were computed ``there`` and
        ``here``, on the CPU.
    """
    _work.update(there=0, here=0)
    device = torch.device(kind, 0)
    with (
        mock.patch.object(_There, "kind", kind),
        mock.patch("companion.lab.device.pick_device", return_value=device),
        mock.patch.object(torch.random, "fork_rng", _fork),
        mock.patch.object(torch.cuda, "synchronize", _nothing),
        mock.patch.object(torch.cuda, "get_rng_state", _random_state),
        mock.patch.object(torch.mps, "synchronize", _nothing),
        mock.patch.object(torch, "vmap", _staying(torch.vmap)),
        mock.patch.object(torch.func, "grad", _staying(torch.func.grad)),
        mock.patch.object(torch.func, "jvp", _jvp_staying),
        mock.patch.object(estimators, "vmap", _staying(torch.func.vmap)),
        # CuDNN's own layout of weights, and the class that factors ask of a weight
        mock.patch.object(torch.nn.RNNBase, "flatten_parameters", _nothing),
        mock.patch.object(factors, "type", _type_of, create=True),
        mock.patch.object(
            torch.nn.Module, "_apply", lambda self, fn, recurse=True: _applied(self, fn)
        ),
        _Mode(),
    ):
        yield _work
