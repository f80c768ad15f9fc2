"""The runs of chapter 6: their list, exact solutions, and steepest descent on the same problems.

All problems of one data set and seed are stacked in one tensor and form one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from companion.chapters.linear_robustness import bias, pictures
from companion.chapters.linear_robustness.arms import (
    ADVERSARIAL,
    DESCENTS,
    EXACT,
    NETWORKS,
    OPTIMISERS,
    REGULARISED,
    Descent,
    descent_arm,
)
from companion.chapters.linear_robustness.config import DATA, Config
from companion.chapters.linear_robustness.problems import attacks_on, load_problems, stacked
from companion.evidence.store import Run, rounded
from trainaug.data.registry import content_hash
from trainaug.methods.linear_robustness import (
    NORMS,
    dual,
    enclosure,
    max_margin,
    robust_error,
    robust_radius,
    second_solver,
    steepest_descent_paths,
    worst_case_perturbation,
)
from trainaug.roots import log10

__all__ = [
    "FRACTIONS",
    "JUST_ABOVE",
    "NOTE_STEPS",
    "RATE_SIZES",
    "execute",
    "plan",
]

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
JUST_ABOVE = 1.001
NOTE_STEPS = 10_000
RATE_SIZES = (10, 25)
SECONDS = {  # predicted core-seconds: of the exact solutions, and of 10 000 steps of one optimiser
    "gaussian": (3.0, 0.7),
    "digits": (1.5, 0.5),
    "fashion_mnist": (11.0, 1.7),
}
RATE_SECONDS = 0.6  # of 10 000 steps of one optimiser on the problems of the rates


def plan(config: Config) -> list[Run]:
    """List the runs of a configuration; each names its arm, settings and predicted seconds."""
    runs = []
    for number in range(max(config.seeds, config.extended_seeds)):
        seed = config.first_seed + number
        if number < config.seeds:
            found = [*_exact_and_descents(config), *bias.networks(config)]
        else:
            found = []
        if number < config.extended_seeds:
            found += [*_rates(config), *bias.regularised(config)]
            found += [*bias.adversarial(config), *pictures.classifiers(config)]
        for arm, settings, seconds in found:
            data = content_hash(settings["data"])
            runs.append(Run("06", arm, settings, seed, data, seconds))
    return runs


Planned = tuple[str, dict[str, Any], float]  # arm, settings, predicted core-seconds


def _exact_and_descents(config: Config) -> Iterator[Planned]:
    """Exact solutions, the three optimisers, and coordinate descent's step sizes on digits."""
    steps = {
        "gaussian": config.gaussian_steps,
        "digits": config.digits_steps,
        "fashion_mnist": config.fashion_steps,
    }
    for data in DATA:
        base: dict[str, Any] = {"data": data}
        if data == "gaussian":
            base["sizes"] = list(config.sizes)
        solve, descend = SECONDS[data]
        yield EXACT[data], base, solve
        for optimiser in OPTIMISERS:
            ablated = data == "digits" and optimiser == "coordinate"
            for scale in (1.0, *config.step_sizes) if ablated else (1.0,):
                settings = base | {"steps": steps[data], "step_size": scale}
                arm = descent_arm(optimiser, data, scale)
                yield arm, settings, descend * steps[data] / 10_000


def _rates(config: Config) -> Iterator[Planned]:
    """The three optimisers with a constant step on the mean loss (lin.3)."""
    settings = {"data": "gaussian", "sizes": list(RATE_SIZES), "steps": config.rate_steps}
    for optimiser in OPTIMISERS:
        seconds = RATE_SECONDS * config.rate_steps / 10_000
        arm = descent_arm(optimiser, "gaussian", rule="constant")
        yield arm, settings | {"step_size": 1.0}, seconds


def execute(run: Run) -> dict[str, Any]:
    """Compute one run.

    Raises:
        ValueError: If the arm is unknown.
    """
    compute = COMPUTED.get(run.arm)
    if compute is None:
        raise ValueError(f"unknown arm {run.arm!r}")
    return compute(dict(run.config), run.seed)


def _solve(config: dict[str, Any], seed: int) -> dict[str, Any]:
    problems = load_problems(config, seed)
    metrics: dict[str, float] = {}
    attacks = attacks_on(config["data"])
    for name, X, y, X_test, y_test in problems:
        solutions = {attack: max_margin(X, y, attack) for attack in attacks}
        for attack, exact in solutions.items():
            second = max_margin(X, y, attack, solver=second_solver(attack))
            proved = enclosure(X, y, attack, exact.w, exact.lam)
            eps, at = exact.eps_star, f"{name}/{attack}"
            metrics |= {
                f"{at}/eps_star": eps,
                f"{at}/upper": exact.upper,
                f"{at}/gap": exact.gap,
                f"{at}/kkt": max(exact.kkt.values()),
                f"{at}/second": second.eps_star,
                f"{at}/solver_difference": abs(second.eps_star / eps - 1),
                f"{at}/proved_lower": proved.lower,
                f"{at}/proved_upper": proved.upper,
                f"{at}/proved_width": proved.width,
                f"{at}/train_error": float(robust_error(exact.w, X, y, attack, 0.0)),
            }
            for fraction in (*FRACTIONS, JUST_ABOVE):
                moved = X + worst_case_perturbation(exact.w, y, attack, fraction * eps)
                wrong = robust_error(exact.w, moved, y, attack, 0.0)
                metrics[f"{at}/error_at/{fraction}"] = float(wrong)
            if not len(y_test):
                continue
            metrics[f"{at}/test_error"] = float(robust_error(exact.w, X_test, y_test, attack, 0.0))
            for under, other in solutions.items():
                wrong = robust_error(exact.w, X_test, y_test, under, 0.5 * other.eps_star)
                metrics[f"{at}/test_error_under/{under}"] = float(wrong)
    return {
        "metrics": {key: rounded(value) for key, value in metrics.items()},
        "curves": {},
        "counters": {"solves": 2 * len(attacks) * len(problems)},
    }


def _descend(row: Descent, config: dict[str, Any], seed: int) -> dict[str, Any]:
    problems = load_problems(config, seed)
    weight_norm, steps, step_size = OPTIMISERS[row.optimiser], config["steps"], config["step_size"]
    stack, mask = stacked(problems)
    recorded = _log_spaced(steps)
    path = steepest_descent_paths(
        stack, [weight_norm], record_at=recorded, lr=float(step_size), step=row.rule, mask=mask
    )
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {"step": [float(t) for t in recorded]}
    own = dual(weight_norm)
    for i, (name, X, y, _, _) in enumerate(problems):
        iterates = path.weights[:, i, 0]  # (K, D)
        lower, upper = robust_radius(iterates, X, y, own), path.upper[:, i, 0]  # (K,)
        curves[f"{name}/lower"] = [rounded(v, 6) for v in lower.tolist()]
        curves[f"{name}/upper"] = [rounded(v, 6) for v in upper.tolist()]
        for moment in sorted({min(NOTE_STEPS, steps), steps}):
            w = iterates[recorded.index(moment)]
            for attack in NORMS:
                radius = float(robust_radius(w, X, y, attack))
                metrics[f"{name}/{attack}/radius@{moment}"] = rounded(radius)
        metrics[f"{name}/upper"] = rounded(float(upper[-1]))
        metrics[f"{name}/train_error"] = float(robust_error(iterates[-1], X, y, own, 0.0))
    return {
        "metrics": metrics,
        "curves": curves,
        "counters": {"gradients": steps * len(problems)},
    }


def _log_spaced(steps: int) -> list[int]:
    """At most 30 step numbers from 10 to ``steps``, with the note's 10 000 among them."""
    spaced = torch.logspace(1, log10(torch.tensor(float(steps))).item(), 28, dtype=torch.float64)
    chosen = {round(t) for t in spaced.tolist()} | {steps, min(NOTE_STEPS, steps)}
    return sorted(t for t in chosen if t <= steps)


COMPUTED: dict[str, Callable[[dict[str, Any], int], dict[str, Any]]] = {
    **dict.fromkeys(EXACT.values(), _solve),
    **{arm: partial(_descend, row) for arm, row in DESCENTS.items()},
    **dict.fromkeys(REGULARISED.values(), bias.run_regularised),
    NETWORKS["convolutional", "gaussian"]: bias.run_convolutional,
    NETWORKS["convolutional", "digits"]: bias.run_convolutional,
    NETWORKS["dense", "gaussian"]: bias.run_dense,
    NETWORKS["dense", "digits"]: bias.run_dense,
    **dict.fromkeys(ADVERSARIAL.values(), bias.run_adversarial),
    "fashion_cnn": pictures.run_cnn,
    "fashion_mlp": pictures.run_mlp,
}
