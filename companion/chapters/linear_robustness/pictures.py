"""Picture classifiers of chapter 6: a small CNN and an MLP, attacked by frequency band."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.lab.arms import Settings
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.data.fashion_mnist import fashion_mnist_tensors
from trainaug.data.indexed import IndexedDataset
from trainaug.data.registry import content_hash
from trainaug.methods.attacks import AttackNorm, equal_bands, pgd
from trainaug.training.devices import to_device
from trainaug.training.loop import train
from trainaug.training.models import evaluate, predict
from trainaug.training.networks import MLP, SmallCNN
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = [
    "BANDS",
    "EPS",
    "CnnAttack",
    "MlpAttack",
    "PictureAttack",
    "run_pictures",
    "score_pictures",
    "train_classifier",
]

Model = Literal["cnn", "mlp"]
Box = tuple[float, float]

BANDS = 4
EPS = (0.05, 0.1, 0.2)
SHAPE = (28, 28)
PIXELS: Box = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class PictureAttack(Settings):
    """A classifier of Fashion-MNIST and all attacks on it.

    Attributes:
        data: ``fashion_mnist``; stated by every record.
        model: ``cnn`` or ``mlp``; records never stated it, so each has a subclass that does.
        examples: Training pictures.
        epochs: Passes over them.
        lr: Learning rate at the start; it falls linearly to zero.
        batch: Examples in a batch.
        hidden: Hidden units of the MLP.
        images: Test pictures that are attacked.
        steps: Steps of an attack.
        travel: What the steps of an attack add up to, in units of its radius.
        bands: Equal parts of the frequencies, from the lowest to the highest.
        eps: Radii of the attacks on Fourier moduli.
        linf_eps: Radii of the attacks on pixels.
        l2_eps: Radius of the attack whose energy is measured.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    data: str
    model: Model
    examples: int = 10_000
    epochs: int = 2
    lr: float = 1.0
    batch: int = 64
    hidden: int = 256
    images: int = 100
    steps: int
    travel: float = 2.5
    bands: int = BANDS
    eps: tuple[float, ...] = EPS
    linf_eps: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    l2_eps: float = 1.0

    @property
    def data_hash(self) -> str:
        return content_hash(self.data)

    def shortened(self, share: float) -> Self:
        return replace(self, epochs=max(1, round(self.epochs * share)))

    def tiny(self) -> Self:
        return replace(self, examples=320, epochs=2, images=8, steps=3)


@dataclass(frozen=True, kw_only=True)
class CnnAttack(PictureAttack):
    """A small convolutional network."""

    model: Model = "cnn"


@dataclass(frozen=True, kw_only=True)
class MlpAttack(PictureAttack):
    """A network with one hidden layer."""

    model: Model = "mlp"


def train_classifier(
    model: Model,
    *,
    examples: int,
    epochs: int,
    lr: float,
    seed: int,
    batch: int = 64,
    hidden: int = 256,
) -> nn.Module:
    """Train a classifier of Fashion-MNIST with AdamW and a learning rate that falls to zero.

    Args:
        model: ``cnn`` or ``mlp``.
        examples: Training pictures, drawn from the training part.
        epochs: Passes over them.
        lr: Learning rate at the start.
        seed: Draws the pictures, the initial weights and the order.
        batch: Examples in a batch.
        hidden: Hidden units of the MLP.
    """
    pictures = fashion_mnist_tensors("train")
    chosen = torch.randperm(len(pictures), generator=stream(seed, "subset"))[:examples]
    x, y, _ = pictures[chosen.tolist()]
    init = stream(seed, "init")
    pixels = SHAPE[0] * SHAPE[1]
    net = SmallCNN(10, init) if model == "cnn" else MLP(pixels, hidden, 10, init)
    device = run_device()
    net = net.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, fused=True)
    steps = epochs * -(-examples // batch)  # the last batch of an epoch may be smaller
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / steps)
    train(
        net,
        IndexedDataset(x.to(device), y.to(device)),
        RandomBatchSampler(examples, batch, stream(seed, "order")),
        lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
        optimizer,
        num_epochs=epochs,
        scheduler=scheduler,
    )
    return net


def _trained(settings: PictureAttack, seed: int) -> nn.Module:
    return train_classifier(
        settings.model,
        examples=settings.examples,
        epochs=settings.epochs,
        lr=settings.lr,
        seed=seed,
        batch=settings.batch,
        hidden=settings.hidden,
    )


@dataclass(frozen=True)
class _Attacked:
    """A trained classifier and the test pictures on which it is attacked."""

    settings: PictureAttack
    net: nn.Module
    x: Tensor
    y: Tensor
    seed: int

    def accuracy(self, x: Tensor) -> float:
        """Accuracy on changed pictures."""
        logits, labels = predict(self.net, IndexedDataset(x, self.y))
        return float((logits.argmax(1) == labels).double().mean())

    def attack(
        self, norm: AttackNorm, eps: float, *, box: Box | None = None, band: Tensor | None = None
    ) -> Tensor:
        """Attack the pictures, within a band of frequencies and a box of pixels if given."""
        steps = self.settings.steps
        return pgd(
            self.net,
            self.x,
            self.y,
            norm=norm,
            eps=eps,
            steps=steps,
            step_size=self.settings.travel * eps / steps,
            generator=stream(self.seed, "attack"),
            band=band,
            bounds=box,
            keep="last",
        )


def run_pictures(settings: PictureAttack, seed: int) -> Result:
    """Train a classifier and attack it by band, without bands, and in l-inf and l2."""
    net = _trained(settings, seed)
    pictures = fashion_mnist_tensors("test")
    chosen = torch.randperm(len(pictures), generator=stream(seed, "measure"))
    x, y, _ = to_device(pictures[chosen[: settings.images].tolist()], run_device())
    attacked = _Attacked(settings, net, x, y, seed)
    bands = [band.to(x.device) for band in equal_bands(SHAPE, settings.bands)]
    metrics = {"clean": attacked.accuracy(x)}
    for eps in settings.eps:
        prefix = f"fourier_linf/{eps:g}"
        for number, band in enumerate(bands):
            moved = attacked.attack("fourier_linf", eps, band=band)
            metrics[f"{prefix}/band={number}"] = attacked.accuracy(moved)
        metrics[f"{prefix}/all"] = attacked.accuracy(attacked.attack("fourier_linf", eps))
        in_box = attacked.attack("fourier_linf", eps, box=PIXELS)
        metrics[f"{prefix}/box"] = attacked.accuracy(in_box)
    for eps in settings.linf_eps:
        metrics[f"linf/{eps:g}/all"] = attacked.accuracy(attacked.attack("linf", eps))
        metrics[f"linf/{eps:g}/box"] = attacked.accuracy(attacked.attack("linf", eps, box=PIXELS))
    delta = attacked.attack("l2", settings.l2_eps) - x
    energy = torch.fft.fft2(delta.double(), norm="ortho").abs().square().sum((0, 1))  # (28, 28)
    for number, band in enumerate(bands):
        metrics[f"energy/band={number}"] = float(energy[band].sum() / energy.sum())
    updates = settings.epochs * -(-settings.examples // settings.batch)
    return make_result(metrics, counters={"updates": updates})


def score_pictures(settings: PictureAttack, seed: int) -> dict[str, float]:
    """Score a learning rate by the accuracy on validation pictures, in [0, 1]."""
    net = _trained(settings, seed)
    return {"validation": evaluate(net, fashion_mnist_tensors("val"), "val")["val/accuracy"]}
