"""Probes of portability: small computations whose bytes are compared between processors.

``python tests/portability/operations.py [--after NAME] [--operations]`` runs them and prints for
each a line ``{"begin": name}`` before it and ``{"name": ..., "sha256": ...}`` after it, so that a
reader knows which one ended an emulator that crashes. The inputs come from integer arithmetic and
one division, and are therefore equal everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Probe = Callable[[], Any]
PROBES: dict[str, Probe] = {}
FLOATS = {"float32": torch.float32, "float64": torch.float64}
LENGTH = 4099  # not a multiple of a vector: the tail of every kernel runs too


def numbers(*shape: int, low: float = -1.0, high: float = 1.0, salt: int = 0) -> np.ndarray:
    """Uniform float64 numbers by a linear congruential generator."""
    with np.errstate(over="ignore"):
        state = np.arange(1 + salt, 1 + salt + int(np.prod(shape)), dtype=np.uint64)
        for _ in range(3):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            state ^= state >> np.uint64(29)
    values = (state >> np.uint64(11)).astype(np.float64) / 2**53
    return np.asarray(low + (high - low) * values).reshape(shape)


def tensor(*shape: int, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    """`numbers` as a tensor."""
    return torch.from_numpy(numbers(*shape, **options)).to(dtype)


def generator(seed: int = 7) -> torch.Generator:
    """Return a fresh source of randomness."""
    return torch.Generator().manual_seed(seed)


def add(name: str, probe: Probe) -> None:
    """Enter a probe, refusing a name twice."""
    if name in PROBES:
        raise ValueError(f"two probes are called {name!r}")
    PROBES[name] = probe


# Elementwise: name -> function and the interval of its argument.
UNARY: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "abs": (torch.abs, -3, 3),
    "acos": (torch.acos, -0.99, 0.99),
    "asin": (torch.asin, -0.99, 0.99),
    "atan": (torch.atan, -9, 9),
    "ceil": (torch.ceil, -9, 9),
    "celu": (F.celu, -3, 3),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), -3, 3),
    "cos": (torch.cos, -30, 30),
    "cosh": (torch.cosh, -5, 5),
    "cumsum": (lambda x: x.cumsum(0), -1, 1),
    "cumprod": (lambda x: x[:97].cumprod(0), 0.5, 1.5),
    "digamma": (torch.digamma, 0.1, 9),
    "elu": (F.elu, -3, 3),
    "erf": (torch.erf, -3, 3),
    "erfc": (torch.erfc, -3, 3),
    "erfinv": (torch.erfinv, -0.99, 0.99),
    "exp": (torch.exp, -20, 20),
    "exp2": (torch.exp2, -20, 20),
    "expm1": (torch.expm1, -2, 2),
    "floor": (torch.floor, -9, 9),
    "frac": (torch.frac, -9, 9),
    "gelu": (F.gelu, -4, 4),
    "gelu_tanh": (partial(F.gelu, approximate="tanh"), -4, 4),
    "hardtanh": (F.hardtanh, -3, 3),
    "leaky_relu": (F.leaky_relu, -3, 3),
    "lgamma": (torch.lgamma, 0.1, 9),
    "log": (torch.log, 0.001, 50),
    "log10": (torch.log10, 0.001, 50),
    "log1p": (torch.log1p, -0.99, 9),
    "log2": (torch.log2, 0.001, 50),
    "logcumsumexp": (lambda x: x.logcumsumexp(0), -5, 5),
    "logit": (torch.logit, 0.01, 0.99),
    "logsigmoid": (F.logsigmoid, -9, 9),
    "mish": (F.mish, -4, 4),
    "pow_0.5": (lambda x: x**0.5, 0.001, 50),
    "pow_-0.5": (lambda x: x**-0.5, 0.001, 50),
    "pow_0.75": (lambda x: x**0.75, 0.001, 50),
    "pow_2": (lambda x: x**2, -9, 9),
    "pow_2.5": (lambda x: x**2.5, 0.001, 50),
    "pow_3": (lambda x: x**3, -9, 9),
    "pow_-1": (lambda x: x**-1, 0.1, 9),
    "pow_base": (lambda x: 2.5**x, -9, 9),
    "reciprocal": (torch.reciprocal, 0.1, 9),
    "relu": (torch.relu, -3, 3),
    "round": (torch.round, -9, 9),
    "rsqrt": (torch.rsqrt, 0.001, 50),
    "sigmoid": (torch.sigmoid, -9, 9),
    "sign": (torch.sign, -3, 3),
    "silu": (F.silu, -4, 4),
    "sin": (torch.sin, -30, 30),
    "sinh": (torch.sinh, -5, 5),
    "softplus": (F.softplus, -9, 9),
    "sqrt": (torch.sqrt, 0.001, 50),
    "square": (torch.square, -9, 9),
    "tan": (torch.tan, -1.5, 1.5),
    "tanh": (torch.tanh, -4, 4),
    "trunc": (torch.trunc, -9, 9),
}

BINARY: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda a, b: a + 0.3 * b,
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b, value=0.3),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.3),
    "atan2": torch.atan2,
    "copysign": torch.copysign,
    "div": lambda a, b: a / b,
    "floor_divide": lambda a, b: a // b,
    "fmod": torch.fmod,
    "hypot": torch.hypot,
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp_tensor": lambda a, b: torch.lerp(a, b, b.frac()),
    "logaddexp": torch.logaddexp,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": lambda a, b: a * b,
    "pow_tensor": lambda a, b: a.abs() ** b,
    "remainder": torch.remainder,
    "rsub": lambda a, b: 1 - a - 0.5 * b,
    "sub": lambda a, b: a - b,
    "where": lambda a, b: torch.where(a > b, a, b),
    "xlogy": lambda a, b: torch.special.xlogy(a, b),
}

REDUCTIONS: dict[str, Callable[[Tensor, Any], Any]] = {
    "sum": lambda x, d: x.sum(d),
    "mean": lambda x, d: x.mean(d),
    "var": lambda x, d: x.var(d),
    "std": lambda x, d: x.std(d),
    "std_biased": lambda x, d: x.std(d, correction=0),
    "var_mean": lambda x, d: torch.var_mean(x, d),
    "norm_2": lambda x, d: torch.linalg.vector_norm(x, 2, d),
    "norm": lambda x, d: x.norm() if isinstance(d, tuple) else x.norm(dim=d),
    "norm_1": lambda x, d: torch.linalg.vector_norm(x, 1, d),
    "norm_3": lambda x, d: torch.linalg.vector_norm(x, 3, d),
    "norm_inf": lambda x, d: torch.linalg.vector_norm(x, float("inf"), d),
    "logsumexp": lambda x, d: x.logsumexp(d),
    "amax": lambda x, d: x.amax(d),
    "nansum": lambda x, d: x.nansum(d),
}

ALONG: dict[str, Callable[[Tensor], Any]] = {  # of a matrix, along its rows
    "argmax": lambda x: x.argmax(1),
    "argsort": lambda x: x.argsort(1),
    "cdist": lambda x: torch.cdist(x[:20], x[20:]),
    "cdist_1": lambda x: torch.cdist(x[:20], x[20:], p=1),
    "cosine_similarity": lambda x: F.cosine_similarity(x[:10], x[10:20]),
    "index_add": lambda x: torch.zeros(5, x.shape[1], dtype=x.dtype).index_add(
        0, torch.arange(len(x)) % 5, x
    ),
    "kthvalue": lambda x: x.kthvalue(3, 1),
    "log_softmax": lambda x: x.log_softmax(1),
    "log_softmax_0": lambda x: x.log_softmax(0),
    "median": lambda x: x.median(1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "prod": lambda x: (1 + x / 9).prod(1),
    "quantile": lambda x: x.quantile(0.3, 1),
    "scatter_add": lambda x: torch.zeros(len(x), 5, dtype=x.dtype).scatter_add(
        1, torch.arange(x.shape[1]).expand(x.shape) % 5, x
    ),
    "softmax": lambda x: x.softmax(1),
    "softmax_0": lambda x: x.softmax(0),
    "sort": lambda x: x.sort(1),
    "topk": lambda x: x.topk(3, 1),
    "unique": lambda x: (x * 3).round().unique(return_counts=True),
    "bincount": lambda x: torch.bincount(torch.arange(len(x)) % 5, x[:, 0]),
    "histc": lambda x: x.histc(7, -1, 1),
}


def elementwise(function: Callable[..., Any], dtype: torch.dtype, low: float, high: float) -> Any:
    """Values on contiguous and strided numbers; small ones, and magnitudes, where they belong."""
    x = numbers(LENGTH, low=low, high=high)
    parts = [x, x / 1024] if low < 0 else [x]
    if high >= 50 and low > 0:  # functions of all positive numbers: near 1, and over 60 octaves
        parts += [numbers(LENGTH, low=0.9, high=1.1), np.ldexp(x + 1, (x * 1.2).astype(int) - 36)]
    return [
        values
        for part in parts
        for t in [torch.from_numpy(part).to(dtype)]
        for values in (function(t), function(t[::3]), function(t[:7]))
    ]


def pairwise(function: Callable[..., Any], dtype: torch.dtype) -> Any:
    """Values on two vectors, the second positive, and on strided ones."""
    a = tensor(LENGTH, dtype=dtype, low=-3, high=3)
    b = tensor(LENGTH, dtype=dtype, low=0.1, high=4, salt=9)
    return function(a, b), function(a[::3], b[::3]), function(a[:64, None], b[:33])


def reductions(function: Callable[..., Any], dtype: torch.dtype) -> Any:
    """Values over all, first and last dimensions of several shapes."""
    shapes = [(LENGTH,), (64, 197), (7, 33, 5)]
    values = []
    for shape in shapes:
        x = tensor(*shape, dtype=dtype)
        values += [function(x, 0), function(x, -1), function(x, tuple(range(len(shape))))]
        values.append(function(x.transpose(0, -1), 0))
    return values


def with_gradients(
    module: nn.Module | None, inputs: list[Tensor], function: Callable[..., Any]
) -> Any:
    """Value, gradients of all inputs that have one, of all parameters, and buffers after it."""
    for x in inputs:
        if x.is_floating_point():
            x.requires_grad_()
    value = function(*inputs)
    # a weight for every output, so that no gradient is constant
    weights = tensor(*value.shape, dtype=value.dtype, salt=3)
    (value * weights).sum().backward()
    tensors = [value, *[x.grad for x in inputs if x.grad is not None]]
    if module is not None:
        tensors += [p.grad for p in module.parameters() if p.grad is not None]
        tensors += list(module.buffers())
    return tensors


def filled(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give all parameters numbers that do not depend on an initialisation."""
    module = module.to(dtype)
    with torch.no_grad():
        for salt, parameter in enumerate(module.parameters()):
            parameter.copy_(tensor(*parameter.shape, dtype=dtype, low=-0.2, high=0.2, salt=salt))
    return module


def layer(make: Callable[[], nn.Module], dtype: torch.dtype, *shape: int, **how: Any) -> Any:
    """Forward and backward pass of a layer."""
    module = filled(make(), dtype)
    module.train(how.get("train", True))
    x = tensor(*shape, dtype=dtype)
    if how.get("channels_last"):
        module, x = (
            module.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )

    def call(x: Tensor) -> Tensor:
        value = module(x)
        return value[0] if isinstance(value, tuple) else value

    return with_gradients(module, [x], call)


for _name, (_function, _low, _high) in UNARY.items():
    for _type, _dtype in FLOATS.items():
        add(f"{_name} {_type}", partial(elementwise, _function, _dtype, _low, _high))
for _name, _pair in BINARY.items():
    for _type, _dtype in FLOATS.items():
        add(f"{_name} {_type}", partial(pairwise, _pair, _dtype))
for _name, _reduce in REDUCTIONS.items():
    for _type, _dtype in FLOATS.items():
        add(f"{_name} {_type}", partial(reductions, _reduce, _dtype))
for _name, _row in ALONG.items():
    for _type, _dtype in FLOATS.items():
        add(f"{_name} {_type}", lambda f=_row, d=_dtype: f(tensor(45, 37, dtype=d)))

# Gradients of elementwise functions and reductions that training differentiates.
for _name in ("exp", "gelu", "log1p", "logsigmoid", "relu", "sigmoid", "silu", "softplus", "tanh"):
    for _type, _dtype in FLOATS.items():
        add(
            f"{_name} backward {_type}",
            lambda f=UNARY[_name][0], d=_dtype: with_gradients(
                None, [tensor(LENGTH, dtype=d, low=-0.9, high=2)], f
            ),
        )
DIFFERENTIATED: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda x: x.clamp(min=0.1),
    "cumsum": lambda x: x.cumsum(1),
    "division": lambda x: x / (2 + x),
    "hinge": lambda x: torch.relu(0.3 + x - x.diagonal()[:, None]),
    "log_softmax": lambda x: x.log_softmax(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "maximum": lambda x: torch.maximum(x, x.T),
    "amax": lambda x: x.amax(1),
    "mean": lambda x: x.mean(0),
    "norm": lambda x: x.norm(dim=1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "sort": lambda x: x.sort(1).values,
    "std": lambda x: x.std(0),
    "var": lambda x: x.var(0),
    "square": lambda x: x.square(),
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "cdist": lambda x: torch.cdist(x, x.flip(0)),
    "pad": lambda x: F.pad(x[None, None], (1, 2, 1, 2), mode="reflect"),
    "rsqrt": lambda x: (1.5 + x).rsqrt(),
    "where": lambda x: torch.where(x > 0, x, x.exp()),
}
for _name, _call in DIFFERENTIATED.items():
    for _type, _dtype in FLOATS.items():
        add(
            f"{_name} backward {_type}",
            lambda f=_call, d=_dtype: with_gradients(None, [tensor(41, 41, dtype=d)], f),
        )

# Products
SIZES = {
    "small": (7, 5, 3),
    "column": (33, 64, 1),
    "row": (1, 65, 31),
    "batch": (32, 64, 10),
    "square": (100, 100, 100),
    "deep": (16, 3000, 12),
    "wide": (64, 300, 200),
}
for _size, (_m, _k, _n) in SIZES.items():
    for _type, _dtype in FLOATS.items():

        def product(m: int = _m, k: int = _k, n: int = _n, dtype: torch.dtype = _dtype) -> Any:
            """All four transpositions, as the forward and backward pass of a layer use them."""
            a, b = tensor(m, k, dtype=dtype), tensor(k, n, dtype=dtype, salt=5)
            left, right = a.T.contiguous().T, b.T.contiguous().T
            return [x @ y for x in (a, left) for y in (b, right)]

        def affine(m: int = _m, k: int = _k, n: int = _n, dtype: torch.dtype = _dtype) -> Any:
            """A linear layer with its gradients."""
            return layer(lambda: nn.Linear(k, n), dtype, m, k)

        def openblas(m: int = _m, k: int = _k, n: int = _n, dtype: torch.dtype = _dtype) -> Any:
            """The products of NumPy."""
            a = numbers(m, k).astype(str(dtype).removeprefix("torch."))
            b = numbers(k, n, salt=5).astype(a.dtype)
            left, right = np.asfortranarray(a), np.asfortranarray(b)
            return [x @ y for x in (a, left) for y in (b, right)]

        add(f"mm {_size} {_type}", product)
        add(f"linear {_size} {_type}", affine)
        add(f"numpy matmul {_size} {_type}", openblas)
    add(
        f"mkldnn linear {_size} float32",
        lambda m=_m, k=_k, n=_n: torch.ops.mkldnn._linear_pointwise(
            tensor(m, k), tensor(n, k, salt=5), tensor(n, salt=8), "none", [], ""
        ),
    )
# The widest layer of the chapters, only once by each route: emulated it takes many seconds.
_WIDEST = (128, 784), (784, 1024)
add("mm widest float32", lambda: tensor(*_WIDEST[0]) @ tensor(*_WIDEST[1], salt=5))
add(
    "numpy matmul widest float32",
    lambda: tensor(*_WIDEST[0]).numpy() @ tensor(*_WIDEST[1], salt=5).numpy(),
)
add(
    "mkldnn linear widest float32",
    lambda: torch.ops.mkldnn._linear_pointwise(
        tensor(128, 784), tensor(1024, 784, salt=5), None, "none", [], ""
    ),
)
for _type, _dtype in FLOATS.items():
    _t = partial(tensor, dtype=_dtype)
    add(f"bmm {_type}", lambda t=_t: torch.bmm(t(6, 17, 40), t(6, 40, 19, salt=3)))
    add(f"baddbmm {_type}", lambda t=_t: torch.baddbmm(t(6, 9, 9), t(6, 9, 8), t(6, 8, 9)))
    add(f"mv {_type}", lambda t=_t: (t(129, 300) @ t(300), t(300, 129).T @ t(300)))
    add(f"addmv {_type}", lambda t=_t: torch.addmv(t(29), t(29, 30), t(30)))
    add(f"dot {_type}", lambda t=_t: (torch.dot(t(LENGTH), t(LENGTH, salt=1)), t(9) @ t(9)))
    add(f"outer {_type}", lambda t=_t: torch.outer(t(64), t(33)))
    add(f"einsum {_type}", lambda t=_t: torch.einsum("bik,bjk,b->ij", t(4, 9, 8), t(4, 7, 8), t(4)))
    add(f"addmm beta {_type}", lambda t=_t: torch.addmm(t(9, 8), t(9, 5), t(5, 8), beta=0.5))
    add(f"bilinear {_type}", lambda t=_t: torch.einsum("bi,ij,bj->b", t(9, 8), t(8, 7), t(9, 7)))
    add(
        f"baddbmm backward {_type}",
        lambda t=_t: with_gradients(None, [t(5, 9, 8)], lambda x: x @ x.mT),
    )

# Layers
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "conv2d": (lambda: nn.Conv2d(3, 16, 3, padding=1), (4, 3, 16, 16), {}),
    "conv2d channels_last": (
        lambda: nn.Conv2d(3, 16, 3, padding=1),
        (4, 3, 16, 16),
        {"channels_last": True},
    ),
    "conv2d strided": (lambda: nn.Conv2d(8, 16, 3, stride=2), (4, 8, 15, 15), {}),
    "conv2d 1x1": (lambda: nn.Conv2d(16, 32, 1, bias=False), (4, 16, 8, 8), {}),
    "conv2d 1x1 channels_last": (
        lambda: nn.Conv2d(16, 32, 1, stride=2, bias=False),
        (4, 16, 8, 8),
        {"channels_last": True},
    ),
    "conv2d grouped": (lambda: nn.Conv2d(8, 8, 3, groups=8), (4, 8, 9, 9), {}),
    "conv2d 5x5 grey": (lambda: nn.Conv2d(1, 8, 5), (16, 1, 28, 28), {}),
    "conv2d deep channels_last": (
        lambda: nn.Conv2d(64, 64, 3, padding=1, bias=False),
        (2, 64, 8, 8),
        {"channels_last": True},
    ),
    "conv1d": (lambda: nn.Conv1d(5, 9, 3), (4, 5, 20), {}),
    "batch_norm2d train": (lambda: nn.BatchNorm2d(8), (8, 8, 9, 9), {}),
    "batch_norm2d train channels_last": (
        lambda: nn.BatchNorm2d(8),
        (8, 8, 9, 9),
        {"channels_last": True},
    ),
    "batch_norm2d eval": (lambda: nn.BatchNorm2d(8), (8, 8, 9, 9), {"train": False}),
    "batch_norm1d train": (lambda: nn.BatchNorm1d(33), (64, 33), {}),
    "layer_norm": (lambda: nn.LayerNorm(33), (17, 33), {}),
    "group_norm": (lambda: nn.GroupNorm(4, 16), (4, 16, 7, 7), {}),
    "gru": (lambda: nn.GRU(12, 20, batch_first=True), (5, 7, 12), {}),
    "lstm": (lambda: nn.LSTM(12, 20, batch_first=True), (5, 7, 12), {}),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True),
        (4, 9, 16),
        {},
    ),
    "transformer layer eval": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
        (4, 9, 16),
        {"train": False},
    ),
    "max_pool2d": (lambda: nn.MaxPool2d(2), (4, 5, 12, 12), {}),
    "max_pool2d channels_last": (lambda: nn.MaxPool2d(2), (4, 5, 12, 12), {"channels_last": True}),
    "avg_pool2d": (lambda: nn.AvgPool2d(2), (4, 5, 12, 12), {}),
    "avg_pool2d channels_last": (lambda: nn.AvgPool2d(4), (4, 5, 12, 12), {"channels_last": True}),
    "adaptive_avg_pool2d": (lambda: nn.AdaptiveAvgPool2d(1), (4, 5, 7, 7), {}),
    "upsample bilinear": (lambda: nn.Upsample(scale_factor=1.7, mode="bilinear"), (2, 3, 9, 9), {}),
    "upsample nearest": (lambda: nn.Upsample(scale_factor=2), (2, 3, 9, 9), {}),
}
for _name, (_make, _shape, _how) in LAYERS.items():
    for _type, _dtype in FLOATS.items():
        add(
            f"{_name} {_type}",
            lambda m=_make, d=_dtype, s=_shape, h=_how: layer(m, d, *s, **h),
        )

LABELS = torch.arange(45) % 10
for _type, _dtype in FLOATS.items():
    _t = partial(tensor, dtype=_dtype)
    for _reduction in ("mean", "none"):
        add(
            f"cross_entropy {_reduction} {_type}",
            lambda t=_t, r=_reduction: with_gradients(
                None, [t(45, 10)], lambda x: F.cross_entropy(x, LABELS, reduction=r)
            ),
        )
    add(
        f"cross_entropy smoothed {_type}",
        lambda t=_t: with_gradients(
            None, [t(45, 10)], lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1)
        ),
    )
    add(
        f"cross_entropy soft {_type}",
        lambda t=_t: with_gradients(
            None, [t(45, 10)], lambda x: F.cross_entropy(x, t(45, 10, low=0.0, salt=4))
        ),
    )
    add(
        f"binary_cross_entropy_with_logits {_type}",
        lambda t=_t: with_gradients(
            None,
            [t(45, 10)],
            lambda x: F.binary_cross_entropy_with_logits(x, t(45, 10, low=0.0), reduction="none"),
        ),
    )
    add(
        f"mse_loss {_type}",
        lambda t=_t: with_gradients(None, [t(45, 10)], lambda x: F.mse_loss(x, t(45, 10, salt=2))),
    )
    add(
        f"kl_div {_type}",
        lambda t=_t: with_gradients(
            None,
            [t(45, 10)],
            lambda x: F.kl_div(
                x.log_softmax(1),
                t(45, 10, salt=2).log_softmax(1),
                log_target=True,
                reduction="none",
            ),
        ),
    )
    add(
        f"attention {_type}",
        lambda t=_t: with_gradients(
            None,
            [t(3, 2, 11, 8), t(3, 2, 13, 8, salt=1), t(3, 2, 13, 8, salt=2)],
            F.scaled_dot_product_attention,
        ),
    )
    add(
        f"attention masked {_type}",
        lambda t=_t: with_gradients(
            None,
            [t(3, 2, 11, 8), t(3, 2, 11, 8, salt=1), t(3, 2, 11, 8, salt=2)],
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ),
    )

    def embedded(dtype: torch.dtype = _dtype) -> Any:
        """Embedding with repeated rows, dense gradient."""
        module = filled(nn.Embedding(20, 9), dtype)
        index = torch.arange(77).view(7, 11) ** 2 % 20
        return with_gradients(module, [index], module)

    def bag(mode: str, dtype: torch.dtype = _dtype) -> Any:
        """Embedding bag, weighted where the mode allows it."""
        module = filled(nn.EmbeddingBag(20, 9, mode=mode), dtype)
        index = torch.arange(77).view(7, 11) ** 2 % 20
        if mode == "mean":
            return with_gradients(module, [index], module)
        weights = tensor(7, 11, dtype=dtype)
        return with_gradients(module, [index], lambda i: module(i, per_sample_weights=weights))

    add(f"embedding {_type}", embedded)
    add(f"embedding_bag sum {_type}", partial(bag, "sum", _dtype))
    add(f"embedding_bag mean {_type}", partial(bag, "mean", _dtype))

    def gru_packed(dtype: torch.dtype = _dtype) -> Any:
        """Recurrent layer over packed sequences."""
        module = filled(nn.GRU(6, 8, batch_first=True), dtype)
        lengths = torch.tensor([7, 5, 2])

        def call(x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return module(packed)[1]

        return with_gradients(module, [tensor(3, 7, 6, dtype=dtype)], call)

    add(f"gru packed {_type}", gru_packed)
    add(
        f"interpolate area {_type}",
        lambda t=_t: F.interpolate(t(2, 3, 16, 16), size=8, mode="area"),
    )
    add(
        f"affine_grid {_type}",
        lambda t=_t: F.affine_grid(t(3, 2, 3), [3, 1, 8, 8], align_corners=False),
    )
    add(
        f"unfold {_type}",
        lambda t=_t: with_gradients(None, [t(2, 3, 8, 8)], lambda x: F.unfold(x, 3)),
    )
    # Fourier transforms
    add(f"fft {_type}", lambda t=_t: (torch.fft.fft(t(9, 30)), torch.fft.fft(t(64))))
    add(f"ifft {_type}", lambda t=_t: torch.fft.ifft(torch.complex(t(9, 30), t(9, 30, salt=1))))
    add(f"rfft {_type}", lambda t=_t: torch.fft.rfft(t(9, 30), norm="ortho"))
    add(f"irfft {_type}", lambda t=_t: torch.fft.irfft(torch.complex(t(9, 16), t(9, 16, salt=1))))
    add(f"fft2 {_type}", lambda t=_t: torch.fft.fft2(t(3, 8, 8), norm="ortho"))
    add(f"rfft2 {_type}", lambda t=_t: torch.fft.rfft2(t(3, 28, 28)))
    add(
        f"ifft2 {_type}", lambda t=_t: torch.fft.ifft2(torch.complex(t(8, 8), t(8, 8, salt=1))).real
    )
    add(f"complex abs {_type}", lambda t=_t: torch.complex(t(LENGTH), t(LENGTH, salt=1)).abs())
    add(
        f"complex product {_type}",
        lambda t=_t: torch.complex(t(99), t(99, salt=1)) * torch.complex(t(99), t(99, salt=2)),
    )
    add(
        f"complex abs backward {_type}",
        lambda t=_t: with_gradients(None, [t(9, 30)], lambda x: torch.fft.fft(x).abs()),
    )

    # Linear algebra
    def spd(dtype: torch.dtype = _dtype) -> Tensor:
        """A well-conditioned symmetric matrix, formed elementwise."""
        a = tensor(24, 24, dtype=dtype)
        return a + a.T + 16 * torch.eye(24, dtype=dtype)

    add(f"solve {_type}", lambda t=_t, s=spd: torch.linalg.solve(s() + t(24, 24), t(24, 5)))
    add(f"inv {_type}", lambda s=spd: torch.linalg.inv(s()))
    add(f"eigh {_type}", lambda s=spd: torch.linalg.eigh(s()))
    add(f"eigvalsh {_type}", lambda s=spd: torch.linalg.eigvalsh(s()))
    add(f"qr {_type}", lambda t=_t: torch.linalg.qr(t(30, 12)))
    add(f"svd {_type}", lambda t=_t: torch.linalg.svd(t(30, 12), full_matrices=False))
    add(f"cholesky {_type}", lambda s=spd: torch.linalg.cholesky(s()))
    add(f"lstsq {_type}", lambda t=_t: torch.linalg.lstsq(t(30, 12), t(30, 2)).solution)
    add(f"slogdet {_type}", lambda s=spd: torch.linalg.slogdet(s()))
    add(f"pinv {_type}", lambda t=_t: torch.linalg.pinv(t(12, 5)))
    # vmap and jvp, as per-example gradients use them
    add(
        f"per-example gradients {_type}",
        lambda t=_t: torch.func.vmap(
            torch.func.grad(lambda w, x: (x @ w).tanh().logsumexp(0)), in_dims=(None, 0)
        )(t(9, 4), t(11, 9)),
    )
    # Randomness
    add(f"rand {_type}", lambda d=_dtype: torch.rand(LENGTH, dtype=d, generator=generator()))
    add(f"randn {_type}", lambda d=_dtype: torch.randn(LENGTH, dtype=d, generator=generator()))
    add(f"randn few {_type}", lambda d=_dtype: torch.randn(7, dtype=d, generator=generator()))
    add(
        f"normal {_type}",
        lambda d=_dtype: torch.empty(99, dtype=d).normal_(1, 2, generator=generator()),
    )
    add(
        f"uniform {_type}",
        lambda d=_dtype: torch.empty(99, dtype=d).uniform_(-1, 2, generator=generator()),
    )
    add(
        f"exponential {_type}",
        lambda d=_dtype: torch.empty(LENGTH, dtype=d).exponential_(generator=generator()),
    )
    add(
        f"bernoulli {_type}",
        lambda t=_t: torch.bernoulli(t(LENGTH, low=0.0), generator=generator()),
    )
    add(
        f"bernoulli number {_type}",
        lambda d=_dtype: torch.empty(LENGTH, dtype=d).bernoulli_(0.3, generator=generator()),
    )
    add(
        f"multinomial {_type}",
        lambda t=_t: torch.multinomial(t(500, low=0.0), 100, generator=generator()),
    )
    add(
        f"multinomial replacement {_type}",
        lambda t=_t: torch.multinomial(t(500, low=0.0), 400, True, generator=generator()),
    )

    def dropped(dtype: torch.dtype = _dtype) -> Any:
        """Dropout draws from the default generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return with_gradients(None, [tensor(64, 33, dtype=dtype)], lambda x: F.dropout(x, 0.3))

    add(f"dropout {_type}", dropped)
add("randperm", lambda: torch.randperm(5000, generator=generator()))
add("randint", lambda: torch.randint(0, 1000, (LENGTH,), generator=generator()))
add(
    "grid_sample float32",
    lambda: F.grid_sample(tensor(2, 3, 9, 9), tensor(2, 6, 6, 2), align_corners=False),
)
add(
    "grid_sample float64",
    lambda: F.grid_sample(
        tensor(2, 3, 9, 9, dtype=torch.float64),
        tensor(2, 6, 6, 2, dtype=torch.float64),
        align_corners=False,
    ),
)

# What else the arms call.
for _type, _dtype in FLOATS.items():
    _t = partial(tensor, dtype=_dtype)
    add(
        f"adaptive_avg_pool2d 4 {_type}",
        lambda t=_t: with_gradients(None, [t(3, 4, 10, 10)], lambda x: F.adaptive_avg_pool2d(x, 4)),
    )
    add(
        f"embedding_bag without gradients {_type}",
        lambda t=_t: F.embedding_bag(torch.arange(77).view(7, 11) ** 2 % 20, t(20, 9), mode="sum"),
    )
    add(
        f"index_put accumulate {_type}",
        lambda t=_t: t(5, 9).index_put((torch.arange(45) % 5,), t(45, 9, salt=2), accumulate=True),
    )
    add(
        f"indexing backward {_type}",
        lambda t=_t: with_gradients(None, [t(9, 5)], lambda x: x[torch.arange(45) ** 2 % 9]),
    )
    add(f"entr {_type}", lambda t=_t: torch.special.entr(t(LENGTH, low=0.0)))
    add(f"linspace {_type}", lambda d=_dtype: torch.linspace(-1.3, 2.7, 999, dtype=d))
    add(f"logspace {_type}", lambda d=_dtype: torch.logspace(-1.3, 5.7, 999, dtype=d))
    add(f"fftfreq {_type}", lambda d=_dtype: torch.fft.fftfreq(28, 0.3, dtype=d))
    add(
        f"dirichlet {_type}",
        lambda t=_t: torch._sample_dirichlet(t(50, 3, low=0.2, high=2.0), generator=generator()),
    )

    def complex_numbers(dtype: torch.dtype = _dtype, salt: int = 0) -> Tensor:
        """Numbers away from 0."""
        real, imaginary = (tensor(9, 11, dtype=dtype, salt=salt + i, low=0.5) for i in range(2))
        return torch.complex(real, imaginary)

    add(f"complex sum {_type}", lambda c=complex_numbers: c() + 0.3 * c(salt=7))
    add(f"complex division {_type}", lambda c=complex_numbers: (c() / c(salt=7), c() / 3.1))
    add(f"complex prod {_type}", lambda c=complex_numbers: c().prod(1))

    def fast_transformer(dtype: torch.dtype = _dtype) -> Any:
        """Without gradients a layer of an encoder, and its attention, take a path of their own."""
        layers = filled(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), dtype
        ).eval()
        with torch.no_grad():
            padding = torch.arange(9).expand(4, 9) >= torch.tensor([[9], [7], [5], [9]])
            x = tensor(4, 9, 16, dtype=dtype)
            mixed = layers.self_attn(x, x, x, need_weights=False)[0]
            return layers(x), layers(x, src_key_padding_mask=padding), mixed

    add(f"transformer fast {_type}", fast_transformer)

# Optimisers: name -> constructor
OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "SGD nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "SGD for loop": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=False),
    "SGD foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "Adam foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 0.01, betas=(0.9, 0.98), fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "AdamW fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, 0.01, fused=True),
}


def optimised(make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype) -> Any:
    """Parameters after five steps on gradients that depend on them elementwise."""
    parameters = [
        nn.Parameter(tensor(*shape, dtype=dtype, salt=salt))
        for salt, shape in enumerate([(33, 17), (17,), (1,)])
    ]
    optimiser = make(parameters)
    for step in range(5):
        for salt, parameter in enumerate(parameters):
            parameter.grad = parameter.detach() * tensor(
                *parameter.shape, dtype=dtype, salt=10 * step + salt
            )
        optimiser.step()
    return parameters


for _name, _optimiser in OPTIMISERS.items():
    for _type, _dtype in FLOATS.items():
        add(f"{_name} {_type}", partial(optimised, _optimiser, _dtype))
for _type, _dtype in FLOATS.items():

    def clipped(dtype: torch.dtype = _dtype) -> Any:
        """Clipping of gradients by their norm."""
        parameters = [
            nn.Parameter(tensor(33, 17, dtype=dtype)),
            nn.Parameter(tensor(9, dtype=dtype)),
        ]
        for parameter in parameters:
            parameter.grad = parameter.detach() * 3
        size = nn.utils.clip_grad_norm_(parameters, 1.0)
        return [size, *[p.grad for p in parameters]]

    add(f"clip_grad_norm {_type}", clipped)
    add(
        f"foreach sqrt {_type}",
        lambda d=_dtype: torch._foreach_sqrt([tensor(LENGTH, dtype=d, low=0.001, high=50)]),
    )

# NumPy
NUMPY: dict[str, Callable[[np.ndarray], Any]] = {
    "arctan": np.arctan,
    "cos": np.cos,
    "cumsum": np.cumsum,
    "dot": lambda x: np.dot(x, x[::-1]),
    "exp": np.exp,
    "expm1": np.expm1,
    "linalg.cholesky": lambda x: np.linalg.cholesky(np.diag(x[:20]) + 1e-3),
    "linalg.eigh": lambda x: np.linalg.eigh(x[:400].reshape(20, 20) + x[:400].reshape(20, 20).T),
    "linalg.inv": lambda x: np.linalg.inv(x[:400].reshape(20, 20)),
    "linalg.lstsq": lambda x: np.linalg.lstsq(x[:400].reshape(40, 10), x[:40], rcond=None)[0],
    "linalg.norm": lambda x: (np.linalg.norm(x), np.linalg.norm(x[:400].reshape(20, 20), axis=1)),
    "linalg.qr": lambda x: np.linalg.qr(x[:400].reshape(20, 20)),
    "linalg.solve": lambda x: np.linalg.solve(x[:400].reshape(20, 20), x[:20]),
    "linalg.svd": lambda x: np.linalg.svd(x[:400].reshape(20, 20)),
    "log": np.log,
    "log10": np.log10,
    "log1p": np.log1p,
    "log2": np.log2,
    "mean": lambda x: (x.mean(), x[:4000].reshape(40, 100).mean(0)),
    "percentile": lambda x: np.percentile(x, [5, 50, 95]),
    "power": lambda x: np.power(x, 0.3),
    "sin": np.sin,
    "sqrt": np.sqrt,
    "std": lambda x: (x.std(), x[:4000].reshape(40, 100).std(0)),
    "sum": lambda x: (x.sum(), x[:4000].reshape(40, 100).sum(0), x[::3].sum()),
    "tan": np.tan,
    "tanh": np.tanh,
    "fft.rfft": lambda x: np.fft.rfft(x[:4000]),
    "einsum": lambda x: np.einsum("ij,kj->ik", x[:400].reshape(20, 20), x[:400].reshape(20, 20)),
}
for _name, _array in NUMPY.items():
    for _type in FLOATS:
        add(
            f"numpy {_name} {_type}",
            lambda f=_array, t=_type: f(numbers(LENGTH, low=0.01, high=9).astype(t)),
        )
add(
    "numpy random",
    lambda: [
        g.random(99) if i == 0 else g.permutation(99) if i == 1 else g.standard_normal(LENGTH)
        for i, g in enumerate(np.random.default_rng(s) for s in range(3))
    ],
)


def scipy_probe(name: str) -> Any:
    """One function of SciPy; imported here because emulated imports are slow."""
    from scipy import linalg, optimize, special, stats

    x = numbers(400, low=0.01, high=2)
    matrix = x.reshape(20, 20)
    return {
        "expit": lambda: special.expit(x),
        "logsumexp": lambda: special.logsumexp(matrix, axis=1),
        "erf": lambda: special.erf(x),
        "gammaln": lambda: special.gammaln(x),
        "linalg.solve": lambda: linalg.solve(matrix, x[:20]),
        "linalg.eigh": lambda: linalg.eigh(matrix + matrix.T),
        "linalg.svd": lambda: linalg.svd(matrix),
        "linalg.expm": lambda: linalg.expm(matrix / 9),
        "stats.t": lambda: stats.t.ppf(x / 3, 5),
        "minimize": lambda: optimize.minimize(lambda v: ((v - x[:5]) ** 4).sum(), x[5:10]).x,
        "linprog": lambda: optimize.linprog(x[:5], A_ub=-matrix[:5, :5], b_ub=-x[5:10]).x,
    }[name]()


for _name in (
    *("expit", "logsumexp", "erf", "gammaln", "linalg.solve", "linalg.eigh", "linalg.svd"),
    *("linalg.expm", "stats.t", "minimize", "linprog"),
):
    add(f"scipy {_name} float64", partial(scipy_probe, _name))


def linear_svc() -> Any:
    """A linear support vector machine of scikit-learn."""
    from sklearn.svm import LinearSVC

    x, y = numbers(60, 8), np.arange(60) % 2
    return LinearSVC(C=0.3, loss="hinge", dual=True, random_state=0, max_iter=50).fit(x, y).coef_


def area_under_curve() -> Any:
    """Area under the curve of scikit-learn."""
    from sklearn.metrics import roc_auc_score

    return np.array(roc_auc_score(np.arange(60) % 2, numbers(60)))


def resized(kind: str) -> Any:
    """A picture made smaller by Pillow."""
    from PIL import Image

    picture = Image.fromarray((numbers(40, 30, 3, low=0.0) * 255).astype(np.uint8))
    return np.asarray(picture.resize((13, 17), getattr(Image.Resampling, kind)))


def convex_program(solver: str) -> Any:
    """A small second-order cone program of cvxpy."""
    import cvxpy as cp

    w = cp.Variable(3)
    rows = numbers(6, 3) + np.array([3.0, 0, 0])
    cp.Problem(cp.Minimize(cp.norm(w, 2)), [rows @ w >= 1]).solve(solver=solver)
    return w.value


def certified_ball() -> Any:
    """Interval arithmetic of python-flint, which computes with integers."""
    from flint import arb

    return np.array([str(arb(2).sqrt()), str(arb(3).log())]).view(np.uint8)


add("sklearn LinearSVC float64", linear_svc)
add("sklearn roc_auc_score float64", area_under_curve)
for _kind in ("BILINEAR", "LANCZOS", "BOX"):
    add(f"pillow resize {_kind}", partial(resized, _kind))
add("python-flint", certified_ball)
for _solver in ("CLARABEL", "SCS"):
    add(f"cvxpy {_solver} float64", partial(convex_program, _solver))


def digest(result: Any) -> str:
    """SHA-256 of the bytes, types and shapes of all tensors and arrays in a result."""
    from torch.utils._pytree import tree_leaves

    text = hashlib.sha256()
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            leaf = leaf.detach().resolve_conj().contiguous().numpy()
        array = np.asarray(leaf)
        text.update(f"{array.dtype} {array.shape}".encode())
        text.update(np.ascontiguousarray(array).tobytes())
    return text.hexdigest()


def main() -> None:
    """Run the probes, all of them or those after one that ended an emulator."""
    from companion.evidence.operations import OperationRecorder

    parser = argparse.ArgumentParser()
    parser.add_argument("--after", default="", help="begin behind this probe")
    parser.add_argument("--operations", action="store_true", help="name what each probe calls")
    parser.add_argument("--skip", action="append", default=[], help="leave this probe out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = list(PROBES)
    for name in names[names.index(given.after) + 1 if given.after else 0 :]:
        if name in given.skip:
            continue
        print(json.dumps({"begin": name}), flush=True)
        row: dict[str, Any] = {"name": name, "sha256": digest(PROBES[name]())}
        if given.operations:
            # a second time: torch takes other paths for some functions (`eigvalsh`) when watched
            with OperationRecorder() as recorder:
                PROBES[name]()
            row["operations"] = sorted(recorder.operations)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
