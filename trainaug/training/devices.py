"""Where computation runs: on CUDA, MPS or the CPU, in one process or several."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainaug.structures import map_tensors

__all__ = ["all_gather_with_grad", "device_of", "map_tensors", "pick_device", "to_device"]


def pick_device(choice: str = "auto", *, dtype: torch.dtype = torch.float32) -> torch.device:
    """Return the device to run on; ``"auto"`` means the first available of CUDA, MPS, CPU.

    Args:
        choice: ``"auto"``, ``"cuda"``, ``"mps"`` or ``"cpu"``.
        dtype: Type of the computation; MPS has no float64, so the CPU is used for it instead.

    Raises:
        ValueError: If ``choice`` is unknown.
        RuntimeError: If this machine has no such device.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    mps = torch.backends.mps.is_available()
    present = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if choice not in ("auto", *present):
        raise ValueError(f"device must be auto, cuda, mps or cpu, got {choice!r}")
    name = next(d for d in present if present[d]) if choice == "auto" else choice
    if not present[name]:
        raise RuntimeError(f"no {name!r} device here: choose 'auto' or 'cpu'")
    return torch.device("cpu" if name == "mps" and dtype == torch.float64 else name)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter.

    Args:
        model: Any module with parameters.

    Raises:
        ValueError: If the model has no parameters.
    """
    for parameter in model.parameters():
        return parameter.device
    raise ValueError(f"{type(model).__name__} has no parameters, so no device")


def to_device(value: Any, device: torch.device) -> Any:
    """Return ``value`` with each tensor in it moved to ``device``.

    Args:
        value: A tensor, or nested tuples, lists and mappings of tensors and other values. Tensors
            that are already there, and other values, are returned as they are.
        device: Device to move to.
    """

    def moved(item: Any) -> Any:
        return map_tensors(lambda t: t.to(device), item)

    if type(value) is not tuple:
        return moved(value)
    # Most batches are a plain tuple of tensors, which needs no search for nested ones.
    return tuple([t.to(device) if type(t) is Tensor else moved(t) for t in value])


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Gather the rows of all ranks of the default process group, with gradients.

    Every rank then computes the loss of the whole batch, and its gradient reaches the rows of
    the other ranks too. Averaging the gradients of the parameters over the ranks, which is what
    ``DistributedDataParallel`` does, therefore gives exactly the gradient of one process on the
    whole batch, as long as rows do not influence each other inside the model, as they do in batch
    normalisation. This is PyTorch's ``torch.distributed.nn.functional.all_gather``, with the sizes
    checked first.

    Args:
        x: Rows of this rank, shape ``(B, ...)``. Every rank must give equally many rows of one
            shape, and call forward and backward as often as the others, which wait for it.

    Returns:
        Shape ``(R * B, ...)`` for R ranks, in rank order, same dtype and device. If no group is
        initialised, or it has one rank, this is ``x`` itself.

    Raises:
        ValueError: If ``x`` is a scalar, or the sizes differ between ranks; then on every rank.
        RuntimeError: From PyTorch, if another rank is lost or the group's time-out passes.
    """
    if x.ndim == 0:
        raise ValueError("need rows (B, ...), got a scalar")
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    own_size = torch.tensor([x.shape[0], x.numel()], device=x.device)
    sizes = [torch.empty_like(own_size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own_size)
    gathered_sizes = torch.stack(sizes).tolist()
    if any(size != gathered_sizes[0] for size in gathered_sizes):
        raise ValueError(
            f"ranks must bring equally many rows, got [rows, numbers] {gathered_sizes}"
        )
    with warnings.catch_warnings():  # torch 2.14 recommends a private module in place of this one
        warnings.filterwarnings("ignore", "torch.distributed.nn", FutureWarning)
        return torch.cat(all_gather(x))  # type: ignore[no-untyped-call]
