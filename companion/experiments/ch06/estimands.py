r"""Estimands of chapter 6: from all records of one seed to one number.

Ratios are $\rho(w)/\varepsilon^*$ with $\varepsilon^*$ from the exact solution of the same problem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from companion.experiments.ch06.arms import DESCENTS, EXACT, OPTIMISERS, descent_arm
from companion.experiments.ch06.bias_estimands import BIAS_ESTIMANDS
from companion.experiments.ch06.problems import attacks_on
from companion.experiments.ch06.runs import FRACTIONS, JUST_ABOVE, NOTE_STEPS
from companion.experiments.records import Estimand, Record, find
from trainaug.methods.linear_robustness import NORMS, PlainNorm, dual

__all__ = [
    "ESTIMANDS",
    "Matrix",
    "advantage",
    "enclosures",
    "exact",
    "exact_metrics",
    "matrices",
    "problem_names",
    "ratio",
    "upper_ratio",
]

REAL = ("digits", "fashion_mnist")
DECIDED_SIZES = ("n=3", "n=6", "n=10", "n=12", "n=25", "n=50")
Matrix = dict[tuple[str, PlainNorm], float]


def exact_metrics(records: Sequence[Record], data: str) -> dict[str, float]:
    """Metrics of the exact solutions on one data set."""
    return dict(find(records, EXACT[data])["metrics"])


def problem_names(metrics: dict[str, float]) -> list[str]:
    """Names of the problems, in the order of their run."""
    ending = "/l2/eps_star"
    names = [name.removesuffix(ending) for name in metrics if name.endswith(ending)]
    return sorted(names, key=lambda name: (len(name), name))


def _last_step(run: Record) -> int:
    return int(run["curves"]["step"][-1])


def matrices(
    records: Sequence[Record], data: str, *, at: int | None = None
) -> Iterator[tuple[str, Matrix]]:
    """Yield per problem the ratios rho / eps* of each (optimiser, attack).

    Args:
        records: All records of one seed.
        data: Name of the data set.
        at: Number of steps; by default the last.

    Raises:
        KeyError: If a record is missing.
    """
    exact = exact_metrics(records, data)
    runs = {name: find(records, descent_arm(name, data)) for name in OPTIMISERS}
    for problem in problem_names(exact):
        matrix: Matrix = {}
        for (name, run), attack in product(runs.items(), NORMS):
            radius = run["metrics"][f"{problem}/{attack}/radius@{at or _last_step(run)}"]
            matrix[name, attack] = radius / exact[f"{problem}/{attack}/eps_star"]
        yield problem, matrix


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
        radius = run["metrics"][f"{problem}/{attack}/radius@{at or _last_step(run)}"]
        return float(radius / exact_metrics(records, data)[f"{problem}/{attack}/eps_star"])

    return estimand


def upper_ratio(optimiser: str, data: str, problem: str) -> Estimand:
    """Make the estimand: least upper bound that an optimiser's gradients certified, over eps*."""

    def estimand(records: Sequence[Record]) -> float:
        upper = find(records, descent_arm(optimiser, data))["metrics"][f"{problem}/upper"]
        attack = dual(OPTIMISERS[optimiser])
        return float(upper / exact_metrics(records, data)[f"{problem}/{attack}/eps_star"])

    return estimand


def advantage(attack: PlainNorm, data: str, problem: str) -> Estimand:
    """Make the estimand: predicted optimiser's ratio minus the best other one's."""

    def estimand(records: Sequence[Record]) -> float:
        matrix = dict(matrices(records, data))[problem]
        own = next(name for name, kind in OPTIMISERS.items() if dual(kind) == attack)
        return matrix[own, attack] - max(matrix[n, attack] for n in OPTIMISERS if n != own)

    return estimand


def exact(data: str, name: str) -> Estimand:
    """Make the estimand of one metric of the exact solutions, or of its maximum over problems.

    ``name`` is a metric such as ``"n=10/l2/eps_star"``; a leading ``"*/"`` takes the largest over
    the problems and attacks of the data set.
    """

    def estimand(records: Sequence[Record]) -> float:
        metrics = exact_metrics(records, data)
        if name.startswith("*/"):
            return max(value for key, value in metrics.items() if key.endswith(name[1:]))
        return metrics[name]

    return estimand


def enclosures(
    records: Sequence[Record], problems: Sequence[tuple[str, str]]
) -> list[tuple[str, str, float, float, float, float]]:
    """Rows of the enclosure table, one a data set, problem and attack.

    Args:
        records: All records of one seed.
        problems: Data sets and problems.

    Returns:
        Problem, attack, proved lower and upper bound of eps*, and what the two solvers say.
    """
    rows = []
    for data, problem in problems:
        metrics = exact_metrics(records, data)
        for attack in attacks_on(data):
            at = f"{problem}/{attack}"
            names = ("proved_lower", "proved_upper", "eps_star", "second")
            lower, upper, first, second = (metrics[f"{at}/{name}"] for name in names)
            rows.append((f"{data} {problem}", str(attack), lower, upper, first, second))
    return rows


def _own(matrix: Matrix) -> list[float]:
    return [matrix[name, dual(kind)] for name, kind in OPTIMISERS.items()]


def _advantage(matrix: Matrix) -> float:
    """Smallest log-ratio, over the attacks, of the predicted optimiser to the best other one."""
    margins = []
    for name, kind in OPTIMISERS.items():
        attack = dual(kind)
        best = max(matrix[other, attack] for other in OPTIMISERS if other != name)
        own = matrix[name, attack]
        if own <= 0:
            return -math.log(100.0)  # separates nothing: as bad as a hundredth of the radius
        margins.append(math.log(own / max(best, 0.01 * own)))
    return min(margins)


def _gaussian(records: Sequence[Record]) -> list[Matrix]:
    return [m for name, m in matrices(records, "gaussian") if name in DECIDED_SIZES]


def _real(records: Sequence[Record], at: int | None = None) -> list[Matrix]:
    return [m for data in REAL for _, m in matrices(records, data, at=at)]


def gaussian_diagonal(records: Sequence[Record]) -> float:
    """Smallest own-norm ratio over n <= 50 and the three optimisers, after the last step."""
    return min(min(_own(matrix)) for matrix in _gaussian(records))


def gaussian_advantage(records: Sequence[Record]) -> float:
    """Smallest log-advantage of the predicted optimiser over n <= 50 and the three attacks."""
    return min(_advantage(matrix) for matrix in _gaussian(records))


def real_advantage(records: Sequence[Record]) -> float:
    """Smallest log-advantage over the pairs of digits and of Fashion-MNIST."""
    return min(_advantage(matrix) for matrix in _real(records))


def note_diagonal(records: Sequence[Record]) -> float:
    """Smallest own-norm ratio after 10 000 steps, every Gaussian size, n = 100 among them."""
    found = matrices(records, "gaussian", at=NOTE_STEPS)
    return min(min(_own(matrix)) for _, matrix in found)


def real_diagonal(records: Sequence[Record]) -> float:
    """Smallest own-norm ratio after the last step over the pairs of digits and Fashion-MNIST."""
    return min(min(_own(matrix)) for matrix in _real(records))


def note_real_diagonal(records: Sequence[Record]) -> float:
    """Smallest own-norm ratio after 10 000 steps over the pairs of digits and Fashion-MNIST."""
    return min(min(_own(matrix)) for matrix in _real(records, at=NOTE_STEPS))


def note_advantage(records: Sequence[Record]) -> float:
    """Smallest log-advantage after 10 000 steps, every Gaussian size."""
    found = matrices(records, "gaussian", at=NOTE_STEPS)
    return min(_advantage(matrix) for _, matrix in found)


def _over_exact(records: Sequence[Record], suffix: str) -> list[float]:
    found = []
    for data in ("gaussian", *REAL):
        exact = exact_metrics(records, data)
        for problem, attack in product(problem_names(exact), attacks_on(data)):
            found.append(exact[f"{problem}/{attack}/{suffix}"])
    return found


def duality_gap(records: Sequence[Record]) -> float:
    """Largest relative duality gap of the exact solutions."""
    return max(_over_exact(records, "gap"))


def solver_difference(records: Sequence[Record]) -> float:
    """Largest relative difference between the two solvers' radii."""
    return max(_over_exact(records, "solver_difference"))


def enclosure_width(records: Sequence[Record]) -> float:
    """Largest relative width of the machine-checked enclosures of eps*."""
    return max(_over_exact(records, "proved_width"))


def _largest_ratio(records: Sequence[Record], bound: str) -> float:
    """Largest radius of any trained model over the bound ``eps_star`` or ``upper``, minus one."""
    for data, optimiser in product(("gaussian", *REAL), OPTIMISERS):
        find(records, descent_arm(optimiser, data))  # no model, no claim
    largest = -math.inf
    for record in records:
        row = DESCENTS.get(record["arm"])
        if row is None or row.rule == "constant":
            continue
        bounds = exact_metrics(records, row.data)
        for name, radius in record["metrics"].items():
            if "/radius@" in name:
                largest = max(largest, radius / bounds[f"{name.rsplit('/', 1)[0]}/{bound}"] - 1)
    return largest


def excess_radius(records: Sequence[Record]) -> float:
    """How far the best trained model exceeds the radius of the exact solution, at least 0."""
    return max(0.0, _largest_ratio(records, "eps_star"))


def certified_excess(records: Sequence[Record]) -> float:
    """The same against the dual point's upper bound, at least 0: a true violation if positive."""
    return max(0.0, _largest_ratio(records, "upper"))


def flips_elsewhere(records: Sequence[Record]) -> float:
    """Number of problems whose first input does not flip within one thousandth of eps*."""
    below = _over_exact(records, f"error_at/{FRACTIONS[-1]}")
    above = _over_exact(records, f"error_at/{JUST_ABOVE}")
    return float(sum(b > 0 or a == 0 for b, a in zip(below, above, strict=True)))


def train_error(records: Sequence[Record]) -> float:
    """Largest standard training error of a maximally robust classifier."""
    return max(_over_exact(records, "train_error"))


def robust_train_error(records: Sequence[Record]) -> float:
    """Largest robust training error at any tested fraction of eps* below one."""
    return max(max(_over_exact(records, f"error_at/{fraction}")) for fraction in FRACTIONS)


def robust_error_above(records: Sequence[Record]) -> float:
    """Share of problems still without robust error just above eps*; zero if eps* is exact."""
    above = _over_exact(records, f"error_at/{JUST_ABOVE}")
    return sum(error == 0 for error in above) / len(above)


ESTIMANDS: dict[str, Estimand] = {
    function.__name__: function
    for function in (
        gaussian_diagonal,
        gaussian_advantage,
        real_advantage,
        note_diagonal,
        real_diagonal,
        note_real_diagonal,
        note_advantage,
        duality_gap,
        enclosure_width,
        solver_difference,
        excess_radius,
        certified_excess,
        flips_elsewhere,
        train_error,
        robust_train_error,
        robust_error_above,
    )
} | BIAS_ESTIMANDS
