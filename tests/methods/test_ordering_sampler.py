"""The samplers that ask the model: permutations, what they offer and what they take."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.ordering import PerfectOrderingSampler, SampleLossSampler
from trainaug.training.randomness import RandomBatchSampler, stream

KINDS = ["partition", "resampled"]


class Indices:
    """Examples that are their own index."""

    def __init__(self, n):
        self.x = torch.arange(n, device="cpu")

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices):
        return self.x[indices], self.x[indices], self.x[indices]


class Recorder:
    """Score batches of indices by a pseudo-random number in a few levels; remember the offers."""

    def __init__(self, levels=5):
        self.levels, self.seen = levels, []

    def __call__(self, x, y, mask=None):
        kept = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        offers = [row[keep].tolist() for row, keep in zip(x, kept, strict=True)]
        scores = [sum(i * i + 7 * i + 3 for i in offer) % self.levels for offer in offers]
        self.seen.append((offers, scores))
        return torch.tensor(scores, dtype=torch.float32)


def nothing(x, y, mask):
    raise AssertionError("scored")


def ordered(data, batch_size, scorer, *, seed=0, **options):
    generators = {"generator": stream(seed, "order")}
    generators["candidate_generator"] = stream(seed, "candidates")
    return PerfectOrderingSampler(data, batch_size, scorer=scorer, **generators, **options)


def by_loss(data, batch_size, losses_of, *, seed=0, **options):
    g = stream(seed, "order")
    return SampleLossSampler(data, batch_size, losses_of=losses_of, generator=g, **options)


def uneven(indices):
    return torch.tensor([(i * 7) % 5 for i in indices], dtype=torch.float32)


# --- permutations


@pytest.mark.oracle("ord.P1")
@pytest.mark.oracle("ord.P2")
@pytest.mark.parametrize("num_candidates", [1, 3, 50])
@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (15, 4), (3, 4), (4, 4), (5, 1), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_corners_of_the_sizes(kind, n, size, num_candidates):
    sampler = ordered(Indices(n), size, Recorder(), num_candidates=num_candidates, candidates=kind)
    for _ in range(3):
        batches = list(sampler)
        assert len(batches) == len(sampler) == math.ceil(n / size)
        assert all(batches)
        assert sorted(itertools.chain(*batches)) == list(range(n))


@pytest.mark.oracle("ord.P1")
@pytest.mark.oracle("ord.P2")
@given(
    st.integers(1, 30), st.integers(1, 8), st.integers(1, 9), st.booleans(), st.sampled_from(KINDS)
)
@settings(max_examples=150, deadline=None)
def test_every_example_comes_once_an_epoch(n, size, num_candidates, drop_last, kind):
    if drop_last and size > n:
        with pytest.raises(ValueError, match=f"no batch.*drop_last=True, batch_size={size}"):
            ordered(Indices(n), size, Recorder(), drop_last=True)
        return
    options = {"num_candidates": num_candidates, "candidates": kind, "drop_last": drop_last}
    sampler, whole = ordered(Indices(n), size, Recorder(), **options), n // size * size
    for epoch in range(3):
        if epoch:
            sampler.set_epoch(epoch)
        batches = list(sampler)
        flat = list(itertools.chain(*batches))
        assert len(batches) == len(sampler)
        assert sum(len(batch) < size for batch in batches) == (0 if drop_last else n % size > 0)
        assert len(set(flat)) == len(flat) == (whole if drop_last else n)
        assert set(flat) <= set(range(n))
    assert sampler.emitted == 3 * len(sampler)


@pytest.mark.oracle("ord.P1")
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 5), st.booleans())
@settings(max_examples=80, deadline=None)
def test_examples_sorted_by_loss_come_once_and_are_sorted_anew(n, size, every, descending):
    asked = []

    def changing(indices):
        asked.append(list(indices))
        return uneven([i + len(asked) for i in indices])

    options = {"refresh_every": every, "descending": descending}
    sampler = by_loss(Indices(n), size, changing, **options)
    for _ in range(2):
        asked.clear()
        batches = list(sampler)
        flat = list(itertools.chain(*batches))
        assert len(batches) == len(sampler) == math.ceil(n / size)
        assert sorted(flat) == list(range(n))
        assert len(asked) == math.ceil(len(batches) / every)
        for number, indices in enumerate(asked):
            part = flat[number * every * size : (number + 1) * every * size]
            losses = uneven([i + number + 1 for i in indices]).tolist()
            # stable: equal losses stay in the shuffled order in which they were asked
            keys = [-loss if descending else loss for loss in losses]
            rank = sorted(range(len(indices)), key=keys.__getitem__)
            assert part == [indices[k] for k in rank[: len(part)]]


@pytest.mark.oracle("ord.P3")
@given(st.integers(1, 30), st.integers(1, 8), st.booleans(), st.integers(2, 9))
@settings(max_examples=80, deadline=None)
def test_the_permutations_are_those_of_random_reshuffling(n, size, drop_last, num_candidates):
    if drop_last and size > n:
        return
    plain = RandomBatchSampler(n, size, stream(0, "order"), drop_last)
    one = ordered(Indices(n), size, nothing, num_candidates=1, drop_last=drop_last)
    options = {"num_candidates": num_candidates, "drop_last": drop_last}
    many = ordered(Indices(n), size, Recorder(), **options)
    for _ in range(3):
        expected = list(plain)
        assert list(one) == expected
        assert sorted(many) == sorted(expected)  # other order, same batches


# --- candidates


@given(st.integers(2, 30), st.integers(1, 5), st.integers(2, 9), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_the_first_of_the_best_offers_is_taken(n, size, num_candidates, levels):
    recorder = Recorder(levels)
    sampler = ordered(Indices(n), size, recorder, num_candidates=num_candidates)
    partition = list(RandomBatchSampler(n, size, stream(0, "order")))
    left = list(partition)
    for batch in sampler:
        if len(left) > 1:
            offers, scores = recorder.seen.pop()
            assert len(offers) == min(num_candidates, len(left))
            assert all(offer in left for offer in offers)
            assert len({tuple(offer) for offer in offers}) == len(offers)
            assert batch == offers[scores.index(max(scores))]
            assert sampler.last_scores.tolist() == scores
        else:
            assert sampler.last_scores is None
        assert not recorder.seen
        left.remove(batch)
    assert not left


def test_candidates_are_drawn_evenly_and_ties_go_to_the_first_drawn():
    recorder, counts = Recorder(1), torch.zeros(6)
    sampler = ordered(Indices(6), 1, recorder, num_candidates=2)
    firsts = []
    for _ in range(600):
        partition = sampler.generators["order"].get_state()
        batch = next(iter(sampler))
        offers, _ = recorder.seen[-1]
        assert batch == offers[0]
        g = torch.Generator()
        g.set_state(partition)
        places = torch.randperm(6, generator=g).tolist()
        counts[[places.index(offer[0]) for offer in offers]] += 1
        firsts.append(places.index(batch[0]))
    # five standard deviations of a share of 600 draws
    assert float((counts / 600 - 2 / 6).abs().max()) < 5 * math.sqrt(2 / 9 / 600)
    share = torch.bincount(torch.tensor(firsts), minlength=6) / 600
    assert float((share - 1 / 6).abs().max()) < 5 * math.sqrt(5 / 36 / 600)


@given(st.integers(2, 25), st.integers(1, 5), st.integers(2, 6))
@settings(max_examples=80, deadline=None)
def test_resampled_candidates_are_subsets_of_what_remains(n, size, num_candidates):
    recorder = Recorder(3)
    options = {"num_candidates": num_candidates, "candidates": "resampled"}
    sampler = ordered(Indices(n), size, recorder, **options)
    left = set(range(n))
    for batch in sampler:
        if len(left) > size:
            offers, scores = recorder.seen.pop()
            assert len(offers) == num_candidates
            for offer in offers:
                assert len(set(offer)) == len(offer) == size
                assert set(offer) <= left
            assert batch == offers[scores.index(max(scores))]
        left -= set(batch)
    assert not left


def test_resampled_candidates_overlap_and_compose_easier_batches():
    first = {}
    for kind in KINDS:
        recorder = Recorder()
        next(iter(ordered(Indices(40), 4, recorder, num_candidates=10, candidates=kind)))
        first[kind] = list(itertools.chain(*recorder.seen[0][0]))
    assert len(set(first["partition"])) == 40
    assert 4 < len(set(first["resampled"])) < 40


# --- devices


def everything(x):
    """Draw on the CPU, wherever the examples live."""
    data, actual = Indices(14), []
    data.x = x
    for kind in KINDS:
        sampler = ordered(data, 4, lambda x, y, mask: x.sin().sum(1), candidates=kind)
        actual += [list(sampler), list(sampler)]
    return [*actual, list(by_loss(data, 4, lambda indices: x[indices].sin()))]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, torch.arange(14))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, torch.arange(14))
