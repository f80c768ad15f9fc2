r"""Gaussian points labelled by a random hyperplane: separable, with a known dimension.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the gap between adversarial robustness and optimization bias",
arXiv 2102.08868, experiments on synthetic data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainaug.data.arrays import Arrays

__all__ = ["gaussian_problem", "reference_arrays"]


def gaussian_problem(
    n: int, d: int, *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Draw a separable problem: $x_i \sim N(0, I_d)$, $y_i = \mathrm{sign}(w_0^\top x_i)$.

    One generator draws first $w_0$, then the rows of $X$ in order. So with the same ``d`` and
    ``seed``, the problem of size ``n`` is the first ``n`` rows of every larger one.

    Args:
        n: Number of points, at least 1. The problem is linearly separable through the origin for
            every ``n``.
        d: Dimension, at least 1.
        seed: Seed of ``numpy.random.default_rng``, non-negative.

    Returns:
        ``X`` of shape ``(n, d)`` and ``y`` of shape ``(n,)`` in {-1, +1}, both float64.

    Raises:
        ValueError: If ``n`` or ``d`` is below 1.

    Example:
        >>> X, y = gaussian_problem(3, 2, seed=0)
        >>> X.shape, y.tolist()
        ((3, 2), [1.0, -1.0, 1.0])
    """
    if n < 1 or d < 1:
        raise ValueError(f"n and d must be at least 1, got n={n}, d={d}")
    generator = np.random.default_rng(seed)
    w0 = generator.standard_normal(d)
    X = generator.standard_normal((n, d))
    return X, np.where(X @ w0 >= 0, 1.0, -1.0)


def reference_arrays() -> Arrays:
    """Draw the problem whose hash is in the registry, so that a changed random stream is noticed.

    Returns:
        ``gaussian_problem(10, 100, seed=0)`` as the training part, and an empty test part.
    """
    X, y = gaussian_problem(10, 100, seed=0)
    return {"train_x": X, "train_y": y, "test_x": X[:0], "test_y": y[:0]}
