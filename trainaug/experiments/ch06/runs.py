"""The runs of chapter 6: exact solutions and steepest descent on the same problems.

All problems of one data set and seed are stacked in one tensor and form one run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainaug.data.binary import binary_problem
from trainaug.data.gaussian import gaussian_problem
from trainaug.data.registry import content_hash
from trainaug.evidence.store import Run, rounded
from trainaug.experiments.ch06.config import DATA, Config
from trainaug.methods.linear_robustness import (
    NORMS,
    Norm,
    dual,
    max_margin,
    robust_error,
    robust_radius,
    second_solver,
    signed_rows,
    steepest_descent_paths,
    worst_case_perturbation,
)

__all__ = [
    "FRACTIONS",
    "JUST_ABOVE",
    "NOTE_STEPS",
    "OPTIMISERS",
    "PAIRS",
    "Problem",
    "execute",
    "load_problems",
    "plan",
]

OPTIMISERS: dict[str, Norm] = {"coordinate": "l1", "gradient": "l2", "sign": "linf"}
PAIRS = {
    "digits": ((0, 1), (4, 9), (3, 8)),
    "fashion_mnist": ((1, 9), (0, 9), (1, 5), (3, 8)),
}
EXAMPLES = {"digits": 60, "fashion_mnist": 100}
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
JUST_ABOVE = 1.001
NOTE_STEPS = 10_000
SECONDS = {  # predicted core-seconds: of the exact solutions, and of 10 000 steps of one optimiser
    "gaussian": (1.5, 0.7),
    "digits": (1.5, 0.5),
    "fashion_mnist": (4.0, 1.7),
}


class Problem(NamedTuple):
    """A two-class problem as tensors; the test part may be empty."""

    name: str
    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor


def plan(config: Config) -> list[Run]:
    """List the runs: per data set and seed the exact solutions and the three optimisers, and the
    step-size ablation of coordinate descent on digits."""
    steps = {
        "gaussian": config.gaussian_steps,
        "digits": config.digits_steps,
        "fashion_mnist": config.fashion_steps,
    }
    runs = []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        for data in DATA:
            base: dict[str, Any] = {"data": data}
            if data == "gaussian":
                base["sizes"] = list(config.sizes)
            solve, descend = SECONDS[data]
            runs.append(Run("06", "max_margin", base, seed, content_hash(data), solve))
            scales = (1.0, *config.step_sizes) if data == "digits" else (1.0,)
            for optimiser in OPTIMISERS:
                for scale in scales if optimiser == "coordinate" else (1.0,):
                    settings = base | {"steps": steps[data], "step_size": scale}
                    seconds = descend * steps[data] / 10_000
                    runs.append(Run("06", optimiser, settings, seed, content_hash(data), seconds))
    return runs


def load_problems(config: dict[str, Any], seed: int) -> list[Problem]:
    """Draw the problems that a run's configuration names."""
    data = config["data"]
    if data == "gaussian":
        drawn = [(f"n={n}", gaussian_problem(n, 100, seed=seed)) for n in config["sizes"]]
        empty = torch.zeros(0, 100, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        return [
            Problem(name, torch.from_numpy(X), torch.from_numpy(y), *empty)
            for name, (X, y) in drawn
        ]
    problems = []
    for pair in PAIRS[data]:
        X, y, X_test, y_test = map(
            torch.from_numpy, binary_problem(data, pair, n=EXAMPLES[data], seed=seed)
        )
        problems.append(Problem(f"{pair[0]}/{pair[1]}", X, y, X_test, y_test))
    return problems


def execute(run: Run) -> dict[str, Any]:
    """Compute one run.

    Raises:
        ValueError: If the arm is unknown.
    """
    problems = load_problems(dict(run.config), run.seed)
    if run.arm == "max_margin":
        return _solve(problems)
    if run.arm not in OPTIMISERS:
        raise ValueError(f"unknown arm {run.arm!r}")
    return _descend(
        problems, OPTIMISERS[run.arm], run.config["steps"], float(run.config["step_size"])
    )


def _solve(problems: list[Problem]) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    for name, X, y, X_test, y_test in problems:
        solutions = {attack: max_margin(X, y, attack) for attack in NORMS}
        for attack, exact in solutions.items():
            second = max_margin(X, y, attack, solver=second_solver(attack))
            eps, at = exact.eps_star, f"{name}/{attack}"
            metrics |= {
                f"{at}/eps_star": eps,
                f"{at}/upper": exact.upper,
                f"{at}/gap": exact.gap,
                f"{at}/kkt": max(exact.kkt.values()),
                f"{at}/solver_difference": abs(second.eps_star / eps - 1),
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
        "counters": {"solves": 2 * len(NORMS) * len(problems)},
    }


def _descend(
    problems: list[Problem], weight_norm: Norm, steps: int, step_size: float
) -> dict[str, Any]:
    rows = [signed_rows(X, y) for _, X, y, _, _ in problems]
    longest = max(len(Z) for Z in rows)
    stack = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])  # (P, N, D)
    mask = torch.zeros(stack.shape[:2], dtype=torch.bool)
    for i, Z in enumerate(rows):
        stack[i, : len(Z)] = Z
        mask[i, : len(Z)] = True
    recorded = _log_spaced(steps)
    path = steepest_descent_paths(stack, [weight_norm], record_at=recorded, lr=step_size, mask=mask)
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
    spaced = torch.logspace(1, torch.tensor(steps).log10().item(), 28, dtype=torch.float64)
    chosen = {round(t) for t in spaced.tolist()} | {steps, min(NOTE_STEPS, steps)}
    return sorted(t for t in chosen if t <= steps)
