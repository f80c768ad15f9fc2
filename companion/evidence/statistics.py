"""Intervals for means, over seeds and over test items.

The functions raise a ValueError for values that are not finite, for a single value (one run says
nothing about the spread), and for a confidence outside (0, 1).

`scipy.stats` takes half a second to load and is imported where it is used, so that listings that
only read verdicts do without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

__all__ = [
    "Interval",
    "bootstrap_interval",
    "mean_and_sd",
    "t_half_width",
    "t_interval",
]


class Interval(NamedTuple):
    """An interval and what it was made from; ``sd`` is the sample sd (n - 1) of the values."""

    mean: float
    low: float
    high: float
    n: int
    sd: float


def mean_and_sd(values: Any) -> tuple[Any, Any]:
    """Mean and sample sd along the last axis; equal values give exactly that value and sd 0."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or x.shape[-1] < 2:
        raise ValueError(f"an interval needs at least 2 values, got {x.tolist()}")
    if not np.isfinite(x).all():
        raise ValueError(f"values must be finite, got {x[~np.isfinite(x)].tolist()}")
    shifted = x - x[..., :1]  # exactly 0 for equal values
    return x[..., 0] + shifted.mean(axis=-1), shifted.std(axis=-1, ddof=1)


def t_half_width(sd: Any, n: int, confidence: float) -> Any:
    r"""Half-width $t_{n-1}\, s / \sqrt{n}$ of the interval for a mean."""
    from scipy import stats

    return stats.t.ppf((1 + _checked(confidence)) / 2, n - 1) * sd / math.sqrt(n)


def t_interval(values: Sequence[float], confidence: float) -> Interval:
    """Student-t interval for the mean of one value per seed; equal values give width zero.

    Example:
        >>> t_interval([1.0, 2.0, 3.0], 0.95).low.__round__(4)
        -0.4841
    """
    mean, sd = (float(each) for each in mean_and_sd(values))
    half = float(t_half_width(sd, len(values), confidence))
    return Interval(mean, mean - half, mean + half, len(values), sd)


def bootstrap_interval(
    items: Sequence[float],
    confidence: float,
    *,
    seed: int,
    method: Literal["percentile", "BCa"] = "BCa",
    resamples: int = 9999,
) -> Interval:
    """Bootstrap interval for the mean over test items; ``seed`` fixes the resampling."""
    mean, sd = (float(each) for each in mean_and_sd(items))
    if sd == 0:  # BCa divides by the spread
        return Interval(mean, mean, mean, len(items), sd)
    from scipy import stats

    low, high = stats.bootstrap(
        (np.asarray(items, dtype=np.float64),),
        np.mean,
        confidence_level=_checked(confidence),
        n_resamples=resamples,
        batch=100,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(low), float(high), len(items), sd)


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    return confidence
