"""The samplers that ask the model: epochs, resuming, running ahead, and bad input."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from trainaug.methods.ordering import (
    BatchScorer,
    PerfectOrderingSampler,
    SampleLossSampler,
    example_losses,
)
from trainaug.methods.ordering.sampler import epoch_seed
from trainaug.training.loop import train
from trainaug.training.networks import MLP
from trainaug.training.randomness import stream

KINDS = ["partition", "resampled", "sample_loss"]


class Data:
    """Three features, three classes; one read of many indices is one batch."""

    def __init__(self, n):
        g = torch.Generator().manual_seed(n)
        self.x, self.y = torch.randn(n, 3, generator=g), torch.arange(n) % 3

    def __len__(self):
        return len(self.y)

    def __getitem__(self, indices):
        return self.x[indices], self.y[indices], torch.as_tensor(indices)


def halves(x, y, mask=None):
    return (x[:, 0, 0] * 2).round() / 2  # of the first example; ties are frequent


def sampler_of(kind, data, size=4, scorer=halves, *, seed=0, **options):
    g = stream(seed, "order")
    if kind == "sample_loss":
        options.setdefault("refresh_every", 2)
        options.setdefault("losses_of", lambda indices: (data.x[indices, 0] * 2).round())
        return SampleLossSampler(data, size, generator=g, **options)
    options = {"candidates": kind, "num_candidates": 3, "scorer": scorer} | options
    c = stream(seed, "candidates")
    return PerfectOrderingSampler(data, size, generator=g, candidate_generator=c, **options)


def through_a_file(state):
    """Save and load, with nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def losses_of(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def model_of(lr=0.1):
    model = MLP(3, 5, 3, stream(0, "init"))
    return model, torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def step(model, optimizer, data, batch):
    optimizer.zero_grad()
    losses_of(model(data.x[batch]), data.y[batch]).mean().backward()
    optimizer.step()


# --- epochs


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_depends_on_seed_and_number_alone(kind):
    data = Data(14)

    def epochs(*numbers, seed=0):
        sampler, actual = sampler_of(kind, data, seed=seed), []
        for number in numbers:
            sampler.set_epoch(number)
            actual.append(list(sampler))
        return actual

    a, b, c = epochs(0, 1, 2)
    assert epochs(2, 0, 2, 1) == [c, a, c, b]
    assert len({str(order) for order in [a, b, c, *epochs(0, 1, seed=1)]}) == 5


@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**32), min_size=2, max_size=20, unique=True))
@settings(max_examples=50, deadline=None)
def test_seeds_of_epochs_are_valid_and_differ(seed, epochs):
    seeds = [epoch_seed(seed, epoch) for epoch in epochs]
    assert all(0 <= actual < 2**63 for actual in seeds)
    assert len({actual % 2**32 for actual in seeds}) == len({epoch % 2**32 for epoch in epochs})


# --- resuming


@pytest.mark.oracle("ord.P13")
@pytest.mark.parametrize("with_epochs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(1, 16), size=st.integers(1, 5), done=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_sampler_resumes_anywhere(kind, with_epochs, n, size, done):
    data = Data(n)

    def batches(sampler, epoch=0):
        for number in itertools.count(epoch):
            if with_epochs:
                sampler.set_epoch(number)
            yield from sampler

    straight = sampler_of(kind, data, size)
    count = 3 * len(straight)
    done = min(done, count)
    expected = list(itertools.islice(batches(straight), count))
    sampler = sampler_of(kind, data, size)
    flow = batches(sampler)
    first = list(itertools.islice(flow, done))
    state = through_a_file(sampler.state_dict())
    next(flow)  # the state is a copy: going on does not change it
    resumed, again = (sampler_of(kind, data, size, seed=seed) for seed in (98, 99))
    resumed.load_state_dict(state)
    again.load_state_dict(through_a_file(resumed.state_dict()))
    epoch = done // len(straight)  # an epoch that is finished is not begun again
    for other in (resumed, again):
        assert other.emitted == done
        rest = itertools.islice(batches(other, epoch), count - done)
        assert first + list(rest) == expected


@pytest.mark.oracle("ord.P13")
@pytest.mark.parametrize("kind", [*KINDS, "trial"])
@pytest.mark.parametrize("done", [0, 2, 5, 6, 8])
def test_a_resumed_run_is_bit_equal(done, kind):
    data = Data(18)

    def setting(seed):
        model, optimizer = model_of()
        score = "delta_abs" if kind == "trial" else "min_loss"
        scorer = BatchScorer(score, model, losses_of, optimizer=optimizer)
        options = {"scorer": scorer}
        if kind == "sample_loss":
            options["losses_of"] = lambda i: example_losses(model, losses_of, data.x[i], data.y[i])
        known = "partition" if kind == "trial" else kind
        return model, optimizer, sampler_of(known, data, 3, seed=seed, **options)

    def run(model, optimizer, sampler, steps, epoch=0):
        actual = []
        for number in range(epoch, 3):
            sampler.set_epoch(number)
            for batch in sampler:
                step(model, optimizer, data, batch)
                actual.append(batch)
                if len(actual) == steps:
                    return actual
        return actual

    model, optimizer, sampler = setting(0)
    expected = run(model, optimizer, sampler, 18)
    short = setting(0)
    first = run(*short, done) if done else []
    states = through_a_file([part.state_dict() for part in short])
    resumed = setting(7)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    assert first + run(*resumed, 18 - done, done // 6) == expected
    for p, q in zip(model.parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_epoch_is_not_finished_unless_loaded(kind):
    sampler = sampler_of(kind, Data(14))
    next(iter(sampler))
    assert sorted(itertools.chain(*sampler)) == list(range(14))


# --- running ahead


@pytest.mark.oracle("ord.P10")
@pytest.mark.parametrize("score", ["min_loss", "delta_abs"])
@pytest.mark.parametrize("together", [True, False])
def test_every_score_is_of_the_present_model(score, together):
    data, versions = Data(18), []
    model, optimizer = model_of()
    scorer = BatchScorer(score, model, losses_of, optimizer=optimizer, together=together)
    sampler = sampler_of("partition", data, 3, scorer)

    class Watching:
        """Compare the model at scoring with the one after so many real steps."""

        version = scorer.version

        def __call__(self, *batch):
            versions.append([sampler.emitted, [p.detach().clone() for p in model.parameters()]])
            return scorer(*batch)

    sampler.score_batches = sampler.scorer = Watching()
    after = [[p.detach().clone() for p in model.parameters()]]
    for indices in sampler:
        step(model, optimizer, data, indices)
        after.append([p.detach().clone() for p in model.parameters()])
    assert [emitted for emitted, _ in versions] == list(range(5))  # the last batch has no rival
    for steps, values in versions:
        assert all(torch.equal(a, b) for a, b in zip(values, after[steps], strict=True))


@pytest.mark.oracle("ord.P10")
def test_the_training_loop_and_a_loader_without_workers_keep_pace():
    data = Data(18)
    model, optimizer = model_of()
    scorer = BatchScorer("min_loss", model, losses_of)
    sampler = sampler_of("partition", data, 3, scorer)
    assert train(model, data, sampler, losses_of, optimizer, num_epochs=2).steps == 12
    pairs = torch.utils.data.TensorDataset(data.x, data.y)
    for x, y in DataLoader(pairs, batch_sampler=sampler, generator=stream(0, "loader")):
        optimizer.zero_grad()
        losses_of(model(x), y).mean().backward()
        optimizer.step()
    assert sampler.emitted == 18
    assert sampler.seconds > 0


class Losses:
    """Losses of examples, which say when their model has changed."""

    def __init__(self, data, model):
        self.data, self.model = data, model
        self.version = BatchScorer("min_loss", model, losses_of).version

    def __call__(self, indices):
        x, y = self.data.x[indices], self.data.y[indices]
        return example_losses(self.model, losses_of, x, y)


def watching(kind, data, model, size=3):
    """A sampler that knows whether its model was trained on the last batch."""
    arguments = {}
    if kind == "sample_loss":
        arguments = {"losses_of": Losses(data, model), "refresh_every": 1}
    return sampler_of(kind, data, size, BatchScorer("min_loss", model, losses_of), **arguments)


@pytest.mark.oracle("ord.P10")
@pytest.mark.parametrize("kind", KINDS)
def test_running_ahead_of_the_training_is_refused(kind):
    data, refused = Data(18), r"before the model was updated.*num_workers=0"
    model, optimizer = model_of()
    sampler = watching(kind, data, model)
    batches = iter(sampler)
    next(batches)
    with torch.no_grad():
        losses_of(model(data.x), data.y)  # evaluating is not training
    with pytest.raises(RuntimeError, match=refused):
        next(batches)
    step(model, optimizer, data, [0, 1])
    g = stream(0, "loader")
    ahead = DataLoader(data, batch_sampler=sampler, num_workers=1, prefetch_factor=1, generator=g)
    with pytest.raises(RuntimeError, match=refused):
        next(iter(ahead))
    assert len(next(iter(sampler))) == 3


def one_ahead(batches):
    """Fetch as Accelerate's prepared loaders do."""
    batches = iter(batches)
    batch = next(batches)
    for following in batches:
        yield batch
        batch = following
    yield batch


@pytest.mark.oracle("ord.P10")
@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_that_fetches_one_batch_ahead_is_refused_in_every_epoch(kind):
    data = Data(18)
    model, optimizer = model_of()
    sampler = watching(kind, data, model)
    for _ in range(2):
        flow = one_ahead(sampler)
        with pytest.raises(RuntimeError, match="no other loader that fetches ahead"):
            next(flow)
        for batch in sampler:  # a batch that was looked at is no hindrance to a new epoch
            step(model, optimizer, data, batch)


class WritesData(torch.optim.SGD):
    """An optimiser whose writes autograd does not see."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data.sub_(p.grad, alpha=0.1)


def unseen(model, data):
    optimizer = WritesData(model.parameters())
    return lambda batch: step(model, optimizer, data, batch)


def without_gradients(model, data):
    """Random search through ``data``: neither a graph nor a version of autograd's moves."""

    def train_on(batch):
        for p in model.parameters():
            p.data += 0.01

    return train_on


def accumulating(model, data):
    optimizer, count = torch.optim.SGD(model.parameters(), 0.1), itertools.count(1)

    def train_on(batch):
        losses_of(model(data.x[batch]), data.y[batch]).mean().backward()
        if next(count) % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()

    return train_on


def skipping(model, data):
    """Gradients overflow, so that a scaler skips the step; at the end all is as it was."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38, growth_interval=10_000)

    def train_on(batch):
        scaler.scale(1e30 * losses_of(model(data.x[batch]), data.y[batch]).mean()).backward()
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert all(map(torch.equal, model.parameters(), before))

    return train_on


def warming_up(model, data):
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    return lambda batch: step(model, optimizer, data, batch)


def functional(model, data):
    """Gradients that come from `torch.func` and are never in ``p.grad``."""

    def train_on(batch):
        named = dict(model.named_parameters())
        grads = torch.func.grad(
            lambda p: losses_of(
                torch.func.functional_call(model, p, (data.x[batch],)), data.y[batch]
            ).mean()
        )(named)
        with torch.no_grad():
            for name, p in named.items():
                p -= 0.1 * grads[name]

    return train_on


@pytest.mark.oracle("ord.P10")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "way", [unseen, without_gradients, accumulating, skipping, warming_up, functional]
)
def test_every_way_to_train_on_a_batch_is_seen(way, kind):
    data = Data(18)
    model, _ = model_of()
    sampler, train_on, actual = watching(kind, data, model), way(model, data), []
    for _ in range(2):
        for batch in sampler:
            actual += batch
            train_on(batch)
    assert sorted(actual) == sorted(2 * list(range(18)))


# --- bad input


@pytest.mark.oracle("ord.P8")
@pytest.mark.parametrize("n", [12, 14])
@pytest.mark.parametrize("score", ["min_loss", "delta_rel", "grad_align"])
def test_a_loss_that_is_nan_names_its_batch(score, n):
    data = Data(n)
    data.x[n - 1] = math.nan
    model, optimizer = model_of()
    target = data.x[:3], data.y[:3]
    scorer = BatchScorer(score, model, losses_of, optimizer=optimizer, target=target)
    sampler = sampler_of("partition", data, 4, lambda *b: scorer(*b), num_candidates=9)
    with pytest.raises(FloatingPointError) as caught:
        list(sampler)
    sampler = sampler_of("partition", data, 4, num_candidates=1)
    (lost,) = (batch for batch in sampler if n - 1 in batch)
    assert str(caught.value) == f"the score of the batch {lost} is NaN"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_decides_nothing(bad):
    data = Data(12)

    def losses(indices):
        return data.x[indices, 0].where(torch.as_tensor(indices) != 7, bad)

    shown = "NaN" if math.isnan(bad) else "inf"
    with pytest.raises(FloatingPointError, match=f"the loss of the example 7 is {shown}"):
        list(sampler_of("sample_loss", data, losses_of=losses))
    with pytest.raises(ValueError, match=r"losses must have shape \(12,\), got \(12, 1\)"):
        list(sampler_of("sample_loss", data, losses_of=lambda i: data.x[i, :1]))
    with pytest.raises(FloatingPointError, match=rf"the score of the batch \[.*\] is {shown}"):
        list(sampler_of("partition", data, scorer=lambda x, y, mask: x[:, 0, 0] + bad))


def test_bad_input_is_refused():
    data, g = Data(6), stream(0, "order")
    with pytest.raises(ValueError, match="must be two generators"):
        PerfectOrderingSampler(data, 2, scorer=halves, generator=g, candidate_generator=g)
    for size, options in ((0, {}), (-1, {}), (2, {"num_candidates": 0}), (7, {"drop_last": True})):
        with pytest.raises(ValueError, match=f"no batch.*batch_size={size}"):
            sampler_of("partition", data, size, **options)
    for kind in KINDS:
        with pytest.raises(ValueError, match="no batch: 0 examples"):
            sampler_of(kind, Data(0))
    with pytest.raises(ValueError, match="partition or resampled, got 'fresh'"):
        sampler_of("fresh", data)
    with pytest.raises(ValueError, match="refresh_every must be at least 1, got 0"):
        sampler_of("sample_loss", data, refresh_every=0)
    with pytest.raises(ValueError, match=r"one score a candidate, \(3,\)"):
        list(sampler_of("partition", data, 2, lambda x, y, mask: x))
