"""Layers that no test of a plain network has: per-example gradients are right, or refused by name.

Right is what autograd gives for the parameters, one example at a time.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from trainaug.methods.gradient_clustering import (
    GradientClustering,
    LayerFactors,
    UnsupportedLayerError,
    flat_gradients,
    gram_matrix,
    layer_factors,
    per_example_gradients,
)
from trainaug.training.randomness import stream

losses_of = partial(F.cross_entropy, reduction="none")


class Run(nn.Module):
    """Layers by name, run as a function says."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, 0.5 * self.weight, self.bias)


class Same(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class LowRank(nn.Linear):
    """LoRA in a subclass."""

    def __init__(self):
        super().__init__(4, 4)
        self.down, self.up = nn.Parameter(torch.ones(1, 4)), nn.Parameter(torch.ones(4, 1))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class BatchMean(nn.Module):
    """Couples examples, and is no BatchNorm."""

    def forward(self, x):
        return x - x.mean(0)


class Token(nn.Module):
    """A parameter of the root module, as in a vision transformer."""

    def __init__(self):
        super().__init__()
        self.cls_token, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x + self.cls_token)


def lin(i=4, o=3):
    return nn.Linear(i, o)


def changed(change):
    """A network whose first layer a utility of torch changes in place."""

    def make():
        model = nn.Sequential(lin(4, 4), nn.Tanh(), lin())
        change(model[0])
        return model

    return make


def picture(conv):
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), conv, nn.Flatten(), nn.LazyLinear(3))


def hooked(**hooks):
    def make():
        model = nn.Sequential(lin(4, 4), lin())
        for name, hook in hooks.items():
            getattr(model[0], f"register_{name}")(hook)
        return model

    return make


def weight_hooked():
    model = nn.Sequential(lin())
    model[0].weight.register_hook(lambda grad: grad * torch.tensor([1.0, 0, 1])[:, None])
    return model


def replaced():
    model = nn.Sequential(lin())
    forward = model[0].forward
    model[0].forward = lambda x: 2 * forward(x)
    return model


def old(name):
    def change(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(nn.utils, name)(layer)

    return changed(change)


def tied():
    model = Run(lambda m, x: m.head(m.a(x)), a=lin(4, 3), head=lin(3, 3), table=nn.Embedding(3, 3))
    model.head.weight = model.table.weight
    return model


def recurrent(kind):
    return Run(
        lambda m, x: m.head(m.cell(x[:, :, None])[0][:, -1]),
        cell=kind(1, 4, batch_first=True),
        head=lin(),
    )


RIGHT = {
    "changing hook after": hooked(forward_hook=lambda m, i, o: 2 * o),
    "changing hook before": hooked(forward_pre_hook=lambda m, i: 3 * i[0]),
    "in place": lambda: Run(lambda m, x: m.b(m.a(x).add_(1).mul_(2)), a=lin(4, 4), b=lin()),
    "residual": lambda: Run(lambda m, x: m.b(x + m.a(x)), a=lin(4, 4), b=lin()),
    "checkpoint": lambda: Run(
        lambda m, x: m.b(checkpoint(lambda v: m.a(v).tanh(), x, use_reentrant=False)),
        a=lin(4, 4),
        b=lin(),
    ),
    "own subclass without a forward": lambda: nn.Sequential(type("Mine", (nn.Linear,), {})(4, 3)),
    "parallel": lambda: nn.DataParallel(nn.Sequential(lin(4, 4), nn.ReLU(), lin())),
    "shared input": lambda: Run(lambda m, x: m.a(x) + m.b(x), a=lin(), b=lin()),
    "frozen front": lambda: nn.Sequential(lin(4, 4).requires_grad_(False), nn.Tanh(), lin()),
}
# What the message must name
REFUSED = {
    "standardised": (lambda: picture(Standardised(1, 2, 2)), "Standardised.*_conv_forward"),
    "own padding": (lambda: picture(Same(1, 2, 2)), "Same.*forward"),
    "transposed": (lambda: picture(nn.ConvTranspose2d(1, 2, 2)), "ConvTranspose2d"),
    "groups": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2, 1)), nn.Conv2d(2, 2, 1, groups=2)),
        "groups=2",
    ),
    "scaled": (lambda: nn.Sequential(Scaled(4, 3)), "'0'.*Scaled"),
    "low rank": (lambda: nn.Sequential(LowRank(), lin()), "'0'.*LowRank"),
    "replaced forward": (replaced, "'0'.*forward"),
    "pruned": (changed(lambda m: prune.l1_unstructured(m, "weight", 0.5)), "'0'.*weight_orig"),
    "pruned bias": (changed(lambda m: prune.l1_unstructured(m, "bias", 0.5)), "'0'.*bias_orig"),
    "weight norm": (changed(parametrizations.weight_norm), "'0'.*weight"),
    "spectral norm": (changed(parametrizations.spectral_norm), "'0'.*weight"),
    "old weight norm": (old("weight_norm"), "'0'.*weight_g"),
    "old spectral norm": (old("spectral_norm"), "'0'.*weight_orig"),
    "tied to an embedding": (tied, "share a parameter|Embedding"),
    "called twice": (lambda: Run(lambda m, x: m.b(m.a(m.a(x))), a=lin(4, 4), b=lin()), "'a' ran"),
    "used by the parent": (
        lambda: Run(lambda m, x: m.b(m.a(x) + F.linear(x, m.a.weight)), a=lin(4, 4), b=lin()),
        "weight of layer 'a'",
    ),
    "never run": (
        lambda: Run(lambda m, x: m.b(F.linear(x, m.a.weight)), a=lin(4, 4), b=lin()),
        r"\['a'\] did not run",
    ),
    "bias used by the parent": (
        lambda: Run(lambda m, x: m.a(x) + m.a.bias.square(), a=lin()),
        "bias of layer 'a'",
    ),
    "hook of a weight": (weight_hooked, "weight of layer '0'"),
    "root parameter": (Token, "Token.*cls_token"),
    "attention": (
        lambda: Run(lambda m, x: m.b(m.a(*3 * [x[:, None]])[0][:, 0]),
                    a=nn.MultiheadAttention(4, 2, batch_first=True), b=lin()),
        "'a' .MultiheadAttention",
    ),
    "batch norm": (lambda: nn.Sequential(lin(4, 4), nn.BatchNorm1d(4), lin()), "BatchNorm1d.*eval"),
    "coupling": (lambda: nn.Sequential(lin(4, 4), BatchMean(), lin()), "layer '0'"),
    "rows in another order": (
        lambda: Run(lambda m, x: m.a(x.flip(0)).flip(0), a=lin()),
        "layer 'a'",
    ),
    "attention over the batch": (
        lambda: Run(lambda m, x: m.b((x @ x.T).softmax(1) @ m.a(x)), a=lin(4, 4), b=lin()),
        "layer 'a'",
    ),
    "LSTM": (lambda: recurrent(nn.LSTM), "'cell' .LSTM"),
    "GRU": (lambda: recurrent(nn.GRU), "'cell' .GRU"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "LazyLinear|UninitializedParameter"),
}  # fmt: skip


def ready(make, x=None):
    with torch.device("cpu"), torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = make()
        if x is not None:
            model(x)  # what is lazy takes shape
    return model.double()


def one_by_one(model, x, y, criterion=losses_of):
    rows = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for i in range(len(x)):
        grads = torch.autograd.grad(criterion(model(x[i : i + 1]), y[i : i + 1]).sum(), parameters)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def batch(randn):
    return randn(3, 6, 4), torch.arange(6) % 3


@pytest.mark.parametrize("name", RIGHT)
def test_layers_that_look_strange_are_right(name, randn):
    model, (x, y) = ready(RIGHT[name]), batch(randn)
    actual = flat_gradients(layer_factors(model, losses_of, x, y))
    torch.testing.assert_close(actual, one_by_one(model, x, y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_layers_without_factors_of_their_own_are_refused(name, randn):
    make, message = REFUSED[name]
    x, y = batch(randn)
    model = ready(
        make, x.float() if name in ("standardised", "own padding", "transposed") else None
    )
    with pytest.raises(TypeError, match=message) as caught:
        layer_factors(model, losses_of, x, y)
    assert caught.type is UnsupportedLayerError
    clustering = GradientClustering(model, losses_of, 2, generator=stream(0, "cluster"))
    with pytest.raises(ValueError, match=message):  # the same error is one of values
        clustering.fit([(x, y, torch.arange(6))], 1)
    assert not any(m._forward_hooks for m in model.modules() if name != "changing hook after")


@pytest.mark.parametrize("name", ["a", "a.out_proj"])
def test_attention_is_refused_by_the_name_of_each_part(name):
    model = ready(lambda: Run(None, a=nn.MultiheadAttention(4, 2), b=lin()))
    with pytest.raises(TypeError, match=f"{name}'.*Multihead"):
        LayerFactors(model, [name])
    assert list(LayerFactors(model, ["b"]).layers) == ["b"]


def test_without_a_check_the_gradients_are_the_same_and_coupling_stays_unseen(randn):
    x, y = batch(randn)
    model = ready(lambda: nn.Sequential(lin(4, 4), nn.Dropout(0.5), lin()))
    both = []
    for verify in (True, False):
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            both.append(flat_gradients(layer_factors(model, losses_of, x, y, verify=verify)))
    assert torch.equal(*both)
    coupled = ready(REFUSED["coupling"][0])
    assert layer_factors(coupled, losses_of, x, y, verify=False)


def test_transforms_and_scripts_are_refused(randn):
    x, y = batch(randn)
    model = ready(lambda: nn.Sequential(lin()))
    with pytest.raises(TypeError, match=r"torch\.func"):
        torch.func.grad(lambda x: flat_gradients(layer_factors(model, losses_of, x, y)).sum())(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(model, x)
    with pytest.raises(TypeError, match=r"TopLevelTracedModule|has no factors"):
        layer_factors(script, losses_of, x, y)
    with pytest.raises(TypeError, match=r"torch\.jit"):
        per_example_gradients(script, losses_of, x, y)


@pytest.mark.parametrize("where", ["outside", "method", "criterion"])
def test_what_is_compiled_runs_as_it_was_written(where, randn):
    x, y = batch(randn)
    model = ready(lambda: nn.Sequential(lin(4, 4), nn.ReLU(), lin()))
    expected, criterion, compiled = one_by_one(model, x, y), losses_of, model
    if where == "outside":
        compiled = torch.compile(model, backend="eager")
        compiled(x)  # once compiled, it runs no new hooks
    elif where == "method":
        model[0].compile(backend="eager")
        model(x)
    else:
        criterion = torch.compile(losses_of, backend="aot_eager")
        criterion(model(x), y).sum().backward()
    actual = layer_factors(compiled, criterion, x, y)
    assert list(actual) == ["0", "2"]
    torch.testing.assert_close(flat_gradients(actual), expected, rtol=0, atol=1e-12)
    actual = per_example_gradients(compiled, losses_of, x, y)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("where", ["model", "inside", "outside"])
def test_half_precision_is_widened(where, dtype, randn):
    if where != "model" and dtype == torch.float16:
        pytest.skip("bfloat16 is the type of autocast on a CPU")
    x, y = randn(3, 8, 1, 6, 6).float(), torch.arange(8) % 3
    wide = ready(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), lin(64))
    ).float()
    expected = one_by_one(wide, x, y)

    def run(model, x):
        with torch.autocast("cpu", dtype) if where == "inside" else nullcontext():
            return model.body(x).float()

    model = Run(run, body=wide)
    if where == "model":
        model, x = model.to(dtype), x.to(dtype)
    with torch.autocast("cpu", dtype, enabled=where == "outside"):
        factors = layer_factors(model, losses_of, x, y)
        actual, gram = flat_gradients(factors), gram_matrix(factors, factors)
        clustering = GradientClustering(model, losses_of, 3, generator=stream(0, "cluster"))
        copies = [(x.repeat(3, 1, 1, 1), y.repeat(3), torch.arange(24))]
        assign = clustering.fit(copies, 4).assign.view(3, 8)
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() < 0.03 * expected.norm()
    # sums are those of the rounded factors in float32, and not rounded again
    torch.testing.assert_close(gram, (actual @ actual.T).double(), rtol=1e-4, atol=1e-5)
    assert torch.equal(assign[0], assign[1])
    assert torch.equal(assign[0], assign[2])


def test_seen_positions_must_be_those_of_the_examples(randn):
    """Time before batch, and as many steps as examples: no shape tells."""
    model = ready(lambda: Run(lambda m, x: m.a(x.transpose(0, 1)).mean(0), a=lin()))
    x, y = randn(0, 5, 5, 4), torch.arange(5) % 3
    with pytest.raises(UnsupportedLayerError, match="layer 'a'"):
        layer_factors(model, losses_of, x, y)
    with pytest.raises(ValueError, match="no batch"):
        layer_factors(ready(lambda: Run(lambda m, x: m.a(x[0]), a=lin(4, 4))), losses_of, x[0], y)


# --- gradients by torch.func


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_are_right_one_by_one(kind, randn):
    model, (x, y) = ready(lambda: recurrent(kind)), batch(randn)
    for precision in (torch.float64, torch.float32):
        model, x = model.to(precision), x.to(precision)
        actual = per_example_gradients(model, losses_of, x, y)
        close = {"rtol": 0, "atol": 1e-12 if precision == torch.float64 else 1e-6}
        torch.testing.assert_close(actual, one_by_one(model, x, y), **close)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_masks_of_recurrent_layers_are_refused(kind, randn):
    model = ready(lambda: recurrent(partial(kind, num_layers=2, dropout=0.5)))
    x, y = batch(randn)
    with pytest.raises(RuntimeError, match="random"):
        per_example_gradients(model, losses_of, x, y)
    assert per_example_gradients(model.eval(), losses_of, x, y).shape[0] == 6


@pytest.mark.parametrize(
    "name",
    ["standardised", "pruned", "weight norm", "old weight norm", "old spectral norm", "tied to an "
     "embedding", "called twice", "used by the parent", "attention", "low rank", "root parameter"],
)  # fmt: skip
def test_torch_func_takes_what_hooks_refuse(name, randn):
    make, _ = REFUSED[name]
    x, y = batch(randn)
    model = ready(make, x.float() if name == "standardised" else None).eval()
    if name == "tied to an embedding":
        model.table.weight.requires_grad_(True)
    actual = per_example_gradients(model, losses_of, x, y)
    torch.testing.assert_close(actual, one_by_one(model, x, y), rtol=0, atol=1e-12)
