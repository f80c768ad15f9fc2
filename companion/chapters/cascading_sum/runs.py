"""The runs of chapter 5: their list and what each computes."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from companion.chapters.cascading_sum.arms import (
    CONDITIONS,
    EXTENDED,
    HEADLINE,
    PAPER,
    best_alpha,
    settings_of,
    tuned,
)
from companion.chapters.cascading_sum.config import Config
from companion.chapters.cascading_sum.measures import (
    EPS,
    LANDSCAPE_EXAMPLES,
    accuracy_curves,
    losses_of,
    measure_model,
    measure_test_time_mixing,
)
from companion.chapters.cascading_sum.plateau import train_by_plateaus
from companion.chapters.cascading_sum.problems import CIFAR, CONTENT, Problem, make_model, problem
from companion.chapters.cascading_sum.training import Trained, train_classifier
from companion.evidence.store import Run, rounded
from trainaug.data.registry import content_hash
from trainaug.methods.cascading_sum import SumMix, gradient_lipschitz, hessian_top_eigenvalue
from trainaug.training.devices import pick_device
from trainaug.training.randomness import stream

__all__ = ["COUNTS", "ROBUST", "SNAPSHOTS", "TEST_TIME", "execute", "plan"]

ROBUST = ("erm", "csa2", "csa4", "constant2", "mixup")  # accuracy against the radius
TEST_TIME = ("erm", "csa2", "constant2")  # test-time mixing
SNAPSHOTS = (0, 30, 100, 199, 399, 599)  # steps before which the objectives are compared
COUNTS = (1, 2, 4, 8)  # samples in a mix of these objectives
RADIUS = 0.1  # of the gradient's Lipschitz estimate
CURVE_IMAGES = 100


def plan(config: Config) -> list[Run]:
    """List the runs of a configuration; each names its arm, settings and predicted seconds."""
    runs = []
    data = {name: content_hash(entry) for name, entry in CONTENT.items()}
    data |= {name: archive for name, (archive, _) in CIFAR.items()}

    def add(arm: str, settings: dict[str, Any], seeds: int, seconds: float) -> None:
        for seed in range(config.first_seed, config.first_seed + seeds):
            runs.append(Run("05", arm, settings, seed, data[settings["data"]], seconds))

    def complete(arm: str) -> dict[str, Any]:
        settings, _, owner = settings_of(arm)
        if settings["alpha"] == "best":
            settings["alpha"] = best_alpha(owner)
        settings["steps"] = max(60, round(settings["steps"] * config.budget))
        return settings | {"lr": tuned(owner), "images": config.images}

    for arms, seeds in ((HEADLINE, config.seeds), (EXTENDED, config.extended_seeds)):
        for arm, (_, seconds, _) in arms.items():
            of_arm = config.deep_seeds if arm.startswith("resnet8") else seeds
            add(arm, complete(arm), of_arm, seconds * (0.3 + 0.7 * config.budget))
    for arm, (_, seconds, _) in PAPER.items():
        add(arm, settings_of(arm)[0] | {"images": config.images}, config.cifar_seeds, seconds)
    for condition, seconds in CONDITIONS.items():
        name = condition.partition("_")[0]
        models = {model: complete(f"{condition}_{model}") for model in ROBUST}
        settings = {"data": name, "models": models, "images": min(CURVE_IMAGES, config.images)}
        add(f"{condition}_radii", settings, config.extended_seeds, 9 * seconds)
        settings = complete(f"{condition}_csa4")
        add(f"{condition}_objective", settings, config.extended_seeds, 5 * seconds)
    return runs


def execute(run: Run) -> dict[str, Any]:
    """Compute one run.

    Raises:
        ValueError: If the arm is unknown.
    """
    settings = dict(run.config)
    conditions = list(CONDITIONS)
    if run.arm in [f"{condition}_radii" for condition in conditions]:
        return _radii(settings, run.seed)
    if run.arm in [f"{condition}_objective" for condition in conditions]:
        return _objective(settings, run.seed)
    settings_of(run.arm)
    data, model, found = _train(settings, run.seed)
    eps = EPS[settings["data"]]
    metrics = measure_model(model, data, eps, run.seed, images=settings["images"])
    metrics["val/accuracy"] = found.accuracy[-1]
    curves = {"step": [float(s) for s in found.step], "accuracy": found.accuracy}
    if found.switches:
        curves["switches"] = found.switches
    return {
        "metrics": {name: rounded(value, 9) for name, value in metrics.items()},
        "curves": {name: [rounded(v, 6) for v in values] for name, values in curves.items()},
        "counters": {"examples": found.examples, "forward_examples": found.forward_examples},
    }


def _train(settings: dict[str, Any], seed: int, **more: Any) -> tuple[Problem, nn.Module, Trained]:
    data = problem(settings["data"], settings["per_class"], seed)
    if settings["model"] == "wrn28_10":
        data = data.to(pick_device())
    model = make_model(settings["model"], data, seed).to(data.train.x.device)
    parts = model, data.train, data.val, settings, data.num_classes, seed
    found = train_by_plateaus(*parts) if settings["k0"] else train_classifier(*parts, **more)
    return data, model, found


def _radii(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Accuracy against the radius of the attacks, and what test-time mixing does to it."""
    eps, images = EPS[settings["data"]], settings["images"]
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for name, of_model in settings["models"].items():
        data, model, _ = _train(of_model, seed, curve=False)
        found = accuracy_curves(model, data, eps, seed, images=images)
        curves |= {f"{name}/{attack}": values for attack, values in found.items()}
        if name in TEST_TIME:
            mixed = measure_test_time_mixing(model, data, eps, seed, images=images)
            metrics |= {f"{name}/{key}": rounded(value, 9) for key, value in mixed.items()}
    curves = {name: [rounded(v, 6) for v in values] for name, values in curves.items()}
    return {"metrics": metrics, "curves": curves, "counters": {}}


def _objective(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Curvature of the objectives with K samples in a mix, at the same weights of a cascade."""
    data = problem(settings["data"], settings["per_class"], seed)
    n = min(LANDSCAPE_EXAMPLES, settings["images"])
    x, y = data.train.x[:n], data.train.y[:n]
    objectives: dict[str, tuple[Tensor, Tensor]] = {}
    for k in COUNTS:
        for name, rescale in ((f"k{k}", False), (f"k{k}_rescaled", True)):
            mix = SumMix(
                k,
                num_classes=data.num_classes,
                generator=stream(seed, f"objective/{k}"),
                mode="pairing",
                rescale=rescale,
                mean=data.train.x.mean(0),
            )
            if k > 1 or not rescale:
                objectives[name] = mix(x, y)
    found: dict[str, list[float]] = {}

    def observe(model: nn.Module, step: int, index: Tensor, losses: Tensor) -> None:
        if step not in SNAPSHOTS:
            return
        for name, (mixed, labels) in objectives.items():
            of = model, losses_of, mixed, labels
            g = stream(seed, "landscape")
            loss = losses_of(model.eval()(mixed), labels).mean()
            values = {
                "loss": float(loss.detach()),
                "curvature": hessian_top_eigenvalue(
                    *of, iterations=30, stopping="change", generator=g
                ),
                "lipschitz": gradient_lipschitz(*of, radius=RADIUS, draws=5, generator=g),
            }
            for key, value in values.items():
                found.setdefault(f"{key}/{name}", []).append(rounded(value, 6))

    model = make_model(settings["model"], data, seed)
    train_classifier(
        model,
        data.train,
        data.val,
        settings,
        data.num_classes,
        seed,
        curve=False,
        observers=[observe],
    )
    metrics = {}
    for key in ("curvature", "lipschitz"):
        for name in ("k4", "k4_rescaled"):
            ratios = [
                math.log(abs(a) / abs(b))
                for a, b in zip(found[f"{key}/{name}"], found[f"{key}/k1"], strict=True)
            ]
            metrics[f"{key}/{name}"] = rounded(math.fsum(ratios) / len(ratios), 9)
    return {"metrics": metrics, "curves": found, "counters": {}}
