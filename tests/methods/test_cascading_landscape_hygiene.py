"""Measuring a landscape leaves the model alone, repeats, and refuses what it cannot measure."""

from __future__ import annotations

import copy

import pytest
import torch
from test_cascading_landscape import batch, cross_entropy, measured, net
from torch import nn

from trainaug.methods.cascading_sum import (
    gradient_lipschitz,
    hessian_top_eigenvalue,
    sharpness,
)
from trainaug.training.randomness import stream


@pytest.mark.oracle("csa.Q19")
def test_models_stay_as_they_were_and_run_in_eval_mode():
    (x, y), model = batch("norm"), net("norm")
    expected = measured(copy.deepcopy(model).eval(), x, y)
    model.train()
    model[2].eval()  # a mixed state must come back too
    cross_entropy(model(x), y).mean().backward()
    model[1].running_mean.copy_(net("norm")[1].running_mean)
    model[1].running_var.copy_(net("norm")[1].running_var)
    state = copy.deepcopy(model.state_dict())
    grads, modes = [p.grad.clone() for p in model.parameters()], [m.training for m in model]
    assert measured(model, x, y) == expected
    with torch.no_grad():  # the caller's grad mode does not matter
        assert measured(model, x, y) == expected
    assert all(torch.equal(v, state[name]) for name, v in model.state_dict().items())
    assert all(map(torch.equal, [p.grad for p in model.parameters()], grads))
    assert all(p.requires_grad for p in model.parameters())
    assert [m.training for m in model] == modes

    def fails(logits, y):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        measured(model, x, y, fails)
    assert [m.training for m in model] == modes


def test_equal_generators_give_equal_measures():
    model, (x, y) = net(), batch()
    assert measured(model, x, y) == measured(model, x, y)
    other = measured(model, x, y, seed=1)
    assert measured(model, x, y)[1] != other[1]
    assert measured(model, x, y)[0] == pytest.approx(other[0], rel=1e-2)  # of the last step


def test_frozen_parameters_take_no_part():
    model, (x, y) = net(), batch()
    for p in model[0].parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        features = model[:2](x)
    frozen, alone = measured(model, x, y), measured(model[2], features, y)
    assert frozen == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_soft_labels_that_are_hard_give_the_same(soft):
    model, (x, y) = net(), batch()
    expected = measured(model, x, y)
    targets = torch.eye(3, dtype=torch.float64)[y] if soft else y
    assert measured(model, x, targets) == pytest.approx(expected, rel=1e-6)
    # the mean over the batch: twice the examples are the same objective
    twice = measured(model, x.repeat(2, 1), targets.repeat(2, *[1] * (targets.ndim - 1)))
    assert twice == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (hessian_top_eigenvalue, {"iterations": 0}, "iterations.*got 0"),
        (gradient_lipschitz, {"radius": 0.0}, "radius=0.0"),
        (gradient_lipschitz, {"radius": 0.1, "draws": 0}, "draws=0"),
        (gradient_lipschitz, {"radius": float("nan")}, "radius=nan"),
        (sharpness, {"rho": -0.1}, "rho=-0.1"),
        (sharpness, {"rho": 0.1, "steps": 0}, "steps=0"),
        (sharpness, {"rho": 0.1, "restarts": 0}, "restarts=0"),
    ],
)
def test_options_out_of_range_are_named(call, options, message):
    with pytest.raises(ValueError, match=message):
        call(net(), cross_entropy, *batch(), generator=stream(0, "v"), **options)


def test_what_cannot_be_measured_is_refused():
    calls = [
        lambda *a: hessian_top_eigenvalue(*a, generator=stream(0, "v")),
        lambda *a: gradient_lipschitz(*a, radius=0.1, generator=stream(0, "v")),
        lambda *a: sharpness(*a, rho=0.1, generator=stream(0, "v")),
    ]
    x, y = batch()
    for call in calls:
        with pytest.raises(ValueError, match="12 and 11"):
            call(net(), cross_entropy, x, y[:11])
        with pytest.raises(ValueError, match="0 and 0"):
            call(net(), cross_entropy, x[:0], y[:0])
        with pytest.raises(ValueError, match="no trained parameter"):
            call(net().requires_grad_(False), cross_entropy, x, y)
    shift = nn.BatchNorm1d(4, device="cpu").double()
    with pytest.raises(ValueError, match="no filters"):
        calls[2](shift, cross_entropy, x, y)


# --- devices


def everything(x):
    y = torch.arange(12, device=x.device) % 3
    return [v for kind in ("conv", "norm") for v in measured(net(kind).to(x.device), x, y)]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, batch("conv")[0])


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, batch("conv")[0])
