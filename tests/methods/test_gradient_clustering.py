"""Clustering gradients: passes equal to a naive loop, corners, stale models."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from trainaug.methods.gradient_clustering import (
    GradientClustering,
    enumerate_estimates,
    layer_factors,
    per_example_gradients,
    total_distortion,
)
from trainaug.training.networks import MLP
from trainaug.training.randomness import stream

KINDS = ["means", "svd", "full"]
RULES = ["running", "frozen", "plain"]
losses_of = partial(F.cross_entropy, reduction="none")


def data_of(n, randn, dtype=torch.float64):
    model = MLP(4, 5, 3, stream(0, "init")).to(dtype)
    return model, randn(2, n, 4, dtype=dtype), torch.arange(n) % 3


def batches_of(x, y, size, order=None):
    """Return batches in a random order of the examples, or in theirs; the last one is ragged."""
    index = torch.arange(len(x), device="cpu") if order is None else order
    return [(x[part], y[part], part) for part in index.split(size)]


def order_of(n, seed=0):
    return torch.randperm(n, generator=stream(seed, "order"))


def cluster(model, k, *, seed=0, **options):
    return GradientClustering(model, losses_of, k, generator=stream(seed, "cluster"), **options)


# --- one pass, example by example


class Naive:
    """Explicit gradients and centres, lists and loops; draws as the clustering does."""

    def __init__(self, model, x, y, k, kind, g):
        self.k, self.kind, self.g, self.sizes = k, kind, g, None
        self.factors = layer_factors(model, losses_of, x, y)
        self.grads = {n: f.gradient() for n, f in self.factors.items()}

    def center(self, members):
        actual = {}
        for name, grads in self.grads.items():
            actual[name] = grads[members].mean(0)
            if self.kind == "means":
                c, d = (v[members].mean(0) for v in self.factors[name].averages())
                actual[name] = d[:, None] * c
            elif self.kind == "svd":
                u, s, vh = torch.linalg.svd(actual[name])
                actual[name] = s[0] * u[:, :1] * vh[:1]
        return actual

    def begin(self, batches):
        orders = [torch.randperm(len(index), generator=self.g) for _, _, index in batches]
        chosen = []
        for number, (_, _, index) in enumerate(batches):
            due = math.ceil(self.k * (number + 1) / len(batches))
            chosen += index[orders[number][: due - len(chosen)]].tolist()
        self.centers = [self.center([i]) for i in chosen]

    def distance(self, i, k):
        return sum(float((g[i] - self.centers[k][n]).square().sum()) for n, g in self.grads.items())

    def run(self, batches, rule, min_size):
        counts, assign, least, second = [0] * self.k, {}, {}, {}
        for _, _, index in batches:
            so_far = list(counts)
            for i in index.tolist():
                if rule == "plain":
                    factor = [1] * self.k
                elif rule == "frozen" and self.sizes is not None:
                    factor = [max(1, size) for size in self.sizes]
                else:
                    factor = [count + 1 for count in so_far]
                costs = [factor[k] * self.distance(i, k) for k in range(self.k)]
                assign[i] = costs.index(min(costs))
                least[i] = self.distance(i, assign[i])
                counts[assign[i]] += 1
            half = torch.randint(2, (len(index),), generator=self.g).tolist()
            second.update(zip(index.tolist(), half, strict=True))
        shares = [sum(counts[k] * least[i] for i in least if assign[i] == k) for k in range(self.k)]
        smallest, other = counts.index(min(counts)), shares.index(max(shares))
        if counts[smallest] < min_size and counts[other] > 1 and smallest != other:
            for i in assign:
                if assign[i] == other and second[i]:
                    assign[i] = smallest
        labels = [assign[i] for i in range(len(assign))]
        self.sizes = [labels.count(k) for k in range(self.k)]
        for k in range(self.k):
            if self.sizes[k]:
                members = [i for i, label in enumerate(labels) if label == k]
                self.centers[k] = self.center(members)
        return labels, sum(shares)


@pytest.mark.parametrize("min_size", [0, 1, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_passes_equal_a_naive_loop(rule, kind, min_size, randn):
    for seed, (n, size, k) in enumerate([(14, 4, 5), (9, 9, 3), (12, 5, 2)]):
        model, x, y = data_of(n, randn)
        batches = batches_of(x, y, size, order_of(n, seed))
        actual = cluster(model, k, seed=seed, rule=rule, centers=kind, min_size=min_size)
        naive = Naive(model, x, y, k, kind, stream(seed, "cluster"))
        naive.begin(batches)
        for iterations in (1, 3):  # the second fit goes on
            clustering = actual.fit(batches, iterations)
            expected = [naive.run(batches, rule, min_size) for _ in range(iterations)]
            assert clustering.assign.tolist() == expected[-1][0]
            assert clustering.sizes.tolist() == naive.sizes
            assert clustering.distortions == pytest.approx([d for _, d in expected], rel=1e-10)
        last = actual.centers.state_dict()
        clustering, expected = actual.assign(batches), naive.run(batches, rule, 0)
        assert (clustering.assign.tolist(), clustering.sizes.tolist()) == (expected[0], naive.sizes)
        assert clustering.distortions == pytest.approx([expected[1]], rel=1e-10)
        torch.testing.assert_close(actual.centers.state_dict(), last, rtol=0, atol=0)


@pytest.mark.oracle("gc.7")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["plain", "frozen"])
def test_batch_size_and_order_do_not_matter(rule, kind, randn):
    model, x, y = data_of(23, randn)
    first = cluster(model, 4, rule=rule, centers=kind, min_size=0)
    first.fit(batches_of(x, y, 6), 1)
    actual = []
    for size, order in ((23, None), (6, None), (1, None), (7, order_of(23))):
        other = cluster(model, 4, rule=rule, centers=kind, min_size=0)
        other.load_state_dict(first.state_dict())
        actual.append(other.fit(batches_of(x, y, size, order), 3))
    for other in actual[1:]:
        assert torch.equal(other.assign, actual[0].assign)
        assert other.distortions == pytest.approx(actual[0].distortions, rel=1e-10)


def brute_force(grads, assign, k):
    """Return L and the least L after one move."""
    least = math.inf
    for i in range(len(grads)):
        for label in range(k):
            moved = assign.clone()
            moved[i] = label
            least = min(least, float(total_distortion(grads, moved)))
    return float(total_distortion(grads, assign)), least


@pytest.mark.oracle("gc.6")
def test_exact_moves_end_where_no_move_helps(randn):
    model, x, y = data_of(24, randn)
    grads, gains = per_example_gradients(model, losses_of, x, y), 0
    for seed in (0, 3, 5):
        batches = batches_of(x, y, 7, order_of(24))
        running = cluster(model, 4, seed=seed).fit(batches, 3)
        exact = cluster(model, 4, seed=seed, rule="exact")
        actual = exact.fit(batches, 3)
        assert actual.distortions == running.distortions
        value, after_a_move = brute_force(grads, actual.assign, 4)
        before = float(total_distortion(grads, running.assign))
        assert value <= min(before, after_a_move) + 1e-9
        gains += value < 0.98 * before
        assert torch.equal(actual.sizes, torch.bincount(actual.assign, minlength=4))
        assert exact.state_dict()["sizes"].tolist() == actual.sizes.tolist()
    assert gains == 2


# --- corners


@pytest.mark.oracle("gc.4")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [*RULES, "exact"])
def test_one_cluster_and_as_many_as_examples(rule, kind, randn):
    model, x, y = data_of(11, randn)
    grads, batches = per_example_gradients(model, losses_of, x, y), batches_of(x, y, 4)
    options = {"rule": rule, "centers": kind}
    for min_size in (0, 1):
        one = cluster(model, 1, min_size=min_size, **options).fit(batches, 2)
        assert (one.assign.unique().tolist(), one.sizes.tolist()) == ([0], [11])
    for size in (11, 4):  # a ragged last batch gives its examples all the same
        every = cluster(model, 11, **options).fit(batches_of(x, y, size), 1)
        assert every.sizes.sum() == 11
        if kind == "full":  # each centre is on an example
            assert every.sizes.tolist() == [1] * 11
            assert every.distortions == (0.0,)
            assert float(total_distortion(grads, every.assign)) == 0.0
    message = "number of examples, got 12 clusters and 11 examples"
    again = cluster(model, 12, **options)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            again.fit(batches)


@pytest.mark.oracle("gc.5")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [*RULES, "exact"])
def test_perfect_duplicates_end_in_one_stratum(rule, kind, randn):
    model, x, y = data_of(4, randn)
    copies = torch.arange(4).repeat_interleave(torch.tensor([5, 3, 2, 4]))
    grads = per_example_gradients(model, losses_of, x[copies], y[copies])
    for seed in range(6):  # often two of the first centres are equal
        batches = batches_of(x[copies], y[copies], 4, order_of(14, seed))
        actual = cluster(model, 4, seed=seed, rule=rule, centers=kind).fit(batches, 12)
        assert sorted(actual.sizes.tolist()) == [2, 3, 4, 5]
        assert float(total_distortion(grads, actual.assign)) < 1e-28  # means of equal numbers


def test_the_first_centers_are_spread_evenly_over_the_batches(randn):
    model, x, _ = data_of(40, randn)
    asked = []

    def watch(logits, index):
        asked.append(index.tolist())
        return losses_of(logits, index % 3)

    g = stream(0, "cluster")
    GradientClustering(model, watch, 5, generator=g).fit(batches_of(x, torch.arange(40), 4), 1)
    assert [i // 4 for part in asked[:5] for i in part] == [0, 2, 4, 6, 8]


def test_frozen_sizes_can_put_everything_into_one_cluster(randn):
    model, x, y = data_of(40, randn)
    batches = batches_of(x, y, 8)
    largest = {}
    for rule in RULES:
        actual = cluster(model, 2, rule=rule, min_size=0)
        actual.fit(batches, 3)
        state = actual.state_dict()
        state["sizes"] = torch.tensor([40.0, 0.0], dtype=torch.float64)  # one was left empty
        actual.load_state_dict(state)
        largest[rule] = actual.fit(batches, 1).sizes.tolist()
    assert largest["frozen"] == [0, 40]
    assert max(largest["running"] + largest["plain"]) < 30


@pytest.mark.oracle("gc.12")
def test_strata_of_an_older_model_stay_unbiased(randn):
    model, x, y = data_of(10, randn)
    actual = cluster(model, 4).fit(batches_of(x, y, 5), 4)
    variances = []
    for _ in range(3):
        grads = per_example_gradients(model, losses_of, x, y)
        estimates = enumerate_estimates(grads, actual.assign)
        torch.testing.assert_close(estimates.mean(0), grads.mean(0), rtol=0, atol=1e-12)
        variances.append(float((estimates - grads.mean(0)).square().sum(1).mean()))
        expected = float(total_distortion(grads, actual.assign)) / 100
        assert variances[-1] == pytest.approx(expected, rel=1e-10)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.7 * p.flip(0))
    assert variances[0] < min(variances[1:])  # at age 0 on the data that it has clustered
