"""Streams, initial weights and the order of batches."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainaug.training.networks import MLP, SmallCNN
from trainaug.training.randomness import RandomBatchSampler, initialise, stream

NAMES = ["init", "order", "candidates", "augment", "measure"]


def draw(generator: torch.Generator) -> list[float]:
    return torch.rand(8, generator=generator).tolist()


def test_stream_same_name_same_draws_whatever_the_order_of_calls():
    forward = {name: draw(stream(7, name)) for name in NAMES}
    backward = {name: draw(stream(7, name)) for name in reversed(NAMES)}
    assert forward == backward


def test_stream_names_and_seeds_differ():
    draws = [draw(stream(seed, name)) for seed in range(20) for name in NAMES]
    assert len({tuple(d) for d in draws}) == len(draws)


def test_stream_seed_is_the_documented_hash():
    expected = int.from_bytes(hashlib.sha256(b"3/order").digest()[:8], "big")
    assert stream(3, "order").initial_seed() == expected


@pytest.mark.parametrize(("seed", "name"), [(1.0, "init"), (True, "init"), ("1", "init"), (1, "")])
def test_stream_bad_input_raises_with_the_value(seed, name):
    with pytest.raises(ValueError, match="need an integer seed and a name") as error:
        stream(seed, name)
    assert repr(seed) in str(error.value)


@pytest.mark.parametrize("build", [lambda g: MLP(5, 4, 3, g), lambda g: SmallCNN(10, g)])
def test_weights_depend_on_the_generator_alone(build):
    a, b, other = (build(stream(seed, "init")).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], other[k]) for k in a)
    assert all(v.isfinite().all() and not v.is_meta for v in a.values())


def test_initialise_has_the_documented_distribution():
    with torch.device("meta"):
        layers = nn.Sequential(
            nn.Linear(400, 300),
            nn.Conv2d(8, 64, 5),
            nn.Embedding(500, 40, padding_idx=3),
            nn.BatchNorm1d(6),
            nn.LayerNorm(7),
        )
    initialise(layers, stream(0, "init"))
    layers[3].running_mean += 5.0
    initialise(layers, stream(1, "init"))
    for layer, fan_in in [(layers[0], 400), (layers[1], 8 * 25)]:
        bound = fan_in**-0.5
        assert layer.weight.abs().max() <= bound
        # 12 800 draws and more: the relative error of a standard deviation is below 1 %
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert 0 < layer.bias.abs().max() <= bound
    assert layers[2].weight.std().item() == pytest.approx(1.0, rel=0.03)
    assert not layers[2].weight[3].any()
    for layer in layers[3:]:
        assert torch.equal(layer.weight, torch.ones_like(layer.weight))
        assert not layer.bias.any()
    assert not layers[3].running_mean.any()


@pytest.mark.filterwarnings("ignore:.*no-op:UserWarning")
def test_initialise_on_meta_equals_initialise_in_place():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))

    with torch.device("meta"):
        on_meta = build()
    with torch.random.fork_rng([]):
        in_place = build()
    initialise(on_meta, stream(0, "init"))
    initialise(in_place, stream(0, "init"))
    for a, b in zip(on_meta.state_dict().values(), in_place.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_initialise_refuses_what_it_does_not_know():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(TypeError, match="Scale"):
        initialise(Scale(), stream(0, "init"))


def test_initialise_keeps_constant_buffers_but_refuses_them_without_memory():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full((1,), 0.5))

    model = Centred()
    initialise(model, stream(0, "init"))
    assert model.mean.item() == 0.5
    with torch.device("meta"):
        empty = Centred()
    with pytest.raises(TypeError, match="Centred"):
        initialise(empty, stream(0, "init"))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_sampler_gives_each_example_once_an_epoch(n, batch_size, seed):
    sampler = RandomBatchSampler(n, batch_size, stream(seed, "order"))
    for _ in range(2):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(n))
        assert all(len(batch) == batch_size for batch in batches[:-1])
    if batch_size <= n:
        full = list(RandomBatchSampler(n, batch_size, stream(seed, "order"), drop_last=True))
        again = list(RandomBatchSampler(n, batch_size, stream(seed, "order")))
        assert full == again[: n // batch_size]


def test_sampler_reshuffles_even_after_an_epoch_cut_short():
    sampler = RandomBatchSampler(40, 8, stream(0, "order"))
    first = next(iter(sampler))
    second = list(sampler)
    assert sorted(i for batch in second for i in batch) == list(range(40))
    assert first != second[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.booleans())
def test_sampler_resumes_where_it_stopped(n, batch_size, taken, drop_last):
    drop_last = drop_last and batch_size <= n

    def endless(sampler):
        while True:
            yield from sampler

    def sampler(seed):
        return RandomBatchSampler(n, batch_size, stream(seed, "order"), drop_last)

    whole = endless(sampler(0))
    interrupted = sampler(0)
    source = endless(interrupted)
    for _ in range(taken):
        assert next(source) == next(whole)
    resumed = sampler(99)
    resumed.load_state_dict(interrupted.state_dict())
    source = endless(resumed)
    for _ in range(3 * len(resumed) + 1):
        assert next(source) == next(whole)


@pytest.mark.parametrize(("n", "b", "drop"), [(0, 4, False), (4, 0, False), (4, 5, True)])
def test_sampler_without_a_batch_raises_with_the_sizes(n, b, drop):
    with pytest.raises(ValueError, match=f"num_examples={n}, batch_size={b}"):
        RandomBatchSampler(n, b, stream(0, "order"), drop_last=drop)


def test_sampler_batch_larger_than_the_set_is_the_whole_set():
    (batch,) = RandomBatchSampler(3, 10, stream(0, "order"))
    assert sorted(batch) == [0, 1, 2]
