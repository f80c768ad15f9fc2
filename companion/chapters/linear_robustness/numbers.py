r"""Numbers of chapter 6's claims that are more than arithmetic: functions of records of one seed.

Ratios are $\rho(w)/\varepsilon^*$ with $\varepsilon^*$ from the exact solution of the same problem,
and the *gap* is one minus the ratio. An argument ``exact`` is the record of the exact solutions of
a data set. Records in ``pairs`` alternate: such a record, then a run on the same problems. An
argument ``at`` is a number of steps, or ``"end"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from companion.lab.records import Record

__all__ = [
    "accuracy_rise",
    "adversarial_mean",
    "band_order",
    "best_adversarial_mean",
    "best_over_descent",
    "depth_advantage",
    "excess",
    "exponent_of_log_t",
    "exponent_of_t",
    "flips_elsewhere",
    "largest",
    "network_mean",
    "path_exponent",
    "path_mean",
    "path_rise",
    "robust_train_error",
    "share_unharmed",
    "smallest_advantage",
    "smallest_diagonal",
]

# the attack under which each optimiser is predicted to be the most robust
OWN_ATTACKS = {"coordinate": "linf", "gradient": "l2", "sign": "l1"}
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)  # explicit perturbations below eps*
RATE_SIZES = (10, 25)  # Gaussian problems whose rates are fitted
LATE = 1000  # rates are fitted from this step on
PENALTIES = ("linf", "l2", "l1", "fourier_linf")  # by their attacks
SMALL = (1e-2, 1e-3, 1e-4, 1e-5)  # strengths at which the gap of the path is fitted
RESIDUAL = 0.1  # a larger KKT residual is no solution
DEPTHS = (1, 2, 3, 4)
BELOW = (0.5, 0.8, 0.9, 0.95, 0.99)  # radii of adversarial training below eps*, relative to it
BANDS = 4
EPS = (0.05, 0.1, 0.2)  # radii of the attacks by band
PILOT_ORDER = (0, 1, 2, 3)  # bands from the most to the least harmful, seed 0

Matrix = dict[tuple[str, str], float]  # by optimiser and attack


def problem_names(metrics: Mapping[str, float]) -> list[str]:
    """Names of the problems in metrics of exact solutions, in the order of their run."""
    ending = "/l2/eps_star"
    names = [name.removesuffix(ending) for name in metrics if name.endswith(ending)]
    return sorted(names, key=lambda name: (len(name), name))


def eps_star(exact: Record, problem: str, attack: str) -> float:
    """Radius of the exact solution."""
    return float(exact["metrics"][f"{problem}/{attack}/eps_star"])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(x, y, 1)[0])


def _in_pairs(arms: Sequence[Record]) -> Iterator[tuple[Record, Record]]:
    """Yield exact solutions and run of each data set from records that alternate."""
    return zip(arms[::2], arms[1::2], strict=True)


# --- lin.1 and lin.6: exact solutions -------------------------------------------------------------


def _of_exact(name: str, exact: Sequence[Record]) -> list[float]:
    """Values of a metric of exact solutions, for every problem under every attack."""
    ending = "/eps_star"
    return [
        float(record["metrics"][f"{each.removesuffix(ending)}/{name}"])
        for record in exact
        for each in record["metrics"]
        if each.endswith(ending)
    ]


def largest(name: str, *exact: Record) -> float:
    """Largest value of a metric of the exact solutions over problems and attacks."""
    return max(_of_exact(name, exact))


def robust_train_error(*exact: Record) -> float:
    """Largest training error under explicit perturbations of a tested fraction of eps*."""
    return max(largest(f"error_at/{fraction}", *exact) for fraction in FRACTIONS)


def flips_elsewhere(below: float, above: float, *exact: Record) -> float:
    """Number of problems whose first input does not flip between two multiples of eps*."""
    errors = zip(
        _of_exact(f"error_at/{below}", exact), _of_exact(f"error_at/{above}", exact), strict=True
    )
    return float(sum(b > 0 or a == 0 for b, a in errors))


def share_unharmed(multiple: float, *exact: Record) -> float:
    """Share of problems that lose no input to perturbations of a multiple of eps*."""
    errors = _of_exact(f"error_at/{multiple}", exact)
    return sum(error == 0 for error in errors) / len(errors)


def excess(bound: str, exact: Record, *models: Record) -> float:
    """Largest radius of a trained model relative to ``eps_star`` or ``upper``, minus one."""
    return max(
        float(radius / exact["metrics"][f"{name.rsplit('/', 1)[0]}/{bound}"] - 1)
        for model in models
        for name, radius in model["metrics"].items()
        if "/radius@" in name
    )


# --- lin.2: optimisers and attacks ----------------------------------------------------------------


def descent_ratio(at: int | str, exact: Record, run: Record, problem: str, attack: str) -> float:
    """Ratio of one optimiser on one problem under one attack, after ``at`` steps."""
    steps = int(run["curves"]["step"][-1]) if at == "end" else at
    radius = run["metrics"][f"{problem}/{attack}/radius@{steps}"]
    return float(radius / eps_star(exact, problem, attack))


def matrices(
    at: int | str, exact: Record, coordinate: Record, gradient: Record, sign: Record
) -> dict[str, Matrix]:
    """Ratios of each optimiser under each attack, by problem."""
    runs = dict(zip(OWN_ATTACKS, (coordinate, gradient, sign), strict=True))
    return {
        problem: {
            (name, attack): descent_ratio(at, exact, run, problem, attack)
            for name, run in runs.items()
            for attack in OWN_ATTACKS.values()
        }
        for problem in problem_names(exact["metrics"])
    }


def _decided(
    by_problem: Mapping[str, Matrix], largest_n: float, smallest_n: float = 0
) -> list[Matrix]:
    """Keep the matrices of all pairs of classes, and of Gaussian problems of an allowed size.

    A Gaussian problem of ``n`` examples is named ``n=...``.
    """
    kept = [
        matrix
        for name, matrix in by_problem.items()
        if not name.startswith("n=") or smallest_n <= int(name.removeprefix("n=")) <= largest_n
    ]
    if not kept:
        raise KeyError(f"no problem of at least {smallest_n} and at most {largest_n} examples")
    return kept


def smallest_diagonal(
    at: int | str,
    exact: Record,
    coordinate: Record,
    gradient: Record,
    sign: Record,
    largest_n: float = math.inf,
    smallest_n: float = 0,
) -> float:
    """Smallest ratio of an optimiser under its own attack, over problems and optimisers."""
    decided = _decided(matrices(at, exact, coordinate, gradient, sign), largest_n, smallest_n)
    return min(matrix[pair] for matrix in decided for pair in OWN_ATTACKS.items())


def smallest_advantage(
    at: int | str,
    exact: Record,
    coordinate: Record,
    gradient: Record,
    sign: Record,
    largest_n: float = math.inf,
    smallest_n: float = 0,
) -> float:
    """Smallest log-ratio of the predicted optimiser to the best other one, over problems."""
    decided = _decided(matrices(at, exact, coordinate, gradient, sign), largest_n, smallest_n)
    return min(map(_advantage, decided))


def _advantage(matrix: Matrix) -> float:
    """Smallest log-ratio, over the attacks, of the predicted optimiser to the best other one."""
    margins = []
    for name, attack in OWN_ATTACKS.items():
        best = max(matrix[other, attack] for other in OWN_ATTACKS if other != name)
        predicted = matrix[name, attack]
        if predicted <= 0:
            return -math.log(100.0)  # separates nothing: as bad as a hundredth of the radius
        margins.append(math.log(predicted / max(best, 0.01 * predicted)))
    return min(margins)


# --- lin.3: rates ---------------------------------------------------------------------------------


def _mean_exponent(
    of_step: Callable[[float], float], exact: Record, descents: tuple[Record, ...]
) -> float:
    """Mean slope of the log of the gap on ``of_step(step)`` over optimisers and Gaussian problems.

    Each optimiser is measured under the attack for which theory predicts it to be the best.
    """
    slopes = []
    for attack, run in zip(OWN_ATTACKS.values(), descents, strict=True):
        for size in RATE_SIZES:
            eps = eps_star(exact, f"n={size}", attack)
            curve = zip(run["curves"]["step"], run["curves"][f"n={size}/lower"], strict=True)
            late = [(step, lower) for step, lower in curve if step >= LATE]
            # curves keep six digits, so a gap below 1e-6 cannot be told from zero
            gaps = [max(1 - lower / eps, 1e-6) for _, lower in late]
            slopes.append(_slope([of_step(step) for step, _ in late], [math.log(g) for g in gaps]))
    return _mean(slopes)


def _log_log(step: float) -> float:
    return math.log(math.log(step))


def exponent_of_t(exact: Record, coordinate: Record, gradient: Record, sign: Record) -> float:
    r"""Exponent of $t$ in the gap: 0 for a logarithmic rate."""
    return _mean_exponent(math.log, exact, (coordinate, gradient, sign))


def exponent_of_log_t(exact: Record, coordinate: Record, gradient: Record, sign: Record) -> float:
    r"""Exponent of $\log t$ in the gap: $-1$ is the theory for a constant step on $L$."""
    return _mean_exponent(_log_log, exact, (coordinate, gradient, sign))


# --- lin.4: the regularisation path ---------------------------------------------------------------


def path_ratio(strength: float, exact: Record, path: Record, problem: str, attack: str) -> float:
    """Ratio of one problem and penalty at one strength; NaN where the solve has not converged."""
    at = f"{problem}/{attack}"
    if path["metrics"][f"{at}/residual@{strength:g}"] > RESIDUAL:
        return math.nan
    radius = path["metrics"][f"{at}/radius@{strength:g}"]
    return float(radius / eps_star(exact, problem, attack))


def _path_ratios(strength: float, pairs: Sequence[Record]) -> list[float]:
    """Ratios at one strength over problems and penalties."""
    return [
        path_ratio(strength, exact, path, problem, attack)
        for exact, path in _in_pairs(pairs)
        for problem in dict.fromkeys(
            name.split("/l1/")[0] for name in path["metrics"] if "/l1/" in name
        )
        for attack in PENALTIES
    ]


def path_mean(strength: float, *pairs: Record) -> float:
    r"""Mean ratio at one strength, in units of $\lambda_{\max}$, over problems and penalties."""
    return _mean(_path_ratios(strength, pairs))


def path_rise(first: float, last: float, *pairs: Record) -> float:
    """Smallest gain in ratio from the first strength to the last over problems and penalties."""
    curves = zip(_path_ratios(first, pairs), _path_ratios(last, pairs), strict=True)
    rises = [b - a for a, b in curves]
    return math.nan if any(map(math.isnan, rises)) else min(rises)  # `min` would lose a NaN


def path_exponent(*pairs: Record) -> float:
    r"""Exponent of $\log(\lambda_{\max}/\lambda)$ in the gap, mean over problems and penalties."""
    x = [math.log(math.log(1 / strength)) for strength in SMALL]
    curves = zip(*[_path_ratios(strength, pairs) for strength in SMALL], strict=True)
    return _mean([_slope(x, [math.log(1 - ratio) for ratio in curve]) for curve in curves])


# --- lin.5: architectures -------------------------------------------------------------------------


def network_ratio(depth: int, exact: Record, network: Record, problem: str, attack: str) -> float:
    """Ratio of a linear network of one depth."""
    radius = network["metrics"][f"{problem}/depth={depth}/{attack}/radius"]
    return float(radius / eps_star(exact, problem, attack))


def _network_problems(network: Record) -> list[str]:
    return list(dict.fromkeys(name.split("/depth=")[0] for name in network["metrics"]))


def network_mean(depth: int, *pairs: Record) -> float:
    """Mean ratio under the Fourier-l-inf attack over problems."""
    return _mean(
        [
            network_ratio(depth, exact, network, problem, "fourier_linf")
            for exact, network in _in_pairs(pairs)
            for problem in _network_problems(network)
        ]
    )


def depth_advantage(depth: int, *pairs: Record) -> float:
    """Log-ratio of a depth to the best other one, Fourier-l-inf attack, mean over problems."""
    advantages = []
    for exact, network in _in_pairs(pairs):
        for problem in _network_problems(network):
            chosen, *others = (
                network_ratio(each, exact, network, problem, "fourier_linf")
                for each in (depth, *(d for d in DEPTHS if d != depth))
            )
            advantages.append(math.log(max(chosen, 0.01) / max(*others, 0.01)))
    return _mean(advantages)


# --- lin.7: adversarial training ------------------------------------------------------------------


def adversarial_ratio(fraction: float, exact: Record, trained: Record, problem: str) -> float:
    """Ratio that training at a fraction of the exact radius has reached."""
    radius = trained["metrics"][f"{problem}/radius@{fraction:g}"]
    return float(radius / eps_star(exact, problem, "linf"))


def _trained_problems(trained: Record) -> list[str]:
    return list(dict.fromkeys(name.split("/radius@")[0] for name in trained["metrics"]))


def _best(exact: Record, trained: Record, problem: str) -> float:
    """Largest ratio that adversarial training has reached over the radii below eps*."""
    return max(adversarial_ratio(fraction, exact, trained, problem) for fraction in BELOW)


def adversarial_mean(fraction: float, *pairs: Record) -> float:
    """Ratio that training at a fraction of the exact radius has reached, mean over problems."""
    return _mean(
        [
            adversarial_ratio(fraction, exact, trained, problem)
            for exact, trained in _in_pairs(pairs)
            for problem in _trained_problems(trained)
        ]
    )


def best_adversarial_mean(*pairs: Record) -> float:
    """Ratio at the radius below eps* that is best for each problem, mean over problems."""
    return _mean(
        [
            _best(exact, trained, problem)
            for exact, trained in _in_pairs(pairs)
            for problem in _trained_problems(trained)
        ]
    )


def best_over_descent(at: int | str, *triples: Record) -> float:
    """Log-ratio of the best radius below eps* to a descent, mean over problems.

    Args:
        at: Steps of the descent.
        triples: Exact solutions, adversarial training and descent of a data set, in turn.
    """
    return _mean(
        [
            math.log(
                _best(exact, trained, problem) / descent_ratio(at, exact, descent, problem, "linf")
            )
            for exact, trained, descent in zip(
                triples[::3], triples[1::3], triples[2::3], strict=True
            )
            for problem in _trained_problems(trained)
        ]
    )


# --- lin.8: pictures ------------------------------------------------------------------------------


def _accuracies(model: Record, band: int) -> list[float]:
    """Accuracies (%) under attacks in one band by radius."""
    return [100 * float(model["metrics"][f"fourier_linf/{eps:g}/band={band}"]) for eps in EPS]


def band_order(model: Record) -> float:
    """Rank correlation of a model's accuracies by band with the pilot's order of the bands."""
    values = [math.fsum(_accuracies(model, band)) for band in PILOT_ORDER]
    # equal accuracies share the mean of their ranks; four equal ones have no order at all
    ranks = [sum(v < w for v in values) + sum(v == w for v in values) / 2 for w in values]
    if min(ranks) == max(ranks):
        return 0.0
    return float(np.corrcoef(ranks, range(len(values)))[0, 1])


def accuracy_rise(model: Record) -> float:
    """Largest rise of a model's accuracy (points) with a larger radius, over the bands."""
    curves = [_accuracies(model, band) for band in range(BANDS)]
    return max(0.0, *(b - a for curve in curves for a, b in pairwise(curve)))
