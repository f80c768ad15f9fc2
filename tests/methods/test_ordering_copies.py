"""Copies side by side do what models one after another do, for every optimiser they accept."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from trainaug.methods.ordering import BatchScorer, Copies, trial_losses
from trainaug.methods.ordering.copies import ELEMENTWISE, is_elementwise
from trainaug.training.networks import MLP
from trainaug.training.randomness import initialise, stream

LABELS = torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2], [2, 0, 2, 2]])
RAGGED = torch.arange(4) < torch.tensor([[4], [2], [3]])
SHAPES = {"mlp": (4,), "conv": (1, 6, 6), "norm": (1, 6, 6)}
CASES = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    (optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    (optim.Adam, {"lr": 0.01, "amsgrad": True, "foreach": False}),
    (optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.NAdam, {"lr": 0.01}),
    (optim.RAdam, {"lr": 0.01}),
    (optim.Adamax, {"lr": 0.01}),
    (optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    (optim.RMSprop, {"lr": 0.01}),
    (optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1}),
    (optim.Adadelta, {"lr": 1.0}),
]
NAMES = [f"{make.__name__}-{number}" for number, (make, _) in enumerate(CASES)]
CLOSE = {"rtol": 1e-6, "atol": 1e-9}  # float64; square roots of tiny moments enlarge rounding


def model_of(kind, dtype=torch.float64):
    g = stream(0, "init")
    if kind == "mlp":
        return MLP(4, 6, 3, g).to(dtype)
    with torch.device("meta"):
        norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(4)] if kind == "norm" else [nn.ReLU()] * 2
        first, second = nn.Conv2d(1, 3, 3, bias=kind != "norm"), nn.Conv2d(3, 4, 3)
        layers = [first, norms[0], nn.ReLU(), second, norms[1], nn.Tanh(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(16, 3))
    initialise(model, g)
    return model.to(dtype)


def losses_of(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = losses_of(model(x), y).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def setting(kind, case, randn, steps, dtype=torch.float64):
    make, settings = CASES[case]
    model = model_of(kind, dtype)
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1]}]
    groups += [{"params": [p for p in model.parameters() if p.ndim == 1], "lr": 0.02}]
    optimizer = make(groups, **settings)
    for number in range(steps):
        step(model, optimizer, randn(number, 4, *SHAPES[kind], dtype=dtype), LABELS[number])
    return model, optimizer


def test_every_elementwise_optimizer_is_a_case():
    assert {make for make, _ in CASES} == set(ELEMENTWISE)
    p = [nn.Parameter(torch.zeros(2, 2))]
    assert all(is_elementwise(make(p, **settings)) for make, settings in CASES)
    for other in (optim.LBFGS(p), optim.Rprop(p), optim.ASGD(p), optim.Adafactor(p)):
        assert not is_elementwise(other)

    class Mine(optim.SGD):
        """It may do anything."""

    assert not is_elementwise(Mine(p, lr=0.1))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_together_is_one_by_one(case, kind, mask, mode, randn):
    if mode == "train" and mask is not None and kind == "norm":
        return  # batch normalisation would see the padding
    x, y = randn(5, 3, 4, *SHAPES[kind]), LABELS
    target = randn(6, 5, *SHAPES[kind]), LABELS.flatten()[:5]
    for steps in (0, 3):
        model, optimizer = setting(kind, case, randn, steps)
        model.train(mode == "train")
        for aim in (None, target):
            parts = (model, optimizer, losses_of, x, y, mask)
            many = trial_losses(*parts, target=aim)
            single = trial_losses(*parts, target=aim, together=False)
            for got, expected in zip(many, single, strict=True):
                assert got.shape == (3,)
                assert not got.requires_grad
                torch.testing.assert_close(got, expected, **CLOSE)
            assert float((many[0] - many[1]).abs().min()) > 1e-7


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("score", ["delta_abs", "delta_rel", "delta_target"])
def test_scores_agree_in_single_precision(score, kind, randn):
    model, optimizer = setting(kind, 2, randn, 2, torch.float32)
    x = randn(5, 3, 4, *SHAPES[kind], dtype=torch.float32)
    options = {"optimizer": optimizer, "target": (x[0], LABELS[0])}
    many, single = (
        BatchScorer(score, model, losses_of, together=together, **options)(x, LABELS)
        for together in (True, False)
    )
    torch.testing.assert_close(many, single, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_copies_walk_as_separate_models(case, kind, randn):
    model, optimizer = setting(kind, case, randn, 2)
    twins = [copy.deepcopy((model, optimizer)) for _ in range(3)]
    copies = Copies(model, optimizer, losses_of, 3)
    assert len(copies) == 3
    for number in range(4):
        x, y = randn(20 + number, 3, 4, *SHAPES[kind]), LABELS.roll(number, 1)
        if number == 2:  # go on from the last, the first and the last again
            copies = copies.select(torch.tensor([2, 0, 2]))
            twins = [twins[2], twins[0], copy.deepcopy(twins[2])]
        means = copies.step(x, y)
        expected = [step(*twin, a, b) for twin, a, b in zip(twins, x, y, strict=True)]
        torch.testing.assert_close(means, torch.stack(expected), **CLOSE)
    for position, (twin, _) in enumerate(twins):
        stacked = copies.parameters | copies.buffers
        for name, t in [*twin.named_parameters(), *twin.named_buffers()]:
            torch.testing.assert_close(stacked[name][position], t, **CLOSE)


def test_selecting_leaves_the_others_as_they_are(randn):
    model, optimizer = setting("norm", 4, randn, 2)
    copies = Copies(model, optimizer, losses_of, 3)
    copies.step(randn(5, 3, 4, 1, 6, 6), LABELS)

    def values(copies):
        parts = [*copies.parameters.values(), *copies.buffers.values()]
        states = [copies.optimizer.state[p] for p in copies.parameters.values()]
        return [t.detach().clone() for t in [*parts, *(v for s in states for v in s.values())]]

    before, originals = values(copies), [p.detach().clone() for p in model.parameters()]
    one = copies.select(torch.tensor([1]))
    assert len(one) == 1
    one.step(randn(6, 1, 4, 1, 6, 6), LABELS[:1])
    assert all(map(torch.equal, values(copies), before))
    assert all(map(torch.equal, model.parameters(), originals))
    assert not torch.equal(one.parameters["0.weight"][0], copies.parameters["0.weight"][1])


@pytest.mark.parametrize("case", [0, 4])
def test_frozen_and_foreign_parameters_stay(case, randn):
    make, settings = CASES[case]
    model = model_of("mlp")
    model[1].bias.requires_grad_(False)
    optimizer = make([model[1].weight, model[1].bias], **settings)  # the output layer is not its
    x = randn(5, 3, 4, 4)
    many, single = (
        trial_losses(model, optimizer, losses_of, x, LABELS, together=together)
        for together in (True, False)
    )
    torch.testing.assert_close(many[1], single[1], **CLOSE)
    copies = Copies(model, optimizer, losses_of, 3)
    copies.step(x, LABELS)
    for name, p in model.named_parameters():
        assert torch.equal(copies.parameters[name], p.expand(3, *p.shape)) == (name != "1.weight")


def test_named_and_tied_parameters(randn):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    initialise(model, stream(0, "init"))
    model[2].weight = model[0].weight
    model.double()
    optimizer = optim.SGD(model.named_parameters(), 0.1, momentum=0.9)
    many, single = (
        trial_losses(model, optimizer, losses_of, randn(5, 3, 4, 4), LABELS, together=together)
        for together in (True, False)
    )
    torch.testing.assert_close(many[1], single[1], **CLOSE)


def test_dropout_is_drawn_for_each_copy(randn):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 40), nn.Dropout(0.5), nn.Linear(40, 3))
    initialise(model, stream(0, "init"))
    copies = Copies(model.double(), optim.SGD(model.parameters(), 0.1), losses_of, 3)
    x = randn(5, 4, 4)
    with torch.random.fork_rng([]):
        a, b, c = copies.outputs(x, shared=True)
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)
    model.eval()
    expected = model(x).expand(3, 4, 3)
    for chunk in (None, 1, 2):
        got = copies.outputs(x, shared=True, chunk_size=chunk)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_bad_input_is_refused():
    model = model_of("mlp")
    with pytest.raises(ValueError, match="at least one copy, got 0"):
        Copies(model, optim.SGD(model.parameters(), 0.1), losses_of, 0)
    with pytest.raises(TypeError, match="Rprop is not elementwise: step one by one"):
        Copies(model, optim.Rprop(model.parameters()), losses_of)


# --- devices


def everything(x):
    model = model_of("norm").to(x.device)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    copies, y = Copies(model, optimizer, losses_of, 3), LABELS.to(x.device)
    actual = [copies.step(x, y), copies.step(x, y, RAGGED.to(x.device))]
    chosen = copies.select(torch.tensor([2, 0], device="cpu").to(x.device))
    actual += [chosen.step(x[:2], y[:2]), chosen.losses(x[0], y[0], shared=True).detach()]
    parts = [*chosen.parameters.values(), *chosen.buffers.values()]
    return [*actual, *(t.detach() for t in parts)]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 3, 4, 1, 6, 6))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 3, 4, 1, 6, 6))
