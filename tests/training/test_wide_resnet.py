"""Wide residual networks: sizes, a twin in plain functions, and what they draw."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.training.networks import WideResNet
from trainaug.training.randomness import stream


def built(depth: int = 10, width: int = 1, seed: int = 0, **options: object) -> WideResNet:
    return WideResNet(depth, width, 10, stream(seed, "init"), **options)  # type: ignore[arg-type]


def inputs(size: int = 8, channels: int = 3, count: int = 6) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=stream(0, "x"))


def parameters(depth: int, width: int, channels: int = 3, classes: int = 10) -> int:
    """Count in closed form: convolutions without bias, BatchNorm before each, one at the end."""
    n = (depth - 4) // 6
    total, before = 9 * channels * 16, 16
    for k in (16 * width, 32 * width, 64 * width):
        shortcut = before * k if before != k else 0
        total += 9 * before * k + 9 * k * k + 2 * before + 2 * k + shortcut
        total += (n - 1) * (18 * k * k + 4 * k)
        before = k
    return total + 2 * before + (before + 1) * classes


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1), (8, 1), (9, 3), (1, 1)])
@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_a_row_of_logits_an_example_whatever_the_size(depth, width, size, channels):
    model = built(depth, width, in_channels=channels)
    logits = model(inputs(size, channels))
    assert logits.shape == (6, 10)
    assert bool(logits.isfinite().all())
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "width", "channels"), [(10, 1, 3), (10, 2, 1), (16, 1, 3), (16, 3, 3), (22, 2, 1)]
)
def test_parameters_match_the_closed_form(depth, width, channels):
    model = built(depth, width, in_channels=channels)
    assert sum(p.numel() for p in model.parameters()) == parameters(depth, width, channels)


def test_parameters_are_those_of_the_paper_and_the_docstring():
    actual = sum(p.numel() for p in built(28, 10).parameters())
    assert actual == parameters(28, 10) == 36_479_194  # the paper: 36.5 M
    assert "36 479 194 parameters" in (WideResNet.__doc__ or "")
    assert parameters(40, 4) == 8_949_210  # 8.9 M
    assert parameters(16, 8) == 10_961_370  # 11.0 M


@pytest.mark.parametrize(("depth", "width"), [(10, 2), (16, 2), (28, 2)])
def test_depth_is_the_number_of_convolutions(depth, width):
    layers = list(built(depth, width).modules())
    assert sum(isinstance(m, nn.Conv2d) for m in layers) == depth
    assert not any(isinstance(m, nn.Dropout) for m in layers)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("depth", "width", "size"), [(10, 1, 8), (10, 2, 9), (16, 1, 8)])
def test_the_network_is_what_its_docstring_says(depth, width, size, training):
    model, x = built(depth, width).train(training), inputs(size)
    g = stream(1, "norm")
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.2, 0.2, generator=g)
        norm.running_var.uniform_(0.5, 2.0, generator=g)
        norm.weight.data.uniform_(0.5, 1.5, generator=g)
        norm.bias.data.uniform_(-0.3, 0.3, generator=g)
    w = {name: value.clone() for name, value in model.state_dict().items()}

    def active(name: str, h: torch.Tensor) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (w[f"{name}.{n}"].view(-1, 1, 1) for n in names)
        if training:
            mean = h.mean((0, 2, 3), keepdim=True)
            var = h.var((0, 2, 3), keepdim=True, correction=0)
        return ((h - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    h = F.conv2d(x, w["stem.weight"], padding=1)
    n = (depth - 4) // 6
    for position in range(3 * n):
        name, stride = f"stages.{position}", 2 if position in (n, 2 * n) else 1
        a = active(f"{name}.norms.0", h)
        y = F.conv2d(a, w[f"{name}.first.weight"], stride=stride, padding=1)
        y = F.conv2d(active(f"{name}.norms.1", y), w[f"{name}.second.weight"], padding=1)
        if f"{name}.shortcut.weight" in w:  # of the activations, every second pixel
            matrix = w[f"{name}.shortcut.weight"][..., 0, 0]
            h = torch.einsum("oi,bihw->bohw", matrix, a[:, :, ::stride, ::stride])
        h = y + h
        assert h.shape == (
            6,
            16 * width * 2 ** (position // n),
            *[-(-size // 2 ** (position // n))] * 2,
        )
    h = active("norm", h).flatten(2).mean(2)
    expected = h @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=2e-5)  # order of sums


def test_layout_does_not_matter_and_inputs_stay():
    model, x = built(width=2).eval(), inputs()
    kept = x.clone()
    for layout in (x, x.to(memory_format=torch.channels_last), torch.stack([x, x], -1)[..., 0]):
        assert torch.equal(model(layout), model(kept))
    assert torch.equal(x, kept)
    assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_follow_from_the_generator_alone():
    first, again, other = (built(seed=seed, width=2).state_dict() for seed in (0, 0, 1))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, other[name]) == ("norm" in name)
    with torch.device("meta"):
        on_meta = built(width=2).state_dict()
    assert all(torch.equal(value, on_meta[name]) for name, value in first.items())


def test_a_few_steps_overfit_twenty_pictures():
    model, x, y = built(), inputs(16, count=20), torch.arange(20) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert bool((model(x).argmax(1) == y).all())


@pytest.mark.parametrize("depth", [4, 9, 11, 27, 0, -2])
def test_impossible_depth_raises_with_the_value(depth):
    with pytest.raises(ValueError, match=rf"6 n \+ 4 .*, got {depth}"):
        built(depth)


@pytest.mark.parametrize(
    ("width", "classes", "channels", "value"),
    [(0, 10, 3, "width=0"), (1, 0, 3, "num_classes=0"), (1, 10, 0, "in_channels=0")],
)
def test_impossible_sizes_raise_with_the_value(width, classes, channels, value):
    with pytest.raises(ValueError, match=value):
        WideResNet(10, width, classes, stream(0, "init"), in_channels=channels)
