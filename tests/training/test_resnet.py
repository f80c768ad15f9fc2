"""The smallest residual network: a twin in plain functions, sizes, and what it draws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.training.networks import ResNet8
from trainaug.training.randomness import stream


def built(seed: int = 0, classes: int = 10, **options: object) -> ResNet8:
    return ResNet8(classes, stream(seed, "init"), **options)  # type: ignore[arg-type]


def inputs(size: int = 8, channels: int = 3, count: int = 6) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=stream(0, "x"))


def randomised(model: ResNet8) -> ResNet8:
    """Give BatchNorm the statistics, scales and shifts of a trained network."""
    g = stream(1, "norm")
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for values, low, high in (
            (norm.running_mean, -0.2, 0.2),
            (norm.running_var, 0.5, 2.0),
            (norm.weight.data, 0.5, 1.5),
            (norm.bias.data, -0.3, 0.3),
        ):
            values.uniform_(low, high, generator=g)
    return model


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1), (8, 1), (9, 3), (1, 1)])
def test_a_row_of_logits_an_example_whatever_the_size(size, channels):
    model = built(in_channels=channels)
    logits = model(inputs(size, channels))
    assert logits.shape == (6, 10)
    assert bool(logits.isfinite().all())
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_parameters_are_those_of_the_docstring():
    def count(**options: object) -> int:
        return sum(p.numel() for p in built(**options).parameters())

    def block(inputs: int, width: int) -> int:
        shortcut = inputs * width + 2 * width if inputs != width else 0
        return 9 * width * (inputs + width) + 4 * width + shortcut

    stem, head = 9 * 3 * 16 + 2 * 16, (64 + 1) * 10
    assert count() == stem + block(16, 16) + block(16, 32) + block(32, 64) + head == 78042
    assert "78 042 parameters" in (ResNet8.__doc__ or "")
    assert count(in_channels=1) == 78042 - 9 * 2 * 16
    assert count(classes=3) == 78042 - 65 * 7
    layers = [m for m in built().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shortcuts = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert (len(layers) - len(shortcuts), len(shortcuts)) == (8, 2)  # eight layers in depth


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (9, 1), (28, 1)])
def test_the_network_is_what_its_docstring_says(size, channels):
    model, x = randomised(built(in_channels=channels)).eval(), inputs(size, channels)
    w = dict(model.state_dict())

    def normed(name: str, h: torch.Tensor) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (w[f"{name}.{n}"].view(-1, 1, 1) for n in names)
        return (h - mean) / (var + 1e-5).sqrt() * scale + shift

    h = normed("norm", F.conv2d(x, w["stem.weight"], padding=1)).clamp(min=0)
    for position, (width, stride) in enumerate([(16, 1), (32, 2), (64, 2)]):
        name, before = f"stages.{position}", h
        y = F.conv2d(h, w[f"{name}.first.weight"], stride=stride, padding=1)
        y = normed(f"{name}.norms.0", y).clamp(min=0)
        y = normed(f"{name}.norms.1", F.conv2d(y, w[f"{name}.second.weight"], padding=1))
        if stride == 2:  # a 1x1 convolution sees every second pixel
            picked = before[:, :, ::2, ::2]
            along = torch.einsum("oi,bihw->bohw", w[f"{name}.shortcut.0.weight"][..., 0, 0], picked)
            before = normed(f"{name}.shortcut.1", along)
        h = (y + before).clamp(min=0)
        assert h.shape == (6, width, *[-(-size // 2**position)] * 2)
    expected = h.flatten(2).mean(2) @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)  # order of sums


def test_layout_does_not_matter_and_inputs_stay():
    model, x = built().eval(), inputs()
    kept = x.clone()
    wide = torch.stack([x, x], -1)[..., 0]
    for layout in (x, x.to(memory_format=torch.channels_last), wide):
        assert torch.equal(model(layout), model(kept))
    assert torch.equal(x, kept)
    stem = model.stem.weight
    assert stem.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("training", "independent"), [(True, False), (False, True)])
def test_examples_are_independent_unless_batch_norm_trains(training, independent):
    model, x = built().train(training), inputs()
    other = x.clone()
    other[1:] = 1 - other[1:]  # only the first example stays
    with torch.no_grad():
        gap = float((model(x)[0] - model(other)[0]).abs().max())
    assert (gap < 1e-6) == independent, gap


def test_weights_follow_from_the_generator_alone():
    first, again, other = (built(seed).state_dict() for seed in (0, 0, 1))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        drawn = "norm" not in name and "shortcut.1" not in name
        assert torch.equal(value, other[name]) != drawn
    with torch.device("meta"):
        on_meta = built().state_dict()
    assert all(torch.equal(value, on_meta[name]) for name, value in first.items())


def test_a_few_steps_fit_a_few_examples():
    model, x, y = built(classes=3), inputs(8, count=12), torch.arange(12) % 3
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("classes", "channels", "value"), [(0, 3, "num_classes=0"), (10, 0, "in_channels=0")]
)
def test_impossible_sizes_raise_with_the_value(classes, channels, value):
    with pytest.raises(ValueError, match=value):
        ResNet8(classes, stream(0, "init"), in_channels=channels)


def test_without_norms_it_is_the_network_whose_norms_do_nothing():
    """Oracle: the whole network in eval mode, with norms of mean 0, variance 1 and eps 0."""
    plain = ResNet8(10, stream(0, "init"), batch_norm=False)
    whole = ResNet8(10, stream(0, "init")).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    x = torch.rand(4, 3, 16, 16, generator=stream(0, "x"))
    torch.testing.assert_close(plain(x), whole(x), rtol=1e-5, atol=1e-6)
    kinds = {type(m) for m in plain.modules() if any(True for _ in m.parameters(recurse=False))}
    assert kinds == {nn.Conv2d, nn.Linear}
    assert torch.equal(plain.eval()(x), plain.train()(x))
