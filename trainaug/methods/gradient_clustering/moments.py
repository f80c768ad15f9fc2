r"""Variance and normalised variance of a gradient estimate, from T independent samples of it.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020; the plug-in statistics follow the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Epsilon", "Moments", "gradient_moments"]

Epsilon = Literal["relative", "absolute"]
ABSOLUTE, RELATIVE = 1e-7, 1e-12  # epsilon of either kind, see `gradient_moments`


@dataclass(frozen=True)
class Moments:
    r"""Spread of T samples $\hat g_t$ of a gradient with $d$ coordinates.

    Attributes:
        variance: $\frac1d\sum_jV_j$, the sample variance with Bessel's correction, unbiased.
        variance_plugin: $\frac1d\sum_j\frac1T\sum_t(\hat g_{t,j}-\tilde m_j)^2$, with the mean
            $\tilde m$ of another T samples. It is larger by the factor $1+1/T$ on average.
            ``None`` without these other samples.
        normalised: $V/(V+\lVert\bar g\rVert^2)$ with $V=\sum_jV_j$, in [0, 1]. From the squared
            length of the mean $V/T$ is subtracted, and the result is at least 0. NaN if all
            samples are zero.
        normalised_plugin: The mean over coordinates of $\sum_t(\hat g_{t,j}-\tilde m_j)^2/
            (\sum_t\hat g_{t,j}^2+\epsilon)$. The population's ratio is at most 1; this one has
            expectation $1+1/(T-2)$ for Gaussian noise about 0: 1.125 at T = 10 and 1.021 at
            T = 50. ``None`` without other samples, NaN if all coordinates are dead.
        dead: Number of coordinates at which all samples that enter the denominator are 0.
    """

    variance: float
    variance_plugin: float | None
    normalised: float
    normalised_plugin: float | None
    dead: int


@torch.no_grad()
def gradient_moments(
    samples: Tensor, fresh: Tensor | None = None, *, epsilon: Epsilon = "relative"
) -> Moments:
    r"""Measure the spread of gradient estimates drawn at fixed parameters.

    The unbiased statistics need only ``samples``. The published (plug-in) ones need twice as many:
    the mean comes from ``samples``, the deviations and second moments come from ``fresh``.

    Args:
        samples: Independent estimates, floating, ``(T, d)``, T at least 2.
        fresh: Another T independent estimates, ``(T, d)``.
        epsilon: The $\epsilon$ of ``normalised_plugin``. ``absolute``: $10^{-7}$, and dead
            coordinates count as 0, as in the authors' code; coordinates with
            $\sum_t\hat g^2\ll10^{-7}$ then count as almost 0 too. ``relative``: $10^{-12}$ times
            the mean of $\sum_t\hat g^2$ over the coordinates that are not dead, and dead ones are
            left out, so that the scale of the loss does not matter.

    Returns:
        The variances in squared units of the gradient, and the normalised ones as ratios; the
        plug-in statistics are ``None`` without ``fresh``.

    Raises:
        ValueError: If shapes do not fit or ``epsilon`` is unknown.
        FloatingPointError: If a sample is not finite.

    Example:
        >>> found = gradient_moments(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        >>> found.variance, found.dead
        (1.0, 1)
    """
    if epsilon not in get_args(Epsilon):
        raise ValueError(f"epsilon must be one of {get_args(Epsilon)}, got {epsilon!r}")
    given = [samples] if fresh is None else [samples, fresh]
    for values in given:
        if values.ndim != 2 or len(values) < 2 or values.shape[1] < 1:
            raise ValueError(f"need at least two samples, (T, d), got {tuple(values.shape)}")
        if values.shape != samples.shape:
            shapes = tuple(samples.shape), tuple(values.shape)
            raise ValueError(f"samples and fresh must have one shape, got {shapes[0]}, {shapes[1]}")
        if not values.isfinite().all():
            raise FloatingPointError("a sample of the gradient is not finite")
    wide = torch.float32 if samples.device.type == "mps" else torch.float64
    t, d = samples.shape
    mean = samples.to(wide).mean(0)  # (d,)
    variances = samples.to(wide).var(0)  # (d,)
    total = float(variances.sum())
    signal = max(float(mean.square().sum()) - total / t, 0.0)
    normalised = total / (total + signal) if total + signal > 0 else math.nan
    seconds = given[-1].to(wide).square().sum(0)  # (d,)
    alive = seconds > 0
    dead = d - int(alive.sum())
    if fresh is None:
        return Moments(total / d, None, normalised, None, dead)
    scatter = (fresh.to(wide) - mean).square().sum(0)  # (d,)
    if epsilon == "absolute":
        ratios = scatter / (seconds + ABSOLUTE)
    else:
        seconds = seconds[alive]
        ratios = scatter[alive] / (seconds + RELATIVE * seconds.mean())
    plugin = float(ratios.mean()) if len(ratios) else math.nan
    return Moments(total / d, float(scatter.mean()) / t, normalised, plugin, dead)
