"""The sampler that goes round the clusters: visits, weights, unbiasedness, resuming, training."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.gradient_clustering import StratifiedSampler, enumerate_estimates
from trainaug.training.loop import train
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, stream

LABELS = st.lists(st.sampled_from([-3, 0, 1, 2, 7]), min_size=1, max_size=30)


def stratified(n, size, labels=None, *, seed=0, **options):
    sampler = StratifiedSampler(n, size, stream(seed, "order"), **options)
    if labels is not None:
        sampler.set_clusters(torch.tensor(labels) if isinstance(labels, list) else labels)
    return sampler


def flow(sampler, count):
    """Return the examples of the first batches, over epochs."""
    batches = itertools.chain.from_iterable(itertools.repeat(sampler))
    return list(itertools.islice(batches, count))


# --- visits


@pytest.mark.oracle("gc.4")
@given(LABELS, st.integers(1, 7), st.booleans(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_clusters_are_visited_equally_and_examples_within_them(labels, size, drop_last, seed):
    n = len(labels)
    if drop_last and size > n:
        return
    sampler = stratified(n, size, labels, seed=seed, drop_last=drop_last)
    members = {k: [i for i in range(n) if labels[i] == k] for k in set(labels)}
    assert sampler.num_clusters == len(members)
    batches = [list(sampler) for _ in range(3)]
    for epoch in batches:
        last = [] if drop_last or n % size == 0 else [n % size]
        assert [len(batch) for batch in epoch] == [size] * (n // size) + last
        assert len(epoch) == len(sampler)
    seen = []
    for i in itertools.chain(*itertools.chain(*batches)):
        seen.append(i)
        visits = [sum(labels[j] == k for j in seen) for k in members]
        assert max(visits) - min(visits) <= 1
        if len(seen) % len(members) == 0:
            assert max(visits) == min(visits)
        mine = members[labels[i]]
        counts = [seen.count(j) for j in mine]  # without replacement, for ever
        assert max(counts) - min(counts) <= 1


@pytest.mark.oracle("gc.4")
@given(st.integers(1, 20), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_one_cluster_or_one_each_is_sampling_without_replacement(n, size, one):
    sampler = stratified(n, size, torch.zeros(n).long() if one else torch.arange(n))
    for _ in range(3):
        assert sorted(itertools.chain(*sampler)) == list(range(n))
    assert sampler.weights(torch.arange(n)).tolist() == [1.0] * n


@pytest.mark.oracle("gc.4")
@given(st.integers(1, 20), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_before_clustering_it_is_random_reshuffling(n, size, drop_last):
    if drop_last and size > n:
        return
    sampler = stratified(n, size, drop_last=drop_last)
    plain = RandomBatchSampler(n, size, stream(0, "order"), drop_last)
    for _ in range(3):
        assert list(sampler) == list(plain)
    assert sampler.num_clusters == 0
    weights = sampler.weights(torch.tensor([n - 1, 0]))
    assert (weights.tolist(), weights.dtype) == ([1.0, 1.0], torch.float32)


def test_orders_of_rounds_and_members_are_even():
    sampler, counts = stratified(6, 3, [0, 0, 0, 1, 2, 2]), torch.zeros(3, 6)
    for batch in flow(sampler, 3000):  # each is a round
        for position, i in enumerate(batch):
            counts[position, i] += 1
    share = torch.tensor([1 / 9] * 3 + [1 / 3] + [1 / 6] * 2)
    # five standard deviations of a share of 3000 draws, at most
    assert float((counts / 3000 - share).abs().max()) < 5 * math.sqrt(2 / 9 / 3000)


# --- weights


@pytest.mark.oracle("gc.4")
@given(LABELS)
@settings(max_examples=60, deadline=None)
def test_weights_have_mean_one_over_clusters(labels):
    n, m = len(labels), len(set(labels))
    weights = stratified(n, 2, labels).weights(torch.arange(n))
    expected = [m * labels.count(k) / n for k in labels]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    first = [labels.index(k) for k in set(labels)]
    assert float(weights[first].mean()) == pytest.approx(1.0, abs=1e-6)
    again = stratified(n, 2, labels).weights(torch.tensor([[n - 1, 0]]))  # any shape
    assert again.tolist() == [[weights[-1], weights[0]]]


def estimates_of(sampler, grads, count):
    """Mean of the weighted gradients of each of so many full batches."""
    actual = []
    while len(actual) < count:
        for batch in sampler:
            index = torch.tensor(batch)
            if len(batch) == sampler.batch_size:
                weights = sampler.weights(index).double()
                actual.append((weights[:, None] * grads[index]).mean(0))
    return torch.stack(actual[:count])


@pytest.mark.oracle("gc.4")
def test_the_estimate_is_unbiased_exactly_and_by_simulation(randn):
    labels = torch.tensor([5, 5, 5, 5, 2, 2, 9])
    grads, mean = randn(0, 7, 3), randn(0, 7, 3).mean(0)
    sampler = stratified(7, 3, labels)
    # a place of a batch: a cluster of three, then an example of it
    chance = torch.tensor([1 / 12] * 4 + [1 / 6] * 2 + [1 / 3], dtype=torch.float64)
    weights = sampler.weights(torch.arange(7)).double()
    torch.testing.assert_close((chance * weights) @ grads, mean, rtol=0, atol=1e-7)
    exact = enumerate_estimates(grads, labels)
    variance = float((exact - mean).square().sum(1).mean())
    for size in (1, 2, 3, 6):
        actual = estimates_of(
            stratified(7 * size, size, labels.repeat(size)), grads.repeat(size, 1), 4000
        )
        error = (actual.mean(0) - mean).abs() / (actual.std(0) / math.sqrt(4000))
        assert float(error.max()) < 5
        if size == 3:  # a round: the variance of one draw from each stratum
            assert float(actual.var(0).sum()) == pytest.approx(variance, rel=0.1)


@pytest.mark.oracle("gc.13")
def test_weights_reach_m_times_the_largest_share_and_clipping_biases(randn):
    labels = torch.tensor([0] * 97 + [1, 2, 3])
    sampler = stratified(100, 4, labels)
    assert float(sampler.weights(torch.arange(100)).max()) == pytest.approx(4 * 0.97)
    grads = randn(0, 100, 3) + 1.0
    weighted = sampler.weights(torch.arange(100)).double()[:, None] * grads
    chance = 1 / (4 * torch.bincount(labels)[labels].double())  # of an example, in a place
    torch.testing.assert_close(chance @ weighted, grads.mean(0), rtol=0, atol=1e-6)
    limit = float(grads.norm(dim=1).max())  # clips no gradient without weights
    norms = weighted.norm(dim=1, keepdim=True)
    assert float(norms.max()) > 2 * limit
    clipped = chance @ (weighted * (limit / norms).clamp_max(1.0))
    assert float(clipped.norm()) < 0.8 * float(grads.mean(0).norm())


# --- epochs


def test_a_new_partition_holds_from_the_next_batch_on():
    sampler, actual = stratified(12, 2), []
    for number, batch in enumerate(sampler):
        actual.append(batch)
        if number == 1:
            sampler.set_clusters(torch.tensor([0] * 11 + [1]))
            assert sampler.weights(torch.tensor([0, 11])).tolist() == pytest.approx(
                [22 / 12, 1 / 6]
            )
    assert len(actual) == 6
    assert all(11 in batch for batch in actual[2:])
    sampler.set_clusters(torch.tensor([4] * 6 + [-4] * 6))
    assert all({i // 6 for i in batch} == {0, 1} for batch in sampler)


@pytest.mark.oracle("gc.14")
@given(
    labels=st.none() | LABELS,
    size=st.integers(1, 5),
    done=st.integers(0, 20),
    drop_last=st.booleans(),
    change=st.integers(0, 20),
)
@settings(max_examples=150, deadline=None)
def test_sampler_resumes_at_every_batch(labels, size, done, drop_last, change):
    n = 13 if labels is None else len(labels)
    if drop_last and size > n:
        return
    options = {"drop_last": drop_last}

    def run(sampler, start, stop):
        """Batches of three epochs, with a new partition after batch ``change``."""
        actual = []
        while start < stop:
            for batch in sampler:
                actual.append(batch)
                start += 1
                if start == change:
                    sampler.set_clusters(torch.arange(n) % 3)
                if start == stop:
                    break
        return actual

    total = 3 * len(stratified(n, size, **options))
    done = min(done, total)
    expected = run(stratified(n, size, labels, **options), 0, total)
    sampler = stratified(n, size, labels, **options)
    first = run(sampler, 0, done)
    state = sampler.state_dict()
    run(sampler, 0, 1)  # the state is a copy
    resumed = stratified(n, size, torch.arange(n) % 2, seed=9, **options)
    run(resumed, 0, 2)
    resumed.load_state_dict(state)
    assert first + run(resumed, done, total) == expected
    index = torch.arange(n)
    same = stratified(n, size, seed=3, **options)
    same.load_state_dict(resumed.state_dict())
    assert torch.equal(same.weights(index), resumed.weights(index))


def test_an_abandoned_epoch_is_not_finished_unless_loaded():
    for labels in (None, [0] * 9):
        sampler = stratified(9, 4, labels)
        next(iter(sampler))
        assert [len(batch) for batch in sampler] == [4, 4, 1]


# --- training, devices, bad input


def test_training_with_weights_equals_a_plain_loop(randn):
    x, y = randn(1, 20, 4, dtype=torch.float32), torch.arange(20) % 3
    losses_of = torch.nn.CrossEntropyLoss(reduction="none")
    labels, results = torch.tensor([0] * 14 + [1] * 4 + [2] * 2), []
    for loop in (False, True):
        model = MLP(4, 5, 3, stream(0, "init"))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        sampler = stratified(20, 6, labels)
        if loop:
            args = model, IndexedDataset(x, y), sampler, losses_of, optimizer
            assert train(*args, num_epochs=3, weights=sampler.weights).steps == 12
        for batch in [] if loop else flow(sampler, 12):
            optimizer.zero_grad()
            shares = torch.tensor([3 * [14, 4, 2][labels[i]] / 20 for i in batch])
            (shares * losses_of(model(x[batch]), y[batch])).mean().backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def everything(labels):
    sampler, plain = stratified(8, 3, labels), stratified(8, 3)
    index = torch.tensor([7, 0, 3], device=labels.device)
    return [list(sampler), list(sampler), list(plain), sampler.weights(index), plain.weights(index)]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, torch.tensor([2, 2, 2, 0, 0, 5, 5, 5]))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, torch.tensor([2, 2, 2, 0, 0, 5, 5, 5]))


def test_bad_input_is_refused():
    for n, size, drop_last in ((0, 2, False), (3, 0, False), (3, 4, True)):
        with pytest.raises(ValueError, match=f"no batch: num_examples={n}, batch_size={size}"):
            stratified(n, size, drop_last=drop_last)
    for labels in (torch.zeros(4).long(), torch.zeros(5, 1).long(), torch.zeros(5)):
        with pytest.raises(ValueError, match="assign must be 5 integers, got"):
            stratified(5, 2, labels)
    for labels in (None, torch.tensor([0, 0, 1, 1, 1])):
        with pytest.raises(TypeError, match=r"indices must be a tensor .*, got list"):
            stratified(5, 2, labels).weights([0, 1])
