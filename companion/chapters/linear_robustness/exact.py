"""Exact solutions of chapter 6: the largest robust radius of every problem, solved and proved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from companion.chapters.linear_robustness.problems import (
    Problem,
    ProblemSettings,
    attacks_on,
    load_problems,
)
from companion.lab.results import Result, make_result
from trainaug.methods.linear_robustness import (
    MaxMargin,
    Norm,
    enclosure,
    max_margin,
    robust_error,
    second_solver,
    worst_case_perturbation,
)

__all__ = ["Exact", "run_exact"]


@dataclass(frozen=True, kw_only=True)
class Exact(ProblemSettings):
    r"""Exact solutions under every attack.

    Attributes:
        fractions: Sizes below one of explicit perturbations, in units of $\varepsilon^*$.
        just_above: A size above one, at which the first input must flip.
        test_fraction: Size of the attacks on the test part, in units of each attack's
            $\varepsilon^*$.
    """

    fractions: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
    just_above: float = 1.001
    test_fraction: float = 0.5


def run_exact(settings: Exact, seed: int) -> Result:
    """Solve every problem under every attack with two solvers, and enclose the radius."""
    problems = load_problems(settings, seed)
    attacks = attacks_on(settings.data, settings.features)
    metrics: dict[str, float] = {}
    for problem in problems:
        solutions = {attack: max_margin(problem.X, problem.y, attack) for attack in attacks}
        for attack, exact in solutions.items():
            measured = _solution(problem, attack, exact, settings)
            if len(problem.y_test):
                measured |= _test_errors(problem, attack, solutions, settings.test_fraction)
            prefix = f"{problem.name}/{attack}"
            metrics |= {f"{prefix}/{name}": value for name, value in measured.items()}
    counters = {"solves": 2 * len(attacks) * len(problems)}
    return make_result(metrics, counters=counters, digits=12)


def _solution(
    problem: Problem, attack: Norm, exact: MaxMargin, settings: Exact
) -> dict[str, float]:
    """Measure how good a solution is, and what explicit perturbations of several sizes do to it."""
    X, y = problem.X, problem.y
    second = max_margin(X, y, attack, solver=second_solver(attack))
    proved = enclosure(X, y, attack, exact.w, exact.lam)
    measured = {
        "eps_star": exact.eps_star,
        "upper": exact.upper,
        "gap": exact.gap,
        "kkt": max(exact.kkt.values()),
        "second": second.eps_star,
        "solver_difference": abs(second.eps_star / exact.eps_star - 1),
        "proved_lower": proved.lower,
        "proved_upper": proved.upper,
        "proved_width": proved.width,
        "train_error": float(robust_error(exact.w, X, y, attack, 0.0)),
    }
    for fraction in (*settings.fractions, settings.just_above):
        moved = X + worst_case_perturbation(exact.w, y, attack, fraction * exact.eps_star)
        measured[f"error_at/{fraction}"] = float(robust_error(exact.w, moved, y, attack, 0.0))
    return measured


def _test_errors(
    problem: Problem, attack: Norm, solutions: Mapping[Norm, MaxMargin], fraction: float
) -> dict[str, float]:
    """Test errors of the solution for one attack: without an attack, and under each of them."""
    w, X, y = solutions[attack].w, problem.X_test, problem.y_test
    errors = {"test_error": float(robust_error(w, X, y, attack, 0.0))}
    for tested, solution in solutions.items():
        wrong = robust_error(w, X, y, tested, fraction * solution.eps_star)
        errors[f"test_error_under/{tested}"] = float(wrong)
    return errors
