"""Chapter 2: small exact checks against naive loops, departures of the authors' code, timings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from companion.chapters.gradient_clustering import theory, timing
from companion.chapters.gradient_clustering.problems import (
    losses_of,
    make_model,
    problem,
)
from companion.chapters.gradient_clustering.speed import Sampling, Trained
from trainaug.methods.gradient_clustering import (
    GradientClustering,
    per_example_gradients,
    stratified_variance,
)
from trainaug.training.networks import ResNet8
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problem("digits", 0, 20)


def distortion(points: list[list[float]], labels: list[int]) -> float:
    """Sum of squared distances of the pairs that share a stratum: L by hand."""
    pairs = itertools.combinations(range(len(points)), 2)
    return math.fsum(
        math.dist(points[i], points[j]) ** 2 for i, j in pairs if labels[i] == labels[j]
    )


def naive_sweeps(
    points: list[list[float]], labels: list[int], strata: int, sweeps: int
) -> list[list[int]]:
    means: list[list[float]] = [[] for _ in range(strata)]
    sizes = [labels.count(k) for k in range(strata)]
    actual = []

    def update() -> None:
        for k in range(strata):
            mine = [p for p, label in zip(points, labels, strict=True) if label == k]
            if mine:
                means[k] = [sum(column) / len(mine) for column in zip(*mine, strict=True)]

    update()
    for _ in range(sweeps):
        labels = []
        for p in points:
            costs = [max(1, sizes[k]) * math.dist(p, means[k]) ** 2 for k in range(strata)]
            labels.append(costs.index(min(costs)))
        sizes = [labels.count(k) for k in range(strata)]
        update()
        actual.append(labels)
    return actual


# --- published sweeps -----------------------------------------------------------------------------


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.oracle("gc.6")
def test_a_published_sweep_can_raise_the_variance():
    points, start = line(0, 3, 1), torch.tensor([0, 0, 1])
    (after,) = theory.published_sweeps(points, start, 2, 1)
    assert len(after.unique()) == 1  # everything in one stratum
    assert distortion(points.tolist(), start.tolist()) == 9
    assert distortion(points.tolist(), after.tolist()) == pytest.approx(14)


def test_published_sweeps_can_go_round_in_a_circle():
    points, start = line(0, 3, 5, 1), torch.tensor([0, 0, 0, 1])
    actual = [a.tolist() for a in theory.published_sweeps(points, start, 2, 4)]
    there, back = [1, 0, 1, 1], [0, 0, 0, 1]
    assert actual == [there, back, there, back]
    assert distortion(points.tolist(), back) == pytest.approx(38)
    assert distortion(points.tolist(), there) == pytest.approx(42)


@pytest.mark.parametrize("seed", range(12))
def test_published_sweeps_equal_a_naive_loop(seed):
    g = stream(seed, "points")
    points = torch.randn(8, 3, generator=g, dtype=torch.float64)
    start = torch.cat([torch.arange(3), torch.randint(3, (5,), generator=g)])
    actual = theory.published_sweeps(points, start, 3, 6)
    assert [a.tolist() for a in actual] == naive_sweeps(points.tolist(), start.tolist(), 3, 6)


def test_a_stratum_without_examples_keeps_its_mean_and_counts_as_one():
    points, start = line(0, 0.2, 10, 10.2, 1), torch.tensor([0, 0, 1, 1, 2])
    points[4] = 0.1  # on the mean of the first
    actual = [a.tolist() for a in theory.published_sweeps(points, start, 3, 5)]
    assert actual == naive_sweeps(points.tolist(), start.tolist(), 3, 5)
    assert any(len(set(labels)) < 3 for labels in actual)


# --- enumeration ----------------------------------------------------------------------------------


def test_all_partitions_are_enumerated():
    actual = [tuple(labels.tolist()) for labels in theory.partitions(7, 3)]
    assert len(actual) == len(set(actual)) == 1806
    groups = {
        frozenset(frozenset(i for i in range(7) if labels[i] == k) for k in range(3))
        for labels in actual
    }
    assert len(groups) == 301  # Stirling's number of the second kind
    assert all(all(group) for group in groups)


@pytest.mark.parametrize("seed", [1000, 1003])
def test_enumeration_equals_naive_loops(seed):
    actual = theory.run_enumeration(theory.Enumeration(num_train=50, few=5), seed).metrics
    data = problem("digits", seed, 50)
    model = make_model("mlp", data, seed).double()
    points = per_example_gradients(
        model, losses_of, data.train.x[:5].double(), data.train.y[:5]
    ).tolist()
    labels = [
        assignment
        for assignment in itertools.product(range(3), repeat=5)
        if len(set(assignment)) == 3
    ]
    costs = {assignment: distortion(points, list(assignment)) for assignment in labels}
    least = min(costs.values())
    assert actual["mean_error"] < 1e-12
    assert actual["variance_error"] < 1e-12
    assert abs(actual["optimum_error"]) < 1e-12
    assert actual["uniform_over_best"] == pytest.approx(distortion(points, [0] * 5) / 3 / least)
    g = stream(seed, "start")
    start = torch.cat([torch.arange(3), torch.randint(3, (2,), generator=g)])
    start = start[torch.randperm(5, generator=g)].tolist()
    path = [
        distortion(points, assignment)
        for assignment in (start, *naive_sweeps(points, start, 3, 20))
    ]
    assert actual["published_over_best"] == pytest.approx(path[-1] / least)
    rises = sum(b > a * (1 + 1e-9) for a, b in itertools.pairwise(path))
    assert actual["published_rises"] == pytest.approx(rises / 20)
    assert 1 - 1e-9 < actual["moves_over_best"] <= path[0] / least * (1 + 1e-9)


@pytest.mark.parametrize("wrong", ["variance", "optimum", "mean"])
def test_enumeration_would_see_a_wrong_formula(monkeypatch, wrong):
    if wrong == "variance":
        real = theory.stratified_variance
        monkeypatch.setattr(theory, "stratified_variance", lambda g, a: 1.01 * real(g, a))
    elif wrong == "optimum":
        worst = torch.tensor([0, 0, 1, 2])
        monkeypatch.setattr(theory, "best_partition", lambda g, k: (worst, 0.0))
    else:
        draws = theory.enumerate_estimates
        monkeypatch.setattr(theory, "enumerate_estimates", lambda g, a: 1.01 * draws(g, a))
    settings = theory.Enumeration(num_train=20, few=4)
    errors = [theory.run_enumeration(settings, seed).metrics[f"{wrong}_error"] for seed in (0, 1)]
    assert max(errors) > 1e-3


# --- departures -----------------------------------------------------------------------------------

SMALL = theory.Departures(num_train=60, lr=0.1, batch=12, clusters=6, iterations=2, steps=20)


def test_departures_at_the_start_equal_explicit_gradients():
    actual = theory.run_departures(SMALL, 3).metrics
    names = {"dropout/eval", "dropout/train", "dropout/without"}
    data = problem("digits", 3, 60)
    x, y, model = data.train.x, data.train.y, make_model("mlp", data, 3)
    gradients = per_example_gradients(model, losses_of, x, y).double()
    batches = [(x[r], y[r], r) for r in torch.arange(60).split(12)]
    clustering = GradientClustering(
        model, lambda z, y: losses_of(z, y) / 128, 6, generator=stream(3, "clusters")
    )
    assign = clustering.fit(batches, 2).assign
    uniform = float(stratified_variance(gradients, torch.zeros(60).long())) / 12
    ratio = float(stratified_variance(gradients, assign)) * len(assign.unique()) / 12 / uniform
    assert actual["rounding/start/exact"] == pytest.approx(math.log(ratio), abs=1e-4)
    assert actual["rounding/start/exact_strata"] == len(assign.unique())
    # what depends on training and on masks
    assert actual["rounding/end/exact"] != actual["rounding/start/exact"]
    assert len({actual[name] for name in names}) == 3
    assert actual == theory.run_departures(SMALL, 3).metrics
    other = theory.run_departures(SMALL, 4).metrics
    assert all(other[name] != actual[name] for name in names)
    # rounding to large multiples leaves ties, which the first stratum gets
    coarse = theory.run_departures(replace(SMALL, steps=1, quantum=1e9), 3).metrics
    assert coarse["rounding/start/exact"] == actual["rounding/start/exact"]
    assert coarse["rounding/start/rounded_strata"] <= 2
    assert coarse["rounding/start/rounded"] > actual["rounding/start/exact"] + 0.1


def test_distances_are_rounded_to_multiples_of_a_quantum():
    centers = theory.rounded_centers(1e-7)(2)
    data = problem("digits", 0, 20)
    model = make_model("mlp", data, 0)
    factors, first = (
        theory.layer_factors(model, lambda z, y: losses_of(z, y) / 1e4, *data.train[range(n)][:2])
        for n in (20, 2)
    )
    exact = theory.GradientCenters(2)
    for each in (centers, exact):
        each.append(first)
    actual, plain = centers.sq_distances(factors), exact.sq_distances(factors)
    torch.testing.assert_close(actual, torch.round(plain * 1e7) / 1e7, rtol=0, atol=1e-12)
    assert len(actual.unique()) < len(plain.unique())


# --- timings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [timing.Timing(), timing.ResNetTiming(model="resnet8")])
def test_timings_of_clustering_have_their_keys(settings):
    small = replace(settings, batch=6, counts=(2, 4), repeats=1)
    result = timing.run_timing(small, 1000)
    tasks = ("plain", "assign/2", "pass/2", "assign/4", "pass/4")
    assert set(result.metrics) == {f"seconds/{name}" for name in tasks}
    assert min(result.metrics.values()) > 0


def test_networks_that_are_timed():
    mlp = timing.make_network("mlp", 0)
    layers = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [
        (784, 1024),
        (1024, 1024),
        (1024, 10),
    ]
    kinds = [type(m) for m in mlp]
    assert kinds == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    x = torch.rand(3, 1, 28, 28, generator=stream(0, "x"))
    assert mlp(x).shape == (3, 10)
    ours = ResNet8(10, stream(0, "init"), in_channels=1, batch_norm=False)
    network = timing.make_network("resnet8", 0)
    torch.testing.assert_close(network(x), ours(x), rtol=1e-4, atol=1e-5)
    convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous() for w in convolutions)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("seed", [0, 1])
def test_timings_of_samplers_take_the_seconds_of_the_updates(monkeypatch, seed):
    asked: list[tuple[str, int]] = []

    def fake(settings: Sampling, seed: int, *, measured: bool) -> Trained:
        asked.append((settings.sampler, settings.steps))
        assert not measured
        return Trained(seconds=len(asked))

    monkeypatch.setattr(timing, "train_sampler", fake)
    settings = timing.SamplerTiming.usual()
    result = timing.run_sampler_timing(replace(settings, timed_steps=12), seed)
    names = ["uniform", "snooze", "random", "reweighted", "stratified"]
    order = names if seed % 2 else names[::-1]  # the order turns round
    assert asked == [("stratified", 10), *((name, 12) for name in order)]
    assert result.metrics == {f"seconds/{name}": i for i, name in enumerate(order, 2)}


def test_interleaved_takes_the_median_after_warming_up(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    lengths = {"a": iter([100.0, 5.0, 1.0, 3.0]), "b": iter([100.0, 2.0, 2.0, 8.0])}

    def task(name: str) -> Callable[[], None]:
        def run() -> None:
            called.append(name)
            clock[0] += next(lengths[name])

        return run

    actual = timing.interleaved({name: task(name) for name in lengths}, 3, 0)
    assert actual == {"seconds/a": 3.0, "seconds/b": 2.0}
    assert called == ["b", "a"] * 4
