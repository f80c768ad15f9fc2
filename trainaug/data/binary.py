"""Two-class problems from real data, for linear models and other small experiments.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: the sets are those of `trainaug.data.fashion_mnist` and `trainaug.data.sklearn_sets`; the
pairs of classes and the balanced draw are ours.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainaug.data import registry
from trainaug.data.splits import draw_of_each_class

__all__ = ["Problem", "binary_problem"]

#: Names of the sets that `binary_problem` takes.
_SETS = ("fashion_mnist", "digits", "breast_cancer", "iris")
DIVISORS = {"fashion_mnist": 255.0, "digits": 16.0}  # the largest pixel value


class Problem(NamedTuple):
    """A two-class problem, all float64.

    Args:
        X: Training inputs, shape ``(n, D)``.
        y: Training labels in {-1, +1}, shape ``(n,)``.
        X_test: Held-out inputs, shape ``(m, D)``; ``m`` may be 0.
        y_test: Held-out labels in {-1, +1}, shape ``(m,)``.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    X_test: NDArray[np.float64]
    y_test: NDArray[np.float64]


def binary_problem(
    name: str, classes: tuple[int, int] = (0, 1), *, n: int | None = None, seed: int = 0
) -> Problem:
    """Take two classes of a data set and draw a class-balanced training sample.

    Pictures are flattened and scaled to [0, 1] (digits / 16, fashion / 255). Breast cancer is
    standardised by mean and population standard deviation of the training rows; a constant column
    is only centred. Iris is left as it is; its classes 1 and 2 are a non-separable negative
    control. With the same seed a smaller sample is part of every larger one. Rows keep the order of
    the data set.

    Args:
        name: ``fashion_mnist``, ``digits``, ``breast_cancer`` or ``iris``.
        classes: The class labelled +1 and the class labelled -1, which must differ. With
            ``(0, 1)`` breast cancer has malignant +1, benign -1.
        n: Number of training points, at least 2: half from each class, with one more from the
            first if odd. None takes all training rows, which may be unbalanced.
        seed: Seed of the draw, non-negative.

    Returns:
        The problem. For Fashion-MNIST the test part is the official one; for the others it is the
        rows of the two classes that were not drawn (none if ``n`` is None).

    Raises:
        ValueError: If the set, a class or ``n`` is not available.
        DataUnavailableError: If the set is not in the cache.
    """
    if name not in _SETS:
        raise ValueError(f"name must be one of {_SETS}, got {name!r}")
    data = registry.load(name)
    known = np.unique(data["train_y"]).tolist()
    if len(classes) != 2 or classes[0] == classes[1] or not set(classes) <= set(known):
        raise ValueError(f"classes must be two different ones of {known}, got {classes}")
    members = np.flatnonzero(np.isin(data["train_y"], classes))
    if n is None:
        train = members
    else:
        limit = min(np.count_nonzero(data["train_y"] == c) for c in classes)
        if n < 2 or n - n // 2 > limit:
            raise ValueError(f"n must be in [2, {2 * limit}] for {name} {classes}, got {n}")
        counts = {classes[0]: n - n // 2, classes[1]: n // 2}
        train = draw_of_each_class(data["train_y"], counts, np.random.default_rng(seed))

    def part(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        flat = x.reshape(len(x), math.prod(x.shape[1:])).astype(np.float64) / DIVISORS.get(
            name, 1.0
        )  # (N, D)
        return flat, np.where(y == classes[0], 1.0, -1.0)

    X, y = part(data["train_x"][train], data["train_y"][train])
    if len(data["test_y"]):
        test = np.flatnonzero(np.isin(data["test_y"], classes))
        X_test, y_test = part(data["test_x"][test], data["test_y"][test])
    else:
        rest = np.setdiff1d(members, train)
        X_test, y_test = part(data["train_x"][rest], data["train_y"][rest])
    if name == "breast_cancer":
        mean, sd = X.mean(axis=0), X.std(axis=0)  # (D,)
        sd[sd == 0] = 1.0
        X, X_test = (X - mean) / sd, (X_test - mean) / sd
    return Problem(X, y, X_test, y_test)
