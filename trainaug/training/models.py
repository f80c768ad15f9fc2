"""Run and evaluate a model without changing it; small ones are in `trainaug.training.networks`."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.checks import class_labels
from trainaug.training.devices import device_of, map_tensors, to_device
from trainaug.training.networks import MLP, SmallCNN
from trainaug.undisturbed import undisturbed

__all__ = ["MLP", "IndexedData", "SmallCNN", "evaluate", "predict", "run_model", "undisturbed"]

Precision = Literal["fp32", "bf16"]


class IndexedData(Protocol):
    """A data set that returns a batch ``(x, y, index)`` for a list of indices.

    ``x`` and ``y`` are tensors with a row for each index, ``(B, ...)``, or nested tuples, lists and
    mappings of such tensors; ``index`` holds the indices as a tensor ``(B,)``.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> tuple[Any, Any, Tensor]: ...


def run_model(
    model: nn.Module,
    x: Any,
    precision: Precision = "fp32",
    device: torch.device | None = None,
) -> Any:
    """Return ``model(x)``, under autocast for ``"bf16"``; bfloat16 outputs become float32.

    Args:
        model: Used in its present mode.
        x: Input of the model, on its device.
        precision: ``"fp32"``, which also switches off an enclosing autocast, or ``"bf16"``.
        device: Device of the model, if known; otherwise it is looked up.

    Raises:
        ValueError: If ``precision`` is something else.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    kind = (device_of(model) if device is None else device).type
    if precision == "bf16" or torch.is_autocast_enabled(kind):
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(x)
    else:  # entering a context that changes nothing would take as long as a small layer
        outputs = model(x)
    return _in_single(outputs) if type(outputs) is Tensor else map_tensors(_in_single, outputs)


def _in_single(t: Tensor) -> Tensor:
    return t.float() if t.dtype == torch.bfloat16 else t


def predict(
    model: nn.Module, dataset: IndexedData, batch_size: int = 512, precision: Precision = "fp32"
) -> tuple[Tensor, Tensor]:
    """Return outputs ``(N, ...)`` and targets ``(N, ...)`` of a data set, in its order.

    The model runs in eval mode without gradients, and is then restored.

    Args:
        model: Returns a tensor ``(B, ...)`` for a batch.
        dataset: Indexed with lists of consecutive indices.
        batch_size: Examples at a time, at least 1.
        precision: As in `run_model`.

    Raises:
        ValueError: If the data set is empty or ``batch_size`` is below 1.
    """
    if len(dataset) == 0 or batch_size < 1:
        raise ValueError(f"nothing to predict: {len(dataset)} examples, {batch_size=}")
    parts = []
    with undisturbed(model), torch.no_grad():
        model.eval()
        for start in range(0, len(dataset), batch_size):
            indices = list(range(start, min(start + batch_size, len(dataset))))
            x, y, _ = to_device(dataset[indices], device_of(model))
            parts.append((run_model(model, x, precision), y))
    return torch.cat([outputs for outputs, _ in parts]), torch.cat([y for _, y in parts])


def evaluate(
    model: nn.Module, dataset: IndexedData, split: str, precision: Precision = "fp32"
) -> dict[str, float]:
    """Return ``{split}/accuracy`` (0 to 1) and ``{split}/loss`` (cross-entropy) of a classifier.

    Args:
        model: Returns logits ``(B, C)`` for a batch.
        dataset: Its targets are class numbers ``(B,)`` of any integer type.
        split: Name of the data in the result, such as ``"test"``.
        precision: As in `run_model`.

    Returns:
        Two numbers; a row of logits with NaN counts as wrong, and makes the loss NaN.

    Raises:
        ValueError: If shapes do not fit, a label is not in 0 ... C-1, or there is no example.
    """
    logits, targets = predict(model, dataset, precision=precision)
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"need logits (N, C) and labels (N,), got {tuple(logits.shape)}, {tuple(targets.shape)}"
        )
    y = class_labels(targets, logits.shape[1])
    # argmax takes NaN for the largest, so that a row with NaN could count as right by chance.
    hits = int(((logits.argmax(1) == y) & ~logits.isnan().any(1)).sum())
    return {f"{split}/accuracy": hits / len(y), f"{split}/loss": F.cross_entropy(logits, y).item()}
