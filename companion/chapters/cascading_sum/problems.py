"""The problems of chapter 5: few training pictures of each class, and the networks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from companion.paths import DATA_CACHE
from trainaug.data import registry
from trainaug.data.cifar import load_cifar
from trainaug.data.emoji_captions import emoji_captions, family_split
from trainaug.data.indexed import IndexedDataset
from trainaug.data.splits import draw_parts, join_pictures, take_of_each_class
from trainaug.training.networks import ResNet8, StridedConvNet, WideResNet
from trainaug.training.randomness import stream

__all__ = [
    "CIFAR",
    "CONTENT",
    "EMOJI_CLASSES",
    "HELD_OUT",
    "RESERVED",
    "Problem",
    "data_hash",
    "make_model",
    "problem",
]

# Registry name of each problem's data.
CONTENT = {"digits": "digits", "fashion": "fashion_mnist", "emoji": "emoji_captions"}
CIFAR: dict[str, tuple[str, Literal[10, 100]]] = {
    "cifar10": ("cifar-10-binary.tar.gz", 10),
    "cifar100": ("cifar-100-binary.tar.gz", 100),
}
# Validation and test pictures. Those of emoji follow from the split by families: groups of
# concepts that are nearly the same, as woman cook and man cook.
HELD_OUT: dict[str, tuple[int, int]] = {
    "digits": (200, 500),
    "fashion": (1000, 2000),
    "emoji": (0, 0),
    "cifar10": (5000, 10_000),
    "cifar100": (5000, 10_000),
}
RESERVED = 100  # pictures of each digit kept for training, if need be at the test part's cost
LARGEST = {"digits": 16}  # largest value of a pixel as stored; 255 for the others
EMOJI_CLASSES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
)  # Unicode's groups without Flags, a group with only eight concepts
EMOJI_SIDE = 32


@dataclass(frozen=True)
class Problem:
    """Disjoint parts; *val* chooses, *test* is evaluated once, after training."""

    train: IndexedDataset
    val: IndexedDataset
    test: IndexedDataset
    num_classes: int

    def to(self, device: torch.device) -> Problem:
        """Return the same parts on a device."""
        train, val, test = (part.to(device) for part in (self.train, self.val, self.test))
        return Problem(train, val, test, self.num_classes)


def data_hash(data: str) -> str:
    """Hash of the content of a problem's data, or the name of the archive that readers supply.

    Raises:
        ValueError: If the data are unknown.
    """
    if data in CIFAR:
        return CIFAR[data][0]
    if data not in CONTENT:
        raise ValueError(f"data must be one of {', '.join(CONTENT | CIFAR)}, got {data!r}")
    return registry.content_hash(CONTENT[data])


@lru_cache(maxsize=2)
def _pictures(data: str) -> tuple[Tensor, Tensor, int]:
    """All pictures as stored, their classes, and how many, from the first, may be trained on."""
    if data in CIFAR:
        archive, num_classes = CIFAR[data]
        return join_pictures(load_cifar(DATA_CACHE / archive, num_classes))
    return join_pictures(registry.load(CONTENT[data]))


@lru_cache(maxsize=1)
def _emoji() -> tuple[Tensor, Tensor]:
    """Pictures ``(N, V, 3, 32, 32)``, V drawings of each concept, and its class, -1 for flags."""
    data = emoji_captions()
    x = torch.tensor(data.pictures).permute(0, 1, 4, 2, 3).float() / 255
    x = torch.nn.functional.avg_pool2d(x.flatten(0, 1), 64 // EMOJI_SIDE)
    numbers = {name: number for number, name in enumerate(EMOJI_CLASSES)}
    classes = torch.tensor([numbers.get(name, -1) for name in data.categories])
    return x.view(*data.pictures.shape[:2], *x.shape[1:]), classes


def problem(
    data: str,
    per_class: int,
    seed: int,
    *,
    held_out: tuple[int, int] | None = None,
    reserved: int = RESERVED,
) -> Problem:
    """Draw the training, validation and test part of a data set.

    The validation and test parts of a seed are the same for every ``per_class``, and smaller
    training parts lie in the larger ones.

    Args:
        data: ``digits``, ``fashion`` (test part from the official test set), ``emoji`` (eight
            Unicode groups in colour; concepts that are nearly the same, a *family*, are in one
            part), or ``cifar10`` and ``cifar100``, whose archives you put into the data cache.
        per_class: Training pictures of each class.
        seed: Seed of the draw.
        held_out: Pictures of the validation and the test part; those of `HELD_OUT` by default.
        reserved: Pictures of each class that are kept for training where the data have no official
            test set.

    Raises:
        ValueError: If the data are unknown or too few.
    """
    if data not in CONTENT | CIFAR:
        raise ValueError(f"data must be one of {', '.join(CONTENT | CIFAR)}, got {data!r}")
    g = stream(seed, "parts")
    if data == "emoji":
        return _emoji_problem(per_class, seed, g)
    x, y, trainable = _pictures(data)
    num_val, num_test = HELD_OUT[data] if held_out is None else held_out
    sizes = {"val": num_val, "test": num_test, "train": None}
    rows = draw_parts(sizes, trainable, g, num_official_test=len(x) - trainable)
    if trainable == len(x):
        rows["test"], rows["train"] = _reserve(rows["test"], rows["train"], y, reserved)
    num_classes = int(y.max()) + 1
    rest = rows["train"]
    rows["train"] = rest[take_of_each_class(y[rest], per_class, num_classes)]
    largest = LARGEST.get(data, 255)
    parts = {k: IndexedDataset(x[part].float() / largest, y[part]) for k, part in rows.items()}
    return Problem(**parts, num_classes=num_classes)


def _emoji_problem(per_class: int, seed: int, g: torch.Generator) -> Problem:
    """Draw the parts of the emoji; nearly equal concepts are in the same part."""
    pictures, classes = _emoji()
    split = family_split(emoji_captions().families, seed)
    parts: dict[str, IndexedDataset] = {}
    for name in ("train", "val", "test"):
        chosen = torch.from_numpy(getattr(split, name))
        chosen = chosen[classes[chosen] >= 0]
        x = pictures[chosen].flatten(0, 1)
        y = classes[chosen].repeat_interleave(pictures.shape[1])
        order = torch.randperm(len(x), generator=g)
        if not parts:  # the training part, which comes first, is made smaller
            order = order[take_of_each_class(y[order], per_class, len(EMOJI_CLASSES))]
        parts[name] = IndexedDataset(x[order], y[order])
    return Problem(**parts, num_classes=len(EMOJI_CLASSES))


def _reserve(test: Tensor, rest: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Move the last test pictures of a class to ``rest`` if it has fewer than ``count`` of them."""
    moved = torch.zeros(len(test), dtype=torch.bool)
    for c in range(int(y.max()) + 1):
        missing = count - int((y[rest] == c).sum())
        if missing > 0:
            moved[(y[test] == c).nonzero().squeeze(1)[-missing:]] = True
    return test[~moved], torch.cat([rest, test[moved]])


def make_model(
    name: str, data: Problem, seed: int, *, depth: int = 28, width: int = 10
) -> nn.Module:
    """Build a network with the initial weights of a seed.

    Args:
        name: ``conv`` (three strided convolutions), ``resnet8`` or ``wrn28_10``.
        data: Gives the shapes.
        seed: Seed of the weights.
        depth: Depth of the wide residual network.
        width: Width of the wide residual network.

    Raises:
        ValueError: If the name is unknown.
    """
    channels, side = data.train.x.shape[1], data.train.x.shape[-1]
    g = stream(seed, "init")
    if name == "conv":
        return StridedConvNet(data.num_classes, g, in_channels=channels, image_size=side)
    if name == "resnet8":
        return ResNet8(data.num_classes, g, in_channels=channels)
    if name == "wrn28_10":
        return WideResNet(depth, width, data.num_classes, g, in_channels=channels)
    raise ValueError(f"model must be conv, resnet8 or wrn28_10, got {name!r}")
