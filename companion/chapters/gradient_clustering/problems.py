"""The problems of chapter 2: parts with copies and wrong labels, and networks without BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.paths import DATA_CACHE
from trainaug.data import registry
from trainaug.data.cifar import load_cifar
from trainaug.data.indexed import IndexedDataset
from trainaug.training.convnet import TwoConvNet
from trainaug.training.models import MLP
from trainaug.training.randomness import stream
from trainaug.training.resnet import ResNet8

__all__ = [
    "CIFAR",
    "CONTENT",
    "Problem",
    "losses_of",
    "make_model",
    "plain_resnet8",
    "problem",
]

CONTENT = {"digits": "digits", "fashion": "fashion_mnist"}  # names in the registry
CIFAR = "cifar-10-binary.tar.gz"
HELD_OUT = {"digits": (297, 500), "fashion": (3000, 2000), "cifar10": (5000, 10_000)}
LARGEST = {"digits": 16}  # of a pixel as stored, else 255
HIDDEN = 64
POINTS = 10  # examples that the copies repeat


@dataclass(frozen=True)
class Problem:
    """Disjoint parts; *val* chooses and gives the steps to a target, *test* is looked at once.

    ``copy_of`` numbers the distinct training examples, ``(N,)``: equal numbers are exact copies.
    """

    train: IndexedDataset
    val: IndexedDataset
    test: IndexedDataset
    copy_of: Tensor

    def to(self, device: torch.device) -> Problem:
        """Return the same parts on a device."""
        train, val, test = (
            IndexedDataset(part.x.to(device), part.y.to(device))
            for part in (self.train, self.val, self.test)
        )
        return Problem(train, val, test, self.copy_of)


@lru_cache(maxsize=2)
def _pictures(data: str) -> tuple[Tensor, Tensor, int]:
    """All pictures as stored, their classes, and how many rows may be trained on."""
    if data == "cifar10":
        arrays = load_cifar(DATA_CACHE / CIFAR, 10)
    else:
        arrays = registry.load(CONTENT[data])
    x, y = (np.concatenate([arrays[f"train_{k}"], arrays[f"test_{k}"]]) for k in "xy")
    if data != "cifar10":
        side = 8 if data == "digits" else 28
        x = x.reshape(len(x), 1, side, side)
    official = len(x) if data == "digits" else len(arrays["train_y"])
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), official


def problem(
    data: str, seed: int, num_train: int, *, copies: float = 0.0, noise: float = 0.0
) -> Problem:
    """Draw the parts of a ten-class problem.

    Args:
        data: ``digits``, ``fashion`` or ``cifar10`` (whose archive you put into the data cache);
            of the last two the test part is from the official test set.
        seed: Seed of the draw.
        num_train: Training examples, copies included.
        copies: Share of them that are exact copies of ten chosen ones, as many of each.
        noise: Share of the distinct training labels replaced by another class at random.

    Raises:
        ValueError: If the data are unknown or too few, or a share is out of range.
    """
    if data not in HELD_OUT:
        raise ValueError(f"data must be one of {', '.join(HELD_OUT)}, got {data!r}")
    if not (0 <= copies < 1 and 0 <= noise < 1):
        raise ValueError(f"need 0 <= copies, noise < 1, got {copies}, {noise}")
    x, y, official = _pictures(data)
    num_val, num_test = HELD_OUT[data]
    g = stream(seed, "parts")
    order = torch.randperm(official, generator=g)
    if official < len(x):
        test = official + torch.randperm(len(x) - official, generator=g)[:num_test]
        val, rest = order[:num_val], order[num_val:]
    else:
        val, test, rest = torch.split(order, [num_val, num_test, len(order) - num_val - num_test])
    distinct = num_train - round(copies * num_train)
    if not POINTS <= distinct <= len(rest):
        raise ValueError(f"{distinct} distinct examples are not between {POINTS} and {len(rest)}")
    labels = y[rest[:distinct]]
    wrong = torch.rand(distinct, generator=g) < noise
    shifted = (labels + torch.randint(1, 10, (distinct,), generator=g)) % 10
    labels = torch.where(wrong, shifted, labels)
    copy_of = torch.cat([torch.arange(distinct), torch.arange(num_train - distinct) % POINTS])
    copy_of = copy_of[torch.randperm(num_train, generator=g)]
    largest = LARGEST.get(data, 255)
    return Problem(
        IndexedDataset(x[rest[copy_of]].float() / largest, labels[copy_of]),
        IndexedDataset(x[val].float() / largest, y[val]),
        IndexedDataset(x[test].float() / largest, y[test]),
        copy_of,
    )


def make_model(name: str, data: Problem, seed: int) -> nn.Module:
    """Build ``mlp`` (64 hidden units), ``cnn`` (two convolutions) or ``resnet8``, from a seed.

    Raises:
        ValueError: If the name is unknown.
    """
    g, shape = stream(seed, "init"), data.train.x.shape[1:]
    if name == "mlp":
        return MLP(shape.numel(), HIDDEN, 10, g)
    if name == "cnn":
        return TwoConvNet(10, g, in_channels=shape[0])
    if name == "resnet8":
        return plain_resnet8(g, in_channels=shape[0])
    raise ValueError(f"model must be mlp, cnn or resnet8, got {name!r}")


def plain_resnet8(generator: torch.Generator, in_channels: int) -> nn.Module:
    """Build a ResNet-8 whose BatchNorms do nothing, as the paper's."""
    model = ResNet8(10, generator, in_channels=in_channels)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, ``(B,)``."""
    return F.cross_entropy(logits, y, reduction="none")
