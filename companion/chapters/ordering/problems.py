"""The problems of chapter 4: disjoint parts of a data set, and the models trained on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from trainaug.data import registry
from trainaug.data.indexed import IndexedDataset
from trainaug.data.splits import add_label_noise, cut_parts, draw_parts, join_pictures
from trainaug.training.networks import MLP, TwoConvNet
from trainaug.training.randomness import stream

__all__ = [
    "MODELS",
    "PAIR",
    "SIZES",
    "Problem",
    "Sizes",
    "losses_of",
    "make_model",
    "pair_problem",
    "problem",
    "source_sgd",
]

MODELS = ("linear", "mlp", "cnn", "cnn_bn")
LARGEST = {"digits": 16, "fashion_mnist": 255}  # largest value of a pixel as stored


@dataclass(frozen=True)
class Sizes:
    """Examples of each part.

    Attributes:
        train: Examples that are trained on.
        target: Examples on which the scores ``delta_target`` and ``grad_align`` judge a batch.
        val: Examples that decide the steps to an accuracy, and every choice.
        test: Examples that are evaluated once, at the end of a run.
        teacher: Examples for the model whose losses sort a curriculum; 0 without such a model.
    """

    train: int
    target: int
    val: int
    test: int
    teacher: int = 0

    def drawn(self) -> dict[str, int]:
        """Sizes by name in the order in which the parts are drawn, without an empty teacher."""
        teacher = {"teacher": self.teacher} if self.teacher else {}
        return (
            {"train": self.train, "target": self.target, "val": self.val}
            | teacher
            | {"test": self.test}
        )


SIZES = {
    "digits": Sizes(1024, 128, 245, 400),
    "fashion_mnist": Sizes(2048, 128, 1000, 2000, teacher=512),
}
PAIR = Sizes(48, 32, 138, 139)  # digits 3 and 8


@dataclass(frozen=True)
class Problem:
    """Disjoint parts of one data set; ``rows`` are the numbers of their examples in it."""

    train: IndexedDataset
    target: IndexedDataset
    val: IndexedDataset
    test: IndexedDataset
    rows: dict[str, Tensor]
    num_classes: int
    teacher: IndexedDataset | None = None

    def to(self, device: torch.device) -> Problem:
        """Return the same parts on a device; ``rows``, which no computation uses, stay."""
        parts = {name: getattr(self, name).to(device) for name in self.rows}
        return replace(self, **parts)


@lru_cache(maxsize=2)
def _pictures(data: str) -> tuple[Tensor, Tensor, int]:
    """All pictures as stored, their classes, and how many, from the first, may be trained on."""
    return join_pictures(registry.load(data))


def problem(data: str, seed: int, *, noise: float = 0.0, sizes: Sizes | None = None) -> Problem:
    """Draw the parts of a ten-class problem.

    Args:
        data: ``digits`` or ``fashion_mnist``; of the latter the test part is from the official
            test set and the others from the official training set.
        seed: Seed of the draw.
        noise: Share of the training labels replaced by another class at random.
        sizes: Sizes of the parts; those of `SIZES` by default.

    Raises:
        ValueError: If the data set is unknown.
    """
    if data not in SIZES:
        raise ValueError(f"data must be one of {', '.join(SIZES)}, got {data!r}")
    counts = (sizes or SIZES[data]).drawn()
    x, y, trainable = _pictures(data)
    g = stream(seed, "parts")
    rows = draw_parts(counts, trainable, g, num_official_test=len(x) - trainable)
    labels = {part: y[index] for part, index in rows.items()}
    if noise:
        labels["train"], _ = add_label_noise(labels["train"], noise, 10, g, classes_first=True)
    return _problem(data, rows, labels, 10)


def _problem(
    data: str, rows: dict[str, Tensor], labels: dict[str, Tensor], num_classes: int
) -> Problem:
    """Make a problem of the parts' rows and labels; pixels are scaled to [0, 1]."""
    x, largest = _pictures(data)[0], LARGEST[data]
    parts = {k: IndexedDataset(x[part].float() / largest, labels[k]) for k, part in rows.items()}
    return Problem(**parts, rows=rows, num_classes=num_classes)


def pair_problem(seed: int, classes: tuple[int, int] = (3, 8), *, sizes: Sizes = PAIR) -> Problem:
    """Draw the two-class problem of the exhaustive study: 48 training digits, six batches of 8.

    Args:
        seed: Seed of the draw.
        classes: The two digits; the second has label 1.
        sizes: Sizes of the parts.
    """
    y = _pictures("digits")[1]
    members = torch.cat([(y == c).nonzero().squeeze(1) for c in classes])
    order = members[torch.randperm(len(members), generator=stream(seed, "parts"))]
    rows = cut_parts(order, sizes.drawn())
    labels = {part: (y[index] == classes[1]).long() for part, index in rows.items()}
    return _problem("digits", rows, labels, 2)


def make_model(name: str, data: Problem, seed: int, *, hidden: int = 64) -> nn.Module:
    """Build a classifier with the initial weights of a seed, on the device of the data.

    The weights are drawn on the CPU, so that they are the same on every device.

    Args:
        name: ``linear``, ``mlp`` (one hidden layer), ``cnn`` (two convolutions) or ``cnn_bn`` (the
            same with BatchNorm).
        data: Gives the shapes and the device.
        seed: Seed of the weights.
        hidden: Units of the hidden layer.

    Raises:
        ValueError: If the name is unknown.
    """
    generator, pixels = stream(seed, "init"), data.train.x[0].numel()
    device = data.train.x.device
    if name in ("linear", "mlp"):
        widths = hidden if name == "mlp" else ()
        return MLP(pixels, widths, data.num_classes, generator).to(device)
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    return TwoConvNet(data.num_classes, generator, batch_norm=name == "cnn_bn").to(device)


def source_sgd(
    model: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 1e-4
) -> SGD:
    """Make the optimiser of the thesis: by default Nesterov momentum 0.9 and weight decay 1e-4."""
    return SGD(
        model.parameters(),
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
    )


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, ``(B,)``."""
    return F.cross_entropy(logits, y, reduction="none")
