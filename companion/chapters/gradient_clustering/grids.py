"""Axes of the grids of random features: the arms train them, the numbers of claims read them.

They stay lists, since their text is part of the hash of a claim's rule, and are in a module of
their own, since that of the arms loads PyTorch.
"""

from __future__ import annotations

__all__ = ["RATES", "SWEPT_RATES", "SWEPT_TAUS", "TAUS", "TEACHERS"]

# of the whole grid: features per example, learning rates, widths of the teacher
TAUS = [0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0]
RATES = [0.1, 0.01, 0.001]
TEACHERS = [20, 2000]
# of the sweep over learning rates
SWEPT_TAUS = [0.5, 2.0, 10.0]
SWEPT_RATES = [0.1, 0.03, 0.01, 0.003, 0.001]
