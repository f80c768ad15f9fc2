"""All orders of a few batches, as a tree and one by one, and what explains their differences."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from trainaug.methods.ordering import (
    exhaustive_orders,
    position_shares,
    preserve_state,
    train_in_order,
)
from trainaug.methods.ordering.exhaustive import all_orders
from trainaug.training.networks import MLP
from trainaug.training.randomness import initialise, stream

SHAPES = {"mlp": (4,), "conv": (1, 5, 5), "norm": (1, 5, 5)}
OPTIMIZERS = {
    "sgd": (optim.SGD, {"lr": 0.2}),
    "momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    "adam": (optim.Adam, {"lr": 0.02}),
}
HELD = torch.arange(10) % 3


def losses_of(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def model_of(kind):
    g = stream(0, "init")
    if kind == "mlp":
        return MLP(4, 6, 3, g).double()
    with torch.device("meta"):
        norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(2)] if kind == "norm" else [nn.Identity()] * 2
        layers = [nn.Conv2d(1, 3, 3), norms[0], nn.ReLU(), nn.Conv2d(3, 2, 2), norms[1], nn.ReLU()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3))
    initialise(model, g)
    return model.double()


def setting(kind, name, num_batches, randn, steps=2):
    """Return a model and its optimiser after some steps, batches and held-out inputs."""
    make, options = OPTIMIZERS[name]
    model = model_of(kind)
    optimizer = make(model.parameters(), **options)
    batches = [(randn(i, 6, *SHAPES[kind]), (torch.arange(6) * i) % 3) for i in range(num_batches)]
    train_in_order(model, optimizer, losses_of, batches[::-1], range(steps))
    return model, optimizer, batches, randn(99, 10, *SHAPES[kind])


def measures(logits):
    """Loss and hits of each half, so that the best of one can be looked at on the other."""
    actual = []
    for half in (slice(None, 5), slice(5, None)):
        y = HELD.to(logits.device)[half]
        hits = (logits[half].argmax(1) == y).to(logits.dtype)
        actual += [F.cross_entropy(logits[half], y), hits.mean()]
    return torch.stack(actual)


def leaves(model, optimizer):
    tensors = [*model.parameters(), *model.buffers()]
    states = [copy.deepcopy(entries) for entries in optimizer.state.values()]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    return [[t.detach().clone() for t in tensors], grads, states, modes, repr(groups)]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


# --- replaying


@pytest.mark.oracle("ord.P18")
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", SHAPES)
def test_the_tree_is_order_by_order(kind, name, mode, steps, randn):
    model, optimizer, batches, held_out = setting(kind, name, 4, randn, steps)
    model.train(mode != "eval")
    if mode == "mixed":
        model[1].eval()
    before = leaves(model, optimizer)
    parts = (model, optimizer, losses_of, batches, measures, held_out)
    orders, many = exhaustive_orders(*parts)
    assert equal(leaves(model, optimizer), before)
    same, single = exhaustive_orders(*parts, together=False)
    assert equal(leaves(model, optimizer), before)
    assert orders.tolist() == same.tolist() == [*map(list, itertools.permutations(range(4)))]
    assert many.shape == single.shape == (24, 4)
    torch.testing.assert_close(many, single, rtol=1e-6, atol=1e-9)
    assert len({round(value, 8) for value in many[:, 0].tolist()}) == 24
    for number in (0, 13, 23, 0):
        with preserve_state(model, optimizer):
            train_in_order(model, optimizer, losses_of, batches, orders[number].tolist())
            with torch.no_grad():
                value = measures(model.eval()(held_out))
        assert torch.equal(value, single[number])


@pytest.mark.oracle("ord.P18")
@pytest.mark.parametrize("together", [True, False])
def test_replaying_again_is_bit_equal(together, randn):
    model, optimizer, batches, held_out = setting("norm", "momentum", 3, randn)
    parts = (model, optimizer, losses_of, batches, measures, held_out)
    first, second = (exhaustive_orders(*parts, together=together)[1] for _ in range(2))
    assert first.shape == (6, 4)
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("num_batches", [1, 2])
def test_one_and_two_batches(num_batches, kind, randn):
    model, optimizer, batches, held_out = setting(kind, "momentum", num_batches, randn, 0)
    parts = (model, optimizer, losses_of, batches, measures, held_out)
    many, single = (exhaustive_orders(*parts, together=together)[1] for together in (True, False))
    assert many.shape == (num_batches, 4)
    torch.testing.assert_close(many, single, rtol=1e-6, atol=1e-9)


def test_six_batches_with_more_held_out_than_fit_at_once(randn):
    model, optimizer, batches, _ = setting("mlp", "momentum", 6, randn)
    held_out = randn(98, 700, 4)

    def evaluate(logits):
        return logits.square().mean().unsqueeze(0)

    parts = (model, optimizer, losses_of, batches, evaluate, held_out)
    orders, actual = exhaustive_orders(*parts)
    assert orders.shape == (720, 6)
    assert actual.shape == (720, 1)
    for number in (0, 7, 400, 719):
        with preserve_state(model, optimizer):
            train_in_order(model, optimizer, losses_of, batches, orders[number].tolist())
            value = evaluate(model(held_out)).detach()
        torch.testing.assert_close(actual[number], value, rtol=1e-9, atol=0)


@pytest.mark.oracle("ord.P19")
def test_the_best_of_one_half_need_not_be_the_best_of_the_other(randn):
    model, optimizer, batches, held_out = setting("mlp", "momentum", 5, randn)
    _, values = exhaustive_orders(model, optimizer, losses_of, batches, measures, held_out)
    first, second = values[:, 0], values[:, 2]
    chosen = int(first.argmin())
    assert chosen != int(second.argmin())
    assert float(second[chosen]) > float(second.min())  # what a report of the first half hides


@pytest.mark.oracle("ord.P18")
def test_many_batches_are_refused_unless_forced(randn):
    model, optimizer, batches, held_out = setting("mlp", "sgd", 3, randn)
    parts = (model, optimizer, losses_of)
    with pytest.raises(ValueError, match=r"9 batches have 362880 orders; give 1 to 8.*max_batches"):
        exhaustive_orders(*parts, batches * 3, measures, held_out)
    with pytest.raises(ValueError, match="3 batches have 6 orders; give 1 to 2"):
        exhaustive_orders(*parts, batches, measures, held_out, max_batches=2)
    for number in (0, -1):
        with pytest.raises(ValueError, match=f"{number} batches"):
            all_orders(number)
    assert all_orders(3, max_batches=3).tolist() == [*map(list, itertools.permutations(range(3)))]
    assert len(all_orders(8)) == math.factorial(8)


def test_bad_input_is_refused(randn):
    model, optimizer, batches, held_out = setting("mlp", "sgd", 3, randn)
    short = [*batches[:2], (batches[2][0][:5], batches[2][1][:5])]
    for together in (True, False):
        with pytest.raises(ValueError, match="same shape; drop the incomplete one"):
            exhaustive_orders(
                model, optimizer, losses_of, short, measures, held_out, together=together
            )
    other = optim.Rprop(model.parameters())
    before = leaves(model, other)
    with pytest.raises(TypeError, match="Rprop is not elementwise"):
        exhaustive_orders(model, other, losses_of, batches, measures, held_out)
    parts = (model, other, losses_of, batches, measures, held_out)
    assert exhaustive_orders(*parts, together=False)[1].shape == (6, 4)
    assert equal(leaves(model, other), before)


# --- shares of variance


def loop(orders, values):
    mean = sum(values) / len(values)
    total = sum((v - mean) ** 2 for v in values)
    shares = []
    for position in zip(*orders, strict=True):
        between = 0.0
        for batch in set(position):
            entries = [v for v, b in zip(values, position, strict=True) if b == batch]
            between += len(entries) * (sum(entries) / len(entries) - mean) ** 2
        shares.append(between / total)
    return shares


@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=2, max_size=30),
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=100, deadline=None)
def test_shares_match_the_loop(orders, seed, dtype):
    values = torch.randn(len(orders), generator=stream(seed, "values"), dtype=dtype)
    got = position_shares(torch.tensor(orders), values)
    expected = loop(orders, values.tolist())
    assert got.tolist() == pytest.approx(expected, abs=1e-9)
    assert bool(((got > -1e-9) & (got < 1 + 1e-9)).all())
    shifted = position_shares(torch.tensor(orders), -3 * values.double() + 5)
    assert shifted.tolist() == pytest.approx(expected, abs=1e-9)
    renamed = position_shares(7 - 2 * torch.tensor(orders), values)
    torch.testing.assert_close(renamed, got, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_shares_in_closed_form(count, randn):
    orders, worth = all_orders(count), randn(1, count)
    for position in range(count):
        shares = position_shares(orders, worth[orders[:, position]])
        # another position only says which batch is not here
        expected = [1.0 if p == position else (count - 1) ** -2 for p in range(count)]
        assert shares.tolist() == pytest.approx(expected, rel=1e-9)
    inverted = (orders.unsqueeze(2) > orders.unsqueeze(1)).triu(1).sum((1, 2))
    assert position_shares(orders, inverted).tolist() == pytest.approx(
        loop(orders.tolist(), inverted.tolist()), rel=1e-9
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3, -2.0])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_equal_values_have_no_shares(count, value):
    orders = all_orders(count)
    for dtype in (torch.float32, torch.float64):
        shares = position_shares(orders, torch.full((len(orders),), value, dtype=dtype))
        assert shares.shape == (count,)
        assert bool(shares.isnan().all())


# --- devices


def everything(x):
    model = model_of("norm").to(x.device)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    y = torch.arange(4, device="cpu").to(x.device) % 3
    batches = [(part, (y + i) % 3) for i, part in enumerate(x[:3])]
    held_out = x[3:].flatten(0, 1)[:10]
    actual = []
    for together in (True, False):
        parts = (model, optimizer, losses_of, batches, measures, held_out)
        actual.append(exhaustive_orders(*parts, together=together)[1])
    return [*actual, position_shares(all_orders(3).to(x.device), actual[0][:, 0])]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 6, 4, 1, 5, 5))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 6, 4, 1, 5, 5))
