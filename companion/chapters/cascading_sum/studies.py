"""The runs of chapter 5: a trained arm, several arms under attack, and objectives compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor, nn

from companion.chapters.cascading_sum.measures import (
    accuracy_curves,
    losses_of,
    measure_model,
    measure_test_time_mixing,
)
from companion.chapters.cascading_sum.plateau import train_by_plateaus
from companion.chapters.cascading_sum.problems import Problem
from companion.chapters.cascading_sum.train import (
    DigitsTraining,
    Trained,
    Training,
    train_classifier,
)
from companion.evidence.store import rounded
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.methods.cascading_sum import SumMix, gradient_lipschitz, hessian_top_eigenvalue
from trainaug.training.randomness import stream

__all__ = [
    "SNAPSHOTS",
    "DigitsObjective",
    "DigitsRadii",
    "Objective",
    "Radii",
    "run_objective",
    "run_radii",
    "run_training",
    "train_arm",
]

SNAPSHOTS = (0, 30, 100, 199, 399, 599)


def train_arm(
    settings: Training, seed: int, *, curve: bool = True
) -> tuple[Problem, nn.Module, Trained]:
    """Draw the problem of an arm and train its model, on the device of the run.

    Args:
        settings: Those of the arm.
        seed: Draws the parts, the initial weights, the order and the mixes.
        curve: Whether the validation accuracy is noted during training, not only at its end.

    Returns:
        The problem, the trained model, and what was noted in training.
    """
    device = run_device(settings.device)
    data = settings.problem(seed).to(device)
    model = settings.build(data, seed).to(device)
    parts = model, data.train, data.val, settings, data.num_classes, seed
    if settings.k0:
        return data, model, train_by_plateaus(*parts)
    return data, model, train_classifier(*parts, curve=curve)


def run_training(settings: Training, seed: int) -> Result:
    """Train an arm and measure the model."""
    data, model, trained = train_arm(settings, seed)
    metrics = measure_model(model, data, settings, seed)
    metrics["val/accuracy"] = trained.accuracy[-1]
    curves = {"step": [float(step) for step in trained.step], "accuracy": trained.accuracy}
    if trained.switches:
        curves["switches"] = trained.switches
    counters = {"examples": trained.examples, "forward_examples": trained.forward_examples}
    return make_result(metrics, curves, counters)


# --- several arms under attack --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Radii(Training):
    """Accuracy of several arms against the radius of the attacks.

    Of the inherited settings only those of the data and of the attacks are used; how each arm is
    trained stands in ``models``.

    Attributes:
        models: Settings of the arms that are compared, by a short name.
        shares: Radii, in multiples of ``eps``.
        mixed: Models that are also measured with test-time mixing.
        partners: Training pictures with which test-time mixing averages a picture.
    """

    kind: ClassVar[type[Training]] = Training  # of the settings in `models`
    models: Mapping[str, Training] = field(default_factory=dict)
    shares: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
    mixed: tuple[str, ...] = ("erm", "csa2", "constant2")
    partners: int = 16

    def shortened(self, share: float) -> Self:
        models = {name: model.shortened(share) for name, model in self.models.items()}
        return replace(self, models=models)

    def tiny(self) -> Self:
        models = {name: model.tiny() for name, model in self.models.items()}
        return replace(super().tiny(), models=models, partners=3)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        models = config["models"]
        if not isinstance(models, Mapping):
            raise TypeError(f"models must be a mapping, got {models!r}")
        settings = super().from_config({**config, "models": {}})
        return replace(
            settings, models={name: cls.kind.from_config(each) for name, each in models.items()}
        )


@dataclass(frozen=True, kw_only=True)
class DigitsRadii(DigitsTraining, Radii):
    """`Radii` on digits."""

    kind: ClassVar[type[Training]] = DigitsTraining


def run_radii(settings: Radii, seed: int) -> Result:
    """Measure accuracy against the radius of the attacks, and what test-time mixing does to it."""
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for name, training in settings.models.items():
        data, model, _ = train_arm(training, seed, curve=False)
        by_attack = accuracy_curves(model, data, settings, seed, settings.shares)
        curves |= {f"{name}/{attack}": values for attack, values in by_attack.items()}
        if name in settings.mixed:
            accuracies = measure_test_time_mixing(model, data, settings, seed, settings.partners)
            metrics |= {f"{name}/{key}": value for key, value in accuracies.items()}
    return make_result(metrics, curves)


# --- objectives compared --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Objective(Training):
    """Training during which the objectives with K samples in a mix are compared.

    Attributes:
        samples: The numbers K.
        snapshots: Steps before which they are compared.
        iterations: Power iterations for the curvature of an objective.
    """

    samples: tuple[int, ...] = (1, 2, 4, 8)
    snapshots: tuple[int, ...] = SNAPSHOTS
    iterations: int = 30

    def tiny(self) -> Self:
        return replace(super().tiny(), snapshots=(0, 10, 30, 59))


@dataclass(frozen=True, kw_only=True)
class DigitsObjective(DigitsTraining, Objective):
    """`Objective` on digits."""


def _objectives(settings: Objective, data: Problem, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Mix the same training pictures with each K; return inputs and labels by name.

    ``k4`` has four samples in a mix; in ``k4_rescaled`` the contrast that averaging takes away is
    restored.
    """
    count = min(settings.landscape_examples, settings.images)
    x, y = data.train.x[:count], data.train.y[:count]
    objectives: dict[str, tuple[Tensor, Tensor]] = {}
    for k in settings.samples:
        for name, rescale in ((f"k{k}", False), (f"k{k}_rescaled", True)):
            if k == 1 and rescale:  # a single sample has lost no contrast
                continue
            mix = SumMix(
                k,
                num_classes=data.num_classes,
                generator=stream(seed, f"objective/{k}"),
                mode="pairing",
                rescale=rescale,
                mean=data.train.x.mean(0),
            )
            objectives[name] = mix(x, y)
    return objectives


def run_objective(settings: Objective, seed: int) -> Result:
    """Compare the objectives with K samples in a mix at the same weights, along one training.

    Curves have curvature, loss and Lipschitz estimate of each objective at the snapshots; metrics
    are mean log ratios to K = 1.
    """
    device = run_device(settings.device)
    data = settings.problem(seed).to(device)
    objectives = _objectives(settings, data, seed)
    curves: dict[str, list[float]] = {}

    def observe(model: nn.Module, step: int, index: Tensor, losses: Tensor) -> None:
        if step not in settings.snapshots:
            return
        for name, (mixed, labels) in objectives.items():
            for key, value in _landscape(model, mixed, labels, settings, seed).items():
                curves.setdefault(f"{key}/{name}", []).append(value)

    model = settings.build(data, seed).to(device)
    parts = model, data.train, data.val, settings, data.num_classes, seed
    train_classifier(*parts, curve=False, observers=[observe])
    metrics = {
        f"{key}/{name}": _mean_log_ratio(curves[f"{key}/{name}"], curves[f"{key}/k1"])
        for key in ("curvature", "lipschitz")
        for name in ("k4", "k4_rescaled")
    }
    return make_result(metrics, curves)


def _landscape(
    model: nn.Module, mixed: Tensor, labels: Tensor, settings: Objective, seed: int
) -> dict[str, float]:
    """Measure the loss of one objective at the model's weights, its curvature and smoothness."""
    objective = model, losses_of, mixed, labels
    generator = stream(seed, "landscape")
    loss = losses_of(model.eval()(mixed), labels).mean()
    return {
        "loss": float(loss.detach()),
        "curvature": hessian_top_eigenvalue(
            *objective, iterations=settings.iterations, stopping="change", generator=generator
        ),
        "lipschitz": gradient_lipschitz(
            *objective,
            radius=settings.lipschitz_radius,
            draws=settings.lipschitz_draws,
            generator=generator,
        ),
    }


def _mean_log_ratio(first: list[float], second: list[float]) -> float:
    """Average the log ratio over the snapshots, from numbers rounded as in the record's curves."""
    ratios = [
        math.log(abs(rounded(a, 6)) / abs(rounded(b, 6)))
        for a, b in zip(first, second, strict=True)
    ]
    return math.fsum(ratios) / len(ratios)
