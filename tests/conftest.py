"""Fixtures that several folders share: no global randomness, and device twins."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture
def untouched_randomness() -> Iterator[None]:
    """No method, and no training, may draw from or seed a global generator."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert repr(before[2]) == repr(after[2])


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
