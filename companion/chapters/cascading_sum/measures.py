"""What chapter 5 measures of a trained classifier, on the test part and once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.cascading_sum.problems import Problem
from trainaug.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from trainaug.methods.attacks import fgsm, pgd
from trainaug.methods.cascading_sum import (
    SumTTA,
    gradient_lipschitz,
    hessian_top_eigenvalue,
    sharpness,
)
from trainaug.training.models import predict, undisturbed
from trainaug.training.randomness import stream

__all__ = [
    "EPS",
    "LANDSCAPE_EXAMPLES",
    "accuracy_curves",
    "calibration_error",
    "losses_of",
    "measure_model",
    "measure_test_time_mixing",
    "robust_accuracy",
]

# Radii at which plain training keeps some accuracy in pilots: at 0.1, the radius on digits, nothing
# is left of it on Fashion-MNIST.
EPS = {"digits": 0.1, "fashion": 8 / 255, "emoji": 2 / 255}
EPS |= {"cifar10": 8 / 255, "cifar100": 8 / 255}
SHARES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of EPS, for the curve
PGD: dict[str, Any] = {"steps": 20, "restarts": 2}  # step length: a quarter of the radius
RHO = 0.05  # of the sharpness
LANDSCAPE_EXAMPLES = 200
PARTNERS = 16


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example with hard or soft labels, ``(B,)``."""
    return F.cross_entropy(logits, y, reduction="none")


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over bins of confidence.

    Args:
        logits: Shape ``(N, C)``.
        y: Classes, shape ``(N,)``.
        bins: Number of bins of equal width; a bin counts with its share of the examples.
    """
    confidence, guess = logits.softmax(1).max(1)
    gap = (guess == y).double() - confidence.double()
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add(0, number, gap)
    return float(sums.abs().sum()) / len(y)


def robust_accuracy(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, attack: str, seed: int
) -> float:
    """Accuracy after an attack in the l-infinity ball, with ``fgsm`` or ``pgd``."""
    options: dict[str, Any] = {"norm": "linf", "eps": eps}
    if attack == "pgd":
        options["keep"] = "last"
    with undisturbed(model):
        model.eval()
        if attack == "pgd":
            g = stream(seed, "attack")
            found = pgd(model, x, y, step_size=eps / 4 or 1.0, generator=g, **PGD, **options)
        else:
            found = fgsm(model, x, y, **options)
        with torch.no_grad():
            return float((model(found).argmax(1) == y).double().mean())


def measure_model(
    model: nn.Module, data: Problem, eps: float, seed: int, *, images: int
) -> dict[str, float]:
    """Accuracy, calibration, attacks, corruptions, input gradient and sharpness.

    Args:
        model: A trained classifier.
        data: Its problem.
        eps: Radius of the attacks.
        seed: Of the random starts and the noise.
        images: Test pictures attacked and corrupted.
    """
    logits, y = predict(model, data.test)
    metrics = {
        "test/accuracy": float((logits.argmax(1) == y).double().mean()),
        "test/nll": float(F.cross_entropy(logits, y)),
        "test/ece": calibration_error(logits, y),
    }
    x, y = data.test.x[:images], data.test.y[:images]
    with undisturbed(model):
        model.eval()
        leaf = x.clone().requires_grad_()
        losses = losses_of(model(leaf), y)
        (slope,) = torch.autograd.grad(losses.sum(), leaf)
        metrics["input_gradient"] = float(slope.flatten(1).abs().sum(1).mean())
        correct = [
            float((_predict(model, corrupt(x, kind, s, generator=g)) == y).double().mean())
            for kind in CORRUPTIONS
            for s in SEVERITIES
            for g in [stream(seed, f"{kind}/{s}")]
        ]
    for number, kind in enumerate(CORRUPTIONS):
        of_kind = correct[number * len(SEVERITIES) : (number + 1) * len(SEVERITIES)]
        metrics[f"corrupt/{kind}"] = sum(of_kind) / len(SEVERITIES)
    metrics["corrupt/mean"] = sum(correct) / len(correct)
    for attack in ("fgsm", "pgd"):
        metrics[attack] = robust_accuracy(model, x, y, eps, attack=attack, seed=seed)
    n = min(LANDSCAPE_EXAMPLES, images)
    clean = model, losses_of, data.train.x[:n], data.train.y[:n]
    g = stream(seed, "landscape")
    metrics["sharpness"] = sharpness(*clean, rho=RHO, generator=g)
    metrics["curvature"] = hessian_top_eigenvalue(
        *clean, iterations=20, stopping="change", generator=g
    )
    metrics["lipschitz"] = gradient_lipschitz(*clean, radius=0.1, draws=5, generator=g)
    return metrics


def accuracy_curves(
    model: nn.Module, data: Problem, eps: float, seed: int, *, images: int
) -> dict[str, list[float]]:
    """Accuracy of some test pictures against the radius: ``eps``, ``fgsm`` and ``pgd``."""
    x, y = data.test.x[:images], data.test.y[:images]
    radii = [0.0, *(share * eps for share in SHARES)]
    curves = {"eps": radii}
    for attack in ("fgsm", "pgd"):
        attacked = partial(robust_accuracy, model, x, y, attack=attack, seed=seed)
        curves[attack] = [attacked(radius) for radius in radii]
    return curves


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)  # type: ignore[no-any-return]


def measure_test_time_mixing(
    model: nn.Module, data: Problem, eps: float, seed: int, *, images: int
) -> dict[str, float]:
    """Accuracy with test-time mixing: clean, and against attacks that know it or do not.

    The *adaptive* attack differentiates through partners of its own; what it finds is judged
    with fresh ones. The other attack sees the bare model.
    """
    x, y = data.test.x[:images], data.test.y[:images]
    bank = data.train.x
    with undisturbed(model):
        model.eval()
        g = stream(seed, "partners")
        attacked = SumTTA(model, bank, repeats=PARTNERS, generator=g)
        judge = SumTTA(model, bank, repeats=PARTNERS, generator=g)
        options: dict[str, Any] = {"norm": "linf", "eps": eps, "step_size": eps / 4, **PGD}
        options["keep"] = "last"
        bare = pgd(model, x, y, generator=stream(seed, "attack"), **options)
        adaptive = pgd(attacked, x, y, generator=stream(seed, "attack"), **options)

        def accuracy(asked: nn.Module, x: Tensor) -> float:
            return float((_predict(asked, x) == y).double().mean())

        return {
            "clean/bare": accuracy(model, x),
            "clean/mixed": accuracy(judge, x),
            "pgd/bare": accuracy(model, bare),
            "pgd/unaware": accuracy(judge, bare),
            "pgd/adaptive": accuracy(judge, adaptive),
        }
