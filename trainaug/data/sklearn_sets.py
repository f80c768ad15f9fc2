"""Small tables that scikit-learn contains: digits, breast cancer, iris.

Reference: scikit-learn user guide, "Toy datasets"; the data are from the UCI repository.
"""

from __future__ import annotations

import numpy as np

from trainaug.data.arrays import Arrays
from trainaug.extras import extra

__all__ = ["bundled_arrays"]


def bundled_arrays(loader: str) -> Arrays:
    """Read a bundled table.

    Args:
        loader: ``load_digits`` (64 pixels in 0..16, classes 0..9), ``load_breast_cancer`` (30
            measurements, 0 malignant, 1 benign) or ``load_iris`` (4 measurements, 0 setosa,
            1 versicolor, 2 virginica).

    Returns:
        All rows as the training part, ``train_x`` float64 ``(N, D)``, ``train_y`` int64 ``(N,)``;
        the test part is empty, since these sets have no official one.

    Raises:
        ValueError: If the loader is not one of the three.
    """
    if loader not in ("load_digits", "load_breast_cancer", "load_iris"):
        raise ValueError(f"unknown scikit-learn loader {loader!r}")
    with extra("data"):
        import sklearn.datasets  # here, as it takes a second and only these sets need it

    x, y = getattr(sklearn.datasets, loader)(return_X_y=True)
    x, y = np.ascontiguousarray(x, dtype=np.float64), y.astype(np.int64)
    return {"train_x": x, "train_y": y, "test_x": x[:0], "test_y": y[:0]}
