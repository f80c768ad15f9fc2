r"""Estimands of chapter 6 on schedules, regularisers, architectures, training by attack, pictures.

Each takes all records of one seed. Ratios are $\rho(w)/\varepsilon^*$, and the *gap* is one minus
the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from companion.experiments.ch06.arms import (
    ADVERSARIAL,
    CLASSIFIERS,
    EXACT,
    NETWORKS,
    OPTIMISERS,
    REGULARISED,
    descent_arm,
)
from companion.experiments.ch06.bias import DEPTHS, FRACTIONS
from companion.experiments.ch06.pictures import BANDS, EPS
from companion.experiments.ch06.runs import NOTE_STEPS, RATE_SIZES
from companion.experiments.records import Estimand, Record, find, metric
from trainaug.methods.linear_robustness import StepRule, dual

__all__ = [
    "BIAS_ESTIMANDS",
    "adversarial_ratio",
    "band_accuracy",
    "clean_accuracy",
    "energy_share",
    "gaps_along",
    "network_value",
    "path_ratio",
]

LATE = 1000  # rates are fitted from this step on
SMALL = (1e-2, 1e-3, 1e-4, 1e-5)  # strengths at which the regularisation gap is fitted
RESIDUAL = 0.1  # a larger KKT residual is no solution
WEIGHT_NORMS = ("linf", "l2", "l1", "fourier_linf")  # the attacks of the four penalties
PILOT_ORDER = (0, 1, 2, 3)  # bands from the most to the least harmful, seed 0


def _exact(records: Sequence[Record], data: str, problem: str, attack: str) -> float:
    return float(find(records, EXACT[data])["metrics"][f"{problem}/{attack}/eps_star"])


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(x, y, 1)[0])


# --- lin.3: rates -------------------------------------------------------------------------------


def gaps_along(
    records: Sequence[Record], optimiser: str, size: int, *, constant: bool
) -> tuple[list[float], list[float]]:
    """Steps and gaps of an optimiser under the attack that belongs to it, one Gaussian problem."""
    rule: StepRule = "constant" if constant else "log_loss"
    run = find(records, descent_arm(optimiser, "gaussian", rule=rule))
    eps = _exact(records, "gaussian", f"n={size}", str(dual(OPTIMISERS[optimiser])))
    lower = run["curves"][f"n={size}/lower"]
    # curves keep six digits, so a gap below 1e-6 is not told from zero
    return run["curves"]["step"], [max(1 - value / eps, 1e-6) for value in lower]


def _rate(records: Sequence[Record], *, constant: bool, logarithmic: bool) -> float:
    slopes = []
    for optimiser in OPTIMISERS:
        for size in RATE_SIZES:
            steps, gaps = gaps_along(records, optimiser, size, constant=constant)
            late = [(t, gap) for t, gap in zip(steps, gaps, strict=True) if t >= LATE]
            x = [math.log(math.log(t)) if logarithmic else math.log(t) for t, _ in late]
            slopes.append(_slope(x, [math.log(gap) for _, gap in late]))
    return math.fsum(slopes) / len(slopes)


def constant_exponent(records: Sequence[Record]) -> float:
    r"""Exponent of $\log t$ in the gap with a constant step on $L$: $-1$ is the theory."""
    return _rate(records, constant=True, logarithmic=True)


def constant_power(records: Sequence[Record]) -> float:
    r"""Exponent of $t$ in the gap with a constant step on $L$: 0 for a logarithmic rate."""
    return _rate(records, constant=True, logarithmic=False)


def scaled_power(records: Sequence[Record]) -> float:
    r"""Exponent of $t$ in the gap with the step $1/(B^2L)$."""
    return _rate(records, constant=False, logarithmic=False)


# --- lin.4: the regularisation path ---------------------------------------------------------------


def _paths(records: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    for data, arm in REGULARISED.items():
        run = find(records, arm)
        problems = dict.fromkeys(name.split("/l1/")[0] for name in run["metrics"] if "/l1/" in name)
        for problem in problems:
            for attack in WEIGHT_NORMS:
                yield data, problem, attack


def path_ratio(data: str, problem: str, attack: str, strength: float) -> Estimand:
    """Make the estimand: ratio at one strength; NaN where the solve has not converged."""

    def estimand(records: Sequence[Record]) -> float:
        metrics = find(records, REGULARISED[data])["metrics"]
        at = f"{problem}/{attack}"
        if metrics[f"{at}/residual@{strength:g}"] > RESIDUAL:
            return math.nan
        return float(metrics[f"{at}/radius@{strength:g}"] / _exact(records, data, problem, attack))

    return estimand


def _ratios(records: Sequence[Record], strength: float) -> list[float]:
    return [path_ratio(*path, strength)(records) for path in _paths(records)]


def path_exponent(records: Sequence[Record]) -> float:
    r"""Exponent of $\log(\lambda_{\max}/\lambda)$ in the gap, mean over problems and penalties."""
    x = [math.log(math.log(1 / strength)) for strength in SMALL]
    curves = zip(*[_ratios(records, strength) for strength in SMALL], strict=True)
    slopes = [_slope(x, [math.log(1 - ratio) for ratio in curve]) for curve in curves]
    return math.fsum(slopes) / len(slopes)


def path_rise(records: Sequence[Record]) -> float:
    r"""Smallest gain in ratio from $\lambda = 10^{-2}$ to $10^{-5}\lambda_{\max}$."""
    first, last = _ratios(records, SMALL[0]), _ratios(records, SMALL[-1])
    rises = [b - a for a, b in zip(first, last, strict=True)]
    return math.nan if any(map(math.isnan, rises)) else min(rises)  # `min` would lose a NaN


def path_shortfall(records: Sequence[Record]) -> float:
    r"""Mean gap at $\lambda = 10^{-2}\lambda_{\max}$."""
    ratios = _ratios(records, SMALL[0])
    return 1 - math.fsum(ratios) / len(ratios)


# --- lin.5: architectures -------------------------------------------------------------------------


def network_value(
    kind: str, depth: int, data: str, problem: str, attack: str = "fourier_linf"
) -> Estimand:
    """Make the estimand: ratio of a ``convolutional`` or ``dense`` network under an attack."""

    def estimand(records: Sequence[Record]) -> float:
        metrics = find(records, NETWORKS[kind, data])["metrics"]
        radius = metrics[f"{problem}/depth={depth}/{attack}/radius"]
        return float(radius / _exact(records, data, problem, attack))

    return estimand


def _network_problems(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [
        (data, problem)
        for data in ("gaussian", "digits")
        for problem in dict.fromkeys(
            name.split("/depth=")[0] for name in find(records, NETWORKS["dense", data])["metrics"]
        )
    ]


def _network_mean(records: Sequence[Record], kind: str, depth: int, only: str = "") -> float:
    values = [
        network_value(kind, depth, data, problem)(records)
        for data, problem in _network_problems(records)
        if data == only or not only
    ]
    return math.fsum(values) / len(values)


def depth2_gaussian(records: Sequence[Record]) -> float:
    """Mean ratio of the two-layer convolutional network on Gaussian data, Fourier-l-inf attack."""
    return _network_mean(records, "convolutional", 2, "gaussian")


def depth2_digits(records: Sequence[Record]) -> float:
    """The same on pairs of digits, two-dimensional transform."""
    return _network_mean(records, "convolutional", 2, "digits")


def depth2_advantage(records: Sequence[Record]) -> float:
    """Log-ratio of the two-layer network to the best other depth, mean over problems."""
    found = []
    for data, problem in _network_problems(records):
        own, *others = (
            network_value("convolutional", depth, data, problem)(records)
            for depth in (2, *(d for d in DEPTHS if d != 2))
        )
        found.append(math.log(max(own, 0.01) / max(*others, 0.01)))
    return math.fsum(found) / len(found)


def dense_ratio(records: Sequence[Record]) -> float:
    """Mean ratio of the fully connected two-layer network, Fourier-l-inf attack."""
    return _network_mean(records, "dense", 2)


# --- lin.7: adversarial training ------------------------------------------------------------------


def adversarial_ratio(data: str, problem: str, fraction: float) -> Estimand:
    """Make the estimand: ratio reached by training at a fraction of the exact radius."""

    def estimand(records: Sequence[Record]) -> float:
        radius = find(records, ADVERSARIAL[data])["metrics"][f"{problem}/radius@{fraction:g}"]
        return float(radius / _exact(records, data, problem, "linf"))

    return estimand


ADVERSARIAL_PROBLEMS = (
    ("gaussian", "n=10"),
    ("gaussian", "n=50"),
    ("digits", "0/1"),
    ("digits", "4/9"),
    ("digits", "3/8"),
)


def _best_adversarial(records: Sequence[Record], data: str, problem: str) -> float:
    inside = [fraction for fraction in FRACTIONS if 0 < fraction < 1]
    return max(adversarial_ratio(data, problem, fraction)(records) for fraction in inside)


def _adversarial_mean(compare: Callable[[str, str], float]) -> float:
    values = [compare(data, problem) for data, problem in ADVERSARIAL_PROBLEMS]
    return math.fsum(values) / len(values)


def adversarial_gain(records: Sequence[Record]) -> float:
    """Ratio at the best radius below eps* less that at radius zero, mean over problems."""
    return _adversarial_mean(
        lambda data, problem: (
            _best_adversarial(records, data, problem)
            - adversarial_ratio(data, problem, 0.0)(records)
        )
    )


def adversarial_above(records: Sequence[Record]) -> float:
    """Ratio reached by training five per cent above eps*, mean over problems."""
    return _adversarial_mean(lambda d, p: adversarial_ratio(d, p, 1.05)(records))


def adversarial_half(records: Sequence[Record]) -> float:
    """Ratio reached by training at half of eps*, mean over problems."""
    return _adversarial_mean(lambda d, p: adversarial_ratio(d, p, 0.5)(records))


def adversarial_against_coordinate(records: Sequence[Record]) -> float:
    """Log-ratio of the best radius to coordinate descent, each with 10 000 gradients."""

    def compare(data: str, problem: str) -> float:
        run = find(records, descent_arm("coordinate", data))
        rival = run["metrics"][f"{problem}/linf/radius@{NOTE_STEPS}"]
        rival /= _exact(records, data, problem, "linf")
        return math.log(_best_adversarial(records, data, problem) / rival)

    return _adversarial_mean(compare)


# --- lin.8: pictures ------------------------------------------------------------------------------


def band_accuracy(model: str, eps: float, part: str, norm: str = "fourier_linf") -> Estimand:
    """Make the estimand: accuracy (%) under an attack; ``part`` is a band, ``all`` or ``box``."""
    return metric(CLASSIFIERS[model], f"{norm}/{eps:g}/{part}", 100)


def clean_accuracy(model: str) -> Estimand:
    """Make the estimand: accuracy without attack in percent, on the pictures that are attacked."""
    return metric(CLASSIFIERS[model], "clean", 100)


def energy_share(model: str, band: int) -> Estimand:
    """Make the estimand: share of an l2 attack's energy in one of four equal bands."""
    return metric(CLASSIFIERS[model], f"energy/band={band}")


def _concentration(records: Sequence[Record], model: str) -> float:
    return max(energy_share(model, band)(records) for band in range(BANDS))


def cnn_concentration(records: Sequence[Record]) -> float:
    """Share of the l2 attack's energy in the strongest of four equal bands; 0.25 if it is flat."""
    return _concentration(records, "cnn")


def convolution_excess(records: Sequence[Record]) -> float:
    """The same share of the CNN less that of the MLP."""
    return _concentration(records, "cnn") - _concentration(records, "mlp")


def band_order(records: Sequence[Record]) -> float:
    """Rank correlation of the CNN's accuracies by band with the pilot's order of the bands."""
    values = [
        math.fsum(band_accuracy("cnn", eps, f"band={band}")(records) for eps in EPS)
        for band in PILOT_ORDER
    ]
    # equal accuracies share the mean of their ranks; four equal ones have no order at all
    ranks = [sum(v < w for v in values) + sum(v == w for v in values) / 2 for w in values]
    if min(ranks) == max(ranks):
        return 0.0
    return float(np.corrcoef(ranks, range(len(values)))[0, 1])


def accuracy_rise(records: Sequence[Record]) -> float:
    """Largest rise of the CNN's accuracy (points) with a larger radius, over the bands."""
    rises = []
    for band in range(BANDS):
        values = [band_accuracy("cnn", eps, f"band={band}")(records) for eps in EPS]
        rises += [b - a for a, b in pairwise(values)]
    return max(0.0, *rises)


BIAS_ESTIMANDS: dict[str, Estimand] = {
    function.__name__: function
    for function in (
        constant_exponent,
        constant_power,
        scaled_power,
        path_exponent,
        path_rise,
        path_shortfall,
        depth2_gaussian,
        depth2_digits,
        depth2_advantage,
        dense_ratio,
        adversarial_gain,
        adversarial_above,
        adversarial_half,
        adversarial_against_coordinate,
        cnn_concentration,
        convolution_excess,
        band_order,
        accuracy_rise,
    )
}
