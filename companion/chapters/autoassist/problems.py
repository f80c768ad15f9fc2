"""The problems of chapter 3: pictures with noise or rotation, and pairs of classes for the SVM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from companion.paths import DATA_CACHE
from trainaug.data import registry
from trainaug.data.cifar import load_cifar
from trainaug.data.indexed import IndexedDataset
from trainaug.data.splits import add_label_noise, draw_parts, join_pictures
from trainaug.methods.autoassist import svm_objective
from trainaug.training.networks import ResNet8, StridedConvNet
from trainaug.training.randomness import stream

__all__ = [
    "CIFAR",
    "CONTENT",
    "PAIRS",
    "Optimum",
    "Pictures",
    "data_hash",
    "losses_of",
    "make_model",
    "pictures",
    "svm_optimum",
    "svm_problem",
]

CONTENT = {"fashion": "fashion_mnist", "breast_cancer": "breast_cancer", "digits": "digits"}
CIFAR = "cifar-10-binary.tar.gz"
TEN_CLASSES = ("fashion", "cifar10")
PAIRS = {"digits": (3, 8), "fashion": (2, 6)}  # of classes: pullover and shirt


@dataclass(frozen=True)
class Pictures:
    """Disjoint parts; *val* chooses and gives the examples to a target, *test* is evaluated once.

    ``wrong`` marks training examples whose label was replaced, ``(N,)``.
    """

    train: IndexedDataset
    val: IndexedDataset
    test: IndexedDataset
    wrong: Tensor

    def to(self, device: torch.device) -> Pictures:
        """Return the same parts on a device; ``wrong``, which is only counted, stays."""
        train, val, test = (part.to(device) for part in (self.train, self.val, self.test))
        return Pictures(train, val, test, self.wrong)


def data_hash(data: str) -> str:
    """Hash of the content of a problem's data, or the name of the archive that readers supply.

    Raises:
        ValueError: If the data are unknown.
    """
    if data == "cifar10":
        return CIFAR
    if data not in CONTENT:
        raise ValueError(f"data must be one of {', '.join(CONTENT)}, cifar10, got {data!r}")
    return registry.content_hash(CONTENT[data])


@lru_cache(maxsize=2)
def _arrays(data: str) -> tuple[Tensor, Tensor, int]:
    """All pictures as stored, their classes, and how many, from the first, may be trained on."""
    if data == "cifar10":
        return join_pictures(load_cifar(DATA_CACHE / CIFAR, 10))
    return join_pictures(registry.load(CONTENT[data]))


def pictures(
    data: str,
    seed: int,
    num_train: int,
    *,
    num_val: int = 2000,
    num_test: int = 4000,
    noise: float = 0.0,
    rotated: bool = False,
) -> Pictures:
    """Draw the parts of a ten-class problem, pixels in 0 to 1.

    Args:
        data: ``fashion``, or ``cifar10``, whose archive you put into the data cache; the test
            part is from the official test set.
        seed: Seed of the draw.
        num_train: Training examples.
        num_val: Validation examples.
        num_test: Test examples.
        noise: Share of the training labels replaced by another class at random.
        rotated: Turn each picture, once and for all, by at most a right angle to either side.

    Raises:
        ValueError: If the data are unknown or too few, or the share is out of range.
    """
    if data not in TEN_CLASSES or not 0 <= noise < 1:
        raise ValueError(
            f"need {' or '.join(TEN_CLASSES)} and 0 <= noise < 1, got {data!r}, {noise}"
        )
    x, y, trainable = _arrays(data)
    if num_train < 1:
        raise ValueError(f"need at least 1 training example, got {num_train}")
    g = stream(seed, "parts")
    sizes = {"val": num_val, "train": num_train, "test": num_test}
    rows = draw_parts(sizes, trainable, g, num_official_test=len(x) - trainable)
    labels, wrong = add_label_noise(y[rows["train"]], noise, 10, g)
    parts: dict[str, IndexedDataset] = {}
    for number, name in enumerate(("train", "val", "test")):
        pixels = x[rows[name]].float() / 255
        if rotated:
            pixels = _turned(pixels, stream(seed, f"angles/{number}"))
        parts[name] = IndexedDataset(pixels, labels if name == "train" else y[rows[name]])
    return Pictures(**parts, wrong=wrong)


def _turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each picture by a random angle, uniform between minus and plus a right angle."""
    angle = (torch.rand(len(x), generator=generator) - 0.5) * torch.pi
    zero = torch.zeros_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def make_model(name: str, data: Pictures, seed: int) -> nn.Module:
    """Build ``cnn`` (three convolutions with strides) or ``resnet8``, from a seed.

    The weights are drawn on the CPU and moved to the device of the data.

    Raises:
        ValueError: If the name is unknown.
    """
    g, shape = stream(seed, "init"), data.train.x.shape[1:]
    device = data.train.x.device
    if name == "cnn":
        return StridedConvNet(10, g, in_channels=shape[0], image_size=shape[1]).to(device)
    if name == "resnet8":
        return ResNet8(10, g, in_channels=shape[0]).to(device)
    raise ValueError(f"model must be cnn or resnet8, got {name!r}")


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, ``(B,)``."""
    return F.cross_entropy(logits, y, reduction="none")


def svm_problem(data: str, seed: int, *, most: int = 2000) -> tuple[Tensor, Tensor]:
    """Two classes in float64: columns standardised, then rows of length 1; labels -1 and 1.

    Args:
        data: ``breast_cancer`` (all 569), ``digits`` (3 and 8, all 357) or ``fashion`` (pullovers
            and shirts of the official training set).
        seed: Draws the pictures of a pair.
        most: Pictures of a pair that are kept, where there are more.

    Raises:
        ValueError: If the data are unknown.
    """
    if data not in CONTENT:
        raise ValueError(f"data must be one of {', '.join(CONTENT)}, got {data!r}")
    arrays = registry.load(CONTENT[data])
    x, y = arrays["train_x"].reshape(len(arrays["train_x"]), -1), arrays["train_y"]
    X = torch.from_numpy(x.astype(np.float64))
    labels = torch.from_numpy(y.astype(np.int64))
    if data in PAIRS:
        rows = torch.isin(labels, torch.tensor(PAIRS[data])).nonzero().squeeze(1)
        if len(rows) > most:
            rows = rows[torch.randperm(len(rows), generator=stream(seed, "parts"))[:most]]
        X, labels = X[rows], (labels[rows] == PAIRS[data][1]).long()
    spread = X.std(0, correction=0)
    X = (X - X.mean(0)) / torch.where(spread > 0, spread, 1.0)
    return X / X.norm(dim=1, keepdim=True), labels.double() * 2 - 1


@dataclass(frozen=True)
class Optimum:
    """Minimum of an SVM's objective: weights ``(D,)`` and value."""

    w: Tensor
    value: float


def svm_optimum(X: Tensor, y: Tensor, lam: float, *, tol: float = 1e-9) -> Optimum:
    """Minimise by liblinear's dual coordinate descent, which at the end checks what it shrank."""
    solver = LinearSVC(
        loss="hinge", fit_intercept=False, C=1 / (lam * len(X)), tol=tol, max_iter=200_000,
        random_state=0,
    )  # fmt: skip
    w = torch.from_numpy(solver.fit(X.numpy(), y.numpy()).coef_[0])
    return Optimum(w, float(svm_objective(w, X, y, lam)))
