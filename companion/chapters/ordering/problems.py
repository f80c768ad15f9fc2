"""The problems of chapter 4: disjoint parts of a data set, and the models trained on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from trainaug.data import registry
from trainaug.data.indexed import IndexedDataset
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
SHAPES = {"digits": (8, 8), "fashion_mnist": (28, 28)}


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

        def moved(part: IndexedDataset) -> IndexedDataset:
            return IndexedDataset(part.x.to(device), part.y.to(device))

        return replace(
            self,
            train=moved(self.train),
            target=moved(self.target),
            val=moved(self.val),
            test=moved(self.test),
            teacher=None if self.teacher is None else moved(self.teacher),
        )


@lru_cache(maxsize=2)
def _arrays(data: str) -> tuple[Tensor, Tensor, int, float]:
    """Read a data set.

    Returns:
        All pictures as stored, their classes, how many, from the first, may be trained on, and the
        largest value of a pixel.
    """
    arrays = registry.load(data)
    x, y = (np.concatenate([arrays[f"train_{k}"], arrays[f"test_{k}"]]) for k in "xy")
    # digits have no official test set
    trainable = len(x) if data == "digits" else len(arrays["train_y"])
    largest = 16 if data == "digits" else 255
    pictures = torch.from_numpy(x.reshape(len(x), 1, *SHAPES[data]))
    return pictures, torch.from_numpy(y.astype(np.int64)), trainable, largest


def _part(data: str, rows: Tensor, y: Tensor) -> IndexedDataset:
    """Pictures with the numbers ``rows``, pixels scaled to [0, 1], with the labels ``y``."""
    x, _, _, largest = _arrays(data)
    return IndexedDataset(x[rows].float() / largest, y)


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
    x, y, trainable, _ = _arrays(data)
    g = stream(seed, "parts")
    order = torch.randperm(trainable, generator=g)
    if trainable < len(x):
        official_test = trainable + torch.randperm(len(x) - trainable, generator=g)
        used = sum(counts.values()) - counts["test"]
        order = torch.cat([order[:used], official_test])
    rows = _split(order, counts)
    targets = {part: y[index] for part, index in rows.items()}
    if noise:
        shift = torch.randint(1, 10, (counts["train"],), generator=g)
        wrong = torch.rand(counts["train"], generator=g) < noise
        targets["train"] = torch.where(wrong, (targets["train"] + shift) % 10, targets["train"])
    parts = {part: _part(data, index, targets[part]) for part, index in rows.items()}
    return Problem(**parts, rows=rows, num_classes=10)


def _split(order: Tensor, counts: dict[str, int]) -> dict[str, Tensor]:
    sizes = list(counts.values())
    return dict(zip(counts, torch.split(order[: sum(sizes)], sizes), strict=True))


def pair_problem(seed: int, classes: tuple[int, int] = (3, 8), *, sizes: Sizes = PAIR) -> Problem:
    """Draw the two-class problem of the exhaustive study: 48 training digits, six batches of 8.

    Args:
        seed: Seed of the draw.
        classes: The two digits; the second has label 1.
        sizes: Sizes of the parts.
    """
    y = _arrays("digits")[1]
    members = torch.cat([(y == c).nonzero().squeeze(1) for c in classes])
    order = members[torch.randperm(len(members), generator=stream(seed, "parts"))]
    rows = _split(order, sizes.drawn())
    parts = {
        part: _part("digits", index, (y[index] == classes[1]).long())
        for part, index in rows.items()
    }
    return Problem(**parts, rows=rows, num_classes=2)


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
