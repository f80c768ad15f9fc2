"""Intervals, sample sizes and power: the statistics that the verdicts of design §4 need.

Refused with a ValueError everywhere: values that are not finite, a single value (one run says
nothing about the spread), a confidence outside (0, 1).

`scipy.stats` takes half a second to load; listings that only read verdicts do without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

__all__ = [
    "Interval",
    "bonferroni",
    "bootstrap_interval",
    "mean_and_sd",
    "predicted_power",
    "prediction_interval",
    "seeds_needed",
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
    """Mean and sample sd along the last axis; equal values give exactly that value and 0."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or x.shape[-1] < 2:
        raise ValueError(f"an interval needs at least 2 values, got {x.tolist()}")
    if not np.isfinite(x).all():
        raise ValueError(f"values must be finite, got {x[~np.isfinite(x)].tolist()}")
    shifted = x - x[..., :1]
    return x[..., 0] + shifted.mean(axis=-1), shifted.std(axis=-1, ddof=1)


def t_half_width(sd: Any, n: int, confidence: float, m: float = math.inf) -> Any:
    r"""Half-width $t_{n-1}\, s \sqrt{1/n + 1/m}$; ``m`` is infinite for the mean itself."""
    from scipy import stats

    return stats.t.ppf((1 + _checked(confidence)) / 2, n - 1) * sd * math.sqrt(1 / n + 1 / m)


def t_interval(values: Sequence[float], confidence: float) -> Interval:
    """Student-t interval for the mean, one value a seed; of width zero when all are equal.

    Example:
        >>> t_interval([1.0, 2.0, 3.0], 0.95).low.__round__(4)
        -0.4841
    """
    return prediction_interval(values, confidence, math.inf)


def prediction_interval(values: Sequence[float], confidence: float, m: float = 1) -> Interval:
    """Interval that holds the mean of ``m`` >= 1 new runs with probability ``confidence``."""
    if not m >= 1:
        raise ValueError(f"m must be at least 1, got {m}")
    mean, sd = (float(each) for each in mean_and_sd(values))
    half = float(t_half_width(sd, len(values), confidence, m))
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


def seeds_needed(sd: float, half_width: float, confidence: float) -> int:
    """Smallest n >= 2 whose t half-width at this ``sd`` is below ``half_width``."""
    if not (half_width > 0 and 0 <= sd < math.inf):
        raise ValueError(f"expected half_width > 0 and finite sd >= 0, got {half_width} and {sd}")
    below, above = 1, 2  # the half-width falls with n: double, then bisect
    while t_half_width(sd, above, confidence) >= half_width:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        enough = t_half_width(sd, middle, confidence) < half_width
        below, above = (below, middle) if enough else (middle, above)
    return above


def predicted_power(
    mean: float, sd: float, n: int, pieces: Sequence[tuple[float, float]], confidence: float
) -> float:
    r"""Probability that the t-interval over ``n`` Gaussian seeds falls inside a region.

    $E_s[\Phi((b-h-\mu)\sqrt n/\sigma) - \Phi((a+h-\mu)\sqrt n/\sigma)]_+$ with $h = t s/\sqrt n$,
    over 4096 quantiles of the chi distribution of $s$: within 1e-4 of the noncentral t.

    Args:
        mean: Assumed true mean.
        sd: Standard deviation over seeds, from the pilot, positive.
        n: Number of seeds, at least 2.
        pieces: The region as disjoint intervals, ends may be infinite: ``claims.Region.pieces``.
        confidence: Of the interval.
    """
    if n < 2 or not sd > 0:
        raise ValueError(f"expected n >= 2 and sd > 0, got n = {n} and sd = {sd}")
    from scipy import stats

    spread = stats.chi.ppf((np.arange(4096) + 0.5) / 4096, n - 1) / math.sqrt(n - 1)  # s / sigma
    half = t_half_width(sd * spread, n, confidence)
    z = stats.norm(mean, sd / math.sqrt(n)).cdf
    return sum(float(np.clip(z(b - half) - z(a + half), 0, None).mean()) for a, b in pieces)


def bonferroni(confidence: float, comparisons: int) -> float:
    """Confidence of each of ``comparisons`` intervals so that all hold with ``confidence``."""
    if comparisons < 1:
        raise ValueError(f"comparisons must be at least 1, got {comparisons}")
    return 1 - (1 - _checked(confidence)) / comparisons


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    return confidence
