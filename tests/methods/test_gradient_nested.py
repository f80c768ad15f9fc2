"""Batches as other loaders give them: nested inputs, other types of index, odd batches."""

from __future__ import annotations

import copy
import pickle
from collections import UserDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from trainaug.methods.gradient_clustering import (
    GradientClustering,
    SGEstimator,
    StratifiedEstimator,
    SVRGEstimator,
    flat_gradients,
    layer_factors,
    per_example_gradients,
)
from trainaug.training.networks import MLP, BagOfTokens, CaptionGRU, DualEncoder, FeatureEncoder
from trainaug.training.randomness import initialise, stream

losses_of = partial(F.cross_entropy, reduction="none")


class Nested(nn.Module):
    """A network whose inputs lie in a structure, and whose outputs lie in a dict."""

    def __init__(self, parts):
        super().__init__()
        self.parts, self.body = parts, nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        first, second = self.parts(x)
        return {"logits": self.body(torch.cat([first, second], 1))}


KINDS = {
    "tuple": (lambda a, b: (a, b), lambda x: x),
    "list in a tuple": (lambda a, b: (a, [b]), lambda x: (x[0], x[1][0])),
    "dict": (lambda a, b: {"a": a, "b": b}, lambda x: (x["a"], x["b"])),
    "mapping": (lambda a, b: UserDict(a=a, b=b), lambda x: (x["a"], x["b"])),
}


def criterion(outputs, y):
    return losses_of(outputs["logits"], y["labels"])


class Rows:
    """Data that give nested batches for a tensor of indices, and single examples for a number."""

    def __init__(self, kind, randn, n=12):
        self.make, parts = KINDS[kind]
        self.x, self.y = randn(0, n, 4).double(), torch.arange(n) % 3
        with torch.device("meta"):
            model = Nested(parts)
        initialise(model, stream(0, "init"))
        self.model = model.double()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.make(self.x[i, :2], self.x[i, 2:]), {"labels": self.y[i]}, i

    @property
    def plain(self):
        """The same network and data without structures."""
        return self.model.body, losses_of, self.x, self.y


def cluster(model, criterion, k=3, **options):
    return GradientClustering(model, criterion, k, generator=stream(0, "cluster"), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_nested_batches_give_what_plain_ones_give(kind, randn):
    data = Rows(kind, randn)
    model, plain_criterion, x, y = data.plain
    nested, labels, _ = data[torch.arange(12)]
    actual = flat_gradients(layer_factors(data.model, criterion, nested, labels))
    expected = flat_gradients(layer_factors(*data.plain))
    assert torch.equal(actual, expected)
    actual = per_example_gradients(data.model, criterion, nested, labels, chunk_size=5)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    rows = torch.arange(12).split(5)
    plain = cluster(model, plain_criterion).fit([(x[r], y[r], r) for r in rows], 3)
    lists = [data[r] for r in rows]
    assert torch.equal(cluster(data.model, criterion).fit(lists, 3).assign, plain.assign)
    if kind != "mapping":  # torch's collate gives a plain dict
        options = {"batch_size": 5, "generator": stream(0, "loader")}
        loaders = [DataLoader(data, **options), DataLoader(data, num_workers=2, **options)]
        for loader in loaders if kind == "dict" else loaders[:1]:
            assert torch.equal(cluster(data.model, criterion).fit(loader, 3).assign, plain.assign)
    first = cluster(data.model, criterion).observe(nested, labels)
    assert torch.equal(first, cluster(model, plain_criterion).observe(x, y))
    for make in (
        SGEstimator,
        SVRGEstimator,
        lambda criterion, data, _: StratifiedEstimator(criterion, data, plain.assign),
    ):
        estimator = make(criterion, data, 4)
        estimator.refresh(data.model)
        index = estimator.draw(stream(0, "draw"))
        weights = estimator.weights()
        mean = expected[index].mean(0) if weights is None else weights @ expected[index]
        mean = expected.mean(0) if make is SVRGEstimator else mean  # at the snapshot itself
        torch.testing.assert_close(estimator.estimate(data.model, index), mean)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("encoder", [BagOfTokens, CaptionGRU])
def test_pairs_of_pictures_and_captions_are_one_input(encoder, randn):
    g = stream(0, "init")
    model = DualEncoder(FeatureEncoder(5, 6, 4, g), encoder(9, 4, g), lambda a, b: a @ b.T)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0], [7, 8, 1], [2, 2, 2], [3, 1, 0]])
    x, y = (randn(0, 6, 5).float(), (tokens, (tokens > 0).float())), torch.arange(6)
    losses_of_pairs = lambda scores, y: -scores.diagonal()  # noqa: E731
    actual = per_example_gradients(model, losses_of_pairs, x, y)
    expected = []
    for i in range(6):
        row = x[0][i : i + 1], (tokens[i : i + 1], x[1][1][i : i + 1])
        grads = torch.autograd.grad(
            losses_of_pairs(model(row), None).sum(), list(model.parameters())
        )
        expected.append(torch.cat([grad.flatten() for grad in grads]))
    torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=1e-6)
    layers = ["pictures.0", "pictures.2"]
    d = sum(p.numel() for p in model.pictures.parameters())
    factors = layer_factors(model, losses_of_pairs, x, y, layers=layers)
    torch.testing.assert_close(flat_gradients(factors), actual[:, :d], rtol=0, atol=1e-6)
    clustering = cluster(model, losses_of_pairs, 2, layers=layers)
    assert int(clustering.fit([(x, y, y)], 2).sizes.sum()) == 6
    with pytest.raises(ValueError, match="no gradients of their own"):  # losses of pairs
        layer_factors(model, lambda s, y: losses_of(s.T, y), x, y, layers=layers)


# --- index and form


def problem(randn, n=12):
    return MLP(4, 5, 3, stream(0, "init")).double(), randn(2, n, 4), torch.arange(n) % 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, list])
@pytest.mark.parametrize("rule", ["running", "exact"])
def test_indices_of_any_integer_type_are_the_same(rule, dtype, randn):
    model, x, y = problem(randn)
    rows = torch.arange(12).split(5)
    expected = cluster(model, losses_of, rule=rule).fit([(x[r], y[r], r) for r in rows], 2)
    other = [(x[r], y[r], r.tolist() if dtype is list else r.to(dtype)) for r in rows]
    assert torch.equal(cluster(model, losses_of, rule=rule).fit(other, 2).assign, expected.assign)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, i: {"x": x, "y": y, "index": i}, r"got dict of \['x', 'y', 'index'\]"),
        (lambda x, y, i: (x, y), "x, y, index"),
        (lambda x, y, i: (x, y, i.float()), "integers"),
        (lambda x, y, i: (x, y, i > 3), "integers"),
        (lambda x, y, i: (x, y, i - 1), r"got \[-1\]"),
        (lambda x, y, i: (x, y, i[1:]), "as many indices"),
        (lambda x, y, i: (x[:0], y[:0], i[:0]), "as many indices"),
        (lambda x, y, i: (x, y, i // 2), "every index"),
    ],
)
def test_batches_of_another_form_are_refused(change, message, randn):
    model, x, y = problem(randn)
    with pytest.raises((TypeError, ValueError), match=message):
        cluster(model, losses_of, 1).fit([change(x, y, torch.arange(12))], 1)


def test_batches_of_one_example_are_like_others(randn):
    model, x, y = problem(randn)
    rows = torch.arange(12).split(1)
    single = cluster(model, losses_of, rule="plain").fit([(x[r], y[r], r) for r in rows], 2)
    state = cluster(model, losses_of, rule="plain")
    assert int(single.sizes.sum()) == 12
    assert len(state.fit([(x[:11], y[:11], rows_of(11)), (x[11:], y[11:], rows[11])]).assign) == 12


def test_data_of_another_form_are_refused(randn):
    model, x, y = problem(randn)

    class Mappings(list):
        def __getitem__(self, index):
            return {"x": x[index], "y": y[index], "index": index}

    with pytest.raises(TypeError, match=r"mapping of .*'x'"):
        SGEstimator(losses_of, Mappings(y), 2).sample(model, stream(0, "draw"))


def rows_of(n):
    return torch.arange(n)


# --- what changes the model, and state


CHANGES = {
    "data": lambda p: p.data.add_(0.1),
    "new data": lambda p: setattr(p, "data", p.data + 0.1),
    "numpy": lambda p: p.detach().numpy().__iadd__(0.1),
    "sum kept": lambda p: p.data.view(-1)[:2].add_(torch.tensor([0.5, -0.5])),
    "no_grad": torch.no_grad()(lambda p: p.add_(0.1)),
    "back and forth": None,
}


@pytest.mark.parametrize("name", CHANGES)
def test_parameters_that_change_in_a_pass_are_noticed_however_they_change(name, randn):
    model, x, y = problem(randn)
    batches = [(x[r], y[r], r) for r in torch.arange(12).split(5)]

    class Changing(list):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number == 1 and CHANGES[name]:
                    CHANGES[name](model[1].weight)
                elif number == 1:
                    torch.nn.init.zeros_(torch.nn.Parameter(model[1].weight.detach().clone()))
                    model[1].weight.data.add_(0)  # a version moves, no number
                yield batch

    actual = cluster(model, losses_of)
    actual.fit(batches, 1)
    if CHANGES[name]:
        with pytest.raises(RuntimeError, match="changed during a pass"):
            actual.fit(Changing(batches), 1)
    else:
        actual.fit(Changing(batches), 1)


def test_states_are_of_whole_passes_and_of_the_same_clusters(randn):
    model, x, y = problem(randn)
    batches = [(x[r], y[r], r) for r in torch.arange(12).split(5)]
    actual = cluster(model, losses_of)

    class Saving(list):
        def __iter__(self):
            for batch in super().__iter__():
                actual.state_dict()
                yield batch

    actual.fit(batches, 1)
    with pytest.raises(RuntimeError, match="half a pass"):
        actual.fit(Saving(batches), 1)
    state = actual.state_dict()  # and now it can be taken again
    for other in (cluster(model, losses_of, 2), cluster(model, losses_of, 3, centers="full")):
        with pytest.raises(ValueError, match=r"need [23] |of 3 clusters"):
            other.load_state_dict(state)
        assert not other.centers.centers
    for twin in (copy.deepcopy(actual), pickle.loads(pickle.dumps(actual))):  # noqa: S301
        assert torch.equal(
            twin.fit(batches, 1).assign, copy.deepcopy(actual).fit(batches, 1).assign
        )


def test_svrg_adds_up_many_chunks_as_few(randn):
    model, x, y = problem(randn, 200)
    data = [(x[i], y[i], i) for i in range(200)]

    class Slices(list):
        def __getitem__(self, index):
            return x[index], y[index], index

    whole, many = (
        SVRGEstimator(losses_of, Slices(data), 2),
        SVRGEstimator(losses_of, Slices(data), 2),
    )
    many.chunk_size = 1
    for estimator in (whole, many):
        estimator.refresh(model)
    states = [estimator.state_dict()["_mean"] for estimator in (whole, many)]
    torch.testing.assert_close(*states, rtol=0, atol=1e-12)
