r"""Numbers of chapter 6's figures and tables on penalties, nets, training by attack and pictures.

Each takes all records of one seed. Ratios are $\rho(w)/\varepsilon^*$. The numbers of the claims
stand in ``claims/06.yaml``.
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
)
from companion.lab.records import Estimand, Record, find, metric

__all__ = [
    "adversarial_ratio",
    "band_accuracy",
    "clean_accuracy",
    "energy_share",
    "network_value",
    "path_ratio",
]


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
    """Make the estimand: accuracy (%) under an attack; ``part`` is a band, ``all`` or ``box``."""
    return metric(CLASSIFIERS[model], f"{norm}/{eps:g}/{part}", 100)


def clean_accuracy(model: str) -> Estimand:
    """Make the estimand: accuracy without attack in percent, on the pictures that are attacked."""
    return metric(CLASSIFIERS[model], "clean", 100)


def energy_share(model: str, band: int) -> Estimand:
    """Make the estimand: share of an l2 attack's energy in one of four equal bands."""
    return metric(CLASSIFIERS[model], f"energy/band={band}")
