"""GraB against an exact loop, its balance, its memory, and what it refuses."""

from __future__ import annotations

import io
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.ordering import GraBSampler
from trainaug.training.randomness import stream


def through_a_file(state):
    """Save and load, with nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def norm(vector):
    return sum(v * v for v in vector)


def loop(order, gradients, mean):
    """One epoch by the definition, in fractions: the next order and the new mean."""
    dim = len(mean)
    signed, total = [Fraction(0)] * dim, [Fraction(0)] * dim
    front, back = [], []
    for unit in order:
        gradient = [Fraction(v) for v in gradients[unit]]
        centred = [g - m for g, m in zip(gradient, mean, strict=True)]
        plus = [s + c for s, c in zip(signed, centred, strict=True)]
        minus = [s - c for s, c in zip(signed, centred, strict=True)]
        if norm(plus) <= norm(minus):
            signed = plus
            front.append(unit)
        else:
            signed = minus
            back.append(unit)
        total = [t + g for t, g in zip(total, gradient, strict=True)]
    return front + back[::-1], [t / len(order) for t in total]


def epoch(sampler, gradients):
    """Visit every unit and record its gradient; return the order of the visits."""
    order = []
    for unit in sampler:
        order.append(unit)
        sampler.update(unit, gradients[unit])
    return order


@st.composite
def problems(draw):
    """Integer gradients of 1, 2, 4 or 8 units: all sums and means are exact."""
    n, dim = 2 ** draw(st.integers(0, 3)), draw(st.integers(1, 3))
    rows = st.lists(st.integers(-4, 4), min_size=dim, max_size=dim)
    return draw(st.lists(st.lists(rows, min_size=n, max_size=n), min_size=1, max_size=4))


@pytest.mark.oracle("ord.P17")
@given(problems(), st.integers(0, 9), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=150, deadline=None)
def test_orders_match_the_exact_loop(epochs, seed, dtype):
    n, dim = len(epochs[0]), len(epochs[0][0])
    sampler, mean = GraBSampler(n, dim, generator=stream(seed, "order")), [Fraction(0)] * dim
    order = torch.randperm(n, generator=stream(seed, "order")).tolist()
    for gradients in epochs:
        assert len(sampler) == n
        assert epoch(sampler, torch.tensor(gradients, dtype=dtype, requires_grad=True)) == order
        order, mean = loop(order, gradients, mean)
        assert sampler.order == order
        assert sorted(order) == list(range(n))


@pytest.mark.oracle("ord.P17")
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(n, dim, seed):
    g = stream(seed, "gradients")
    sampler = GraBSampler(n, dim, generator=stream(seed, "order"))
    for _ in range(4):
        assert sorted(epoch(sampler, torch.randn(n, dim, generator=g))) == list(range(n))


def longest_prefix(order, gradients):
    return float(gradients[order].cumsum(0).norm(dim=1).max())


@pytest.mark.oracle("ord.P17")
@pytest.mark.parametrize("n", [2, 8, 13])
def test_alternating_vectors_stay_as_balanced_as_they_are(n, randn):
    sampler, v = GraBSampler(n, 5, generator=stream(0, "order")), randn(1, 5)
    signs = torch.zeros(n, dtype=torch.float64)
    signs[sampler.order] = 1.0 - 2 * (torch.arange(n) % 2).double()  # as they are visited
    gradients = signs.unsqueeze(1) * v
    before = longest_prefix(sampler.order, gradients)
    for _ in range(3):
        epoch(sampler, gradients)
        assert longest_prefix(sampler.order, gradients) <= before * (1 + 1e-12)


@pytest.mark.oracle("ord.P17")
def test_unbalanced_vectors_become_balanced(randn):
    v = randn(1, 5)
    sampler = GraBSampler(16, 5, generator=stream(0, "order"))
    signs = torch.zeros(16, dtype=torch.float64)
    signs[sampler.order] = torch.tensor([1.0] * 8 + [-1.0] * 8).double()
    actual = [longest_prefix(sampler.order, signs.unsqueeze(1) * v) / float(v.norm())]
    for _ in range(3):
        epoch(sampler, signs.unsqueeze(1) * v)
        actual.append(longest_prefix(sampler.order, signs.unsqueeze(1) * v) / float(v.norm()))
    assert actual == pytest.approx([8, 4, 2, 1])


@pytest.mark.oracle("ord.P17")
def test_random_vectors_are_balanced_better_than_by_chance(randn):
    gradients = randn(1, 128, 8)
    gradients -= gradients.mean(0)
    sampler = GraBSampler(128, 8, generator=stream(0, "order"))
    chance = [
        longest_prefix(torch.randperm(128, generator=stream(i, "o")), gradients) for i in range(20)
    ]
    for _ in range(10):
        epoch(sampler, gradients)
    assert longest_prefix(sampler.order, gradients) < 0.6 * min(chance)


@pytest.mark.oracle("ord.P17")
def test_memory_of_vectors_does_not_grow_with_their_number():
    def numbers(n):
        sampler = GraBSampler(n, 50, generator=stream(0, "order"))
        sizes = []
        for unit in sampler:
            sampler.update(unit, torch.ones(50))
            held = vars(sampler).values()
            sizes.append(sum(v.numel() for v in held if isinstance(v, torch.Tensor)))
            assert all(type(i) is int for v in held if isinstance(v, list) for i in v)
        return max(sizes)

    assert numbers(4) == numbers(300) == 3 * 50


@pytest.mark.parametrize("done", range(13))
def test_grab_resumes_anywhere(done, randn):
    gradients = [randn(seed, 4, 3) for seed in range(3)]

    def visits(sampler, first=0):
        for number in range(first, 12):
            if number % 4 == 0 or number == first:
                flow = iter(sampler)
            unit = next(flow)
            sampler.update(unit, gradients[number // 4][unit])
            yield unit

    straight = GraBSampler(4, 3, generator=stream(0, "order"))
    expected = list(visits(straight))
    sampler = GraBSampler(4, 3, generator=stream(0, "order"))
    flow = visits(sampler)
    first = [next(flow) for _ in range(done)]
    state = through_a_file(sampler.state_dict())
    next(flow, None)  # the state is a copy: going on does not change it
    resumed = GraBSampler(4, 3, generator=stream(9, "order"))
    resumed.load_state_dict(state)
    again = GraBSampler(4, 3, generator=stream(8, "order"))
    again.load_state_dict(through_a_file(resumed.state_dict()))
    for other in (resumed, again):
        assert first + list(visits(other, done)) == expected
        assert other.order == straight.order


def test_bad_input_is_refused():
    for n, dim in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"num_units={n} and dim={dim}"):
            GraBSampler(n, dim, generator=stream(0, "order"))
    sampler = GraBSampler(3, 2, generator=stream(0, "order"))
    first, second, _ = sampler.order
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=rf"gradient \(2,\) of unit {first}, got \(3,\)"):
        sampler.update(first, torch.ones(3))
    with pytest.raises(ValueError, match=f"of unit {first}, got .* of unit {second}"):
        sampler.update(second, torch.ones(2))
    after = sampler.state_dict()
    assert all(
        torch.equal(v, after[k]) if isinstance(v, torch.Tensor) else v == after[k]
        for k, v in before.items()
    )


# --- devices


def everything(gradients):
    g, device = stream(0, "order"), gradients.device
    sampler = GraBSampler(len(gradients), gradients.shape[1], generator=g, device=device)
    orders = [epoch(sampler, gradients) for _ in range(3)]
    return [orders, sampler.order]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 7, 3))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 7, 3))
