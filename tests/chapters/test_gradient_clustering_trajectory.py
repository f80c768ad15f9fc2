"""Chapter 2: variances measured along ordinary SGD, against gradients made one by one."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from companion.chapters.gradient_clustering import problems, trajectory
from companion.chapters.gradient_clustering.problems import losses_of, make_model
from companion.chapters.gradient_clustering.trajectory import (
    Trajectory,
    run_trajectory,
    shifted,
    stratified,
    variances,
)
from trainaug.methods.gradient_clustering import (
    exact_moves,
    per_example_gradients,
    sampling_variance,
    stratified_variance,
    svrg_variance,
)
from trainaug.training.models import evaluate
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

SMALL = Trajectory(num_train=45, batch=6, clusters=6, iterations=2, steps=13, refresh=5, lr=0.1)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problems.problem("digits", 0, 20)


@pytest.fixture
def models(monkeypatch) -> list[nn.Module]:
    """The networks that are trained."""
    made: list[nn.Module] = []

    def make(*given: object, **named: object) -> nn.Module:
        made.append(make_model(*given, **named))
        return made[-1]

    monkeypatch.setattr(trajectory, "make_model", make)
    return made


def plain_sgd(settings: Trajectory, seed: int) -> list[nn.Module]:
    """Train without the loop and without measuring; the network before each update and after."""
    data = settings.problem(seed)
    model, g = make_model(settings.model, data, seed), stream(seed, "order")
    views = stream(seed, "augment")
    momentum = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    order: list[Tensor] = []
    path = [copy.deepcopy(model)]
    for step in range(settings.steps):
        order = order or list(torch.randperm(len(data.train), generator=g).split(settings.batch))
        rows = order.pop(0)
        x, y = data.train.x[rows], data.train.y[rows]
        if settings.augment:
            x = shifted(x, views)
        lr = settings.lr
        if settings.drop and step >= settings.steps // 2:
            lr *= settings.drop
        model.zero_grad()
        losses_of(model(x), y).mean().backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                momentum[name] = settings.momentum * momentum[name] + p.grad
                momentum[name] += settings.decay * p
                p -= lr * momentum[name]
        path.append(copy.deepcopy(model))
    return path


# --- variances from inner products ----------------------------------------------------------------


@pytest.mark.parametrize("strata", [1, 3, 5, 24])
@pytest.mark.parametrize("batch", [3, 8])
def test_variances_of_inner_products_are_those_of_the_gradients(strata, batch):
    g = stream(strata, "gradients")
    gradients = torch.randn(24, 7, generator=g, dtype=torch.float64) + 0.5
    assign = 3 * (torch.arange(24) % strata)[torch.randperm(24, generator=g)] - 4  # any labels
    gram = gradients @ gradients.T
    one, mean = variances(gram)
    assert one / batch == pytest.approx(float(sampling_variance(gradients, batch)))
    assert mean == pytest.approx(float(gradients.mean(0).square().sum()))
    # B draws in all: B / M from each of M strata
    expected = float(stratified_variance(gradients, assign)) * strata / batch
    assert stratified(gram, assign, batch) == pytest.approx(expected, abs=1e-12)
    if batch % strata == 0:
        draws = float(stratified_variance(gradients, assign, batch // strata))
        assert stratified(gram, assign, batch) == pytest.approx(draws)
    if strata == 1:
        assert stratified(gram, assign, batch) == pytest.approx(one / batch)


def test_variances_are_not_negative():
    gradients = torch.full((9, 3), 0.1, dtype=torch.float64)
    gram = gradients @ gradients.T - 1e-15 * torch.eye(9)
    assert variances(gram)[0] == 0
    assert stratified(gram, torch.arange(9) % 2, 4) == 0


# --- shifts and flips -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 1, 5, 4), (40, 3, 8, 8)])
def test_shifted_equals_a_loop_over_pixels(shape):
    x = torch.rand(shape, generator=stream(0, "x"))
    kept, g = x.clone(), stream(7, "augment")
    flips = torch.rand(len(x), generator=g) < 0.5
    moves = torch.randint(-2, 3, (len(x), 2), generator=g)
    actual = shifted(x, stream(7, "augment"))
    expected = torch.zeros(shape)
    n, channels, height, width = shape
    for i, c, row, column in itertools.product(*map(range, (n, channels, height, width))):
        r, s = row + int(moves[i, 0]), column + int(moves[i, 1])
        if 0 <= r < height and 0 <= s < width:
            expected[i, c, row, column] = x[i, c, r, width - 1 - s if flips[i] else s]
    assert torch.equal(actual, expected)
    assert torch.equal(x, kept)
    assert actual.is_contiguous()
    assert {*flips.tolist()} == {True, False}
    assert {*moves.flatten().tolist()} == {-2, -1, 0, 1, 2}


# --- along a run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": True},
        {"drop": 0.1, "momentum": 0.9},
        {"augment": True, "measured": 20},
        {"copies": 0.7, "noise": 0.3},
        {"model": "cnn"},
        {"model": "resnet8", "num_train": 14, "steps": 6, "lr": 0.01},
    ],
)
def test_measuring_does_not_disturb_training(models, changes):
    settings = replace(SMALL, **changes)
    actual = run_trajectory(settings, 3)
    path = plain_sgd(settings, 3)
    (model,) = models
    assert model.training
    for (name, p), q in zip(model.named_parameters(), path[-1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
        assert not torch.equal(p, dict(path[0].named_parameters())[name])
    data = settings.problem(3)
    expected = evaluate(path[-1], data.val, "val") | evaluate(path[-1], data.test, "test")
    assert actual.metrics == pytest.approx(expected, abs=2e-3)
    assert actual.counters == {"steps": settings.steps}


def gradients_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return per_example_gradients(model, losses_of, x, y).double()


@pytest.mark.parametrize("batch", [6, 16])
@pytest.mark.parametrize("changes", [{}, {"measured": 24, "augment": True}, {"copies": 0.6}])
def test_curves_equal_the_variances_of_explicit_gradients(changes, batch):
    settings = replace(SMALL, batch=batch, **changes)
    actual = run_trajectory(settings, 1).curves
    path, data = plain_sgd(settings, 1), settings.problem(1)
    limit = settings.measured or len(data.train)
    x, y = data.train.x[:limit], data.train.y[:limit]
    views, many = x, y
    if settings.augment:
        g = stream(1, "views")
        views, many = torch.cat([shifted(x, g) for _ in range(4)]), y.repeat(4)
    refreshed, middle, last = [0, 5, 10], [2, 7, 12], [4, 9]  # of 13 steps
    assert (actual["refresh"], actual["step"]) == (refreshed, middle)
    number, strata = len(views) // len(x), []
    expected: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        expected.setdefault(name, []).append(float(value))

    for start in refreshed:
        assign = trajectory.cluster(path[start], x, y, settings, 1).assign
        assert len(assign) == limit
        strata.append(len(assign.unique()))
        old = gradients_of(path[start], views, many)
        places = {"fresh": start, "mid": start + 2, "old": start + 4}
        for name, step in places.items():
            if name == "old" and step not in last:
                continue
            now, draws = gradients_of(path[step], views, many), batch / strata[-1]
            add(f"{name}/sg", sampling_variance(now, batch))
            add(f"{name}/gc", stratified_variance(now, assign.repeat(number)) / draws)
            if name != "fresh":
                add(f"{name}/svrg", svrg_variance(now, old, batch))
            if name == "mid":
                add("mid/second", now.mean(0).square().sum())
        if settings.augment:
            still = gradients_of(path[start], x, y)
            add("still/sg", sampling_variance(still, batch))
            add("still/gc", stratified_variance(still, assign) / (batch / strata[-1]))
        with torch.no_grad():
            add("loss", losses_of(path[start + 2](data.train.x), data.train.y).mean())
    expected |= {"refresh": refreshed, "step": middle}
    assert set(actual) == set(expected)
    for name, values in expected.items():
        tolerance = 2e-3 if name.endswith("svrg") else 2e-4  # small differences of float32
        assert actual[name] == pytest.approx(values, rel=tolerance), name
    assert sum(actual["mid/gc"]) < sum(actual["mid/sg"])
    assert 0 < actual["mid/svrg"][0] < actual["old/svrg"][0]  # the snapshot ages
    assert {len(actual[name]) for name in actual if name.startswith("old/")} == {2}


@pytest.mark.parametrize(("steps", "refresh"), [(10, 5), (4, 4), (9, 3), (6, 2)])
def test_lengths_of_the_curves(steps, refresh):
    curves = run_trajectory(replace(SMALL, steps=steps, refresh=refresh), 0).curves
    middle = list(range(refresh // 2, steps, refresh))
    assert curves["refresh"] == list(range(0, steps, refresh))
    assert curves["step"] == middle
    lengths = {name: len(values) for name, values in curves.items()}
    for name in ("fresh/sg", "fresh/gc", "mid/sg", "mid/gc", "mid/svrg", "mid/second", "loss"):
        assert lengths[name] == steps // refresh + (steps % refresh > refresh // 2), name
    assert lengths["old/sg"] == lengths["old/gc"] == lengths["old/svrg"] == steps // refresh
    assert not any(name.startswith(("still", "variant")) for name in curves)


def test_the_drop_takes_effect_at_half_of_the_steps():
    settings = replace(SMALL, steps=20, refresh=4)
    plain, dropped = (
        run_trajectory(replace(settings, drop=drop), 0).curves for drop in (None, 1e-6)
    )
    assert plain["step"] == [2, 6, 10, 14, 18]
    for name in ("loss", "mid/sg", "mid/gc", "mid/svrg"):  # the weights of step 10 are shared
        assert dropped[name][:3] == plain[name][:3]
        assert dropped[name][3] != plain[name][3]
    assert len(set(plain["loss"])) == 5
    assert dropped["loss"][3] == pytest.approx(dropped["loss"][4], rel=1e-4)  # hardly moves
    assert max(dropped["mid/svrg"][3:]) < 1e-3 * min(plain["mid/svrg"][3:])


def test_copies_and_strata_of_their_own_leave_no_variance():
    settings = replace(SMALL, num_train=100, copies=0.9, clusters=10, batch=10)
    curves = run_trajectory(settings, 0).curves  # ten points, ten of each
    assert max(curves["mid/gc"]) < 0.5 * min(curves["mid/sg"])
    data = settings.problem(0)
    gradients = gradients_of(make_model("mlp", data, 0), data.train.x, data.train.y)
    assert stratified(gradients @ gradients.T, data.copy_of, 10) == pytest.approx(0, abs=1e-9)


def test_other_centres_and_rules_are_compared_on_the_same_gradients():
    settings = replace(SMALL, variants=True, num_train=40)
    curves = run_trajectory(settings, 2).curves
    assert curves["variant/means"] == curves["fresh/gc"]  # the same streams
    path, data = plain_sgd(settings, 2), settings.problem(2)
    x, y = data.train.x, data.train.y
    kinds = {
        "svd": {"centers": "svd"},
        "full": {"centers": "full"},
        "plain": {"rule": "plain"},
        "frozen": {"rule": "frozen"},
        "exact": {"rule": "exact"},
    }
    for position, step in enumerate(curves["refresh"]):
        gradients = gradients_of(path[int(step)], x, y)
        gram = gradients @ gradients.T
        for name, kind in kinds.items():
            assign = trajectory.cluster(path[int(step)], x, y, settings, 2, **kind).assign
            expected = stratified(gram, assign, settings.batch)
            assert curves[f"variant/{name}"][position] == pytest.approx(expected, rel=2e-4), name
            if name == "exact":  # no single move is left
                assert torch.equal(exact_moves(gram, assign, 6), assign)
        order = torch.randperm(40, generator=stream(2, "random strata"))
        random = stratified(gram, (torch.arange(40) % 6)[order], settings.batch)
        assert curves["variant/random"][position] == pytest.approx(random, rel=2e-4)


def test_runs_are_deterministic_and_differ_by_seed():
    settings = replace(SMALL, augment=True)
    one, again, other = (run_trajectory(settings, seed) for seed in (5, 5, 6))
    assert one == again
    assert one.curves["mid/sg"] != other.curves["mid/sg"]
    assert one.metrics != other.metrics
