r"""Numbers of chapter 6's figures and tables: from all records of one seed to one number.

Ratios are $\rho(w)/\varepsilon^*$ with $\varepsilon^*$ from the exact solution of the same problem.
The numbers of the claims stand in ``claims/06.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence

from companion.chapters.linear_robustness import numbers
from companion.chapters.linear_robustness.arms import (
    ADVERSARIAL,
    CLASSIFIERS,
    EXACT,
    NETWORKS,
    REGULARISED,
    descent_arm,
)
from companion.chapters.linear_robustness.descent import OPTIMISERS
from companion.chapters.linear_robustness.numbers import Matrix
from companion.chapters.linear_robustness.problems import attacks_on
from companion.lab.records import Estimand, Record, find, metric
from trainaug.methods.linear_robustness import PlainNorm, dual

__all__ = [
    "adversarial_ratio",
    "band_accuracy",
    "clean_accuracy",
    "enclosures",
    "energy_share",
    "exact",
    "exact_metrics",
    "matrices",
    "network_value",
    "path_ratio",
    "ratio",
    "upper_ratio",
]


def exact_metrics(records: Sequence[Record], data: str) -> dict[str, float]:
    """Metrics of the exact solutions on one data set."""
    return dict(find(records, EXACT[data])["metrics"])


def _solved_and_descents(
    records: Sequence[Record], data: str
) -> tuple[Record, Record, Record, Record]:
    """Exact solutions of a data set, and the runs of the three optimisers on it."""
    coordinate, gradient, sign = (find(records, descent_arm(name, data)) for name in OPTIMISERS)
    return find(records, EXACT[data]), coordinate, gradient, sign


def matrices(records: Sequence[Record], data: str) -> dict[str, Matrix]:
    """Ratios rho / eps* after the last step of each (optimiser, attack) by problem.

    Args:
        records: All records of one seed.
        data: Name of the data set.

    Raises:
        KeyError: If a record is missing.
    """
    return numbers.matrices("end", *_solved_and_descents(records, data))


def ratio(
    optimiser: str,
    attack: PlainNorm,
    data: str,
    problem: str,
    step_size: float = 1.0,
    at: int | None = None,
) -> Estimand:
    """Make the estimand rho / eps* of one optimiser under one attack, by default at the end."""

    def estimand(records: Sequence[Record]) -> float:
        run = find(records, descent_arm(optimiser, data, step_size))
        solved = find(records, EXACT[data])
        return numbers.descent_ratio(at or "end", solved, run, problem, attack)

    return estimand


def upper_ratio(optimiser: str, data: str, problem: str) -> Estimand:
    """Make the estimand: least upper bound that an optimiser's gradients certified, over eps*."""

    def estimand(records: Sequence[Record]) -> float:
        upper = find(records, descent_arm(optimiser, data))["metrics"][f"{problem}/upper"]
        attack = str(dual(OPTIMISERS[optimiser]))
        return float(upper / numbers.eps_star(find(records, EXACT[data]), problem, attack))

    return estimand


def exact(data: str, name: str) -> Estimand:
    """Make the estimand: a metric of the exact solutions such as ``"n=10/l2/eps_star"``."""
    return metric(EXACT[data], name)


def enclosures(
    records: Sequence[Record], problems: Sequence[tuple[str, str]]
) -> list[tuple[str, str, float, float, float, float]]:
    """List the rows of the enclosure table, one for each problem and attack.

    Args:
        records: All records of one seed.
        problems: Data set and name of each problem.

    Returns:
        Problem, attack, proved lower and upper bound of eps*, and what the two solvers say.
    """
    rows = []
    for data, problem in problems:
        metrics = exact_metrics(records, data)
        for attack in attacks_on(data):
            prefix = f"{problem}/{attack}"
            names = ("proved_lower", "proved_upper", "eps_star", "second")
            lower, upper, first, second = (metrics[f"{prefix}/{name}"] for name in names)
            rows.append((f"{data} {problem}", str(attack), lower, upper, first, second))
    return rows


def path_ratio(data: str, problem: str, attack: str, strength: float) -> Estimand:
    """Make the estimand: ratio at one strength; NaN where the solve has not converged."""

    def estimand(records: Sequence[Record]) -> float:
        exact, path = find(records, EXACT[data]), find(records, REGULARISED[data])
        return numbers.path_ratio(strength, exact, path, problem, attack)

    return estimand


def network_value(
    kind: str, depth: int, data: str, problem: str, attack: str = "fourier_linf"
) -> Estimand:
    """Make the estimand: ratio of a ``convolutional`` or ``dense`` network under an attack."""

    def estimand(records: Sequence[Record]) -> float:
        exact, network = find(records, EXACT[data]), find(records, NETWORKS[kind][data])
        return numbers.network_ratio(depth, exact, network, problem, attack)

    return estimand


def adversarial_ratio(data: str, problem: str, fraction: float) -> Estimand:
    """Make the estimand: ratio reached by training at a fraction of the exact radius."""

    def estimand(records: Sequence[Record]) -> float:
        exact, trained = find(records, EXACT[data]), find(records, ADVERSARIAL[data])
        return numbers.adversarial_ratio(fraction, exact, trained, problem)

    return estimand


def band_accuracy(model: str, eps: float, part: str, norm: str = "fourier_linf") -> Estimand:
    """Make the estimand: accuracy (%) under an attack.

    ``part`` is a band of frequencies (``band=0`` the lowest), ``all`` of them, or ``box``: all of
    them with pixels that stay in [0, 1].
    """
    return metric(CLASSIFIERS[model], f"{norm}/{eps:g}/{part}", 100)


def clean_accuracy(model: str) -> Estimand:
    """Make the estimand: accuracy without attack in percent, on the pictures that are attacked."""
    return metric(CLASSIFIERS[model], "clean", 100)


def energy_share(model: str, band: int) -> Estimand:
    """Make the estimand: share of an l2 attack's energy in one of four equal bands."""
    return metric(CLASSIFIERS[model], f"energy/band={band}")
