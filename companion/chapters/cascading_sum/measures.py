"""What chapter 5 measures of a classifier, once, after training. Accuracies are in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.cascading_sum.problems import Problem
from companion.chapters.cascading_sum.train import Training
from trainaug.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from trainaug.methods.attacks import fgsm, pgd
from trainaug.methods.cascading_sum import (
    SumTTA,
    gradient_lipschitz,
    hessian_top_eigenvalue,
    sharpness,
)
from trainaug.training.models import predict
from trainaug.training.randomness import stream
from trainaug.undisturbed import undisturbed

__all__ = [
    "accuracy_curves",
    "calibration_error",
    "losses_of",
    "measure_model",
    "measure_test_time_mixing",
    "robust_accuracy",
]


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example with hard or soft labels, ``(B,)``."""
    return F.cross_entropy(logits, y, reduction="none")


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over bins, in [0, 1].

    Args:
        logits: Shape ``(N, C)``.
        y: Classes, shape ``(N,)``.
        bins: Bins of equal width of the confidence, each weighted by its share of the examples.
    """
    y = y.cpu()
    confidence, predicted = (values.cpu() for values in logits.softmax(1).max(1))
    gap = (predicted == y).double() - confidence.double()
    bin_numbers = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_numbers, gap)
    return float(sums.abs().sum()) / len(y)


def robust_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: Training,
    seed: int,
    *,
    attack: str,
    eps: float | None = None,
) -> float:
    """Accuracy after an attack in the l-infinity ball.

    Args:
        model: A classifier.
        x: Pictures.
        y: Their classes.
        settings: Say how strong the attack is.
        seed: Seed of the attack's random starts.
        attack: ``fgsm`` or ``pgd``.
        eps: Radius of the attack, in place of that of the settings.
    """
    eps = settings.eps if eps is None else eps
    with undisturbed(model):
        model.eval()
        if attack == "pgd":
            attacked = pgd(model, x, y, **_pgd_options(settings, eps, seed))
        else:
            attacked = fgsm(model, x, y, norm="linf", eps=eps)
        with torch.no_grad():
            return float((model(attacked).argmax(1) == y).double().mean())


def _pgd_options(settings: Training, eps: float, seed: int) -> dict[str, Any]:
    """Options of `pgd` for an l-inf attack of radius ``eps``, as strong as the settings say."""
    return {
        "norm": "linf",
        "eps": eps,
        "step_size": eps * settings.pgd_step or 1.0,  # at radius 0 any step is cut off
        "steps": settings.pgd_steps,
        "restarts": settings.pgd_restarts,
        "keep": "last",
        "generator": stream(seed, "attack"),
    }


def measure_model(
    model: nn.Module, data: Problem, settings: Training, seed: int
) -> dict[str, float]:
    """Measure accuracy, calibration, attacks, corruptions, input gradient and sharpness.

    Args:
        model: A trained classifier.
        data: Its problem.
        settings: Those with which it was trained.
        seed: Seed of the attacks' random starts and of the corruptions' noise.
    """
    logits, y = predict(model, data.test)
    metrics = {
        "test/accuracy": float((logits.argmax(1) == y).double().mean()),
        "test/nll": float(F.cross_entropy(logits, y)),
        "test/ece": calibration_error(logits, y, settings.ece_bins),
    }
    x, y = data.test.x[: settings.images], data.test.y[: settings.images]
    with undisturbed(model):
        model.eval()
        leaf = x.clone().requires_grad_()
        losses = losses_of(model(leaf), y)
        (gradients,) = torch.autograd.grad(losses.sum(), leaf)
        metrics["input_gradient"] = float(gradients.flatten(1).abs().sum(1).mean())  # l1 norms
        metrics |= _corrupted_accuracy(model, x, y, seed)
    for attack in ("fgsm", "pgd"):
        metrics[attack] = robust_accuracy(model, x, y, settings, seed, attack=attack)
    return metrics | _landscape(model, data, settings, seed)


def _corrupted_accuracy(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """Accuracy on corrupted pictures: the mean over severities by kind, and the mean of all."""
    metrics: dict[str, float] = {}
    all_accuracies: list[float] = []
    for kind in CORRUPTIONS:
        accuracies = []
        for severity in SEVERITIES:
            noise = stream(seed, f"{kind}/{severity}")
            predicted = _predict(model, corrupt(x, kind, severity, generator=noise))
            accuracies.append(float((predicted == y).double().mean()))
        metrics[f"corrupt/{kind}"] = sum(accuracies) / len(SEVERITIES)
        all_accuracies += accuracies
    metrics["corrupt/mean"] = sum(all_accuracies) / len(all_accuracies)
    return metrics


def _landscape(model: nn.Module, data: Problem, settings: Training, seed: int) -> dict[str, float]:
    """Sharpness, curvature and Lipschitz estimate of the gradient on clean training pictures."""
    count = min(settings.landscape_examples, settings.images)
    clean = model, losses_of, data.train.x[:count], data.train.y[:count]
    generator = stream(seed, "landscape")
    return {
        "sharpness": sharpness(*clean, rho=settings.rho, generator=generator),
        "curvature": hessian_top_eigenvalue(
            *clean,
            iterations=settings.curvature_iterations,
            stopping="change",
            generator=generator,
        ),
        "lipschitz": gradient_lipschitz(
            *clean,
            radius=settings.lipschitz_radius,
            draws=settings.lipschitz_draws,
            generator=generator,
        ),
    }


def accuracy_curves(
    model: nn.Module, data: Problem, settings: Training, seed: int, shares: Sequence[float]
) -> dict[str, list[float]]:
    """Measure accuracy against the radius of the attacks, on as many test pictures as are attacked.

    Args:
        model: A trained classifier.
        data: Its problem.
        settings: Those of the attacks and of the number of pictures.
        seed: Seed of the attacks' random starts.
        shares: The radii, in multiples of that of the settings.

    Returns:
        Curves ``eps`` (the radii, 0 first), ``fgsm`` and ``pgd`` (accuracies).
    """
    x, y = data.test.x[: settings.images], data.test.y[: settings.images]
    radii = [0.0, *(share * settings.eps for share in shares)]
    curves = {"eps": radii}
    for attack in ("fgsm", "pgd"):
        curves[attack] = [
            robust_accuracy(model, x, y, settings, seed, attack=attack, eps=radius)
            for radius in radii
        ]
    return curves


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)  # type: ignore[no-any-return]


def measure_test_time_mixing(
    model: nn.Module, data: Problem, settings: Training, seed: int, partners: int
) -> dict[str, float]:
    """Measure accuracy with test-time mixing: clean, and under attacks that know of it or do not.

    The *adaptive* attack differentiates through the mixing, with partners that it drew itself; its
    pictures are classified with freshly drawn partners. The *unaware* attack is made on the bare
    model.

    Args:
        model: A trained classifier.
        data: Its problem.
        settings: Those of the attacks and of the number of pictures.
        seed: Seed of the partners and of the attacks' random starts.
        partners: Training pictures with which every test picture is averaged.
    """
    x, y = data.test.x[: settings.images], data.test.y[: settings.images]
    bank = data.train.x
    with undisturbed(model):
        model.eval()
        generator = stream(seed, "partners")
        attacked_model = SumTTA(model, bank, repeats=partners, generator=generator)
        judging_model = SumTTA(model, bank, repeats=partners, generator=generator)
        unaware = pgd(model, x, y, **_pgd_options(settings, settings.eps, seed))
        adaptive = pgd(attacked_model, x, y, **_pgd_options(settings, settings.eps, seed))

        def accuracy(classifier: nn.Module, pictures: Tensor) -> float:
            return float((_predict(classifier, pictures) == y).double().mean())

        return {
            "clean/bare": accuracy(model, x),
            "clean/mixed": accuracy(judging_model, x),
            "pgd/bare": accuracy(model, unaware),
            "pgd/unaware": accuracy(judging_model, unaware),
            "pgd/adaptive": accuracy(judging_model, adaptive),
        }
