"""Square root and logarithms: values of NumPy, derivatives of torch, whatever calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainaug import roots

NAMES = ["sqrt", "log", "log2", "log10"]
TYPES = [torch.float32, torch.float64]
Function = Callable[[Tensor], Tensor]


def functions(name: str) -> tuple[Function, Function, Callable[..., Any]]:
    """Our function, torch's and NumPy's."""
    return getattr(roots, name), getattr(torch, name), getattr(np, name)


def positive(dtype: torch.dtype, *shape: int) -> Tensor:
    """Positive numbers of several magnitudes."""
    x = torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return x * 20 + 0.01


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_numpy_and_close_to_torch(name: str, dtype: torch.dtype) -> None:
    ours, torchs, numpys = functions(name)
    x = positive(dtype, 4099)
    value = ours(x)
    assert value.dtype == dtype
    assert np.array_equal(value.numpy(), numpys(x.numpy()))
    # both are within two units in the last place; near 1 a logarithm is small, its error is not
    assert torch.allclose(value, torchs(x), rtol=4 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_special_values_are_those_of_ieee(name: str, dtype: torch.dtype) -> None:
    ours, torchs, _ = functions(name)
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([0.0, -0.0, 1.0, inf, -1.0, -inf, nan], dtype=dtype)
    torch.testing.assert_close(ours(x), torchs(x), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours(x).signbit()[:3], torchs(x).signbit()[:3])


@pytest.mark.parametrize("dtype", TYPES)
def test_square_roots_of_subnormal_numbers_are_not_flushed(dtype: torch.dtype) -> None:
    smallest = torch.tensor([torch.finfo(dtype).smallest_normal], dtype=dtype) / 1024
    root = roots.sqrt(smallest)
    assert root.item() > 0
    assert torch.allclose(root * root, smallest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_layouts_are_kept(name: str) -> None:
    ours, torchs, _ = functions(name)
    x = positive(torch.float64, 3, 4, 5, 6)
    for part in (
        x[:0],
        x[0, 0, 0, 0],
        x.transpose(0, 2),
        x[:, ::2],
        x[..., :1].expand(3, 4, 5, 7),
        x.contiguous(memory_format=torch.channels_last),
    ):
        value = ours(part)
        assert value.shape == part.shape
        assert value.stride() == torchs(part).stride()
        assert torch.allclose(value, torchs(part), rtol=1e-14, atol=1e-15)
    assert torch.equal(x, positive(torch.float64, 3, 4, 5, 6))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_first_and_second_order_are_right(name: str) -> None:
    ours, _, _ = functions(name)
    x = positive(torch.float64, 5).requires_grad_()
    assert torch.autograd.gradcheck(ours, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, x)
    assert ours(x).requires_grad
    with torch.no_grad():
        assert not ours(x).requires_grad


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_at_the_edge_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    ours, torchs, _ = functions(name)
    actual = []
    for function in (ours, torchs):
        x = torch.tensor([0.0, 1.0, float("inf")], dtype=dtype, requires_grad=True)
        function(x).backward(torch.ones(3, dtype=dtype))
        actual.append(x.grad)
    torch.testing.assert_close(actual[0], actual[1], equal_nan=True)
    assert actual[0] is not None
    assert actual[0][0] == float("inf")


@pytest.mark.parametrize("name", NAMES)
def test_transforms_of_functions_go_through(name: str) -> None:
    ours, torchs, _ = functions(name)
    x = positive(torch.float64, 3, 4)
    close = {"rtol": 1e-14, "atol": 1e-14}
    for transform in (
        lambda f: torch.func.vmap(f, in_dims=1)(x),
        lambda f: torch.func.vmap(torch.func.vmap(f))(x),
        lambda f: torch.func.vmap(torch.func.grad(lambda v: f(v).sum()))(x),
        lambda f: torch.func.vmap(torch.func.hessian(lambda v: f(v).sum()))(x),
        lambda f: torch.func.jvp(f, (x,), (x + 1,))[1],
        lambda f: torch.func.vmap(lambda v: torch.func.jvp(f, (v,), (v,))[1], in_dims=1)(x),
        lambda f: torch.func.jacrev(f)(x[0]),
    ):
        torch.testing.assert_close(transform(ours), transform(torchs), **close)


@pytest.mark.parametrize("name", NAMES)
def test_other_devices_types_and_compilers_get_torchs_own(name: str) -> None:
    ours, torchs, _ = functions(name)
    assert ours(torch.empty(2, 3, device="meta")).shape == (2, 3)
    for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.complex64):
        x = torch.tensor([1, 2, 9]).to(dtype)
        assert torch.equal(ours(x), torchs(x))
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    x = positive(torch.float32, 9)
    assert torch.equal(compiled(x), torchs(x))


def test_power_differs_from_torch_at_a_half_alone() -> None:
    x = positive(torch.float64, 4099)
    assert torch.equal(roots.power(x, 0.5), roots.sqrt(x))
    for exponent in (-1.0, -0.5, 0.25, 2 / 3, 1.0, 2.0):
        assert torch.equal(roots.power(x, exponent), x**exponent)
