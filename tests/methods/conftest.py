"""One thread, no global randomness and seeded tensors for every method test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainaug.data.gaussian import gaussian_problem


@pytest.fixture(autouse=True)
def _guard(untouched_randomness: None) -> None:
    """Watch every test of this folder."""


@pytest.fixture(scope="session")
def randn() -> Callable[..., Tensor]:
    """Draw a standard normal tensor from a named seed."""

    def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, dtype=dtype, generator=generator)

    return draw


@pytest.fixture(scope="session")
def gaussian() -> Callable[..., tuple[Tensor, Tensor]]:
    """Draw a Gaussian problem like the authors' as tensors."""

    def draw(n: int, seed: int, d: int = 100) -> tuple[Tensor, Tensor]:
        X, y = gaussian_problem(n, d, seed=seed)
        return torch.from_numpy(X), torch.from_numpy(y)

    return draw
