"""The problems of chapter 4: disjoint parts of a data set, and the models trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from trainaug.data import registry
from trainaug.data.indexed import IndexedDataset
from trainaug.training.convnet import TwoConvNet
from trainaug.training.models import MLP
from trainaug.training.randomness import initialise, stream

__all__ = [
    "MODELS",
    "PARTS",
    "Problem",
    "losses_of",
    "make_model",
    "pair_problem",
    "problem",
    "source_sgd",
]

MODELS = ("linear", "mlp", "cnn", "cnn_bn")
# Examples of each part. *target*: what delta_target and grad_align look at; *val*: the steps to an
# accuracy and every choice; *teacher*: trains the model whose losses sort a curriculum; *test*:
# reported at the end of a run, never looked at before.
PARTS = {
    "digits": {"train": 1024, "target": 128, "val": 245, "test": 400},
    "fashion_mnist": {"train": 2048, "target": 128, "val": 1000, "teacher": 512, "test": 2000},
}
SHAPES = {"digits": (8, 8), "fashion_mnist": (28, 28)}
PAIR = {"train": 48, "target": 32, "val": 138, "test": 139}  # digits 3 and 8
HIDDEN = 64


@dataclass(frozen=True)
class Problem:
    """Disjoint parts of one data set; ``rows`` are their rows in it."""

    train: IndexedDataset
    target: IndexedDataset
    val: IndexedDataset
    test: IndexedDataset
    rows: dict[str, Tensor]
    num_classes: int
    teacher: IndexedDataset | None = None


@lru_cache(maxsize=2)
def _arrays(data: str) -> tuple[Tensor, Tensor, int, float]:
    """All pictures as stored, their classes, how many rows may be trained on, the largest value."""
    arrays = registry.load(data)
    x, y = (np.concatenate([arrays[f"train_{k}"], arrays[f"test_{k}"]]) for k in "xy")
    official = len(x) if data == "digits" else len(arrays["train_y"])
    pictures = torch.from_numpy(x.reshape(len(x), 1, *SHAPES[data]))
    return pictures, torch.from_numpy(y.astype(np.int64)), official, 16 if data == "digits" else 255


def _part(data: str, rows: Tensor, y: Tensor) -> IndexedDataset:
    x, _, _, largest = _arrays(data)
    return IndexedDataset(x[rows].float() / largest, y)


def problem(data: str, seed: int, *, noise: float = 0.0) -> Problem:
    """Draw the parts of a ten-class problem.

    Args:
        data: ``digits`` or ``fashion_mnist``; of the latter the test part is from the official
            test set and the others from the official training set.
        seed: Seed of the draw.
        noise: Share of the training labels replaced by another class at random.

    Raises:
        ValueError: If the data set is unknown.
    """
    if data not in PARTS:
        raise ValueError(f"data must be one of {', '.join(PARTS)}, got {data!r}")
    x, y, official, _ = _arrays(data)
    g = stream(seed, "parts")
    order = torch.randperm(official, generator=g)
    if official < len(x):
        outside = official + torch.randperm(len(x) - official, generator=g)
        used = sum(size for part, size in PARTS[data].items() if part != "test")
        order = torch.cat([order[:used], outside])
    sizes = list(PARTS[data].values())
    rows = dict(zip(PARTS[data], torch.split(order[: sum(sizes)], sizes), strict=True))
    targets = {part: y[index] for part, index in rows.items()}
    if noise:
        shift = torch.randint(1, 10, (sizes[0],), generator=g)
        wrong = torch.rand(sizes[0], generator=g) < noise
        targets["train"] = torch.where(wrong, (targets["train"] + shift) % 10, targets["train"])
    parts = {part: _part(data, index, targets[part]) for part, index in rows.items()}
    return Problem(**parts, rows=rows, num_classes=10)


def pair_problem(seed: int, classes: tuple[int, int] = (3, 8)) -> Problem:
    """Draw the two-class problem of the exhaustive study: 48 training digits, six batches of 8."""
    y = _arrays("digits")[1]
    members = torch.cat([(y == c).nonzero().squeeze(1) for c in classes])
    order = members[torch.randperm(len(members), generator=stream(seed, "parts"))]
    sizes = list(PAIR.values())
    rows = dict(zip(PAIR, torch.split(order[: sum(sizes)], sizes), strict=True))
    parts = {
        part: _part("digits", index, (y[index] == classes[1]).long())
        for part, index in rows.items()
    }
    return Problem(**parts, rows=rows, num_classes=2)


def make_model(name: str, data: Problem, seed: int) -> nn.Module:
    """Build a classifier with the initial weights of a seed.

    Args:
        name: ``linear``, ``mlp`` (64 hidden units), ``cnn`` (two convolutions) or ``cnn_bn`` (the
            same with BatchNorm).
        data: Gives the shapes.
        seed: Seed of the weights.

    Raises:
        ValueError: If the name is unknown.
    """
    generator, pixels = stream(seed, "init"), data.train.x[0].numel()
    if name == "linear":
        with torch.device("meta"):
            model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, data.num_classes))
        initialise(model, generator)
        return model
    if name == "mlp":
        return MLP(pixels, HIDDEN, data.num_classes, generator)
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    return TwoConvNet(data.num_classes, generator, batch_norm=name == "cnn_bn")


def source_sgd(model: nn.Module, lr: float, momentum: float = 0.9) -> SGD:
    """The source's optimiser: Nesterov momentum 0.9 and weight decay 1e-4."""
    nesterov = momentum > 0
    return SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=1e-4)


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, ``(B,)``."""
    return F.cross_entropy(logits, y, reduction="none")
