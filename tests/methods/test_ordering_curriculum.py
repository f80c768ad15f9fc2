"""Pacing functions and the sampler that they drive."""

from __future__ import annotations

import io
import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.ordering import (
    PacedSampler,
    exponential_pacing,
    linear_pacing,
    root_pacing,
    step_pacing,
)
from trainaug.training.randomness import RandomBatchSampler, stream

ORDERS = ["ascending", "descending", "random"]


def through_a_file(state):
    """Save and load, with nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def paced(scores, pacing, num_steps, batch_size, *, generator, **options):
    return PacedSampler(
        scores, batch_size, generator, pacing=pacing, num_steps=num_steps, **options
    )


@st.composite
def pacings(draw, start=0.01):
    """Return a pacing function that ends at 1, and the share at its start."""
    a, b = draw(st.floats(0.01, 1)), draw(st.floats(start, 1))
    kind = draw(st.sampled_from(["linear", "root", "step", "exponential"]))
    if kind == "linear":
        return partial(linear_pacing, a=a, b=b), b
    if kind == "root":
        return partial(root_pacing, a=a, b=b, q=draw(st.floats(0.2, 5))), b
    if kind == "step":
        return partial(step_pacing, a=a, b=b), b
    every = draw(st.floats(0.01, 1))
    c = max(1.5, 1.001 * (1 / b) ** (1 / math.floor(1 / every + 1e-9)))
    return partial(exponential_pacing, b=b, c=c, every=every), b


# --- pacing functions


@pytest.mark.oracle("ord.P15")
@given(pacings())
@settings(max_examples=150, deadline=None)
def test_pacing_rises_to_one(actual):
    pacing, start = actual
    shares = [pacing(i / 1000) for i in range(1001)]
    assert shares[0] == pytest.approx(start, rel=1e-9)
    assert 0 < shares[0] <= shares[-1] == 1
    assert all(low <= high for low, high in itertools.pairwise(shares))


@pytest.mark.oracle("ord.P15")
def test_pacing_at_the_start_in_the_middle_and_at_the_end():
    def values(pacing, *progress):
        return pytest.approx([pacing(t) for t in progress], rel=1e-12)

    linear = partial(linear_pacing, a=0.8, b=0.2)
    assert values(linear, 0.0, 0.2, 0.4, 0.8, 1.0) == [0.2, 0.4, 0.6, 1, 1]
    root = partial(root_pacing, a=0.8, b=0.6)
    assert values(root, 0.0, 0.4, 0.8, 1.0) == [0.6, math.sqrt(0.68), 1, 1]
    cubic = partial(root_pacing, a=1.0, b=0.5, q=3)
    assert values(cubic, 0.0, 0.5, 1.0) == [0.5, (9 / 16) ** (1 / 3), 1]
    step = partial(step_pacing, a=0.5, b=0.3)
    assert values(step, 0.0, 0.49, 0.5, 1.0) == [0.3, 0.3, 1, 1]
    growing = partial(exponential_pacing, b=0.1, c=2, every=0.1)
    assert values(growing, 0.0, 0.09, 0.1, 0.3, 0.39, 0.4, 1.0) == [0.1, 0.1, 0.2, 0.8, 0.8, 1, 1]
    for pacing in (linear_pacing, root_pacing, step_pacing):
        assert values(partial(pacing, a=1.0, b=1.0), 0.0, 0.5, 1.0) == [1, 1, 1]


# --- batches


@pytest.mark.oracle("ord.P15")
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("n", [7, 12, 13])
def test_all_in_use_is_random_reshuffling(n, order, randn):
    scores = randn(n, n)
    pacing, g = partial(linear_pacing, a=0.5, b=1.0), stream(0, "order")
    batches = list(PacedSampler(scores, 4, g, pacing=pacing, num_steps=11, order=order))
    plain = RandomBatchSampler(n, 4, stream(0, "order"))
    endless = (batch for _ in itertools.count() for batch in plain)
    ranked = scores.argsort(descending=order == "descending").tolist()
    assert batches == [[ranked[i] for i in batch] for batch in itertools.islice(endless, 11)]


@pytest.mark.oracle("ord.P15")
@given(
    pacings(0.3), st.integers(4, 30), st.integers(1, 40), st.sampled_from(ORDERS), st.integers(0, 9)
)
@settings(max_examples=150, deadline=None)
def test_batches_come_from_the_pool_and_use_it_up(actual, n, steps, order, seed):
    pacing, _ = actual
    size = min(3, max(1, math.ceil(0.3 * n) - 1))
    scores = torch.arange(n).flip(0) // 2  # ties
    sampler = paced(scores, pacing, steps, size, order=order, generator=stream(seed, "o"))
    easy = sorted(range(n), key=lambda i: (int(scores[i]), i))
    if order != "random":
        assert sampler.ranked == (easy if order == "ascending" else easy[::-1])
    assert sorted(sampler.ranked) == list(range(n))
    for _ in range(2):
        batches = list(sampler)
        assert len(batches) == len(sampler) == steps
        pools = [sampler.pool_size(step) for step in range(steps)]
        assert pools == sorted(pools)
        seen: set[int] = set()
        for step, batch in enumerate(batches):
            assert -1e-6 < pools[step] - pacing(step / steps) * n < 1  # rounded up
            if step == 0 or pools[step] != pools[step - 1] or len(seen) == pools[step]:
                seen = set()
            assert set(batch) <= set(sampler.ranked[: pools[step]]) - seen
            assert len(set(batch)) == len(batch) == min(size, pools[step] - len(seen))
            seen |= set(batch)


@pytest.mark.oracle("ord.P15")
def test_descending_is_the_exact_reverse_and_random_is_neither():
    scores, pacing = torch.tensor([2.0, 1, 2, 0, 1, 2]), partial(step_pacing, a=0.5, b=0.5)
    ranked = {
        order: paced(scores, pacing, 4, 2, order=order, generator=stream(0, "o")).ranked
        for order in ORDERS
    }
    assert ranked["ascending"] == [3, 1, 4, 0, 2, 5]
    assert ranked["descending"] == [5, 2, 0, 4, 1, 3]
    assert ranked["random"] not in (ranked["ascending"], ranked["descending"])
    again = paced(-scores, pacing, 4, 2, order="random", generator=stream(0, "o"))
    assert again.ranked == ranked["random"]  # whatever the scores are


@given(pacings(0.3), st.integers(0, 20), st.sampled_from(ORDERS))
@settings(max_examples=40, deadline=None)
def test_paced_sampler_resumes_anywhere(actual, done, order):
    scores = torch.arange(13) % 5

    def sampler(seed):
        g = stream(seed, "order")
        return paced(scores, actual[0], 20, 3, order=order, generator=g)

    straight, short = sampler(0), sampler(0)
    expected = [*straight, *straight]
    flow = iter(short)
    first = list(itertools.islice(flow, done))
    state = through_a_file(short.state_dict())
    next(flow, None)  # the state is a copy: going on does not change it
    resumed, again = sampler(98), sampler(99)
    resumed.load_state_dict(state)
    again.load_state_dict(through_a_file(resumed.state_dict()))
    for other in (resumed, again):
        rest = list(other) if done < 20 else []  # a run that is over is not begun again
        assert first + rest + list(other) == expected


def test_paced_sampler_refuses_bad_input():
    scores, pacing = torch.arange(10.0), partial(linear_pacing, a=0.5, b=0.3)

    def make(scores=scores, pacing=pacing, steps=5, size=3, order="ascending"):
        return paced(scores, pacing, steps, size, order=order, generator=stream(0, "o"))

    for bad in (scores[None], scores.where(scores < 9, math.nan), scores / 0):
        with pytest.raises(ValueError, match="finite and \\(n,\\)"):
            make(bad)
    with pytest.raises(ValueError, match="ascending, descending, random, got 'up'"):
        make(order="up")
    for steps, size in ((0, 3), (5, 0)):
        with pytest.raises(ValueError, match=f"num_steps={steps} and batch_size={size}"):
            make(steps=steps, size=size)
    for bad in (lambda t: 0.5, lambda t: t, lambda t: 1 + (t - 1) * t, lambda t: 1 + t):
        with pytest.raises(ValueError, match="pacing must rise from above 0 to 1"):
            make(pacing=bad)
    with pytest.raises(ValueError, match=r"first pool, 0.3 of 10, is below 4"):
        make(size=4)
    tight = partial(linear_pacing, a=0.5, b=0.07)  # 0.07 * 100 is above 7 by rounding
    assert make(torch.arange(100.0), tight, size=7).pool_size(0) == 7
    with pytest.raises(ValueError, match=r"first pool, 0.07 of 100, is below 8"):
        make(torch.arange(100.0), tight, size=8)
    for pacing in (linear_pacing, root_pacing, step_pacing):
        for a, b in ((0, 0.5), (1.1, 0.5), (0.5, 0), (0.5, 1.1), (math.nan, 0.5)):
            with pytest.raises(ValueError, match=f"a={a}.*b={b}"):
                pacing(0.5, a=a, b=b)
    with pytest.raises(ValueError, match="q must be positive, got 0"):
        root_pacing(0.5, a=0.5, b=0.5, q=0)
    with pytest.raises(ValueError, match="c must be above 1, got 1"):
        exponential_pacing(0.5, b=0.5, c=1, every=0.1)
    with pytest.raises(ValueError, match="must be in"):
        exponential_pacing(0.5, b=0.5, c=2, every=0)


def test_a_large_pool_draws_no_more_than_it_uses():
    """Where it grows with every step, a permutation of it would cost more than the training."""
    n, size, steps = 20_000, 40, 60
    pacing = partial(linear_pacing, a=0.5, b=0.5)
    sampler = paced(torch.arange(n), pacing, steps, size, generator=stream(0, "order"))
    whole = paced(torch.arange(n), lambda t: 1.0, steps, size, generator=stream(0, "order"))
    counts = torch.zeros(n)
    for run in range(40):
        batches = list(sampler)
        if run % 10 == 0:
            for step, batch in enumerate(batches):
                assert len(set(batch)) == size
                assert max(batch) < sampler.pool_size(step)
            tail = list(itertools.chain(*batches[steps // 2 :]))  # all in use: one pass
            assert len(set(tail)) == len(tail)
        for batch in whole:
            counts[batch] += 1
    assert float(counts.max()) <= 40
    halves = counts.view(2, -1).sum(1) / counts.sum()
    assert float((halves - 0.5).abs().max()) < 5 * 0.5 / float(counts.sum()) ** 0.5
    resumed = paced(torch.arange(n), pacing, steps, size, generator=stream(7, "order"))
    flow = iter(sampler)
    next(flow)
    resumed.load_state_dict(through_a_file(sampler.state_dict()))
    assert list(resumed) == list(flow)


# --- devices


def everything(scores):
    """Draw on the CPU, wherever the scores live."""
    g, pacing = stream(0, "order"), partial(root_pacing, a=0.5, b=0.5)
    return [list(paced(scores, pacing, 6, 2, order=o, generator=g)) for o in ORDERS]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 6))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 6))
