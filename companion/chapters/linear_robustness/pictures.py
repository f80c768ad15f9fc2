"""Runs of chapter 6 on pictures: a small CNN and an MLP, attacked by frequency band."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.linear_robustness.arms import CLASSIFIERS
from companion.chapters.linear_robustness.bias import tuned
from companion.chapters.linear_robustness.config import Config
from companion.evidence.store import rounded
from trainaug.data.fashion_mnist import fashion_mnist_tensors
from trainaug.data.indexed import IndexedDataset
from trainaug.methods.attacks import AttackNorm, equal_bands, pgd
from trainaug.training.loop import train
from trainaug.training.models import MLP, SmallCNN, predict
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = [
    "BANDS",
    "EPS",
    "LINF_EPS",
    "MODELS",
    "classifiers",
    "run_cnn",
    "run_mlp",
    "train_classifier",
]

MODELS = ("cnn", "mlp")
BANDS = 4  # of equally many frequencies, from the lowest to the highest
EPS = (0.05, 0.1, 0.2)  # radii of Fourier moduli
LINF_EPS = (0.01, 0.02, 0.05, 0.1)  # radii of pixels
L2_EPS = 1.0
BATCH, EXAMPLES, HIDDEN = 64, 10_000, 256
SHAPE = (28, 28)
# predicted core-seconds: an epoch; an attack of ten steps on a hundred pictures
SECONDS = {"cnn": (5.0, 0.6), "mlp": (0.8, 0.08)}


def classifiers(config: Config) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Both classifiers and all their attacks (lin.8)."""
    attacks = (BANDS + 2) * len(EPS) + 2 * len(LINF_EPS) + 1
    for model in MODELS:
        settings = {
            "data": "fashion_mnist",
            "examples": EXAMPLES,
            "epochs": config.epochs,
            "lr": tuned(model),
            "images": config.attack_images,
            "steps": config.attack_steps,
        }
        epoch, attack = SECONDS[model]
        work = config.attack_images * config.attack_steps / 1000
        seconds = config.epochs * epoch + attacks * attack * work + 3
        yield CLASSIFIERS[model], settings, seconds


def train_classifier(model: str, examples: int, epochs: int, lr: float, seed: int) -> nn.Module:
    """Train a classifier with AdamW and a linearly decaying rate."""
    pictures = fashion_mnist_tensors("train")
    chosen = torch.randperm(len(pictures), generator=stream(seed, "subset"))[:examples]
    x, y, _ = pictures[chosen.tolist()]
    init = stream(seed, "init")
    net = SmallCNN(10, init) if model == "cnn" else MLP(784, HIDDEN, 10, init)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, fused=True)
    steps = epochs * -(-examples // BATCH)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / steps)
    train(
        net,
        IndexedDataset(x, y),
        RandomBatchSampler(examples, BATCH, stream(seed, "order")),
        lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
        optimizer,
        num_epochs=epochs,
        scheduler=scheduler,
    )
    return net


def run_cnn(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train and attack the CNN."""
    return _attack("cnn", config, seed)


def run_mlp(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train and attack the MLP."""
    return _attack("mlp", config, seed)


def _attack(model: str, config: dict[str, Any], seed: int) -> dict[str, Any]:
    net = train_classifier(model, config["examples"], config["epochs"], config["lr"], seed)
    pictures = fashion_mnist_tensors("test")
    chosen = torch.randperm(len(pictures), generator=stream(seed, "measure"))
    x, y, _ = pictures[chosen[: config["images"]].tolist()]

    def accuracy(x: Tensor) -> float:
        logits, labels = predict(net, IndexedDataset(x, y))
        return float((logits.argmax(1) == labels).double().mean())

    def attacked(norm: AttackNorm, eps: float, band: Tensor | None = None, **box: Any) -> Tensor:
        steps, start = config["steps"], stream(seed, "attack")
        rest: dict[str, Any] = {"step_size": 2.5 * eps / steps, "generator": start, "band": band}
        rest["keep"] = "last"
        return pgd(net, x, y, norm=norm, eps=eps, steps=steps, **rest, **box)

    bands = equal_bands(SHAPE, BANDS)
    metrics = {"clean": accuracy(x)}
    for eps in EPS:
        for number, band in enumerate(bands):
            found = attacked("fourier_linf", eps, band, bounds=None)
            metrics[f"fourier_linf/{eps:g}/band={number}"] = accuracy(found)
        metrics[f"fourier_linf/{eps:g}/all"] = accuracy(attacked("fourier_linf", eps, bounds=None))
        metrics[f"fourier_linf/{eps:g}/box"] = accuracy(attacked("fourier_linf", eps))
    for eps in LINF_EPS:
        metrics[f"linf/{eps:g}/all"] = accuracy(attacked("linf", eps, bounds=None))
        metrics[f"linf/{eps:g}/box"] = accuracy(attacked("linf", eps))
    delta = attacked("l2", L2_EPS, bounds=None) - x
    energy = torch.fft.fft2(delta.double(), norm="ortho").abs().square().sum((0, 1))  # (28, 28)
    for number, band in enumerate(bands):
        metrics[f"energy/band={number}"] = float(energy[band].sum() / energy.sum())
    return {
        "metrics": {name: rounded(value, 9) for name, value in metrics.items()},
        "curves": {},
        "counters": {"updates": config["epochs"] * -(-config["examples"] // BATCH)},
    }
