"""Clustering gradients: on-line, loaders, state, what goes wrong, and what stays untouched."""

from __future__ import annotations

import io
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.gradient_clustering import GradientClustering, layer_factors
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, initialise, stream

KINDS = ["means", "svd", "full"]
RULES = ["running", "frozen", "plain", "exact"]
losses_of = partial(F.cross_entropy, reduction="none")


def data_of(n, randn, dtype=torch.float64):
    model = MLP(4, 5, 3, stream(0, "init")).to(dtype)
    return model, randn(2, n, 4, dtype=dtype), torch.arange(n) % 3


def batches_of(x, y, size):
    index = torch.arange(len(x), device="cpu")
    return [(x[part], y[part], part) for part in index.split(size)]


def cluster(model, k, *, seed=0, **options):
    return GradientClustering(model, losses_of, k, generator=stream(seed, "cluster"), **options)


def through_a_file(state):
    """Save and load, with nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    assert torch.equal(a.assign, b.assign)
    assert torch.equal(a.sizes, b.sizes)
    assert a.distortions == pytest.approx(b.distortions, rel=1e-12)  # an SVD may differ in a bit


# --- on-line


def matrices(centers):
    """All layers' centres side by side, ``(K, d)``."""
    return torch.cat([(d[:, :, None] * c[:, None]).flatten(1) for c, d in centers.values()], 1)


@pytest.mark.parametrize("reseed", [None, "largest", "data"])
def test_on_line_batches_equal_a_naive_loop(reseed, randn):
    model, x, y = data_of(60, randn)
    actual, g = cluster(model, 5), stream(0, "cluster")
    options = {"decay": 0.6} | ({"dead_share": 0.9, "reseed": reseed} if reseed else {})
    reseeded = 0
    for batch in range(6):
        rows = slice(10 * batch, 10 * batch + 10)
        factors = layer_factors(model, losses_of, x[rows], y[rows])
        grads = torch.cat([f.gradient().flatten(1) for f in factors.values()], 1)
        parts = {n: f.averages() for n, f in factors.items()}
        if batch == 0:
            first = torch.randperm(10, generator=g)[:5]
            centers = {n: [v[first].clone() for v in p] for n, p in parts.items()}
            sizes = [2.0] * 5  # B / K
        old = matrices(centers)
        distances = [[float((grad - c).square().sum()) for c in old] for grad in grads]
        costs = [[(s + 1) * d for s, d in zip(sizes, row, strict=True)] for row in distances]
        labels = [row.index(min(row)) for row in costs]
        for k in range(5):
            new = 0.6 * sizes[k] + 0.4 * labels.count(k)
            members = [i for i, label in enumerate(labels) if label == k]
            for n, pair in centers.items():
                for center, values in zip(pair, parts[n], strict=True):
                    total = values[members].sum(0)
                    center[k] = (0.6 * sizes[k] * center[k] + 0.4 * total) / new
            sizes[k] = new
        smallest = sizes.index(min(sizes))
        if reseed and sizes[smallest] < 0.9 * sum(sizes) / 5:
            reseeded += 1
            spread = [0.0] * 5
            for i, label in enumerate(labels):
                spread[label] += sizes[label] * distances[i][label]
            source, largest = None, spread.index(max(spread))
            if reseed == "data":
                source = int(torch.randint(10, (1,), generator=g))
                sizes[smallest] = sum(sizes) / 5
            elif largest != smallest:
                sizes[largest] = sizes[smallest] = sizes[largest] / 2
            for n, pair in centers.items():
                for center, values in zip(pair, parts[n], strict=True):
                    center[smallest] = center[largest] if source is None else values[source]
        assert actual.observe(x[rows], y[rows], **options).tolist() == labels
        state = actual.state_dict()
        assert state["sizes"].tolist() == pytest.approx(sizes, rel=1e-12)
        torch.testing.assert_close(matrices(state["centers"]), matrices(centers))
    assert reseeded > 1 or reseed is None
    assert torch.equal(actual.generator.get_state(), g.get_state())
    # the refresh: every example, and the centres stay
    clustering = actual.assign(batches_of(x, y, 25))
    assert int(clustering.sizes.sum()) == len(clustering.assign) == 60
    torch.testing.assert_close(matrices(actual.state_dict()["centers"]), matrices(centers))


# --- loaders and state


@pytest.mark.parametrize("rule", RULES)
def test_loaders_give_what_lists_of_batches_give(rule, randn):
    model, x, y = data_of(22, randn)
    data = IndexedDataset(x, y)
    expected = cluster(model, 3, rule=rule).fit(batches_of(x, y, 5), 3)
    options = {"generator": stream(0, "loader")}
    for loader in (
        DataLoader(data, batch_size=5, **options),
        DataLoader(data, batch_sampler=[list(range(22))[at : at + 5] for at in range(0, 22, 5)]),
        DataLoader(data, sampler=torch.arange(22).split(5), batch_size=None, **options),
    ):
        loader.generator = options["generator"]
        same(cluster(model, 3, rule=rule).fit(loader, 3), expected)
    shuffled = DataLoader(
        data, batch_sampler=RandomBatchSampler(22, 5, stream(0, "order")), **options
    )
    actual = cluster(model, 3, rule=rule).fit(shuffled, 3)
    assert torch.equal(actual.sizes, torch.bincount(actual.assign, minlength=3))


@pytest.mark.oracle("gc.14")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_state_goes_on_the_same_and_seeds_decide(rule, kind, randn):
    model, x, y = data_of(30, randn)
    batches, options = batches_of(x, y, 8), {"rule": rule, "centers": kind, "min_size": 8}
    straight, again = (cluster(model, 4, **options) for _ in range(2))
    same(straight.fit(batches, 2), again.fit(batches, 2))  # splits draw
    state = through_a_file(straight.state_dict())
    expected = [straight.fit(batches, 2) for _ in range(2)]  # the state is a copy
    resumed = cluster(model, 4, seed=5, **options)
    resumed.load_state_dict(state)
    for clustering in expected:
        same(resumed.fit(batches, 2), clustering)
    others = [cluster(model, 4, seed=seed, **options).fit(batches, 1) for seed in range(4)]
    assert len({str(other.assign.tolist()) for other in others}) > 1


@pytest.mark.oracle("gc.14")
def test_the_on_line_state_goes_on_the_same(randn):
    model, x, y = data_of(40, randn)
    straight, resumed = cluster(model, 4), cluster(model, 4, seed=5)
    for step, rows in enumerate(torch.arange(40).split(8)):
        if step == 2:
            resumed.load_state_dict(through_a_file(straight.state_dict()))
        labels = straight.observe(x[rows], y[rows], dead_share=0.9, reseed="data")
        if step >= 2:
            actual = resumed.observe(x[rows], y[rows], dead_share=0.9, reseed="data")
            assert torch.equal(actual, labels)


@pytest.mark.parametrize("rule", RULES)
def test_the_model_stays_as_it_is(rule, randn):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.0), nn.Linear(5, 3))
    initialise(model, stream(0, "init"))
    model.double().eval()
    model[2].train()  # modes are the caller's
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    versions = [p._version for p in model.parameters()]
    _, x, y = data_of(12, randn)
    actual = cluster(model, 3, rule=rule, layers=["0", "3"], bias=False)
    with torch.no_grad():
        actual.fit(batches_of(x, y, 5), 2)
        actual.assign(batches_of(x, y, 5))
        actual.observe(x, y)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert versions == [p._version for p in model.parameters()]
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert [m.training for m in model] == [False, False, True, False]
    assert not any(m._forward_hooks for m in model)


@pytest.mark.parametrize("kind", ["means", "full"])
@pytest.mark.parametrize("rule", RULES)
def test_inside_a_meta_context_values_are_the_same(rule, kind, randn, same_inside_meta):
    model, x, y = data_of(14, randn)

    def call(x, y):
        actual = cluster(model, 3, rule=rule, centers=kind, min_size=4)
        clustering = actual.fit(batches_of(x, y, 5), 3)
        labels = [] if kind == "full" else actual.observe(x, y, dead_share=0.9)
        return [
            clustering.assign,
            clustering.sizes,
            labels,
            actual.assign(batches_of(x, y, 5)).sizes,
        ]

    same_inside_meta(call, x, y)


# --- factors that are kept from pass to pass


class Counted(nn.Module):
    """A model that counts the batches which it runs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.runs = model, 0

    def forward(self, x):
        self.runs += 1
        return self.model(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_kept_factors_change_nothing_but_the_number_of_runs(rule, kind, randn):
    plain, x, y = data_of(30, randn)
    model, options = Counted(plain), {"rule": rule, "centers": kind, "min_size": 8}
    batches = batches_of(x, y, 8)
    results, states, runs = [], [], []
    for keep in (0, 1 << 20):
        actual = cluster(model, 4, **options)
        model.runs = 0
        results.append(actual.fit(batches, 5, keep_bytes=keep))
        states.append(actual.state_dict())
        runs.append(model.runs)
    assert results[0].distortions == results[1].distortions
    assert torch.equal(results[0].assign, results[1].assign)
    assert torch.equal(states[0]["generator"], states[1]["generator"])
    for name, center in states[0]["centers"].items():
        assert all(map(torch.equal, center, states[1]["centers"][name]))
    assert runs[0] - runs[1] == 4 * len(batches)


def test_factors_are_kept_only_as_long_as_they_fit(randn):
    plain, x, y = data_of(32, randn)
    model, batches = Counted(plain), batches_of(x, y, 8)
    # x and y, then input and output gradient of layers 4 -> 5 and 5 -> 3, in float64
    each = 8 * 8 * (4 + 1 + (4 + 5) + (5 + 3))
    for keep, extra in ((0, 8), (each - 1, 8), (each, 6), (4 * each - 1, 2), (4 * each, 0)):
        model.runs = 0
        cluster(model, 3).fit(batches, 3, keep_bytes=keep)
        assert model.runs - extra == 3 + len(batches), keep  # the first centres, and each batch


def test_kept_factors_are_those_of_this_batch_and_these_parameters(randn):
    model, x, y = data_of(24, randn)

    class Moving(list):
        """The second pass has other inputs, the third other targets, the fourth another model."""

        passes = 0

        def __iter__(self):
            self.passes += 1
            for number, (x, y, index) in enumerate(super().__iter__()):
                if self.passes == 3 and number == 0:  # the first time gives the first centres
                    x.add_(1.0)
                yield x, (y + 1) % 3 if self.passes == 4 else y, index
            if self.passes == 4:
                model[1].bias.data.add_(0.5)

    results = []
    start = {n: v.clone() for n, v in model.state_dict().items()}
    for keep in (0, 1 << 20):
        model.load_state_dict(start)
        batches = Moving((a.clone(), b, c) for a, b, c in batches_of(x, y, 8))
        results.append(cluster(model, 3).fit(batches, 4, keep_bytes=keep))
    assert results[0].distortions == results[1].distortions
    assert len(set(results[0].distortions)) == 4
    assert torch.equal(results[0].assign, results[1].assign)


@pytest.mark.parametrize("nested", [False, True])
def test_what_draws_or_is_nested_runs_in_every_pass(nested, randn):
    dropout = nn.Dropout(0.0 if nested else 0.5)
    plain, x, y = data_of(24, randn)
    model = Counted(nn.Sequential(plain, dropout))
    batches = batches_of(x, y, 8)
    if nested:
        model.eval()
        batches = [(a, {"label": b}, c) for a, b, c in batches]
    results, states, runs = [], [], []
    for keep in (0, 1 << 20):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model.runs = 0
            actual = GradientClustering(
                model,
                lambda z, y: losses_of(z, y["label"] if nested else y),
                3,
                generator=stream(0, "cluster"),
            )
            results.append(actual.fit(batches, 4, keep_bytes=keep))
            states.append(torch.get_rng_state())
            runs.append(model.runs)
    assert runs[0] == runs[1]
    assert torch.equal(*states)
    assert results[0].distortions == results[1].distortions


# --- what goes wrong


def test_a_pass_that_fails_names_the_example_and_leaves_nothing(randn):
    model, x, y = data_of(9, randn)
    batches, bad = batches_of(x, y, 4), batches_of(x, y, 4)
    bad[1] = (torch.where(bad[1][2][:, None] == 6, math.nan, bad[1][0]), *bad[1][1:])

    class Changing(list):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number == 1:
                    model[1].bias.data.add_(0.1)
                yield batch

    failures = {
        r"every index 0 to 12 once, got 9 different ones from 0 to 8": [*batches, batches[0]],
        r"every index 0 to 4 once, got 5 different ones from 0 to 8": batches[::2],
        "the gradient of example 6 is not finite": bad,
        "the model changed during a pass": Changing(batches),
        "no batches: nothing to cluster": [],
    }
    for message, wrong in failures.items():
        for seed in range(3):
            fresh, known = cluster(model, 3, seed=seed), cluster(model, 3)
            known.fit(batches, 1)
            for actual in (fresh, known):
                with pytest.raises((ValueError, FloatingPointError, RuntimeError), match=message):
                    actual.fit(wrong, 1)
                assert int(actual.fit(batches, 1).sizes.sum()) == 9
    huge = [(1e30 * b[0].float(), *b[1:]) for b in batches]
    with pytest.raises(FloatingPointError, match="squared gradient of example 0 or of a centre"):
        cluster(model.float(), 3).fit(huge)


def test_bad_input_is_refused(randn):
    model, x, y = data_of(6, randn)
    batches = batches_of(x, y, 4)
    for message, options in (
        ("rule must be one of .* got 'frozn'", {"rule": "frozn"}),
        ("min_size must be >= 0, got -1", {"min_size": -1}),
        ("kind must be one of .* got 'rank'", {"centers": "rank"}),
    ):
        with pytest.raises(ValueError, match=message):
            cluster(model, 2, **options)
    with pytest.raises(ValueError, match="num_clusters must be >= 1, got 0"):
        cluster(model, 0)
    actual = cluster(model, 3)
    with pytest.raises(ValueError, match="num_iterations must be >= 1, got 0"):
        actual.fit(batches, 0)
    with pytest.raises(ValueError, match="keep_bytes must be >= 0, got -1"):
        actual.fit(batches, keep_bytes=-1)
    with pytest.raises(ValueError, match="no centres yet: call fit or observe first"):
        actual.assign(batches)
    with pytest.raises(ValueError, match="got 3 clusters and 2 examples"):
        actual.observe(x[:2], y[:2])
    for options in ({"decay": 1.0}, {"decay": -0.1}, {"dead_share": 1.0}, {"dead_share": -1}):
        with pytest.raises(ValueError, match=f"got .*{next(iter(options.values()))}"):
            actual.observe(x, y, **options)
    with pytest.raises(ValueError, match="reseed must be largest or data, got 'other'"):
        actual.observe(x, y, reseed="other")
    with pytest.raises(ValueError, match="on-line centres are means, got kind='svd'"):
        cluster(model, 3, centers="svd").observe(x, y)
    for reduced in (F.cross_entropy, partial(F.cross_entropy, reduction="sum")):
        mean = GradientClustering(model, reduced, 2, generator=stream(0, "cluster"))
        with pytest.raises(ValueError, match="reduction='none'"):
            mean.fit(batches)
