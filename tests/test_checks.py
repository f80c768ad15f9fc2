"""One way of asking whether tensors are fit for a method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainaug.checks import (
    class_labels,
    finite,
    indices,
    sign_labels,
    source_of_randomness,
    whole_number,
    widened,
)

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (3, 2, 2)])
def test_values_that_are_not_finite_are_named(bad: float, shape: tuple[int, ...]) -> None:
    values = torch.zeros(shape)
    finite("x", values)
    values[(-1,) * len(shape)] = bad
    with pytest.raises(ValueError, match=f"x must be finite.*{bad}" + ("" if shape else "$")):
        finite("x", values)
    finite("x", torch.zeros(0, 2))
    finite("x", torch.zeros(2, 0))


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
def test_class_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    actual = class_labels(torch.tensor([1, 0, 1]).to(dtype), 2)
    assert actual.dtype == torch.int64
    assert actual.tolist() == [1, 0, 1]


def test_class_labels_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"integer type, got torch\.float32"):
        class_labels(torch.zeros(2))
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="from 0 to 2"):
            class_labels(torch.tensor(wrong), 3)


@pytest.mark.parametrize("dtype", [*INTEGERS[1:], torch.float16, torch.float32, torch.float64])
def test_sign_labels_keep_their_values(dtype: torch.dtype) -> None:
    actual = sign_labels(torch.tensor([1, -1, 1]).to(dtype))
    assert actual.tolist() == [1, -1, 1]
    assert actual.dtype in (dtype, torch.int64)


def test_sign_labels_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"labels must be -1 or \+1, got \[255\]; unsigned"):
        sign_labels(2 * torch.tensor([0, 1], dtype=torch.uint8) - 1)
    with pytest.raises(ValueError, match=r"labels must be -1 or \+1, got \[0\]$"):
        sign_labels(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels must be the numbers"):
        sign_labels(torch.tensor([True]))


def test_indices() -> None:
    assert indices(torch.tensor([2, 0], dtype=torch.int32), 3).tolist() == [2, 0]
    for wrong in (torch.tensor([3]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor(0)):
        with pytest.raises(ValueError, match="index must be"):
            indices(wrong, 3)


def test_widened() -> None:
    wanted = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert widened(torch.zeros(1, dtype=dtype)).dtype == wanted.get(dtype, dtype)


def test_what_is_no_count_and_no_generator_is_named_with_advice():
    assert whole_number("n", np.int64(3)) == 3
    with pytest.raises(TypeError, match=r"n must be a whole number, got list; .*len\(n\)"):
        whole_number("n", [1, 2])
    with pytest.raises(TypeError, match=r"n must be a whole number, got float$"):
        whole_number("n", 2.0)
    generator = torch.Generator()
    assert source_of_randomness("generator", generator) is generator
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator.*got int"):
        source_of_randomness("generator", 0)
    with pytest.raises(TypeError, match=r"indices must be a tensor \(B,\).*got list"):
        indices([0, 1], 2)
