"""Two small classifiers, and ways to run a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.checks import class_labels
from trainaug.training.devices import device_of, map_tensors, to_device
from trainaug.training.randomness import initialise

__all__ = ["MLP", "IndexedData", "SmallCNN", "evaluate", "predict", "run_model", "undisturbed"]

Precision = Literal["fp32", "bf16"]


class IndexedData(Protocol):
    """A data set that returns a batch ``(x, y, index)`` for a list of indices.

    ``x`` and ``y`` are tensors with a row for each index, ``(B, ...)``, or nested tuples, lists and
    mappings of such tensors; ``index`` holds the indices as a tensor ``(B,)``.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> tuple[Any, Any, Tensor]: ...


class MLP(nn.Sequential):
    """Flatten, hidden layer, ReLU, output layer; no normalisation, so examples stay independent.

    It maps ``(B, ...)`` to logits ``(B, C)``.

    Args:
        in_features: How many numbers an example has, at least 1.
        hidden: Units of the hidden layer, at least 1.
        num_classes: C, at least 1.
        generator: Draws the weights (`initialise`); they live on its device.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self, in_features: int, hidden: int, num_classes: int, generator: torch.Generator
    ) -> None:
        if min(in_features, hidden, num_classes) < 1:
            raise ValueError(f"need sizes >= 1, got {in_features=}, {hidden=}, {num_classes=}")
        with torch.device("meta"):
            first, last = nn.Linear(in_features, hidden), nn.Linear(hidden, num_classes)
        super().__init__(nn.Flatten(), first, nn.ReLU(), last)
        initialise(self, generator)


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, each with BatchNorm, ReLU and 2x2 pooling, then 96 hidden units.

    It maps ``(B, in_channels, image_size, image_size)`` to logits ``(B, C)`` and has 79 770
    parameters for 28x28 grey pictures and 10 classes. The design is ours.

    Args:
        num_classes: C, at least 1.
        generator: Draws the weights (`initialise`); they live on its device.
        in_channels: Channels of a picture, at least 1.
        image_size: Side of a picture in pixels, at least 8.
        channels_last: Whether the memory layout is channels-last, about 1.5 times as fast on a CPU.

    Raises:
        ValueError: If a size is too small.
    """

    def __init__(
        self,
        num_classes: int,
        generator: torch.Generator,
        *,
        in_channels: int = 1,
        image_size: int = 28,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, image_size // 8) < 1:
            raise ValueError(f"too small: {num_classes=}, {in_channels=}, {image_size=} (8 up)")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.features = nn.Sequential()
        with torch.device("meta"):
            for inputs, width in [(in_channels, 16), (16, 32), (32, 64)]:
                convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                self.features.extend([convolution, nn.BatchNorm2d(width)])
                self.features.extend([nn.ReLU(), nn.MaxPool2d(2)])
            hidden = nn.Linear(64 * (image_size // 8) ** 2, 96)
            self.head = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(96, num_classes))
        initialise(self, generator)
        self.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of pictures ``(B, in_channels, H, W)``.

        Args:
            x: Pictures, ``(B, in_channels, H, W)``.
        """
        x = self.features(x.contiguous(memory_format=self.memory_format))  # (B, 64, 3, 3)
        return self.head(x)  # type: ignore[no-any-return]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore the model after a block of code, such as a measurement during training.

    These are restored, also after an exception: parameters, their gradients and ``requires_grad``;
    buffers; parameters and buffers that the block replaced by other tensors; the train or eval mode
    of each module; and PyTorch's global random state (CPU, and the model's CUDA device).

    Args:
        model: With at least one parameter.

    Yields:
        Nothing; the measurement happens inside.

    Raises:
        ValueError: If the model has no parameters.
    """
    device = device_of(model)
    modes = [
        (module, module.training, dict(module._parameters), dict(module._buffers))
        for module in model.modules()
    ]
    tensors = [*model.parameters(), *model.buffers()]
    values = [(t, t.detach().clone(), t.requires_grad, t.grad) for t in tensors]
    grads = [(t.grad, t.grad.clone()) for t in tensors if t.grad is not None]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, mode, parameters, buffers in modes:
                module.training = mode
                module._parameters.clear()
                module._parameters.update(parameters)
                module._buffers.clear()
                module._buffers.update(buffers)
            with torch.no_grad():
                for t, value, requires_grad, grad in values:
                    if t.dtype != value.dtype or t.device != value.device:
                        t.grad, t.data = None, value.clone()
                    t.requires_grad_(requires_grad).copy_(value)
                    t.grad = grad
                for grad, value in grads:
                    grad.copy_(value)


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
