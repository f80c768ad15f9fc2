"""Estimators: enumerated draws against exact variances, loops of autograd, Opacus, clean models."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.gradient_clustering.estimators import (
    SGEstimator,
    StratifiedEstimator,
    SVRGEstimator,
    per_example_gradients,
)
from trainaug.methods.gradient_clustering.variance import (
    enumerate_estimates,
    sampling_variance,
    stratified_variance,
    svrg_variance,
)
from trainaug.training.randomness import initialise, stream

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
STRATA = torch.tensor([0, 0, 1, 1, 1, 4])
KINDS = pytest.mark.parametrize("kind", ["mlp", "conv", "group", "batch"])


def cross_entropy(logits, y):
    return F.cross_entropy(logits, y, reduction="none")


def net(kind="mlp", dtype=torch.float64, seed=0):
    with torch.device("meta"):
        layers = [nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)]
        if kind == "conv":
            layers = [nn.Conv2d(1, 4, 2, padding=1, stride=2), nn.ReLU(), nn.Flatten()]
            layers += [nn.Linear(16, 3)]
        if kind == "group":
            layers = [nn.Conv2d(1, 4, 2, bias=False), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten()]
            layers += [nn.LayerNorm(4), nn.Linear(4, 3)]
        if kind == "batch":
            layers = [nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)]
        if kind == "dropout":
            layers = [nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)]
        model = nn.Sequential(*layers)
    initialise(model, stream(seed, "init"))
    if kind == "group":  # normalised single numbers would be constant
        model[1].weight.data += 0.3 * torch.arange(4)
        model[1].bias.data += torch.tensor([0.5, 1.0, 1.5, 2.0])
    if kind == "batch":
        model.eval()
    return model.to(dtype)


def problem(kind="mlp", n=6, dtype=torch.float64):
    x = torch.randn(n, 4, dtype=torch.float64, generator=stream(0, "x")).to(dtype)
    return (x if kind in ("mlp", "dropout") else x.view(n, 1, 2, 2)), torch.arange(n) % 3


def data(kind="mlp", n=6, dtype=torch.float64):
    return IndexedDataset(*problem(kind, n, dtype))


def one_by_one(model, x, y, criterion=cross_entropy):
    """Backpropagate every example alone."""
    rows = []
    for i in range(len(x)):
        twin = copy.deepcopy(model)
        twin.zero_grad()
        criterion(twin(x[i : i + 1]), y[i : i + 1]).sum().backward()
        trained = [p for p in twin.parameters() if p.requires_grad]
        rows.append(torch.cat([p.grad.flatten() for p in trained]))
    return torch.stack(rows)


def spread(values):
    values = torch.stack(values).double()
    return float((values - values.mean(0)).square().sum(1).mean())


def close(a, b, dtype=torch.float64):
    torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


# --- per-example gradients


@DTYPES
@KINDS
@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_per_example_gradients_match_an_autograd_loop(kind, chunk_size, dtype):
    model, (x, y) = net(kind, dtype), problem(kind, 6, dtype)
    actual = per_example_gradients(model, cross_entropy, x, y, chunk_size=chunk_size)
    assert actual.dtype == dtype
    assert not actual.requires_grad
    close(actual, one_by_one(model, x, y), dtype)
    with torch.no_grad():
        close(per_example_gradients(model, cross_entropy, x, y), actual, dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["mlp", "conv", "group"])
def test_per_example_gradients_match_opacus(kind, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opacus = pytest.importorskip("opacus")
    model, (x, y) = net(kind, dtype), problem(kind, 6, dtype)
    wrapped = opacus.GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cross_entropy(wrapped(x), y).sum().backward()
    expected = torch.cat([p.grad_sample.flatten(1) for p in wrapped.parameters()], 1)
    close(per_example_gradients(model, cross_entropy, x, y), expected, dtype)


def test_frozen_and_tied_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = net()[0], nn.Linear(4, 4, device="cpu").double()
            self.third = nn.Linear(4, 4, device="cpu").double()
            self.third.weight = self.second.weight
            for p in self.first.parameters():
                p.requires_grad_(False)
            with torch.no_grad():
                for i, p in enumerate([*self.second.parameters(), self.third.bias]):
                    p.copy_(torch.randn(p.shape, generator=stream(i, "p")))

        def forward(self, x):
            return self.first(torch.tanh(self.third(torch.tanh(self.second(x)))))

    with torch.random.fork_rng():
        model, (x, y) = Tied(), problem()
    actual = per_example_gradients(model, cross_entropy, x, y)
    assert actual.shape == (6, 16 + 4 + 4)
    close(actual, one_by_one(model, x, y))
    close(SGEstimator(cross_entropy, data(), 2).estimate(model, torch.arange(6)), actual.mean(0))
    svrg = SVRGEstimator(cross_entropy, data(), 2)
    svrg.refresh(model)
    close(svrg.estimate(model, torch.tensor([1, 1])), actual.mean(0))


# --- SG


@DTYPES
@KINDS
def test_batch_estimates_are_means_of_per_example_gradients(kind, dtype):
    model, dataset = net(kind, dtype), data(kind, 6, dtype)
    grads = one_by_one(model, dataset.x, dataset.y)
    estimator = SGEstimator(cross_entropy, dataset, 3)
    for indices in ([0], [5, 2, 2], [0, 1, 2, 3, 4, 5]):
        actual = estimator.estimate(model, torch.tensor(indices))
        assert actual.dtype == dtype
        close(actual, grads[indices].mean(0), dtype)
    assert estimator.backward_examples == 10
    assert estimator.refresh_examples == 0


@pytest.mark.oracle("gc.8")
def test_twice_the_batch_has_half_the_variance_by_enumeration():
    model, dataset = net(), data(n=4)
    grads = per_example_gradients(model, cross_entropy, dataset.x, dataset.y)
    actual = {}
    for b in (1, 2, 4):
        estimator = SGEstimator(cross_entropy, dataset, b)
        draws = itertools.product(range(4), repeat=b)
        values = [estimator.estimate(model, torch.tensor(i)) for i in draws]
        close(torch.stack(values).mean(0), grads.mean(0))
        actual[b] = spread(values)
        assert actual[b] == pytest.approx(float(sampling_variance(grads, b)), rel=1e-9)
    assert actual[2] / actual[1] == pytest.approx(0.5, rel=1e-9)
    assert actual[4] / actual[2] == pytest.approx(0.5, rel=1e-9)
    subsets = itertools.combinations(range(4), 2)
    values = [estimator.estimate(model, torch.tensor(i)) for i in subsets]
    assert spread(values) == pytest.approx(actual[2] * (4 - 2) / (4 - 1), rel=1e-9)


def frequencies(draws):
    """Count how often each tuple was drawn."""
    counts = {}
    for d in draws:
        counts[d] = counts.get(d, 0) + 1
    return counts


def check_uniform(draws, possible):
    """Every possibility, and equally often within 4.5 standard errors."""
    counts, expected = frequencies(draws), len(draws) / len(possible)
    assert set(counts) == set(possible)
    assert max(abs(c - expected) for c in counts.values()) < 4.5 * expected**0.5


@pytest.mark.oracle("gc.4")
@pytest.mark.oracle("gc.8")
def test_draws_are_uniform_over_what_is_enumerated():
    g = stream(0, "draw")
    estimator = SGEstimator(cross_entropy, data(n=4), 2)
    draws = [tuple(estimator.draw(g).tolist()) for _ in range(4000)]
    check_uniform(draws, list(itertools.product(range(4), repeat=2)))
    estimator = SGEstimator(cross_entropy, data(n=4), 2, replacement=False)
    draws = [tuple(estimator.draw(g).tolist()) for _ in range(4000)]
    check_uniform(draws, list(itertools.permutations(range(4), 2)))
    assign = torch.tensor([9, 2, 9, 2, 2, 5])
    strata = StratifiedEstimator(cross_entropy, data(), assign)
    draws = [tuple(strata.draw(g).tolist()) for _ in range(4000)]
    check_uniform(draws, list(itertools.product([1, 3, 4], [5], [0, 2])))
    strata = StratifiedEstimator(cross_entropy, data(), torch.tensor([0, 0, 1, 1, 1, 1]), draws=2)
    draws = [tuple(strata.draw(g).tolist()) for _ in range(8000)]
    pair = list(itertools.product([0, 1], [2, 3, 4, 5]))
    check_uniform(draws, [a + b for a in pair for b in pair])


# --- strata


@pytest.mark.oracle("gc.4")
@pytest.mark.oracle("gc.13")
@DTYPES
@pytest.mark.parametrize(
    "assign",
    [[0] * 6, [0, 1, 2, 3, 4, 5], [3, 0, 0, 3, 0, 7], [0, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0]],
    ids=str,
)
def test_strata_estimates_are_unbiased_by_enumeration(assign, dtype):
    model, dataset, assign = net("conv", dtype), data("conv", 6, dtype), torch.tensor(assign)
    grads = per_example_gradients(model, cross_entropy, dataset.x, dataset.y)
    estimator = StratifiedEstimator(cross_entropy, dataset, assign)
    members = [(assign == k).nonzero().squeeze(1).tolist() for k in assign.unique()]
    values = [estimator.estimate(model, torch.tensor(draw)) for draw in itertools.product(*members)]
    close(torch.stack(values), enumerate_estimates(grads, assign), dtype)
    close(torch.stack(values).mean(0), grads.mean(0), dtype)
    exact = float(stratified_variance(grads, assign))
    assert spread(values) == pytest.approx(exact, rel=1e-5, abs=1e-12)
    assert estimator.backward_examples == len(values) * len(members)
    # weights N_k / N
    weights = estimator.weights()
    assert weights.tolist() == pytest.approx([len(m) / 6 for m in members], rel=1e-15)
    assert float(weights.sum()) == pytest.approx(1.0, rel=1e-15)


@pytest.mark.oracle("gc.13")
def test_weights_grow_the_largest_gradient_and_clipping_biases():
    model, dataset, assign = net(), data(), torch.tensor([0, 1, 1, 1, 1, 1])
    estimator = StratifiedEstimator(cross_entropy, dataset, assign)
    m = 2
    assert float(m * estimator.weights().max()) == pytest.approx(m * 5 / 6)  # > 1: M N_k / N
    grads = per_example_gradients(model, cross_entropy, dataset.x, dataset.y)
    draws = [torch.tensor([0, i]) for i in range(1, 6)]
    values = torch.stack([estimator.estimate(model, d) for d in draws])
    close(values.mean(0), grads.mean(0))
    longest = values.norm(dim=1, keepdim=True)
    clipped = values * (longest.min() / longest).clamp(max=1)
    assert float((clipped.mean(0) - grads.mean(0)).norm()) > 1e-3


@pytest.mark.oracle("gc.4")
def test_draws_from_each_stratum_average():
    model, dataset, assign = net(), data(n=4), torch.tensor([0, 1, 1, 1])
    grads = per_example_gradients(model, cross_entropy, dataset.x, dataset.y)
    estimator = StratifiedEstimator(cross_entropy, dataset, assign, draws=2)
    assert estimator.weights().tolist() == [1 / 8, 3 / 8, 1 / 8, 3 / 8]
    values = [
        estimator.estimate(model, torch.tensor([0, i, 0, j]))
        for i, j in itertools.product([1, 2, 3], repeat=2)
    ]
    close(torch.stack(values).mean(0), grads.mean(0))
    exact = float(stratified_variance(grads, assign, draws=2))
    assert spread(values) == pytest.approx(exact, rel=1e-9)


@pytest.mark.oracle("gc.5")
def test_strata_of_duplicates_give_the_full_gradient_every_time():
    x, y = problem(n=3)
    copies = torch.tensor([0, 1, 2, 0, 0, 1])
    dataset, model = IndexedDataset(x[copies], y[copies]), net()
    estimator = StratifiedEstimator(cross_entropy, dataset, copies)
    full = one_by_one(model, dataset.x, dataset.y).mean(0)
    for _ in range(5):
        close(estimator.sample(model, stream(0, "draw")), full)


def test_new_clusters_take_over_and_count():
    model, dataset, g = net(), data(), stream(0, "draw")
    estimator = StratifiedEstimator(cross_entropy, dataset, torch.zeros(6, dtype=torch.int64))
    estimator.sample(model, g)
    assert (estimator.backward_examples, estimator.refresh_examples) == (1, 0)
    estimator.set_clusters(torch.arange(6), examples=12)
    full = one_by_one(model, dataset.x, dataset.y).mean(0)
    close(estimator.sample(model, g), full)  # K = N
    assert (estimator.backward_examples, estimator.refresh_examples) == (7, 12)
    estimator.refresh(model)
    assert estimator.refresh_examples == 12


# --- SVRG


def step(model, seed=1):
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=stream(seed, "step"))


@pytest.mark.oracle("gc.10")
@KINDS
def test_svrg_at_the_snapshot_is_the_full_gradient(kind):
    model, dataset, g = net(kind), data(kind), stream(0, "draw")
    estimator = SVRGEstimator(cross_entropy, dataset, 2)
    estimator.refresh(model)
    full = one_by_one(model, dataset.x, dataset.y).mean(0)
    values = [estimator.sample(model, g) for _ in range(10)]
    for value in values:
        close(value, full)
    assert spread(values) < 1e-28
    assert (estimator.backward_examples, estimator.refresh_examples) == (40, 6)


@pytest.mark.oracle("gc.10")
@KINDS
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_svrg_away_from_the_snapshot_matches_enumeration(kind, chunk_size):
    model, dataset = net(kind), data(kind, n=5)
    estimator = SVRGEstimator(cross_entropy, dataset, 2)
    estimator.chunk_size = chunk_size
    estimator.refresh(model)
    then = one_by_one(model, dataset.x, dataset.y)
    step(model)
    if kind == "batch":  # the snapshot keeps its statistics
        model[1].running_mean += 0.5
    now = one_by_one(model, dataset.x, dataset.y)
    values = []
    for draw in itertools.product(range(5), repeat=2):
        i = list(draw)
        values.append(estimator.estimate(model, torch.tensor(i)))
        close(values[-1], then.mean(0) - then[i].mean(0) + now[i].mean(0))
    close(torch.stack(values).mean(0), now.mean(0))
    assert spread(values) == pytest.approx(float(svrg_variance(now, then, 2)), rel=1e-9)
    estimator.refresh(model)
    close(estimator.estimate(model, torch.tensor([0, 3])), now.mean(0))


@pytest.mark.oracle("gc.10")
def test_svrg_gives_both_gradients_one_dropout_mask():
    model, dataset = net("dropout"), data("dropout")
    with torch.random.fork_rng():  # the model draws masks from the global generator
        torch.manual_seed(0)
        estimator = SVRGEstimator(cross_entropy, dataset, 2)
        estimator.refresh(model)
        values = [estimator.sample(model, stream(0, "draw")) for _ in range(5)]
        uniform = SGEstimator(cross_entropy, dataset, 6)
        plain = [uniform.sample(model, stream(0, "draw")) for _ in range(2)]
        before = torch.get_rng_state()
        estimator.sample(model, stream(0, "draw"))
        assert not torch.equal(torch.get_rng_state(), before)  # the next masks are others
    assert spread(values) < 1e-28
    assert spread(plain) > 1e-4
    with pytest.raises(RuntimeError, match="random"):
        per_example_gradients(model, cross_entropy, dataset.x, dataset.y)


def test_svrg_needs_a_snapshot():
    estimator = SVRGEstimator(cross_entropy, data(), 2)
    with pytest.raises(RuntimeError, match="refresh"):
        estimator.sample(net(), stream(0, "draw"))
    assert estimator.backward_examples == 0


# --- hygiene


def estimators(dataset, model=None):
    actual = [
        SGEstimator(cross_entropy, dataset, 3),
        SGEstimator(cross_entropy, dataset, 3, replacement=False),
        SVRGEstimator(cross_entropy, dataset, 3),
        StratifiedEstimator(cross_entropy, dataset, STRATA, draws=2),
    ]
    if model is not None:
        for e in actual:
            e.refresh(model)
    return actual


@KINDS
def test_models_stay_as_they_were(kind):
    model, dataset = net(kind), data(kind)
    model[0].eval()  # a mixed state must stay
    cross_entropy(model(dataset.x), dataset.y).sum().backward()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model]
    grads, versions = (
        [p.grad.clone() for p in model.parameters()],
        [p._version for p in model.parameters()],
    )
    for e in estimators(dataset, model):
        with torch.no_grad():
            assert not e.sample(model, stream(0, "draw")).requires_grad
        e.sample(model, stream(0, "draw"))
    per_example_gradients(model, cross_entropy, dataset.x, dataset.y)
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert [m.training for m in model] == modes
    assert [p._version for p in model.parameters()] == versions
    assert all(map(torch.equal, [p.grad for p in model.parameters()], grads))
    assert all(p.requires_grad for p in model.parameters())


def test_samples_follow_their_generator_only():
    model, dataset = net(), data()
    for e in estimators(dataset, model):
        step(model)
        a = [e.sample(model, g) for g in [stream(0, "draw")] for _ in range(3)]
        b = [e.sample(model, g) for g in [stream(0, "draw")] for _ in range(3)]
        assert all(map(torch.equal, a, b))
        assert not torch.equal(a[0], a[1])


def test_restored_estimators_go_on_alike():
    model, dataset = net(), data()
    first = estimators(dataset, model)
    state = [copy.deepcopy(e.state_dict()) for e in first]
    step(model)
    other = estimators(dataset)
    other[3].set_clusters(torch.arange(6))
    for e, o, s in zip(first, other, state, strict=True):
        o.load_state_dict(s)
        expected = e.sample(model, stream(0, "draw"))
        assert torch.equal(o.sample(model, stream(0, "draw")), expected)
        assert (o.backward_examples, o.refresh_examples) == (
            e.backward_examples,
            e.refresh_examples,
        )


def test_bad_input_is_named():
    model, dataset, whole = net(), data(), torch.arange(6)
    empty = IndexedDataset(torch.zeros(0, 4), torch.zeros(0))
    x, y = dataset.x, dataset.y
    for message, call in {
        "no batch of 0": lambda: SGEstimator(cross_entropy, dataset, 0),
        "no batch of 7 among 6": lambda: SVRGEstimator(
            cross_entropy, dataset, 7, replacement=False
        ),
        "among 0": lambda: SGEstimator(cross_entropy, empty, 1),
        "draws.*got 0": lambda: StratifiedEstimator(cross_entropy, dataset, whole, draws=0),
        r"6 integer labels.*\(5,\)": lambda: StratifiedEstimator(cross_entropy, dataset, whole[:5]),
        "6 integer labels.*float32": lambda: StratifiedEstimator(
            cross_entropy, dataset, whole.float()
        ),
        "0 integer labels": lambda: StratifiedEstimator(cross_entropy, empty, whole[:0]),
        "got 6 and 5": lambda: per_example_gradients(model, cross_entropy, x, y[:5]),
        "got 0 and 0": lambda: per_example_gradients(model, cross_entropy, x[:0], y[:0]),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.oracle("gc.7")
@pytest.mark.parametrize("criterion", [F.cross_entropy, lambda z, y: cross_entropy(z, y)[:, None]])
def test_reduced_losses_are_refused(criterion):
    model, dataset = net(), data()
    for e in (
        SGEstimator(criterion, dataset, 2),
        SGEstimator(criterion, dataset, 1),
        StratifiedEstimator(criterion, dataset, torch.arange(6)),
    ):
        with pytest.raises(ValueError, match=r"losses of shape.*got \("):
            e.sample(model, stream(0, "draw"))
    with pytest.raises(ValueError, match=r"losses of shape.*got \("):
        SVRGEstimator(criterion, dataset, 2).refresh(model)
    with pytest.raises(ValueError, match=r"losses of shape.*got \("):
        per_example_gradients(model, criterion, dataset.x, dataset.y)


def test_batch_statistics_are_refused_by_name():
    dataset = data("batch")
    train, frozen = net("batch").train(), net("batch").requires_grad_(False)
    without = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())
    without = without.double().eval()
    for model, message in (
        (train, r"1 \(BatchNorm2d\).*eval"),
        (without, r"0 \(BatchNorm2d\)"),
        (nn.BatchNorm2d(1).double(), r"the model \(BatchNorm2d\)"),
        (frozen, "no trainable"),
    ):
        for e in (*estimators(dataset)[:2], estimators(dataset)[3]):
            with pytest.raises(ValueError, match=message):
                e.sample(model, stream(0, "draw"))
        with pytest.raises(ValueError, match=message):
            SVRGEstimator(cross_entropy, dataset, 2).refresh(model)
        with pytest.raises(ValueError, match=message):
            per_example_gradients(model, cross_entropy, dataset.x, dataset.y)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_named(bad):
    model, (x, y) = net(), problem()
    x[4, 1] = bad
    with pytest.raises(FloatingPointError, match="example 4"):
        per_example_gradients(model, cross_entropy, x, y)
    estimator = SGEstimator(cross_entropy, IndexedDataset(x, y), 2)
    estimator.estimate(model, torch.tensor([0, 3]))
    with pytest.raises(FloatingPointError, match=r"\[4, 1\]"):
        estimator.estimate(model, torch.tensor([4, 1]))
    with pytest.raises(FloatingPointError, match="not finite"):
        SVRGEstimator(cross_entropy, IndexedDataset(x, y), 2).refresh(model)


# --- devices


def everything(x, y):
    model, actual = net("conv").to(x.device), []
    for e in estimators(IndexedDataset(x, y), model):
        step_free = stream(0, "draw")
        actual += [e.sample(model, step_free), e.draw(step_free).to(x.device)]
    return [*actual, per_example_gradients(model, cross_entropy, x, y, 4)]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, *problem("conv"))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, *problem("conv"))
