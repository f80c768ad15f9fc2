"""Factors of layers: equal to torch.func and to Opacus, refused layers, nothing left behind."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from torch import nn
from torch.func import functional_call, grad, vmap

from trainaug.methods.gradient_clustering.factors import (
    LayerFactors,
    flat_gradients,
    layer_factors,
)
from trainaug.training.randomness import initialise, stream

CLOSE = {torch.float32: {"rtol": 0, "atol": 3e-6}, torch.float64: {"rtol": 0, "atol": 1e-14}}
Conv = nn.Conv2d


class Mean(nn.Module):
    """Positions in two dimensions between batch and features."""

    def forward(self, x):
        return x.mean((1, 2)).sin()


class Pair(nn.Module):
    """Two layers, run as the test says."""

    def __init__(self, run):
        super().__init__()
        self.run, self.a, self.b = run, nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.run(self, x)


def ready(make, dtype=torch.float64):
    """Make a model without the global generator."""
    with torch.device("meta"):
        model = make()
    initialise(model, stream(0, "init"))
    return model.to(dtype)


def row(*layers):
    return ready(lambda: nn.Sequential(*(make() for make in layers)))


lin = partial(partial, nn.Linear)


def mlp(bias=True, inplace=False):
    layers = nn.Linear(4, 6, bias=bias), nn.ReLU(inplace), nn.Linear(6, 3, bias=bias)
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(inplace=False, **options):
    """9 x 8 pictures in two channels; the layer in question is in front."""
    options = {"kernel_size": 3} | options
    layers = [Conv(2, 3, **options), nn.ReLU(inplace), Conv(3, 2, 2), nn.ReLU(inplace)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))


MODELS = {
    "linear": mlp,
    "no bias": partial(mlp, bias=False),
    "in place": partial(mlp, inplace=True),
    "positions": lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), Mean()),
    "stride": partial(cnn, stride=2),
    "pads": partial(cnn, stride=(2, 1), padding=(1, 2)),
    "same": partial(cnn, padding="same", dilation=2),
    "same, uneven": partial(cnn, padding="same", kernel_size=(3, 5)),
    "valid": partial(cnn, padding="valid", bias=False, inplace=True),
    "circular": partial(cnn, padding=(1, 2), padding_mode="circular", stride=2),
    "reflect": partial(cnn, padding=2, padding_mode="reflect"),
    "replicate": partial(cnn, padding="same", padding_mode="replicate"),
    "dilation": partial(cnn, dilation=(1, 2), stride=(1, 2)),
    "1x1": partial(cnn, kernel_size=1),
    "1x1, stride": partial(cnn, kernel_size=1, stride=3, padding=1),
}
PICTURES = [name for name, make in MODELS.items() if getattr(make, "func", mlp) is cnn]


def problem(name, randn, dtype=torch.float64, b=5):
    shape = (2, 9, 8) if name in PICTURES else (2, 3, 5) if name == "positions" else (4,)
    return ready(MODELS[name], dtype), randn(1, b, *shape, dtype=dtype), torch.arange(b) % 3


losses_of = partial(F.cross_entropy, reduction="none")


def oracle(model, x, y):
    """Per-example gradients by name of the parameter."""

    def loss(p, x, y):
        return losses_of(functional_call(model, p, (x[None],)), y[None])[0]

    at = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return vmap(grad(loss), (None, 0, 0))(at, x, y)


def flat(grads):
    return torch.cat([g.flatten(1) for g in grads.values()], 1)


# --- equal to the slow way


@pytest.mark.oracle("gc.1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_torch_func(name, dtype, randn):
    for b in (1, 5):
        model, x, y = problem(name, randn, dtype, b)
        actual = flat_gradients(layer_factors(model, losses_of, x, y))
        assert (actual.dtype, actual.requires_grad) == (dtype, False)
        torch.testing.assert_close(actual, flat(oracle(model, x, y)), **CLOSE[dtype])


@pytest.mark.oracle("gc.1")
@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", ["linear", "no bias", "stride", "pads", "same", "dilation", "1x1"])
def test_opacus_agrees(name, randn):
    model, x, y = problem(name, randn)
    actual = flat_gradients(layer_factors(model, losses_of, x, y))
    sampled = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    losses_of(sampled(x), y).sum().backward()
    expected = torch.cat([p.grad_sample.flatten(1) for p in sampled.parameters()], 1)
    torch.testing.assert_close(actual, expected, **CLOSE[torch.float64])


@pytest.mark.oracle("gc.1")
@pytest.mark.parametrize("name", [*MODELS, *(f"{name}, channels last" for name in PICTURES)])
def test_shortcuts_equal_what_follows_from_the_gradients(name, randn):
    model, x, y = problem(name.removesuffix(", channels last"), randn)
    grads = oracle(model, x, y)
    if "channels last" in name:
        model, x = (v.to(memory_format=torch.channels_last) for v in (model, x))
    factors = layer_factors(model, losses_of, x, y)
    for seed, (name, layer) in enumerate(factors.items()):
        b, i, o, t = layer.sizes
        full = weight = grads[f"{name}.weight"].reshape(b, o, -1)
        if layer.bias:
            full = torch.cat([weight, grads[f"{name}.bias"][:, :, None]], 2)
        torch.testing.assert_close(layer.gradient(), full, **CLOSE[torch.float64])
        assert full.shape == (b, o, i)
        a, d = layer.inputs(), layer.grads()
        assert (a.shape, d.shape) == ((b, i - layer.bias, t), (b, o, t))
        by_hand = torch.einsum("bot,bit->boi", d, a)
        torch.testing.assert_close(by_hand, weight, **CLOSE[torch.float64])
        close = {"rtol": 1e-11, "atol": 1e-13}
        torch.testing.assert_close(layer.sq_norms(), full.square().sum((1, 2)), **close)
        c, k = layer.averages()
        ones = torch.ones(b, int(layer.bias), dtype=a.dtype)
        torch.testing.assert_close(c, torch.cat([a.mean(2), ones], 1), **close)
        torch.testing.assert_close(k, d.sum(2), **close)
        c, k = randn(seed, 7, i), randn(seed + 50, 7, o)
        expected = torch.einsum("boi,ko,ki->bk", full, k, c)
        torch.testing.assert_close(layer.products(c, k), expected, **close)
        for where in (slice(1, 3), torch.tensor([3, 0])):
            part = layer.rows(where)
            assert part.sizes == (2, i, o, t)
            torch.testing.assert_close(part.gradient(), full[where], **CLOSE[torch.float64])


def test_biases_can_be_left_out(randn):
    for name in ("linear", "stride"):
        model, x, y = problem(name, randn)
        actual = flat_gradients(layer_factors(model, losses_of, x, y, bias=False))
        weights = {n: g for n, g in oracle(model, x, y).items() if n.endswith("weight")}
        torch.testing.assert_close(actual, flat(weights), **CLOSE[torch.float64])
    model, x, y = problem("linear", randn)
    model[1].bias.requires_grad_(False)  # so is a frozen one
    actual = flat_gradients(layer_factors(model, losses_of, x, y))
    torch.testing.assert_close(actual, flat(oracle(model, x, y)), **CLOSE[torch.float64])


@pytest.mark.oracle("gc.7")
@pytest.mark.parametrize("name", ["linear", "positions", "stride"])
def test_gradients_do_not_depend_on_the_other_examples_of_the_batch(name, randn):
    model, x, y = problem(name, randn, b=7)
    whole = flat_gradients(layer_factors(model, losses_of, x, y))
    for size in (1, 3, 4):  # a ragged last batch
        parts = zip(x.split(size), y.split(size), strict=True)
        actual = torch.cat([flat_gradients(layer_factors(model, losses_of, *p)) for p in parts])
        torch.testing.assert_close(actual, whole, **CLOSE[torch.float64])


# --- layers


@pytest.mark.oracle("gc.1")
def test_layers_without_factors_are_named(randn):
    x, y = randn(0, 4, 4), torch.arange(4)
    with torch.device("meta"):
        model = nn.Sequential(nn.LayerNorm(4), nn.Bilinear(4, 4, 4), nn.Embedding(4, 4))
        groups = nn.Sequential(Conv(4, 4, 1, groups=2))
    for number, kind in enumerate(["LayerNorm", "Bilinear", "Embedding"]):
        with pytest.raises(TypeError, match=rf"layer '0' \({kind}\).*layers=\["):
            LayerFactors(nn.Sequential(model[number]))
    with pytest.raises(TypeError, match=r"layer '0' \(Conv2d\) has groups=2"):
        LayerFactors(groups)
    model = row(lin(4, 6), partial(nn.LayerNorm, 6), lin(6, 3))
    actual = layer_factors(model, losses_of, x, y % 3, layers=["2", "0"])
    assert list(actual) == ["2", "0"]
    grads = oracle(model, x, y % 3)
    expected = [grads[f"{n}.{p}"].flatten(1) for n in "20" for p in ("weight", "bias")]
    torch.testing.assert_close(flat_gradients(actual), torch.cat(expected, 1))


@pytest.mark.oracle("gc.1")
def test_shared_weights_are_refused(randn):
    x, y = randn(0, 4, 3), torch.arange(4) % 3
    (layer,) = row(lin(3, 3))
    with pytest.raises(TypeError, match="layer '0' ran twice in one pass"):
        layer_factors(nn.Sequential(layer, nn.Tanh(), layer), losses_of, x, y)
    tied = row(lin(3, 3), lin(3, 3))
    tied[1].weight = tied[0].weight
    for names in (None, ["0"], ["1"]):  # the gradient would be a part only
        with pytest.raises(ValueError, match=r"layers '[01]' and '[01]' share a parameter"):
            LayerFactors(tied, names)
    tied[1].weight, tied[1].bias = nn.Parameter(torch.eye(3).double()), tied[0].bias
    with pytest.raises(ValueError, match="layers '0' and '1' share a parameter"):
        LayerFactors(tied)


@pytest.mark.oracle("gc.11")
def test_batch_norm_is_refused_unless_it_uses_running_statistics(randn):
    x, y = randn(0, 4, 4), torch.arange(4) % 3
    model = row(lin(4, 6), partial(nn.BatchNorm1d, 6), lin(6, 3))
    before = copy.deepcopy(model.state_dict())
    for layers in (None, ["0", "2"]):
        with pytest.raises(ValueError, match=r"own, because 1 \(BatchNorm1d\) is in train mode"):
            layer_factors(model, losses_of, x, y, layers=layers)
    model.eval()
    with pytest.raises(TypeError, match=r"layer '1' \(BatchNorm1d\)"):
        layer_factors(model, losses_of, x, y)
    actual = layer_factors(model, losses_of, x, y, layers=["0", "2"])
    grads = {n: g for n, g in oracle(model, x, y).items() if n[0] in "02"}
    torch.testing.assert_close(flat_gradients(actual), flat(grads), **CLOSE[torch.float64])
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    model[1] = nn.BatchNorm1d(6, track_running_stats=False).double().eval()  # couples all the same
    with pytest.raises(ValueError, match=r"because 1 \(BatchNorm1d\) has no running statistics"):
        LayerFactors(model, ["0", "2"])


# --- nothing left behind


RUNS = {
    "layers ['b'] did not run: name": lambda m, x: m.a(x),
    "the losses do not depend on layer 'b'": lambda m, x: (m.b(x[:, 1:]), m.a(x))[1],
    "layer 'a' ran without gradients: leave no_grad()": torch.no_grad()(lambda m, x: m.a(x)),
    "the input of layer 'a' was changed in place": lambda m, x: (m.b(m.a(x)), x.mul_(2))[0],
    "layer 'a' saw 2 rows for 4 losses": lambda m, x: m.b(m.a(x[:2]).repeat(2, 1)),
    "need a loss for each example, shape (B,), got ()": lambda m, x: m.b(m.a(x)),
    "division by zero": lambda m, x: (m.a(x), 1 / 0),
}


@pytest.mark.parametrize("message", [*RUNS, "fine"])
def test_nothing_is_left_behind_whatever_happens(message, randn, same_inside_meta):
    model = ready(lambda: Pair(RUNS.get(message, lambda m, x: m.b(m.a(input=x)))))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    criterion = F.cross_entropy if "got ()" in message else losses_of
    call, x, y = torch.no_grad()(layer_factors), randn(0, 4, 4), torch.arange(4) % 3
    if message == "fine":
        same_inside_meta(lambda x, y: call(model, criterion, x, y), x, y)
    else:
        with pytest.raises((RuntimeError, ValueError, ZeroDivisionError), match=re.escape(message)):
            call(model, criterion, x, y)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert model.training


def test_frozen_layers_do_not_count(randn):
    x, y = randn(0, 4, 4), torch.arange(4) % 3
    model = ready(lambda: Pair(lambda m, x: m.b(m.a(x))))
    model.a.requires_grad_(False)
    actual = flat_gradients(layer_factors(model, losses_of, x, y))
    torch.testing.assert_close(actual, flat(oracle(model, x, y)), **CLOSE[torch.float64])
    with pytest.raises(ValueError, match=r"the weight of layer 'a' .* is frozen"):
        LayerFactors(model, ["a"])
    with pytest.raises(ValueError, match=r"the model has no layers \['c'\]"):
        LayerFactors(model, ["b", "c"])
    with pytest.raises(ValueError, match="none has trainable parameters"):
        LayerFactors(model.requires_grad_(False))
