"""The problems of chapter 2: parts with copies and wrong labels, and networks without BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.lab.arms import Settings
from companion.paths import DATA_CACHE
from trainaug.data import registry
from trainaug.data.cifar import load_cifar
from trainaug.data.indexed import IndexedDataset
from trainaug.data.splits import add_label_noise, draw_copies, draw_parts, join_pictures
from trainaug.training.networks import MLP, ResNet8, TwoConvNet
from trainaug.training.randomness import stream

__all__ = [
    "CIFAR",
    "CONTENT",
    "HELD_OUT",
    "KEEP_BYTES",
    "PictureSettings",
    "Problem",
    "data_hash",
    "losses_of",
    "make_model",
    "pictures",
    "problem",
]

CONTENT = {"digits": "digits", "fashion": "fashion_mnist"}  # names in the registry
CIFAR = "cifar-10-binary.tar.gz"
# examples for validation and for the test
HELD_OUT = {"digits": (297, 500), "fashion": (3000, 2000), "cifar10": (5000, 10_000)}
# Most memory for the factors that a clustering keeps from pass to pass
KEEP_BYTES = 1 << 28
LARGEST = {"digits": 16}  # largest value of a pixel as stored; 255 for the others


@dataclass(frozen=True)
class Problem:
    """Disjoint parts; *val* chooses and gives the steps to a target, *test* is evaluated once.

    ``copy_of`` numbers the distinct training examples, ``(N,)``: equal numbers are exact copies.
    """

    train: IndexedDataset
    val: IndexedDataset
    test: IndexedDataset
    copy_of: Tensor

    def to(self, device: torch.device) -> Problem:
        """Return the same parts on a device."""
        train, val, test = (part.to(device) for part in (self.train, self.val, self.test))
        return Problem(train, val, test, self.copy_of)


def data_hash(data: str) -> str:
    """Hash of the content of a problem's data, or the name of the archive that readers supply.

    Raises:
        ValueError: If the data are unknown.
    """
    if data == "cifar10":
        return CIFAR
    if data not in CONTENT:
        raise ValueError(f"data must be one of {', '.join(HELD_OUT)}, got {data!r}")
    return registry.content_hash(CONTENT[data])


@lru_cache(maxsize=2)
def pictures(data: str) -> tuple[Tensor, Tensor, int]:
    """All pictures as stored, their classes, and how many, from the first, may be trained on."""
    if data == "cifar10":
        return join_pictures(load_cifar(DATA_CACHE / CIFAR, 10))
    return join_pictures(registry.load(CONTENT[data]))


def problem(
    data: str,
    seed: int,
    num_train: int,
    *,
    copies: float = 0.0,
    noise: float = 0.0,
    points: int = 10,
    held_out: tuple[int, int] | None = None,
) -> Problem:
    """Draw the parts of a ten-class problem.

    Args:
        data: ``digits``, ``fashion`` or ``cifar10`` (whose archive you put into the data cache);
            of the last two the test part is from the official test set.
        seed: Seed of the draw.
        num_train: Training examples, copies included.
        copies: Share of them that are exact copies of a few, equally many of each.
        noise: Share of the distinct training labels replaced by another class at random.
        points: Number of examples that the copies repeat.
        held_out: Examples for validation and for the test; those of `HELD_OUT` by default.

    Raises:
        ValueError: If the data are unknown or too few, or a share is out of range.
    """
    if data not in HELD_OUT:
        raise ValueError(f"data must be one of {', '.join(HELD_OUT)}, got {data!r}")
    if not (0 <= copies < 1 and 0 <= noise < 1):
        raise ValueError(f"need 0 <= copies, noise < 1, got {copies}, {noise}")
    x, y, trainable = pictures(data)
    num_val, num_test = held_out or HELD_OUT[data]
    distinct = num_train - round(copies * num_train)
    g = stream(seed, "parts")
    sizes = {"val": num_val, "test": num_test, "train": distinct}
    rows = draw_parts(sizes, trainable, g, num_official_test=len(x) - trainable)
    labels = {name: y[part] for name, part in rows.items()}
    noisy, _ = add_label_noise(labels["train"], noise, 10, g)
    copy_of = draw_copies(num_train, distinct, points, g)
    rows["train"], labels["train"] = rows["train"][copy_of], noisy[copy_of]
    largest = LARGEST.get(data, 255)
    parts = {k: IndexedDataset(x[part].float() / largest, labels[k]) for k, part in rows.items()}
    return Problem(**parts, copy_of=copy_of)


@dataclass(frozen=True, kw_only=True)
class PictureSettings(Settings):
    """A problem made of pictures, and the width of the MLP that learns it.

    Attributes:
        data: ``digits``, ``fashion`` or ``cifar10``.
        num_train: Training examples, copies included.
        copies: Share of them that are exact copies.
        noise: Share of wrong labels among the distinct ones.
        points: Number of examples that the copies repeat.
        num_val: Examples of the validation part.
        num_test: Examples of the test part.
        hidden: Hidden units of the MLP.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")  # inner products are sums in float64

    data: str = "digits"
    num_train: int = 1000
    copies: float = 0.0
    noise: float = 0.0
    points: int = 10
    num_val: int = HELD_OUT["digits"][0]
    num_test: int = HELD_OUT["digits"][1]
    hidden: int = 64

    @property
    def data_hash(self) -> str:
        return data_hash(self.data)

    def problem(self, seed: int) -> Problem:
        """Draw its parts."""
        return problem(
            self.data,
            seed,
            self.num_train,
            copies=self.copies,
            noise=self.noise,
            points=self.points,
            held_out=(self.num_val, self.num_test),
        )


def make_model(name: str, data: Problem, seed: int, *, hidden: int = 64) -> nn.Module:
    """Build ``mlp`` (one hidden layer), ``cnn`` (two convolutions) or ``resnet8``, from a seed.

    The weights are drawn on the CPU and moved to the device of the data.

    Raises:
        ValueError: If the name is unknown.
    """
    g, shape = stream(seed, "init"), data.train.x.shape[1:]
    device = data.train.x.device
    if name == "mlp":
        return MLP(shape.numel(), hidden, 10, g).to(device)
    if name == "cnn":
        return TwoConvNet(10, g, in_channels=shape[0]).to(device)
    if name == "resnet8":
        return ResNet8(10, g, in_channels=shape[0], batch_norm=False).to(device)
    raise ValueError(f"model must be mlp, cnn or resnet8, got {name!r}")


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, ``(B,)``."""
    return F.cross_entropy(logits, y, reduction="none")
