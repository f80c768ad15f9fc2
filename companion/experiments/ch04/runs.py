"""The runs of chapter 4: their list and what each computes."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from companion.evidence.store import Run, rounded
from companion.experiments.ch04.arms import (
    EXTENDED,
    HEADLINE,
    LATER_EPOCHS,
    ORDERS,
    PROBLEMS,
    SCORES,
    settings_of,
    tuned,
)
from companion.experiments.ch04.config import Config
from companion.experiments.ch04.orders import run_orders
from companion.experiments.ch04.problems import (
    losses_of,
    make_model,
    problem,
    source_sgd,
)
from companion.experiments.ch04.training import BATCH, TARGETS, Trained, train_arm
from trainaug.data.registry import content_hash
from trainaug.methods.ordering import BatchScorer, batch_losses, train_in_order
from trainaug.methods.ordering.scores import Score
from trainaug.training.models import evaluate
from trainaug.training.randomness import stream

__all__ = ["SNAPSHOTS", "execute", "plan"]

ORDER_SECONDS = {"mlp": 0.2, "cnn_bn": 1.8}  # an epoch from one state
SNAPSHOTS = (0, 4, 16, 64, 256)  # steps before which the scores are compared
FIRST = 40  # steps over which the entropy of the batches' labels is averaged
CURVE = 60


def plan(config: Config) -> list[Run]:
    """List the runs of a configuration; each names its arm, settings and predicted seconds."""
    runs = []
    data = {name: content_hash(name) for name in PROBLEMS}

    def add(arm: str, settings: dict[str, Any], seeds: int, seconds: float, **more: Any) -> None:
        of = data[settings.get("data", "digits")]
        for seed in range(config.first_seed, config.first_seed + seeds):
            runs.append(Run("04", arm, settings, seed, of, seconds, **more))

    for arms, seeds in ((HEADLINE, config.seeds), (EXTENDED, config.extended_seeds)):
        for arm in arms if seeds else ():
            settings, seconds, owner = settings_of(arm)
            settings["steps"] = max(1, round(settings["steps"] * config.budget))
            spent = seconds * (0.1 + 0.9 * config.budget)
            add(arm, settings | {"lr": tuned(owner)}, seeds, spent)
    for arm, settings in ORDERS.items():
        if settings["model"] != "mlp" or settings["lr"] in config.order_lrs:
            seconds = ORDER_SECONDS[settings["model"]]
            add(arm, settings | {"epochs": 1}, config.order_seeds, seconds)
    for arm, settings in LATER_EPOCHS.items():
        seconds = ORDER_SECONDS[settings["model"]] * (2 + 4 * (config.order_epochs - 1))
        add(arm, settings | {"epochs": config.order_epochs}, config.later_seeds, seconds)
    add("selection", {"lr": tuned("digits_random")}, config.seeds, 0.15)
    for name in PROBLEMS:
        settings = {"data": name, "lr": tuned(f"{name}_random")}
        add(f"timing_{name}", settings, config.timing_blocks, 2.0, deterministic=False)
    return runs


def execute(run: Run) -> dict[str, Any]:
    """Compute one run.

    Raises:
        ValueError: If the arm is unknown.
    """
    settings = dict(run.config)
    if run.arm == "selection":
        return _selection(settings, run.seed)
    if run.arm in [f"timing_{name}" for name in PROBLEMS]:
        return _timing(settings, run.seed)
    if run.arm in ORDERS or run.arm in LATER_EPOCHS:
        return run_orders(settings, run.seed)
    settings_of(run.arm)
    return _summary(settings, train_arm(settings, run.seed))


def _summary(settings: dict[str, Any], found: Trained) -> dict[str, Any]:
    target, steps = TARGETS[settings["data"]], len(found.accuracy)
    first = found.reached(target)
    metrics = evaluate(found.model, found.data.test, "test")
    metrics |= evaluate(found.model, found.data.train, "train")
    metrics |= {
        "val/accuracy": found.accuracy[-1],
        "reached": float(first is not None),
        "steps_to_target": float(first or steps),
        "forwards_to_target": found.forwards[(first or steps) - 1],
        "forwards": found.forwards[-1],
        "entropy": sum(found.entropy[:FIRST]) / len(found.entropy[:FIRST]),
    }
    # dense at the start, where the target is reached
    kept = sorted({round((steps - 1) * (i / (CURVE - 1)) ** 2) for i in range(CURVE)})
    curves = {"step": [float(i + 1) for i in kept]}
    for name in ("accuracy", "forwards", "train_loss"):
        if values := getattr(found, name):
            curves[name] = [rounded(values[i], 6) for i in kept]
    return {
        "metrics": {name: rounded(value, 9) for name, value in metrics.items()},
        "curves": curves,
        "counters": {"steps": steps},
    }


def _selection(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Rank correlation of each score with batch loss, gradient norm and alignment, in training."""
    data = problem("digits", seed)
    model = make_model("mlp", data, seed)
    optimizer = source_sgd(model, settings["lr"])
    g = stream(seed, "order")
    metrics: dict[str, float] = {}
    for step in range(max(SNAPSHOTS) + 1):
        place = step % (len(data.train) // BATCH)
        if place == 0:
            indices = torch.split(torch.randperm(len(data.train), generator=g), BATCH)
        if step in SNAPSHOTS:
            order = torch.stack(torch.split(torch.randperm(len(data.train), generator=g), BATCH))
            x, y = data.train.x[order], data.train.y[order]  # (M, B, ...)
            scores = {}
            for name in get_args(Score):
                target = data.target.x, data.target.y
                scorer = BatchScorer(
                    name, model, losses_of, optimizer=optimizer, target=target, independent=True
                )
                scores[name] = scorer(x, y)
            loss = batch_losses(model, losses_of, x, y, independent=True)
            norm = _gradient_norms(model, x, y)
            for name in ("delta_abs", "delta_rel", "delta_target", "grad_align"):
                for what, values in (
                    ("loss", loss),
                    ("norm", norm),
                    ("align", scores["grad_align"]),
                ):
                    metrics[f"{name}/{what}/{step}"] = _rank_correlation(scores[name], values)
            metrics[f"loss/norm/{step}"] = _rank_correlation(loss, norm)
        batch = indices[place]
        train_in_order(
            model, optimizer, losses_of, [(data.train.x[batch], data.train.y[batch])], [0]
        )
    metrics = {name: rounded(value, 9) for name, value in metrics.items()}
    return {"metrics": metrics, "curves": {}, "counters": {"steps": max(SNAPSHOTS) + 1}}


def _gradient_norms(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    norms = []
    for number in range(len(x)):
        loss = losses_of(model(x[number]), y[number]).mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(torch.cat([g.flatten() for g in grads]).norm())
    return torch.stack(norms)


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([a, b]).argsort(1).argsort(1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def _timing(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Seconds to the target of every headline order, in turn, without the measuring."""
    orders = ["random", *SCORES]
    base = settings_of(f"{settings['data']}_random")[0] | {"lr": settings["lr"]}
    needed = {}
    for order in orders:
        found = train_arm(base | {"order": order}, seed, early=True)
        needed[order] = found.reached(TARGETS[settings["data"]]) or base["steps"]
    metrics: dict[str, float] = {}
    for order in orders if seed % 2 else reversed(orders):
        timed = train_arm(base | {"order": order}, seed, steps=needed[order])
        metrics[f"seconds/{order}"] = rounded(timed.seconds, 6)
        metrics[f"steps/{order}"] = float(needed[order])
    return {"metrics": metrics, "curves": {}, "counters": {}}
