"""Chapter 2: random features, closed forms against autograd and explicit gradients."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.gradient_clustering import features
from companion.chapters.gradient_clustering.features import (
    Cell,
    Features,
    cell_name,
    run_features,
    train_cell,
)
from trainaug.methods.gradient_clustering import (
    GradientClustering,
    sampling_variance,
    stratified_variance,
    svrg_variance,
)
from trainaug.training.randomness import initialise, stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

BATCH, DECAY = 10, 1e-4
SMALL = Features(
    taus=(10.0, 5.0), lrs=(0.1, 0.01), teachers=(20, 40), copies=(0.0, 0.5), steps=10, curves=True
)


def explicit(phi: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Gradients ``(N, d)`` of the loss of each example with respect to the weights."""
    actual = []
    for row, label in zip(phi, y, strict=True):
        weight = w.clone().requires_grad_()
        loss = F.cross_entropy((row @ weight.T)[None], label[None])
        actual.append(torch.autograd.grad(loss, weight)[0].flatten())
    return torch.stack(actual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_form_gradients_and_variance_equal_autograd(dtype):
    g = stream(0, "given")
    phi, w = (torch.randn(size, generator=g, dtype=dtype) for size in ((12, 7), (10, 7)))
    old = torch.randn(10, 7, generator=g, dtype=dtype)
    y = torch.randint(10, (12,), generator=g)
    errors = features.closed_form_errors(phi, y, w)
    gradients = explicit(phi, y, w)
    closed = (errors[:, :, None] * phi[:, None, :]).flatten(1)
    torch.testing.assert_close(closed, gradients, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(errors.sum(1), torch.zeros(12, dtype=dtype), rtol=0, atol=1e-6)
    one, mean = features.closed_form_variance(phi, errors)
    assert one == pytest.approx(float(sampling_variance(gradients, 1)), rel=1e-5)
    assert mean == pytest.approx(float(gradients.mean(0).square().sum()), rel=1e-5)
    moved, _ = features.closed_form_variance(phi, errors - features.closed_form_errors(phi, y, old))
    expected = float(svrg_variance(gradients, explicit(phi, y, old), 1))
    assert moved == pytest.approx(expected, rel=1e-5)
    assert features.closed_form_variance(phi, torch.zeros_like(errors)) == (0, 0)


def test_the_plug_in_is_the_authors_of_two_sets_of_ten_batches():
    g = stream(1, "given")
    phi, y, w = torch.rand(15, 6, generator=g), torch.arange(15) % 10, torch.zeros(10, 6)
    actual = features.plugin_variance(SMALL, phi, features.closed_form_errors(phi, y, w), 4, 7)
    rows = torch.randint(15, (2, 10, 10), generator=stream(4, "measure/7"))
    gradients = explicit(phi, y, w)
    first, fresh = ([gradients[batch].mean(0) for batch in half] for half in rows)
    mean, ratios = sum(first) / 10, []
    for j in range(60):
        above = sum(float(estimate[j] - mean[j]) ** 2 for estimate in fresh)
        ratios.append(above / (sum(float(estimate[j]) ** 2 for estimate in fresh) + 1e-7))
    assert actual == pytest.approx(sum(ratios) / 60, rel=1e-4)


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "copies"), [(100, 0.9), (20, 0.5), (100, 0.0), (2000, 0.9)])
def test_copies_are_exact_and_of_five_points(n, copies):
    cell = Cell(SMALL.width / n, 0.1, 20, copies)
    phi, y = features.draw_features(SMALL, cell, 3)
    plain, labels = features.draw_features(SMALL, replace(cell, copies=0.0), 3)
    distinct = n - round(copies * n)
    assert phi.shape == (n, SMALL.width)
    assert float(phi.min()) == 0 < float(phi.max())
    assert torch.equal(phi[:distinct], plain[:distinct])
    assert torch.equal(y[:distinct], labels[:distinct])
    repeated = {row.numpy().tobytes(): int(label) for row, label in zip(phi, y, strict=True)}
    assert len(repeated) == distinct + (5 if copies else 0)
    pairs = zip(phi, y.tolist(), strict=True)
    assert all(repeated[row.numpy().tobytes()] == label for row, label in pairs)
    for start in range(5 if copies else 0):
        of_one = phi[distinct + start :: 5]
        assert len(of_one) == (n - distinct) // 5
        assert bool((of_one == of_one[0]).all())
        assert not bool((plain == of_one[0]).all(1).any())  # no other example is one of them


def test_classes_are_the_teacher_s_and_features_do_not_depend_on_it():
    phi, y = features.draw_features(SMALL, Cell(200 / 60, 0.1, 20), 0)
    other, labels = features.draw_features(SMALL, Cell(200 / 60, 0.1, 2000), 0)
    assert torch.equal(phi, other)
    assert not torch.equal(y, labels)
    x = torch.randn(65, 50, generator=stream(0, "inputs"))[5:]
    layers = []
    for width, name in ((200, "features"), (20, "teacher/20")):
        layers.append(nn.Linear(50, width, device="meta"))
        initialise(layers[-1], stream(0, name))
    top = torch.randn(20, 10, generator=stream(0, "teacher/20/top"))
    with torch.no_grad():
        torch.testing.assert_close(phi, F.relu(layers[0](x)))
        assert torch.equal(y, (F.relu(layers[1](x)) @ top).argmax(1))
    assert len(set(y.tolist())) > 3


# --- cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tau", "lr", "copies"), [(10.0, 0.1, 0.0), (4.0, 0.02, 0.6), (9.0, 1.0, 0.0)]
)
def test_a_cell_equals_a_plain_loop_with_explicit_gradients(tau, lr, copies):
    # of a seed whose clusters do not hang on the rounding of equal distances to copies
    steps, seed, teacher = 50, 1, 20
    settings, cell = replace(SMALL, steps=steps), Cell(tau, lr, teacher, copies)
    actual, curve = train_cell(settings, cell, seed)
    phi, y = features.draw_features(settings, cell, seed)
    n = len(phi)
    assert n == max(10, round(200 / tau))
    model = nn.Linear(200, 10, bias=False, device="meta").to_empty(device="cpu")
    g = stream(seed, "order")
    nn.init.zeros_(model.weight)
    batches = [(phi[r], y[r], r) for r in torch.arange(n).split(BATCH)]
    path: list[Tensor] = []
    assigned: dict[int, Tensor] = {}
    order: list[Tensor] = []
    for step in range(steps):
        path.append(model.weight.detach().clone())
        if step % 10 == 0:  # five times
            clustering = GradientClustering(
                model, features.losses_of, 10, generator=stream(seed, "clusters")
            )
            assigned[step] = clustering.fit(batches, 3).assign
        order = order or list(torch.randperm(n, generator=g).split(BATCH))
        rows = order.pop()
        model.zero_grad()
        F.cross_entropy(model(phi[rows]), y[rows]).backward()
        with torch.no_grad():
            model.weight -= lr * (model.weight.grad + DECAY * model.weight)
    path.append(model.weight.detach().clone())
    expected: dict[str, list[float]] = {name: [] for name in ("sg", "gc", "svrg", "norm")}
    for step in (15, 25, 35, 45):  # half-way, the last 70 %
        now, old = explicit(phi, y, path[step]), explicit(phi, y, path[step - 5])
        assign = assigned[step - 5]
        sg = float(sampling_variance(now, BATCH))
        expected["sg"].append(sg)
        gc = float(stratified_variance(now, assign)) * len(assign.unique()) / BATCH
        expected["gc"].append(gc)
        expected["svrg"].append(float(svrg_variance(now, old, BATCH)))
        expected["norm"].append(sg / (sg + float(now.mean(0).square().sum())))
    means = {name: sum(values) / 4 for name, values in expected.items()}
    for name in ("sg", "gc", "svrg"):
        assert actual[name] == pytest.approx(math.log(means[name]), abs=2e-3), name
    assert actual["norm"] == pytest.approx(means["norm"], rel=1e-3)
    plugins = [
        features.plugin_variance(
            SMALL, phi, features.closed_form_errors(phi, y, path[step]), seed, step
        )
        for step in (15, 25, 35, 45)
    ]
    assert actual["norm_plugin"] == pytest.approx(sum(plugins) / 4, rel=1e-3)
    losses = [float(F.cross_entropy(phi @ path[int(step)].T, y)) for step in curve["step"]]
    assert curve["loss"] == pytest.approx(losses, rel=1e-4)
    places = [path[int(step)] for step in curve["step"]]
    sampled = [float(sampling_variance(explicit(phi, y, w), BATCH)) for w in places]
    assert curve["sg"] == pytest.approx(sampled, rel=1e-3)
    assert actual["loss"] == pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize(("lr", "reached"), [(0.3, True), (0.1, True), (1e-5, False)])
def test_half_is_the_first_place_with_half_of_the_loss(lr, reached):
    actual, curve = train_cell(replace(SMALL, steps=100), Cell(2.0, lr, 20), 0)
    pairs = zip(curve["step"], curve["loss"], strict=True)
    places = [step for step, loss in pairs if loss <= math.log(10) / 2]
    assert curve["loss"][0] == pytest.approx(math.log(10), rel=1e-5)
    assert bool(places) == reached
    assert actual["half"] == (places[0] if reached else 100)
    # places are denser at the start, from the first to the last weights
    spaced = {round(math.expm1(math.log1p(100) * i / 39)) for i in range(40)}
    assert curve["step"] == sorted(spaced)
    assert {curve["step"][0], curve["step"][-1]} == {0, 100}
    assert {len(values) for values in curve.values()} == {len(spaced)}


def test_the_smallest_number_of_data_is_ten():
    actual, curve = train_cell(
        replace(SMALL, steps=20), Cell(100.0, 0.1, 20), 0
    )  # a batch is all of them
    assert actual["gc"] == math.log(1e-30)  # ten strata of one
    assert curve["loss"][-1] < curve["loss"][0]


def test_draws_are_spread_over_the_strata_that_are_not_empty(monkeypatch):
    def fit(
        self: GradientClustering, batches: list[tuple[Tensor, ...]], passes: int, **options: int
    ) -> object:
        rows = torch.cat([rows for *_, rows in batches])
        return SimpleNamespace(assign=torch.zeros(len(rows)).long())

    monkeypatch.setattr(GradientClustering, "fit", fit)
    actual, _ = train_cell(replace(SMALL, steps=20), Cell(4.0, 0.1, 20), 0)
    assert actual["gc"] == pytest.approx(actual["sg"], abs=1e-4)  # one stratum, all draws from it


def test_cells_are_deterministic_and_differ_by_seed():
    settings, cell = replace(SMALL, steps=20), Cell(5.0, 0.1, 20, 0.5)
    one, again, other = (train_cell(settings, cell, seed) for seed in (0, 0, 1))
    assert one == again
    for name, value in one[0].items():
        assert name == "half" or other[0][name] != value


def test_a_grid_names_every_cell():
    result = run_features(SMALL, 3)
    names = [
        f"{tau}/{lr}/{teacher}{end}"
        for tau, lr, teacher, end in itertools.product((10, 5), (0.1, 0.01), (20, 40), ("", "/0.5"))
    ]
    keys = ("sg", "gc", "svrg", "norm", "norm_plugin", "loss", "half")
    assert set(result.metrics) == {f"{name}/{key}" for name in names for key in keys}
    curves = {f"{name}/{key}" for name in names for key in ("loss", "sg", "step")}
    assert set(result.curves) == curves
    values, _ = train_cell(SMALL, Cell(5.0, 0.01, 40, 0.5), 3)
    recorded = {name: result.metrics[f"5/0.01/40/0.5/{name}"] for name in keys}
    assert recorded == pytest.approx(values, rel=1e-8)
    few = replace(SMALL, taus=(5.0,), lrs=(0.01,), teachers=(40,), curves=False)
    fewer = run_features(few, 3)
    assert fewer.curves == {}
    assert fewer.metrics == {name: result.metrics[name] for name in fewer.metrics}
    assert cell_name(2.0, 0.001, 2000) == "2/0.001/2000"
