"""One thread, no global randomness, seeded tensors, and the device twins of every method test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

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
    """Draw the method note's Gaussian problem as tensors."""

    def draw(n: int, seed: int, d: int = 100) -> tuple[Tensor, Tensor]:
        X, y = gaussian_problem(n, d, seed=seed)
        return torch.from_numpy(X), torch.from_numpy(y)

    return draw


def _leaves(value: Any) -> list[Any]:
    if is_dataclass(value):
        return [leaf for f in fields(value) for leaf in _leaves(getattr(value, f.name))]
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in _leaves(part)]
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in _leaves(value[key])]
    return [value]


Check = Callable[..., None]


@pytest.fixture
def same_inside_meta() -> Check:
    """Call on CPU tensors inside ``torch.device("meta")``: the values must not change."""

    def check(call: Callable[..., Any], *tensors: Tensor) -> None:
        expected = _leaves(call(*tensors))
        with torch.device("meta"):
            got = _leaves(call(*tensors))
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            if isinstance(b, Tensor):
                assert a.device == b.device == torch.device("cpu")
                assert torch.equal(a, b)
            else:
                assert a == b

    return check


@pytest.fixture
def same_on_cuda() -> Check:
    """Call on CUDA tensors: results live there and agree with the CPU's."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")

    def check(call: Callable[..., Any], *tensors: Tensor) -> None:
        expected = _leaves(call(*tensors))
        got = _leaves(call(*(t.cuda() for t in tensors)))
        for a, b in zip(got, expected, strict=True):
            if isinstance(b, Tensor):
                assert a.is_cuda
                torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)  # order of sums
            else:
                assert a == pytest.approx(b, rel=1e-9) if isinstance(b, float) else a == b

    return check
