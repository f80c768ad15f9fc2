"""The two-convolution network: sizes, normalisation, and examples that do not see each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.training.networks import TwoConvNet
from trainaug.training.randomness import stream


def built(seed: int = 0, **options: object) -> TwoConvNet:
    return TwoConvNet(10, stream(seed, "init"), **options)  # type: ignore[arg-type]


def inputs(size: int = 8, channels: int = 1, count: int = 6) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=stream(0, "x"))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (9, 1)])
def test_a_row_of_logits_an_example_whatever_the_size(size, channels, batch_norm):
    model = built(in_channels=channels, batch_norm=batch_norm)
    logits = model(inputs(size, channels))
    assert logits.shape == (6, 10)
    assert bool(logits.isfinite().all())
    logits.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_parameters_are_those_of_the_docstring():
    def count(**options: object) -> int:
        return sum(p.numel() for p in built(**options).parameters())

    convolutions, head = (9 + 1) * 8 + (9 * 8 + 1) * 16, (16 * 4 + 1) * 10
    assert count() == convolutions + head == 1898
    assert "1 898 parameters" in " ".join((TwoConvNet.__doc__ or "").split())
    assert count(batch_norm=True) == 1898 + 2 * (8 + 16)
    assert count(in_channels=3) == 1898 + 2 * 9 * 8


@pytest.mark.parametrize("batch_norm", [False, True])
def test_batch_norm_only_where_asked_for(batch_norm):
    model = built(batch_norm=batch_norm)
    actual = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert actual == ([8, 16] if batch_norm else [])
    assert len(list(model.buffers())) == 6 * batch_norm


def test_the_network_is_what_its_docstring_says():
    for batch_norm in (False, True):
        model, x = built(batch_norm=batch_norm).eval(), inputs(8)
        for norm in model.norms:  # statistics of a trained network
            if batch_norm:
                norm.running_mean.uniform_(-0.1, 0.1, generator=stream(1, "mean"))
                norm.running_var.uniform_(0.5, 2.0, generator=stream(1, "var"))

        def normed(position: int, h: torch.Tensor, model: TwoConvNet = model) -> torch.Tensor:
            n = model.norms[position]
            if isinstance(n, nn.Identity):
                return h
            mean, var = (v.view(-1, 1, 1) for v in (n.running_mean, n.running_var))
            return (h - mean) / (var + n.eps).sqrt()  # scale 1 and shift 0 at the start

        h = F.conv2d(x, model.first.weight, model.first.bias, padding=1)
        h = normed(0, h).clamp(min=0)
        h = h.view(6, 8, 4, 2, 4, 2).amax((3, 5))
        h = F.conv2d(h, model.second.weight, model.second.bias, padding=1)
        h = normed(1, h).clamp(min=0)
        h = h.view(6, 16, 2, 2, 2, 2).mean((3, 5)).flatten(1)  # to 2x2
        expected = h @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)  # order of sums


@pytest.mark.parametrize(
    ("batch_norm", "training", "independent"),
    [(False, True, True), (False, False, True), (True, True, False), (True, False, True)],
)
def test_examples_are_independent_unless_batch_norm_trains(batch_norm, training, independent):
    model = built(batch_norm=batch_norm).train(training)
    x = inputs(8)
    other = x.clone()
    other[1:] = 1 - other[1:]  # only the first example stays
    with torch.no_grad():
        gap = float((model(x)[0] - model(other)[0]).abs().max())
    assert (gap < 1e-6) == independent, gap


def test_weights_follow_from_the_generator_alone():
    first, again, other = built(0), built(0), built(1)
    plain, normed = built(0).state_dict(), built(0, batch_norm=True).state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert not torch.equal(value, other.state_dict()[name])
    for name, value in plain.items():  # BatchNorm draws nothing: the same convolutions
        assert torch.equal(value, normed[name])


@pytest.mark.parametrize(
    ("classes", "channels", "value"), [(0, 1, "num_classes=0"), (10, 0, "in_channels=0")]
)
def test_impossible_sizes_raise_with_the_value(classes, channels, value):
    with pytest.raises(ValueError, match=value):
        TwoConvNet(classes, stream(0, "init"), in_channels=channels)
