"""Nothing is moved: what scoring and ``preserve_state`` must give back bit for bit."""

from __future__ import annotations

import copy
import random
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.nn.utils import prune

from trainaug.methods.ordering import BatchScorer, preserve_state, trial_losses
from trainaug.methods.ordering.scores import Score
from trainaug.training.randomness import initialise, stream

LABELS = torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2], [2, 0, 2, 2]])
RAGGED = torch.arange(4) < torch.tensor([[4], [2], [3]])
OPTIMIZERS = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (optim.Adam, {"lr": 0.1}),
    "nadam": (optim.NAdam, {"lr": 0.1}),
    "adagrad": (optim.Adagrad, {"lr": 0.1}),
}


class Restless(nn.Module):
    """Count the calls; in eval mode draw from all global generators."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), device="cpu"), persistent=False)
        self.register_buffer("last", torch.zeros((), device="cpu"))

    def forward(self, x):
        if not self.training:
            torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        self.last = self.last + 1  # another tensor of the same name
        self.calls += 1
        return x


def model_of(restless=False):
    with torch.device("meta"):
        norm = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5)]
        tail = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    model = nn.Sequential(nn.Sequential(*norm), *([Restless()] if restless else []), *tail)
    initialise(model, stream(0, "init"))
    return model.double()


def losses_of(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def warm(model, optimizer, randn, steps=2):
    """Train, so that optimiser, statistics and gradients are not fresh."""
    for number in range(steps):
        optimizer.zero_grad()
        with torch.random.fork_rng([]):  # dropout
            losses_of(model.train()(randn(number, 4, 1, 6, 6)), LABELS[number]).mean().backward()
        optimizer.step()


def leaves(model, optimizer):
    """Everything that scoring could move, and the tensors that hold it."""
    named = [*model.named_parameters(), *model.named_buffers()]
    actual = [(name, id(t), t.detach().clone(), t.requires_grad) for name, t in named]
    actual += [(id(p.grad), p.grad.clone()) for p in model.parameters() if p.grad is not None]
    actual += [(name, module.training) for name, module in model.named_modules()]
    for p, state in optimizer.state.items():
        actual += [(id(p), name, copy.deepcopy(value)) for name, value in state.items()]
    for group in optimizer.param_groups:
        actual.append(tuple(map(id, group["params"])))
        actual += [(name, copy.deepcopy(v)) for name, v in group.items() if name != "params"]
    actual.append(torch.get_rng_state())
    return [*actual, random.getstate(), repr(np.random.get_state())]  # noqa: NPY002


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def scorers(model, optimizer, randn, together):
    target = randn(9, 5, 1, 6, 6), LABELS.flatten()[:5]
    for score in get_args(Score):
        options = {"optimizer": optimizer, "target": target, "together": together}
        yield score, BatchScorer(score, model, losses_of, **options)


# --- scoring


@pytest.mark.oracle("ord.P4")
@pytest.mark.parametrize("modes", ["train", "eval", "mixed"])
@pytest.mark.parametrize("steps", [0, 2], ids=["first", "later"])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scoring_leaves_no_trace(name, together, steps, modes, randn):
    make, settings = OPTIMIZERS[name]
    model = model_of()
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [{"params": [p for p in model.parameters() if p.ndim == 1], "lr": 0.03}]
    optimizer = make([{"params": weights}, *rest], **settings)
    warm(model, optimizer, randn, steps)
    model.train(modes != "eval")
    if modes == "mixed":  # frozen statistics, dropout on
        model[0].eval()
        model[0][3].train()
    before, x = leaves(model, optimizer), randn(1, 3, 4, 1, 6, 6)
    for score, scorer in scorers(model, optimizer, randn, together):
        for mask in (None, RAGGED):
            assert scorer(x, LABELS, mask).shape == (3,)
            assert equal(leaves(model, optimizer), before), score


@pytest.mark.oracle("ord.P4")
@pytest.mark.parametrize("together", [True, False])
def test_scoring_undoes_what_a_model_does_in_eval_mode(together, randn):
    model = model_of(restless=True)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    before, x = leaves(model, optimizer), randn(1, 3, 4, 1, 6, 6)
    for score, scorer in scorers(model, optimizer, randn, together):
        assert scorer(x, LABELS).isfinite().all()
        assert equal(leaves(model, optimizer), before), score


@pytest.mark.oracle("ord.P4")
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("with_target", [False, True])
def test_trials_in_train_mode_leave_the_statistics(with_target, together, randn):
    model = model_of()
    model[0][3].eval()  # no dropout
    optimizer = optim.Adam(model.parameters(), 0.1)
    target = (randn(2, 5, 1, 6, 6), LABELS.flatten()[:5]) if with_target else None
    batches = (losses_of, randn(1, 3, 4, 1, 6, 6), LABELS)
    before = leaves(model, optimizer)
    trial_losses(model, optimizer, *batches, target=target, together=together)
    assert equal(leaves(model, optimizer), before)


@pytest.mark.oracle("ord.P4")
@pytest.mark.parametrize("together", [True, False])
def test_a_failing_criterion_leaves_no_trace(together, randn):
    model = model_of()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    warm(model, optimizer, randn)
    before = leaves(model, optimizer)
    for score, scorer in scorers(model, optimizer, randn, together):
        scorer.criterion = lambda outputs, y: losses_of(outputs, y[:0])
        with pytest.raises((ValueError, RuntimeError)):
            scorer(randn(1, 3, 4, 1, 6, 6), LABELS)
        assert equal(leaves(model, optimizer), before), score


@pytest.mark.oracle("ord.P5")
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_trial_is_no_first_step(name, together, randn):
    make, settings = OPTIMIZERS[name]
    model, twin = model_of(), model_of()
    optimizer, other = make(model.parameters(), **settings), make(twin.parameters(), **settings)
    fresh = len(optimizer.state)  # Adagrad fills it when it is made
    assert fresh == (len(list(model.parameters())) if name == "adagrad" else 0)
    for steps in (1, 2):
        for _, scorer in scorers(model, optimizer, randn, together):
            scorer(randn(1, 3, 4, 1, 6, 6), LABELS)
        if steps == 1:
            assert len(optimizer.state) == fresh
        warm(model, optimizer, randn, 1)
        warm(twin, other, randn, 1)
        counts = [int(s["step"]) for s in optimizer.state.values() if "step" in s]
        assert set(counts) <= {steps}
        assert all(map(torch.equal, model.parameters(), twin.parameters()))


# --- preserve_state


def disturb(model, optimizer, randn):
    warm(model, optimizer, randn)
    model.eval()[0].train()
    for number, p in enumerate(model.parameters()):
        p.requires_grad_(number % 2 == 0)
        p.grad = None if number % 2 else torch.ones_like(p)
    for group in optimizer.param_groups:
        group.update(lr=7.0, nonsense=1)
    torch.rand(3), random.random(), np.random.rand(2)  # noqa: NPY002
    optimizer.state.clear()
    model[0][1].reset_running_stats()
    model[0][1].running_mean = torch.ones(3, dtype=torch.float64)
    model[-1].weight = nn.Parameter(torch.ones_like(model[-1].weight))


@given(st.sampled_from(sorted(OPTIMIZERS)), st.integers(0, 2), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_block_is_undone(name, steps, grads, fails):
    def randn(seed, *shape):
        return torch.randn(*shape, generator=stream(seed, "x"), dtype=torch.float64)

    make, options = OPTIMIZERS[name]
    model = model_of(restless=True)
    optimizer = make(model.parameters(), **options)
    warm(model, optimizer, randn, steps)
    if not grads:
        optimizer.zero_grad()
    model[-1].eval()
    next(model.parameters()).requires_grad_(False)
    before = leaves(model, optimizer)
    try:
        with preserve_state(model, optimizer):
            disturb(model, optimizer, randn)
            assert not equal(leaves(model, optimizer), before)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert equal(leaves(model, optimizer), before)


def test_without_an_optimizer_the_rest_is_undone(randn):
    model = model_of()
    optimizer = optim.SGD(model.parameters(), 0.1)  # of plain gradient descent nothing stays
    before = leaves(model, optimizer)
    with preserve_state(model):
        warm(model, optimizer, randn)
        assert not equal(leaves(model, optimizer), before)
    assert equal(leaves(model, optimizer), before)


def test_blocks_nest_and_training_goes_on_bit_equal(randn):
    model, twin = model_of(), model_of()
    optimizer, other = (optim.Adam(m.parameters(), 0.1) for m in (model, twin))
    for steps in (1, 2):
        with preserve_state(model, optimizer):
            warm(model, optimizer, randn)
            middle = leaves(model, optimizer)
            with preserve_state(model, optimizer):
                disturb(model, optimizer, randn)
            assert equal(leaves(model, optimizer), middle)
        warm(model, optimizer, randn, steps)
        warm(twin, other, randn, steps)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


# --- devices


def everything(x):
    model = model_of().to(x.device)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    actual = []
    for _ in range(2):
        with preserve_state(model, optimizer):
            optimizer.zero_grad()
            losses_of(model.eval()(x), LABELS[0].to(x.device)).mean().backward()
            optimizer.step()
            actual += [p.detach().clone() for p in model.parameters()]
    return [*actual, *model.state_dict().values(), len(optimizer.state)]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 4, 1, 6, 6))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 4, 1, 6, 6))


# --- what people put into models and optimisers


def linear(features, outputs):
    """A layer that takes nothing from the global generator."""
    with torch.random.fork_rng([]):
        return nn.Linear(features, outputs)


def test_what_the_block_replaces_comes_back():
    model = nn.Sequential(linear(2, 2), nn.BatchNorm1d(2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    model(torch.ones(3, 2)).sum().backward()
    pruned, weight = model[0].weight, model[0].weight_orig
    gradient, places = weight.grad, [t.data_ptr() for t in model.parameters()]
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def spoil():
        with preserve_state(model):
            model.half()
            model[0].weight, model[0].more = torch.zeros(2, 2), torch.ones(1)
            model[1] = nn.ReLU()
            raise KeyError

    with pytest.raises(KeyError):
        spoil()
    assert model[0].weight is pruned
    assert not hasattr(model[0], "more")
    assert model[0].weight_orig is weight
    assert weight.grad is gradient
    assert gradient.dtype == weight.dtype == torch.float32
    assert [t.data_ptr() for t in model.parameters()] == places
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Ascending(optim.Optimizer):
    """Holds another optimiser, as sharpness-aware ones do, and counts its steps."""

    def __init__(self, params, **settings):
        super().__init__(params, settings)
        self.inner, self.count = optim.SGD(self.param_groups, lr=0.1, momentum=0.9), 0
        self.scale = torch.ones(1)

    def step(self):
        self.count += 1
        self.scale *= 2
        self.inner.step()


def test_optimisers_come_back_with_what_they_hold():
    model, other = linear(2, 1), torch.ones(1, requires_grad=True)
    rate = torch.tensor(0.1)
    optimizer = Ascending([*model.parameters(), other], lr=rate)
    (model(torch.ones(1, 2)).sum() * other).sum().backward()
    optimizer.step()
    momentum = optimizer.inner.state[model.weight]["momentum_buffer"].clone()
    kept = other.detach().clone(), other.grad.clone(), optimizer.scale
    with preserve_state(model, optimizer):
        other.grad = None
        optimizer.step()
        other.data.zero_()
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
        optimizer.param_groups[0]["lr"].fill_(7.0)
        optimizer.news = 3
    assert torch.equal(optimizer.inner.state[model.weight]["momentum_buffer"], momentum)
    assert torch.equal(other, kept[0])
    assert torch.equal(other.grad, kept[1])
    assert optimizer.scale is kept[2]
    assert (optimizer.count, float(optimizer.scale), len(optimizer.param_groups)) == (1, 2.0, 1)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)
    assert not hasattr(optimizer, "news")


@pytest.mark.parametrize("together", [True, False])
def test_parameters_of_the_criterion_gather_no_gradients(together, randn):
    scale, model = torch.ones(1, requires_grad=True), linear(4, 3).double()
    optimizer = optim.SGD(model.parameters(), 0.1)
    scorer = BatchScorer(
        "delta_abs",
        model,
        lambda outputs, y: scale * losses_of(outputs, y),
        optimizer=optimizer,
        together=together,
    )
    assert scorer(randn(1, 3, 4, 4), LABELS).shape == (3,)
    assert scale.grad is None
